/* rows.cu — the rows of a cache lane: written, moved, rotated, read as f32, measured. A page is
 * PYR_PAGE_ROWS rows of K, then as many of V (backend.h); where a row lies, row_at says. Semantics:
 * core/cpu/rows.c.
 *
 * A page of 32 rows, d = 64 of f16, 128 bytes a row; a wide page has keys as they came, too,
 * behind:
 *
 *     bytes   0                 4,096             8,192             12,288
 *             | K 0 | K 1 | …   | V 0 | V 1 | …   | K as they came  |
 *     row 37 of a lane: page 1, 5 rows on: K at 640, V at 4,096 + 640
 *
 * Bytes bound all of these kernels. */
#include "convert.cuh"

static constexpr int WARPS = 8;

static unsigned blocks_of(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, WARPS)); }
static __device__ __forceinline__ int64_t row_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * WARPS + warp_of_block();
}

/* ---- store ----------------------------------------------------------------------------------- */

/* A warp for a row of K and of V: a token's in one of its sequence's lanes. One launch for all
 * sequences, calls [count]. Grid: rows of the longest call, eight to a block; calls. k and v are
 * [n][kv_heads][d], so that row `from` of them is of token from / kv_heads, lane from % kv_heads:
 * with 3 lanes row 7 is token 2's in lane 1. Rows are written behind those that the lane has; the
 * caller counts them in afterwards, but where lanes are resident: then a warp has a lane alone, and
 * counts its row. */
static __global__ void store_kernel(const pyr_append *calls, row_format f, int32_t kv_heads) {
  const pyr_append a = calls[blockIdx.y];
  int64_t from = row_of_grid(), i = from / kv_heads;
  if (i >= a.n) return;
  const pyr_lane_view lane = a.lanes[from % kv_heads];
  write_row(row_at(lane, f.bytes, lane.rows + i, 0), f.dtype, a.k + from * f.d, f.d);
  write_row(row_at(lane, f.bytes, lane.rows + i, 1), f.dtype, a.v + from * f.d, f.d);
  __syncwarp();                                        /* all have read the view */
  if (lane_of_warp() != 0) return;
  lane.positions[lane.rows + i] = a.positions[i];
  if (a.learned) lane.history[lane.rows + i] = a.learned[from];
  if (a.resident) a.resident[from].rows = lane.rows + 1;
}

/* Page tables of lanes cover only the rows that are written. */
static pyr_status cuda_store(pyr_backend *be, const pyr_append *a, int count, pyr_layout layout,
                             int32_t kv_heads) {
  pyr_append *calls, *device_calls;
  pyr_lane_view *lanes, *device_lanes;
  int64_t most = 0, described = 0;
  for (int i = 0; i < count; i++) described += a[i].resident == nullptr;
  cuda_table_begin(be);
  calls = cuda_room(be, count, &device_calls);
  lanes = cuda_room(be, described * kv_heads, &device_lanes);
  bool fits = calls != nullptr && lanes != nullptr;
  for (int i = 0; i < count && fits; i++) {
    calls[i] = a[i];
    calls[i].lanes = a[i].resident ? a[i].resident : device_lanes;
    most = a[i].n > most ? a[i].n : most;
    if (a[i].resident) continue;
    device_lanes += kv_heads;
    for (int32_t g = 0; g < kv_heads && fits; g++, lanes++)
      fits = cuda_put_lane(be, lanes, &a[i].lanes[g], a[i].lanes[g].rows,
                           a[i].lanes[g].rows + a[i].n);
  }
  if (fits && most == 0) return PYR_OK;
  pyr_status status = cuda_table_send(be, "store", fits);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(store_kernel, dim3(blocks_of(most * kv_heads), static_cast<unsigned>(count)),
             WARPS * WARP, 0, cuda_of(be), device_calls, format_of(layout), kv_heads);
  return cuda_launched(be, "store");
}

/* ---- page tables ----------------------------------------------------------------------------- */

/* An entry of a lane's page table on the device, and the page that it is to name. */
struct listed { void **at; void *page; };

static __device__ __forceinline__ void put(const listed &entry) { *entry.at = entry.page; }
static __device__ __forceinline__ void put(const pyr_lane_entry &entry) { *entry.to = entry.view; }

