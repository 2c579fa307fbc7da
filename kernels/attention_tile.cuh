/* attention_tile.cuh — one warp's work on one tile of rows: scores of its columns by tensor cores,
 * the step of online softmax, and the mix of values. Columns (a query and a head each) are the 16
 * MT rows of the products, rows of the lane their columns.
 *
 * With q split into TERMS rows of 16 bits, and probabilities likewise, products of rows of 16 bits
 * lose no more than sums in f32 do: that is how a call is computed exactly. With one term both are
 * rounded.
 *
 * A product has 16 columns (query and head) as its rows, and 8 rows of the lane as its columns.
 * What a lane of the warp holds of s, for g = lane / 4 and t = lane % 4, is what mma.cuh says of c:
 *
 *            rows of the tile    0 1 2 3 4 5 6 7   8 …
 *     column g                   . . . . x x . .          s[mt][0][0], s[mt][0][1], here t = 2
 *     column g + 8               . . . . x x . .          s[mt][0][2], s[mt][0][3]
 *
 * So four lanes have a column's scores, and m and l are joined over those (quad_max, quad_sum); and
 * p lies already as operand `a` of the next product, p v, is to lie: nothing goes through shared
 * memory between the two. */
#ifndef PYR_CUDA_ATTENTION_TILE_CUH
#define PYR_CUDA_ATTENTION_TILE_CUH

#include "attention.cuh"
#include "mma.cuh"

static constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

/* Sums and maxima over the four lanes that share rows of the products (see mma.cuh): lanes 4g to 4g
 * + 3, whose numbers differ in the two lowest bits. */
static __device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(ALL_LANES, x, 1);
  return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
static __device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
  return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* The row of the products that a lane's values [half] of the mt-th 16 belong to. */
static __device__ __forceinline__ int row_of_tile(int mt, int half) {
  return mt * 16 + half * 8 + lane_of_warp() / 4;
}

/* How rows become tiles: as they lie (f16, bf16), copied without passing through registers; widened
 * to halves (fp8_e4m3), copied as bytes, half as many; or rounded (f32, q8_0), read, rounded and
 * stored by the threads, which wait for them. */
enum rows_come { AS_THEY_LIE, WIDENED, ROUNDED };

/* ---- rows into shared memory ----------------------------------------------------------------- */

/* K (what = 0) or V (1) of rows [row, row + ROWS), which lie in one page, by threads thread, thread
 * + threads, …: the 16 bytes of EACH values that are the chunk-th of row r go to place(r, chunk);
 * zeros beyond `rows` and beyond the head's dimensions. Asynchronous. */
template <int D, int ROWS, int EACH, typename Place>
static __device__ __forceinline__ void copy_chunks(const Place &place, const pyr_lane_view &lane,
                                                   const row_format &f, int64_t row, int64_t rows,
                                                   int what, int thread, int threads) {
  const uint8_t *first = row_at(lane, f.bytes, row, what);
#pragma unroll 2
  for (int i = thread; i < ROWS * D / EACH; i += threads) {
    int r = i / (D / EACH), chunk = i % (D / EACH);
    bool real = row + r < rows && chunk * EACH < f.d;
    copy_async(place(r, chunk), real ? first + r * f.bytes + chunk * 16 : first, real);
  }
}

/* The same rows, rounded to T, into a tile: done when it returns. */
template <typename T, int D, int ROWS>
static __device__ __forceinline__ void round_rows(uint16_t *tile, const pyr_lane_view &lane,
                                                  const row_format &f, int64_t row, int64_t rows,
                                                  int what, int thread, int threads) {
  const uint8_t *first = row_at(lane, f.bytes, row, what);
  for (int i = thread; i < ROWS * D / 8; i += threads) {
    int r = i / (D / 8), chunk = i % (D / 8);
    uint32_t *to = reinterpret_cast<uint32_t *>(chunk_at<D>(tile, r, chunk));
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      int at = chunk * 8 + pair * 2;
      bool real = row + r < rows && at < f.d;
      float low = real ? cache_value_at(first + r * f.bytes, f.dtype, at) : 0.0f;
      float high = real ? cache_value_at(first + r * f.bytes, f.dtype, at + 1) : 0.0f;
      to[pair] = take_pair<T>(low, high);
    }
  }
}

/* K and V of rows [row, row + ROWS) into one of two stages, each [2][ROWS][D]. What is to be
 * WIDENED, whose heads have whole chunks of 16 dimensions, comes as it is: the bytes of both stages
 * lie in the place of the first, and become halves in the second's. */
