/* mass.cu — the score pass: how much attention the last queries gave to each row, from the lse that
 * attention left.
 *
 *     out[h][j] += (or max=) over queries i of  w(q_i, j) * exp(scale * q_i . k_j - lse_i)
 *
 * with scores capped and sloped where attention's were. A block has a tile of rows of one lane, in
 * shared memory as f32, and one head; a lane of each warp has a row of it. The block's warps take
 * the queries in turn, each its own sum (or maximum); those are joined in the order of warps, so
 * that results do not depend on timing. Queries that count for no row of a tile, or see none, are
 * skipped. Semantics: core/cpu/mass.c.
 *
 * This is for rows and heads that mass_tiles.cu, on tensor cores, does not take.
 *
 * Shared memory, bytes: parts 1,024; the tile 4 rows * (d | 1), for d = 128 16.1 KiB, for 512 32.1
 * KiB with half as many rows. Sums are f32: a warp's over its queries i, i + 8, …, then over warps.
 * A block reads its rows once and all queries of its head that count: products in f32 bound it. */
#include "mass.cuh"

static constexpr int WARPS = 8;

/* Joins what the warps hold for a row, warp 0's first. A NaN in a later warp does not win a
 * maximum. */
static __device__ __forceinline__ float join_warps(const float *parts, int row, bool max) {
  float x = parts[row];
  for (int w = 1; w < WARPS; w++) {
    float y = parts[w * WARP + row];
    x = !max ? x + y : y > x ? y : x;
  }
  return x;
}

/* Grid: tiles of rows, heads. */
template <bool BENT> static __global__ void mass_kernel(mass_args a) {
  __shared__ float parts[WARPS * WARP];
  PYR_SHARED(float, tile);
  int head = static_cast<int>(blockIdx.y), g = head / a.group, rows = tile_rows(a.f.d),
      ld = tile_ld(a.f.d), lane = lane_of_warp();
  const pyr_lane_view &view = a.lanes[g];
  const pyr_range range = a.ranges[g];
  int64_t row = range.begin + static_cast<int64_t>(blockIdx.x) * rows, left = range.end - row,
      mine = row + lane;
  if (left <= 0) return;
  bool real = lane < rows && lane < left;
  load_tile(tile, rows, ld, view, a.f, 0, a.f.d, row, left, 0);
  __syncthreads();
  /* A row at position 98, due at 101 with 3 queries, and queries at 97 to 103:
   *
   *     query      97     98     99     100        101          102    103
   *     sees it    no     yes    yes    yes        yes          yes    yes
   *     counts     no     no     1      1 + slope  1 + 2 slope  no     no */
  int32_t position = real ? view.positions[mine] : 0;
  /* Lanes beyond the tile's rows compute with another lane's row, and write nothing; they take
   * part, as every lane of a warp must in a ballot. */
  counting c = counting_of(a.weighting, mine - range.origin);
  const float *k = tile + lane % rows * ld;
  float sum = a.max ? -INFINITY : 0.0f;
  /* Before each turn: sum is of the warp's queries before i that count for the lane's row and see
   * it. */
  for (int64_t i = warp_of_block(); i < a.n; i += WARPS) {
    int64_t at = a.by_place ? a.place + i : a.q_pos[i],
        age = static_cast<int64_t>(a.q_pos[i]) - position;
    float lse = a.lse[i * a.heads + head];
    bool counts = real && lse != -INFINITY && at >= c.base && at <= c.due && age >= 0
        && (a.window == 0 || age < a.window);
    if (__ballot_sync(ALL_LANES, counts) == 0) continue;
    const float *q = a.q + (i * a.heads + head) * a.f.d;
    /* All lanes multiply if one of the rows counts: a lane's own row decides only what becomes of
     * p. */
    float s = 0;
    for (int d = 0; d < a.f.d; d++) s += q[d] * a.scale * k[d];
    if (!counts) continue;
    if (BENT) s = bent_score(s, a.cap, a.slopes ? a.slopes[head] : 0.0f, a.q_pos[i], position);
    float p = given_by(a, expf(s - lse), s - lse);
    if (a.slope != 0) p *= 1.0f + a.slope * static_cast<float>(at - c.base);
    sum = !a.max ? sum + p : p > sum ? p : sum;
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (warp_of_block() != 0 || !real) return;
  float *out = a.out + head * a.stride + (mine - range.begin),
      mass = join_warps(parts, lane, a.max);
  *out = !a.max ? *out + mass : mass > *out ? mass : *out;
}

/* One call is one sequence's, of all its lanes; `slope` is the ramp's rise from query to query:
 * with 5 queries and a ramp of 1.2 it is .05. */
static pyr_status cuda_mass(pyr_backend *be, const pyr_mass *m, pyr_layout layout, int32_t heads,
                            int32_t kv_heads, float scale) {
  mass_args a = { m->out, m->stride, m->q, m->lse, m->q_pos, nullptr, nullptr, m->n,
                  format_of(layout), m->weighting, scale, 0, heads, heads / kv_heads, m->window,
                      m->place, m->reduce == PYR_MAX, m->by_place, m->reduce == PYR_VARIANCE,
                      m->reduce == PYR_ENTROPY, m->cap, m->slopes };
  int64_t longest = 0;
  for (int32_t g = 0; g < kv_heads; g++) {
    int64_t rows = m->ranges[g].end - m->ranges[g].begin;
    longest = rows > longest ? rows : longest;
  }
  if (longest == 0 || m->n <= 0) return PYR_OK;
  if (m->weighting.queries > 1)
    a.slope = (m->weighting.ramp - 1.0f) / static_cast<float>(m->weighting.queries - 1);
  pyr_lane_view *lanes, *device_lanes;
  pyr_range *ranges, *device_ranges;
  cuda_table_begin(be);
  lanes = cuda_room(be, kv_heads, &device_lanes);
  ranges = cuda_room(be, kv_heads, &device_ranges);
  bool fits = lanes && ranges;
  for (int32_t g = 0; g < kv_heads && fits; g++) {
    ranges[g] = m->ranges[g];
    fits = cuda_put_lane(be, &lanes[g], &m->lanes[g], ranges[g].begin, ranges[g].end);
  }
  pyr_status status = cuda_table_send(be, "mass", fits);
  if (status != PYR_OK) return status;
  a.lanes = device_lanes;
  a.ranges = device_ranges;
  bool tiles = cuda_mass_tiles(be, a, longest);
  cuda_of(be)->ways.mass += tiles;
  cuda_of(be)->ways.mass_plain += !tiles;
  if (tiles) return cuda_launched(be, "mass");
  dim3 grid(static_cast<unsigned>(ceil_div(longest, tile_rows(a.f.d))),
            static_cast<unsigned>(heads));
  size_t shared = static_cast<size_t>(tile_rows(a.f.d) * tile_ld(a.f.d)) * sizeof(float);
  if (bends(a)) PYR_LAUNCH(mass_kernel<true>, grid, WARPS * WARP, shared, cuda_of(be), a);
  else PYR_LAUNCH(mass_kernel<false>, grid, WARPS * WARP, shared, cuda_of(be), a);
  return cuda_launched(be, "mass");
}

void cuda_mass_fill(pyr_backend *be) { be->mass = cuda_mass; }