template <typename ENTRY> static __global__ void list_kernel(const ENTRY *entries, int64_t count) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) put(entries[i]);
}

/* Puts `count` entries where they say, each as `next` gives it. As many at a time as the
 * descriptions of one call have room for. */
template <typename ENTRY, typename NEXT>
static pyr_status list_all(pyr_backend *be, const char *what, int64_t count, NEXT next) {
  const int64_t most = static_cast<int64_t>(cuda_of(be)->tables[CALL_TABLE].bytes / sizeof(ENTRY));
  for (int64_t left = count, some; left > 0; left -= some) {
    ENTRY *device, *list;
    some = left < most ? left : most;
    cuda_table_begin(be);
    list = cuda_room(be, some, &device);
    for (int64_t i = 0; list && i < some; i++) list[i] = next();
    pyr_status status = cuda_table_send(be, what, list != nullptr);
    if (status != PYR_OK) return status;
    PYR_LAUNCH(list_kernel<ENTRY>, static_cast<unsigned>(ceil_div(some, 256)), 256, 0, cuda_of(be),
               device, some);
    status = cuda_launched(be, what);
    if (status != PYR_OK) return status;
  }
  return PYR_OK;
}

/* Writes addresses of pages into lanes' own page tables on the device. */
static pyr_status cuda_list_pages(pyr_backend *be, const pyr_page_list *lists, int count) {
  int64_t pages = 0, at = count > 0 ? lists->begin : 0;
  for (int i = 0; i < count; i++) pages += lists[i].end - lists[i].begin;
  return list_all<listed>(be, "list_pages", pages, [&]() {
    /* Entries run through the lists one after the other; lists that are empty are stepped over. */
    while (at == lists->end) at = (++lists)->begin;
    listed entry = { lists->table + at, lists->pages[at] };
    at++;
    return entry;
  });
}

static pyr_status cuda_list_lanes(pyr_backend *be, const pyr_lane_entry *entries, int64_t count) {
  return list_all<pyr_lane_entry>(be, "list_lanes", count, [&]() { return *entries++; });
}

/* ---- gather ---------------------------------------------------------------------------------- */

/* Rows move only towards the front, and a block moves a column of all of a lane's, a tile at a
 * time. All of a tile is read before any of it is written (the first barrier), and written before
 * the next is read (the second). idx ascends, so that idx[i] >= i: what later tiles read lies
 * behind all that was written. Rows 0 2 3 6 are kept, in tiles of two:
 *
 *     rows             a b c d e f g h
 *     tile 1: 0 2      a c c d e f g h
 *     tile 2: 3 6      a c d g e f g h      the first four are the lane now
 *
 * Columns are PIECES pieces of a row, a piece for a thread: with 256 threads a tile is 32 rows. K,
 * V and keys as they came are moved alike, by blocks of their own; the last block moves what lies
 * beside the pages. d = 128 of f16: 16 pieces of 16 bytes, 2 columns, 5 blocks a lane (7 where
 * pages are wide). All lanes of a launch have wide pages, or none. */
static constexpr int PIECES = 8;                     /* pieces of a row that a block moves */

template <typename PIECE>
static __global__ void gather_kernel(const pyr_lane_view *to_lanes,
                                     const pyr_lane_view *from_lanes, int bytes,
                                         const int32_t *idx, int64_t k) {
  const pyr_lane_view dst = to_lanes[blockIdx.y], src = from_lanes[blockIdx.y];
  int pieces = bytes / static_cast<int>(sizeof(PIECE)), columns = (pieces + PIECES - 1) / PIECES;
  bool wide = dst.born && src.born;
  if (static_cast<int>(blockIdx.x) == (wide ? 3 : 2) * columns) {
    for (int64_t tile = 0; tile < k; tile += blockDim.x) {
      int64_t to = tile + threadIdx.x;
      bool mine = to < k, history = dst.history && src.history;
      int32_t position = mine ? src.positions[idx[to]] : 0;
      float tracked = mine && history ? src.history[idx[to]] : 0;
      int32_t born = mine && wide ? src.born[idx[to]] : 0;
      __syncthreads();
      if (mine) dst.positions[to] = position;
      if (mine && history) dst.history[to] = tracked;
      if (mine && wide) dst.born[to] = born;
      __syncthreads();
    }
    return;
  }
  int what = static_cast<int>(blockIdx.x) / columns;
  int piece = static_cast<int>(blockIdx.x) % columns * PIECES
      + static_cast<int>(threadIdx.x) % PIECES;
  int64_t rows = blockDim.x / PIECES;
  for (int64_t tile = 0; tile < k; tile += rows) {
    int64_t to = tile + threadIdx.x / PIECES;
    bool mine = to < k && piece < pieces;
    PIECE value = {};
    if (mine) value = reinterpret_cast<const PIECE *>(row_at(src, bytes, idx[to], what))[piece];
    __syncthreads();
    if (mine) reinterpret_cast<PIECE *>(row_at(dst, bytes, to, what))[piece] = value;
    __syncthreads();
  }
}