template <typename T, rows_come COME, int D, int ROWS>
static __device__ __forceinline__ void fetch_stage(uint16_t *stages, int stage,
                                                   const pyr_lane_view &lane, const row_format &f,
                                                   int64_t row, int64_t rows, int thread,
                                                   int threads) {
/* Stages in shared memory, for D = 64 and 32 rows, in values of 16 bits:
 *
 *     as they lie    | K of stage 0 | V of stage 0 | K of stage 1 | V of stage 1 |   4 * 2048
 *     widened        | bytes: K0 V0 K1 V1          | halves: K     | V           |
 *
 * Bytes are half as long, so both stages of them fit the first half. */
#pragma unroll(COME == ROUNDED ? 1 : 2)  /* what is rounded takes registers enough as it is */
  for (int what = 0; what < 2; what++) {
    int at = (stage * 2 + what) * ROWS * D;
    uint16_t *tile = stages + at;
    uint8_t *raw = reinterpret_cast<uint8_t *>(stages) + at;
    if (COME == WIDENED)
      copy_chunks<D, ROWS, 16>([=](int r, int chunk) { return raw + r * D + chunk * 16; }, lane, f,
                               row, rows, what, thread, threads);
    else if (COME == ROUNDED)
      round_rows<T, D, ROWS>(tile, lane, f, row, rows, what, thread, threads);
    else
      copy_chunks<D, ROWS, 8>([=](int r, int chunk) { return chunk_at<D>(tile, r, chunk); }, lane,
                              f, row, rows, what, thread, threads);
  }
}

/* The tile of K of a stage that has come; V's follows. What is WIDENED is so now, exactly, and its
 * threads must meet before they read it. */
template <rows_come COME, int D, int ROWS>
static __device__ __forceinline__ uint16_t *tile_of_stage(uint16_t *stages, int stage, int thread,
                                                          int threads) {
  constexpr int STAGE = 2 * ROWS * D;
  if (COME != WIDENED) return stages + stage * STAGE;
  /* STAGE values are STAGE bytes of fp8_e4m3, hence the stage's place. Eight of them, 8 bytes,
   * become one chunk of 16. */
  const uint8_t *raw = reinterpret_cast<const uint8_t *>(stages) + stage * STAGE;
#pragma unroll 2
  for (int i = thread; i < STAGE / 8; i += threads) {
    uint2 eight = reinterpret_cast<const uint2 *>(raw)[i];
    uint32_t h[4];
    halves_of_fp8(eight.x, h[0], h[1]);
    halves_of_fp8(eight.y, h[2], h[3]);
    *reinterpret_cast<uint4 *>(chunk_at<D>(stages + STAGE, i / (D / 8),
                                           i % (D / 8))) = make_uint4(h[0], h[1], h[2], h[3]);
  }
  return stages + STAGE;
}

/* ---- a tile of rows -------------------------------------------------------------------------- */

/* A warp's columns: what they have seen so far. Of each column, `m` is the highest score, unscaled,
 * and `l` this lane's part of the sum of 2^((s - m) scale + shift). Registers of a lane: MT (4 + D
 * / 2), of which out has MT D / 2: 128 with D = 128 and MT = 2.
 *
 * m is the same in the four lanes of a column, l is not: it is summed over them once, at the end.
 */
template <int D, int MT> struct columns {
  float m[MT][2], l[MT][2], out[MT][D / 8][4];
};

template <int MT, int N> static __device__ __forceinline__ void zero(float (&s)[MT][N][4]) {
#pragma unroll
  for (int mt = 0; mt < MT; mt++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[mt][n][i] = 0;
}

template <int D, int MT> static __device__ __forceinline__ void clear(columns<D, MT> &c) {
#pragma unroll
  for (int mt = 0; mt < MT; mt++) {
    c.m[mt][0] = c.m[mt][1] = -INFINITY;
    c.l[mt][0] = c.l[mt][1] = 0;
  }
  zero(c.out);
}

/* Sums on tensor cores lose what is shifted out of them rather than round it: a bias, of half a
 * unit of the last place a step. Exact calls keep such sums short. What the lesser terms give,
 * which is small, has sums of its own, added at the end; and so have the products of each tile with
 * V, which are added to those of the tiles before in f32. */

/* s = q k^T of the 16 MT columns from row `first` of the tile of queries on, whose terms lie
 * `plane` values apart. */
template <typename T, int D, int TERMS, int MT, int ROWS>
static __device__ __forceinline__ void tile_scores(float (&s)[MT][ROWS / 8][4], uint16_t *q,
                                                   int first, int plane, uint16_t *k) {
  /* Invariant: s and less hold the products of dimensions below col. Each operand b is loaded once,
   * and serves all terms and all MT; each a serves all rows of the tile. */
  float less[MT][ROWS / 8][4];
  zero(s);
  zero(less);
#pragma unroll
  for (int col = 0; col < D; col += 16) {
    uint32_t b[ROWS / 16][4];
#pragma unroll
    for (int n = 0; n < ROWS / 16; n++) load_b<D>(b[n], k, n * 16, col);
#pragma unroll
    for (int t = 0; t < TERMS; t++)
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        uint32_t a[4];
        load_a<D>(a, q + t * plane, first + mt * 16, col);
#pragma unroll
        for (int n = 0; n < ROWS / 16; n++) {
          mma<T>((t == 0 ? s : less)[mt][2 * n], a, b[n][0], b[n][1]);
          mma<T>((t == 0 ? s : less)[mt][2 * n + 1], a, b[n][2], b[n][3]);
        }
      }
  }
  if constexpr (TERMS > 1) {
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[mt][n][i] += less[mt][n][i];
  }
}