/* 16 bytes at once, where rows are whole multiples of it; else 2, as q8_0's of 64 values, 68 bytes.
 */
struct piece16 { uint64_t half[2]; };

/* `count` lanes in one launch, all with the same idx. A lane may be gathered into itself, or into
 * another one: dst and src are described apart. */
static pyr_status cuda_gather(pyr_backend *be, const pyr_lane_view *dst, const pyr_lane_view *src,
                              int count, pyr_layout layout, const int32_t *idx, int64_t k) {
  pyr_lane_view *to, *from, *device_to, *device_from;
  pyr_cuda *cuda = cuda_of(be);
  int bytes = format_of(layout).bytes;
  if (k <= 0 || count <= 0) return PYR_OK;
  cuda_table_begin(be);
  to = cuda_room(be, count, &device_to);
  from = cuda_room(be, count, &device_from);
  bool fits = to != nullptr && from != nullptr;
  for (int i = 0; i < count && fits; i++)
    fits = cuda_put_lane(be, to + i, dst + i, 0, k)
        && cuda_put_lane(be, from + i, src + i, 0, src[i].rows);
  pyr_status status = cuda_table_send(be, "gather", fits);
  if (status != PYR_OK) return status;
  bool whole = bytes % 16 == 0;
  unsigned planes = dst->born && src->born ? 3 : 2;
  dim3 grid(planes * static_cast<unsigned>(ceil_div(bytes / (whole ? 16 : 2), PIECES)) + 1,
            static_cast<unsigned>(count));
  if (whole)
    PYR_LAUNCH(gather_kernel<piece16>, grid, 256, 0, cuda, device_to, device_from, bytes, idx, k);
  else PYR_LAUNCH(gather_kernel<uint16_t>, grid, 256, 0, cuda, device_to, device_from, bytes, idx,
                  k);
  return cuda_launched(be, "gather");
}

/* ---- rotate ---------------------------------------------------------------------------------- */

/* How a key's pairs lie: `step` values from pair to pair, `other` from a pair's first to its
 * second. With 64 dimensions pair 3 is values 3 and 35 (halves: step 1, other 32) or 6 and 7 (step
 * 2, other 1). */
struct rotate_call {
  pyr_lane_view lane;
  const int32_t *from, *stood;
  const float *freq;
  row_format f;
  int pairs, step, other;
};

/* A warp for a row, which lies in shared memory as f32 meanwhile: [8][d]. The angle is (index -
 * from) * freq, whatever turns lay between: a key of position 9 that stands in row 4 is turned by
 * -5, and by -6 when it comes to row 3. In wide pages each turn begins with the key as it came, so
 * that what rounding loses does not add up; it is put aside at the first turn. Rows that stand
 * where they are to stand are left alone. Each row is its warp's alone: no barriers of the block.
 */
static __global__ void rotate_kernel(rotate_call c) {
  PYR_SHARED(float, rows);
  int64_t j = row_of_grid();
  float *row = rows + warp_of_block() * c.f.d;
  if (j >= c.lane.rows || (c.stood ? c.stood[j] : c.from[j]) == j) return;
  uint8_t *at = row_at(c.lane, c.f.bytes, j, PYR_PLANE_K);
  uint8_t *came = c.lane.born ? row_at(c.lane, c.f.bytes, j, PYR_PLANE_CAME) : at;
  if (came != at && (!c.stood || c.stood[j] == c.from[j])) {           /* never turned so far */
    for (int i = lane_of_warp(); i < c.f.bytes; i += WARP) came[i] = at[i];
    __syncwarp();
  }
  for (int i = lane_of_warp(); i < c.f.d; i += WARP) row[i] = cache_value_at(came, c.f.dtype, i);
  __syncwarp();
  for (int i = lane_of_warp(); i < c.pairs; i += WARP) {
    float angle = __fmul_rn(static_cast<float>(j - c.from[j]), c.freq[i]), co = cosf(angle),
        si = sinf(angle);
    float *pair = row + i * c.step, a = pair[0], b = pair[c.other];
    pair[0] = a * co - b * si;
    pair[c.other] = a * si + b * co;
  }
  __syncwarp();
  write_row(at, c.f.dtype, row, c.f.d);
}