/* Of each column of a block: its query's position and its head's slope. */
template <int COLUMNS> struct tile_bend { int32_t query[COLUMNS]; float slope[COLUMNS]; };

/* Scores of rows [row, row + ROWS) become what softmax takes: scaled, capped and sloped. From here
 * on their scale is 1. Columns are those from `first` of the block on. Rows that are not there have
 * position 0, and are masked later. */
template <int MT, int ROWS, int COLUMNS>
static __device__ __forceinline__ void bend_tile(float (&s)[MT][ROWS / 8][4],
                                                 const tile_bend<COLUMNS> &bend, const float *backs,
                                                 int first, int64_t row, const pyr_lane_view &lane,
                                                 float scale, float cap) {
#pragma unroll
  for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int64_t j = row + lane_of_warp() % 4 * 2 + n * 8 + i;
      int32_t position = j < lane.rows ? lane.positions[j] : 0;
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          int r = first + row_of_tile(mt, half);
          float &of = s[mt][n][2 * half + i];
          of = bent_score(of * (scale * backs[r]), cap, bend.slope[r], bend.query[r], position);
        }
    }
}

/* Scores become p = 2^((s - m) scale + shift) of the new m; `alpha` brings what was seen before
 * down to it. `scale` is that of each column, times log2 e. */
template <typename T, int D, int MT, int ROWS>
static __device__ __forceinline__ void tile_softmax(columns<D, MT> &c, float (&s)[MT][ROWS / 8][4],
                                                    const float (&scale)[MT][2],
                                                    float (&alpha)[MT][2]) {
#pragma unroll
  for (int mt = 0; mt < MT; mt++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      /* `half` is which of the lane's two columns: g or g + 8. Scores are compared unscaled, as
       * scale > 0. A tile that is invisible as a whole leaves m = -inf; base 0 then makes 2^-inf =
       * 0 of all. */
      float m = -INFINITY, l = 0;
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++)
        m = fmaxf(m, fmaxf(s[mt][n][2 * half], s[mt][n][2 * half + 1]));
      m = fmaxf(c.m[mt][half], quad_max(m));
      float base = m == -INFINITY ? 0.0f : m;
      alpha[mt][half] = power_of_two((c.m[mt][half] - base) * scale[mt][half]);
      c.m[mt][half] = m;
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
          s[mt][n][i] = power_of_two((s[mt][n][i] - base) * scale[mt][half]
                                    + static_cast<float>(T::shift));
          l += s[mt][n][i];
        }
      c.l[mt][half] = c.l[mt][half] * alpha[mt][half] + l;
    }
}

/* out = alpha out + p v; where the scores lay as c of a product p is a of the next one. It is used
 * up. */
template <typename T, int D, int TERMS, int MT, int ROWS>
static __device__ __forceinline__ void tile_mix(columns<D, MT> &c, float (&s)[MT][ROWS / 8][4],
                                                const float (&alpha)[MT][2], uint16_t *v) {
  /* c of two products beside each other, rows 8k .. 8k + 15 of the tile, are one a (mma.cuh):
   *
   *     a[0] = s[2k][0, 1]   column g        a[2] = s[2k + 1][0, 1]
   *     a[1] = s[2k][2, 3]   column g + 8    a[3] = s[2k + 1][2, 3]
   *
   * take_pair leaves in s what rounding lost, of which the next term is made. */
  uint32_t a[ROWS / 16][TERMS][MT][4];
#pragma unroll
  for (int k = 0; k < ROWS / 16; k++)
#pragma unroll
    for (int t = 0; t < TERMS; t++)
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float (&of)[4] = s[mt][2 * k + i / 2];
          a[k][t][mt][i] = take_pair<T>(of[i % 2 * 2], of[i % 2 * 2 + 1]);
        }
#pragma unroll
  for (int n = 0; n < D / 16; n++) {
    /* 16 dimensions at a time. Rounded calls add to out in place, brought down by alpha before the
     * first product; exact ones sum the tile up by itself, the least terms first, and then add in
     * f32. */
    float sum[MT][2][4];
    zero(sum);
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++) {
      uint32_t b[4];
      load_b_down<D>(b, v, k * 16, n * 16);
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float (&out)[4] = TERMS > 1 ? sum[mt][half] : c.out[mt][2 * n + half];
          if (TERMS == 1 && k == 0)
#pragma unroll
            for (int i = 0; i < 4; i++) out[i] *= alpha[mt][i / 2];
#pragma unroll
          for (int t = TERMS - 1; t >= 0; t--)
            mma<T>(out, a[k][t][mt], b[2 * half], b[2 * half + 1]);
        }
    }
    if constexpr (TERMS > 1) {
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            c.out[mt][2 * n + half][i] = c.out[mt][2 * n + half][i] * alpha[mt][i / 2]
                + sum[mt][half][i];
    }
  }
}

#endif