/* One lane; from, stood: [rows], on the device. */
static pyr_status cuda_rotate(pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                              const int32_t *from, const int32_t *stood, const float *freq,
                                  int32_t dims, pyr_rope_style style) {
  rotate_call c = { {}, from, stood, freq, format_of(layout), dims / 2,
                    style == PYR_ROPE_HALF ? 1 : 2, style == PYR_ROPE_HALF ? dims / 2 : 1 };
  if (lane->rows <= 0) return PYR_OK;
  pyr_status status = cuda_send_lane(be, "rotate", &c.lane, lane, 0, lane->rows);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(rotate_kernel, blocks_of(lane->rows), WARPS * WARP,
             static_cast<size_t>(WARPS * c.f.d) * sizeof(float), cuda_of(be), c);
  return cuda_launched(be, "rotate");
}

/* ---- norms, rows as f32 ---------------------------------------------------------------------- */

/* A warp for a row: the length of K (what = 0) or V (1), or the sum of absolute values, f32, lanes
 * joined by a butterfly. */
static __global__ void row_norms_kernel(float *out, pyr_lane_view lane, row_format f,
                                        int64_t begin, int64_t end, int what, int absolute) {
  int64_t i = row_of_grid();
  if (i >= end - begin) return;
  const uint8_t *row = row_at(lane, f.bytes, begin + i, what);
  float sum = 0;
  for (int c = lane_of_warp(); c < f.d; c += WARP) {
    float x = cache_value_at(row, f.dtype, c);
    sum += absolute ? fabsf(x) : x * x;
  }
  sum = warp_sum(sum);
  if (lane_of_warp() == 0) out[i] = absolute ? sum : sqrtf(sum);
}

static pyr_status cuda_row_norms(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                 pyr_layout layout, int64_t begin, int64_t end, pyr_plane plane,
                                 int absolute) {
  pyr_lane_view view;
  if (end <= begin) return PYR_OK;
  pyr_status status = cuda_send_lane(be, "row_norms", &view, lane, begin, end);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(row_norms_kernel, blocks_of(end - begin), WARPS * WARP, 0, cuda_of(be), out, view,
             format_of(layout), begin, end, plane, absolute);
  return cuda_launched(be, "row_norms");
}

/* A warp for a row, as f32, rows beside each other. */
static __global__ void read_rows_kernel(float *out, pyr_lane_view lane, row_format f,
                                        int64_t begin, int64_t end, int what) {
  int64_t i = row_of_grid();
  if (i >= end - begin) return;
  const uint8_t *row = row_at(lane, f.bytes, begin + i, what);
  for (int c = lane_of_warp(); c < f.d; c += WARP)
    out[i * f.d + c] = cache_value_at(row, f.dtype, c);
}

static pyr_status cuda_read_rows(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                 pyr_layout layout, int64_t begin, int64_t end, pyr_plane plane) {
  pyr_lane_view view;
  if (end <= begin) return PYR_OK;
  pyr_status status = cuda_send_lane(be, "read_rows", &view, lane, begin, end);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(read_rows_kernel, blocks_of(end - begin), WARPS * WARP, 0, cuda_of(be), out, view,
             format_of(layout), begin, end, plane);
  return cuda_launched(be, "read_rows");
}

void cuda_rows_fill(pyr_backend *be) {
  be->store = cuda_store;
  be->list_pages = cuda_list_pages;
  be->list_lanes = cuda_list_lanes;
  be->gather = cuda_gather;
  be->rotate = cuda_rotate;
  be->row_norms = cuda_row_norms;
  be->read_rows = cuda_read_rows;
}
