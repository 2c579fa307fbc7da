/* elementwise.cu — operations on single values and on tokens by themselves. The semantics are those
 * of core/cpu/elementwise.c.
 *
 * Tokens: a block for each. Values: a thread for each. Rows that move to the front in place: a
 * block walks a column of them, reading a tile of rows before it writes any of that tile's; as
 * indices ascend, no row is written before it was read.
 *
 * What bounds them: bytes, where there are many tokens; in a decode step the launch, which is why
 * those of a step go to the device together (step.cu). Sums are f32. Nothing here has dynamic
 * shared memory; norm has 128 bytes of static. */
#include "convert.cuh"

static constexpr int THREADS = 256;

/* One thread a value, 256 to a block; the last block's threads beyond n do nothing. */
static unsigned blocks_of(int64_t n) { return static_cast<unsigned>(ceil_div(n, THREADS)); }
static __device__ __forceinline__ int64_t thread_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/* ---- embed ----------------------------------------------------------------------------------- */

/* A block for a token: its row of the table as f32, of any dtype. */
static __global__ void embed_kernel(float *out, const uint8_t *table, size_t stride, int dtype,
                                    int64_t cols, const int32_t *ids) {
  const uint8_t *row = table + static_cast<size_t>(ids[blockIdx.x]) * stride;
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x)
    out[blockIdx.x * cols + i] = value_at(row, dtype, i);
}

static pyr_status cuda_embed(pyr_backend *be, float *out, const pyr_tensor *table,
                             const int32_t *ids, int64_t n) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(embed_kernel, static_cast<unsigned>(n), THREADS, 0, cuda_of(be), out,
             static_cast<const uint8_t *>(table->data), table->stride, table->dtype,
                 table->shape[1], ids);
  return cuda_launched(be, "embed");
}

/* ---- norm ------------------------------------------------------------------------------------ */

/* A block for a row; out may be x. Sums are f32, a thread's over every blockDim-th value, then by
 * block_sum: the order depends on d alone. x = (3, 4): the mean of squares is 12.5, and out =
 * weight * (.849, 1.131); as LayerNorm the mean is 3.5, and out = weight * (-1, 1) + bias. */
static __global__ void norm_kernel(float *out, const float *x, pyr_norm norm, int64_t d) {
  __shared__ float parts[WARP];
  const float *row = x + blockIdx.x * d, *weight = norm.weight + blockIdx.x % norm.period * d;
  float mean = 0, sum = 0;
  if (norm.kind == PYR_NORM_LAYER) {
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) sum += row[i];
    mean = block_sum(sum, parts) / static_cast<float>(d);
    sum = 0;
    __syncthreads();                         /* `parts` is read before it is written again */
  }
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) sum += (row[i] - mean) * (row[i] - mean);
  float scale = 1.0f / sqrtf(block_sum(sum, parts) / static_cast<float>(d) + norm.eps);
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x)
    out[blockIdx.x * d + i] = (row[i] - mean) * scale * weight[i]
        + (norm.bias != nullptr ? norm.bias[i] : 0.0f);
}

static pyr_status cuda_norm(pyr_backend *be, float *out, const float *x, const pyr_norm *norm,
                            int64_t n, int64_t d) {
  if (n <= 0) return PYR_OK;
  /* A head's norm is a few values for many rows: one warp, whose sum needs no second step. */
  unsigned threads = d > 512 ? THREADS : WARP;
  PYR_LAUNCH(norm_kernel, static_cast<unsigned>(n), threads, 0, cuda_of(be), out, x, *norm, d);
  return cuda_launched(be, "norm");
}

/* ---- rope ------------------------------------------------------------------------------------ */

/* `step` values from pair to pair, `other` from a pair's first to its second: of 64 dimensions pair
 * 3 is values 3 and 35 (halves), or 6 and 7. */
struct rope_call {
  float *x;
  const int32_t *pos;
  const float *freq;
  int32_t heads, head_dim, pairs, step, other;
  float gain;
  int64_t count;           /* tokens * pairs */
};

/* A thread for a pair of a token, of all heads: (a, b) becomes (a cos - b sin, a sin + b cos), with
 * the angle pos * freq: cosine and sine are found once for all heads, as they cost most. The
 * angle's product is rounded by itself, as on the host. Bytes bound it. At position 2 with freq =
 * pi / 4 the pair (1, 0) becomes (0, 1). */
static __global__ void rope_kernel(rope_call c) {
  int64_t at = thread_of_grid();
  if (at >= c.count) return;
  int64_t t = at / c.pairs;
  int i = static_cast<int>(at % c.pairs);
  float angle = __fmul_rn(static_cast<float>(c.pos[t]), c.freq[i]), co = cosf(angle) * c.gain,
      si = sinf(angle) * c.gain;
  for (int h = 0; h < c.heads; h++) {
    float *pair = c.x + (t * c.heads + h) * c.head_dim + i * c.step, a = pair[0], b = pair[c.other];
    pair[0] = a * co - b * si;
    pair[c.other] = a * si + b * co;
  }
}

/* Of `dims` dimensions of each head pairs are turned; what lies beyond is left alone. */
static pyr_status cuda_rope(pyr_backend *be, float *x, const int32_t *pos, const float *freq,
                            int64_t n, int32_t heads, int32_t head_dim, int32_t dims,
                                pyr_rope_style style, float gain) {
  int32_t pairs = dims / 2;
  rope_call c = { x, pos, freq, heads, head_dim, pairs, style == PYR_ROPE_HALF ? 1 : 2,
                  style == PYR_ROPE_HALF ? pairs : 1, gain, n * pairs };
  if (c.count <= 0) return PYR_OK;
  PYR_LAUNCH(rope_kernel, blocks_of(c.count), THREADS, 0, cuda_of(be), c);
  return cuda_launched(be, "rope");
}

/* ---- activate, scale, add, gate_rows, temper ------------------------------------------------- */

/* x Phi(x), by erfc on the side where Phi is small (as core/cpu/isa/kernels.inc). */
static __device__ float gelu(float x) {
  float half_tail = 0.5f * fabsf(x) * erfcf(fabsf(x) * 0.70710678118654752f);
  return fmaxf(x, 0.0f) - half_tail;
}

static __device__ float gelu_tanh(float x) {
  float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
  return x / (1.0f + expf(-2.0f * u));
}

static __device__ float activated(float x, float up, bool gated, int act, float limit) {
  switch (act) {
    case PYR_ACT_SILU: x = x / (1.0f + expf(-x)); break;
    case PYR_ACT_GELU: x = gelu(x); break;
    case PYR_ACT_GELU_TANH: x = gelu_tanh(x); break;
    case PYR_ACT_RELU: x = fmaxf(x, 0.0f); break;
    case PYR_ACT_RELU2: x = fmaxf(x, 0.0f) * fmaxf(x, 0.0f); break;
    default:                                                     /* PYR_ACT_SWIGLU_CLAMPED */
      x = fminf(x, limit);
      return x / (1.0f + expf(-1.702f * x)) * (fminf(fmaxf(up, -limit), limit) + 1.0f);
  }
  return gated ? x * up : x;
}

/* A thread for a value: act(gate) * up, or act(gate) where up is NULL, in place. Bytes bound it. */
static __global__ void activate_kernel(float *gate, const float *up, int64_t count, int act,
                                       float limit) {
  int64_t i = thread_of_grid();
  if (i < count)
    gate[i] = activated(gate[i], up != nullptr ? up[i] : 0.0f, up != nullptr, act, limit);
}

pyr_status cuda_activate(pyr_backend *be, float *gate, const float *up, int64_t count,
                         pyr_activation act, float limit) {
  if (count <= 0) return PYR_OK;
  PYR_LAUNCH(activate_kernel, blocks_of(count), THREADS, 0, cuda_of(be), gate, up, count,
             static_cast<int>(act), limit);
  return cuda_launched(be, "activate");
}

/* A thread for a value: factor * x, capped where cap > 0. Bytes bound it. */
static __global__ void scale_kernel(float *x, int64_t count, float factor, float cap) {
  int64_t i = thread_of_grid();
  if (i < count) x[i] = cap > 0 ? cap * tanhf(factor * x[i] / cap) : factor * x[i];
}

static pyr_status cuda_scale(pyr_backend *be, float *x, int64_t count, float factor, float cap) {
  if (count <= 0) return PYR_OK;
  PYR_LAUNCH(scale_kernel, blocks_of(count), THREADS, 0, cuda_of(be), x, count, factor, cap);
  return cuda_launched(be, "scale");
}

static __global__ void add_kernel(float *x, const float *y, int64_t count, float factor) {
  int64_t i = thread_of_grid();
  if (i < count) x[i] += factor * y[i];
}

static pyr_status cuda_add(pyr_backend *be, float *x, const float *y, int64_t count,
                           float factor) {
  if (count <= 0) return PYR_OK;
  PYR_LAUNCH(add_kernel, blocks_of(count), THREADS, 0, cuda_of(be), x, y, count, factor);
  return cuda_launched(be, "add");
}

/* A thread for a value of x [n, d]. The gate of a logit of 0 is 1/2. */
static __global__ void gate_kernel(float *x, const float *logits, int64_t count, int64_t d) {
  int64_t i = thread_of_grid();
  if (i < count) x[i] *= 1.0f / (1.0f + expf(-logits[i / d]));
}

static pyr_status cuda_gate_rows(pyr_backend *be, float *x, const float *logits, int64_t n,
                                 int64_t d) {
  if (n * d <= 0) return PYR_OK;
  PYR_LAUNCH(gate_kernel, blocks_of(n * d), THREADS, 0, cuda_of(be), x, logits, n * d, d);
  return cuda_launched(be, "gate_rows");
}

/* A thread for a value of x [n, d]; no shared memory. Those of a position in the first `length`
 * stay as they are. */
static __global__ void temper_kernel(float *x, const int32_t *pos, int64_t count, int64_t d,
                                     float beta, int32_t length) {
  int64_t i = thread_of_grid();
  if (i >= count) return;
  int32_t whole = pos[i / d] / length;
  if (whole > 0) x[i] *= 1.0f + beta * logf(1.0f + static_cast<float>(whole));
}

static pyr_status cuda_temper(pyr_backend *be, float *x, const int32_t *pos, int64_t n, int64_t d,
                              float beta, int32_t length) {
  if (n * d <= 0) return PYR_OK;
  PYR_LAUNCH(temper_kernel, blocks_of(n * d), THREADS, 0, cuda_of(be), x, pos, n * d, d, beta,
             length);
  return cuda_launched(be, "temper");
}

/* ---- take ------------------------------------------------------------------------------------ */

/* A block for each 32 columns of x [.., d]; a tile is a row for each of its warps. Rows 0 2 3 of
 * four move in place because idx ascends: idx[i] >= i, and later tiles read only what lies behind
 * all that was written. The barriers: a tile is read before it is written, and written before the
 * next is read. Values are moved as bits: they may be ids as well as floats. */
static __global__ void take_kernel(uint32_t *x, const int32_t *idx, int64_t k, int64_t d) {
  int64_t column = static_cast<int64_t>(blockIdx.x) * WARP + lane_of_warp(),
      warps = blockDim.x / WARP;
  for (int64_t tile = 0; tile < k; tile += warps) {
    int64_t row = tile + warp_of_block();
    bool mine = row < k && column < d;
    uint32_t value = mine ? x[idx[row] * d + column] : 0;
    __syncthreads();
    if (mine) x[row * d + column] = value;
    __syncthreads();
  }
}

/* The same of single values: one block, a tile of which is a value for each thread. Indices 1 4 5
 * of 10 11 12 13 14 15: 11 14 15 stand in front afterwards. */
static __global__ void take_i32_kernel(int32_t *x, const int32_t *idx, int64_t k) {
  for (int64_t tile = 0; tile < k; tile += blockDim.x) {
    int64_t at = tile + threadIdx.x;
    int32_t value = at < k ? x[idx[at]] : 0;
    __syncthreads();
    if (at < k) x[at] = value;
    __syncthreads();
  }
}

/* x[i] <- x[idx[i]] for rows i below k, idx ascending. A launch for all columns: blocks share no
 * column, so that none waits for another. */
static pyr_status cuda_take_rows(pyr_backend *be, float *x, const int32_t *idx, int64_t k,
                                 int64_t d) {
  if (k <= 0) return PYR_OK;
  PYR_LAUNCH(take_kernel, static_cast<unsigned>(ceil_div(d, WARP)), THREADS, 0, cuda_of(be),
             reinterpret_cast<uint32_t *>(x), idx, k, d);
  return cuda_launched(be, "take_rows");
}

static pyr_status cuda_take_i32(pyr_backend *be, int32_t *x, const int32_t *idx, int64_t k) {
  if (k <= 0) return PYR_OK;
  PYR_LAUNCH(take_i32_kernel, 1, THREADS, 0, cuda_of(be), x, idx, k);
  return cuda_launched(be, "take_i32");
}

/* ---- iota, fill, mark, arith ----------------------------------------------------------------- */

/* A thread for a value. Threads that find a fault all write the same, so that no order shows. */
static __global__ void finite_kernel(int32_t *fault, const float *x, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n && (__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u) *fault = 1;
}

static pyr_status cuda_finite(pyr_backend *be, int32_t *fault, const float *x, int64_t n) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(finite_kernel, blocks_of(n), THREADS, 0, cuda_of(be), fault, x, n);
  return cuda_launched(be, "finite");
}

/* first, first + 1, … */
static __global__ void iota_kernel(int32_t *out, int32_t first, int64_t n) {
  int64_t i = thread_of_grid();
  if (i < n) out[i] = first + static_cast<int32_t>(i);
}

static pyr_status cuda_iota(pyr_backend *be, int32_t *out, int32_t first, int64_t n) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(iota_kernel, blocks_of(n), THREADS, 0, cuda_of(be), out, first, n);
  return cuda_launched(be, "iota");
}

/* The finaliser of splitmix64, as in core/cpu/elementwise.c; 24 bits make a float. */
static __device__ __forceinline__ float hash_unit(uint64_t seed, int32_t position) {
  /* Of a position and a seed always the same, whatever was asked before: a random policy that is
   * run again keeps the same rows. */
  uint64_t z = seed + (static_cast<uint64_t>(static_cast<uint32_t>(position))
                       + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

/* A thread for a value: the row's position, a hash of it, one value, or places from 0 to 1: of 5
 * rows 0 .25 .5 .75 1. */
static __global__ void fill_kernel(float *out, const int32_t *positions, int64_t n,
                                   pyr_filling what, uint64_t seed, float value) {
  int64_t i = thread_of_grid();
  if (i >= n) return;
  if (what == PYR_FILL_POSITION) out[i] = static_cast<float>(positions[i]);
  else if (what == PYR_FILL_HASH) out[i] = hash_unit(seed, positions[i]);
  else if (what == PYR_FILL_VALUE) out[i] = value;
  else out[i] = n == 1 ? 1.0f : static_cast<float>(i) / static_cast<float>(n - 1);
}

static pyr_status cuda_fill(pyr_backend *be, float *out, const int32_t *positions, int64_t n,
                            pyr_filling what, uint64_t seed, float value) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(fill_kernel, blocks_of(n), THREADS, 0, cuda_of(be), out, positions, n, what, seed,
             value);
  return cuda_launched(be, "fill");
}

/* A thread a row; reads of the ids and of their values lie where they lie. */
static __global__ void look_up_kernel(float *out, const int32_t *positions, int64_t n,
                                      const int32_t *ids, int64_t known, const float *values,
                                      int64_t vocab) {
  int64_t i = thread_of_grid();
  if (i >= n) return;
  int32_t at = positions[i], id = at >= 0 && at < known ? ids[at] : -1;
  out[i] = id >= 0 && id < vocab ? values[id] : 0.0f;
}

static pyr_status cuda_look_up(pyr_backend *be, float *out, const int32_t *positions, int64_t n,
                               const int32_t *ids, int64_t known, const float *values,
                               int64_t vocab) {
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(look_up_kernel, blocks_of(n), THREADS, 0, cuda_of(be), out, positions, n, ids, known,
             values, vocab);
  return cuda_launched(be, "look_up");
}

/* 1 where idx says; zeros were written before, on the same stream. */
static __global__ void mark_kernel(float *out, const int32_t *idx, int64_t k) {
  int64_t i = thread_of_grid();
  if (i < k) out[idx[i]] = 1.0f;
}

static pyr_status cuda_mark(pyr_backend *be, float *out, int64_t n, const int32_t *idx, int64_t k) {
  if (n <= 0) return PYR_OK;
  pyr_status status = cuda_status(be, "mark", cudaMemsetAsync(out, 0,
                                                              static_cast<size_t>(n) * sizeof *out,
                                                                  cuda_of(be)->stream));
  if (status != PYR_OK || k <= 0) return status;
  PYR_LAUNCH(mark_kernel, blocks_of(k), THREADS, 0, cuda_of(be), out, idx, k);
  return cuda_launched(be, "mark");
}

/* A thread for a value, in place; x / 0 is 0. */
static __global__ void arith_kernel(float *a, const float *b, int64_t n, int code) {
  int64_t i = thread_of_grid();
  if (i >= n) return;
  if (code == PYR_S_ADD) a[i] += b[i];
  else if (code == PYR_S_SUB) a[i] -= b[i];
  else if (code == PYR_S_MUL) a[i] *= b[i];
  else a[i] = b[i] == 0 ? 0 : a[i] / b[i];
}

/* Which arithmetic is told before anything is launched: the kernel has no way to fail. */
static pyr_status cuda_arith(pyr_backend *be, float *a, const float *b, int64_t n,
                             pyr_score_code code) {
  if (code != PYR_S_ADD && code != PYR_S_SUB && code != PYR_S_MUL && code != PYR_S_DIV)
    return cuda_refuse(be, "arith", "the code is no arithmetic");
  if (n <= 0) return PYR_OK;
  PYR_LAUNCH(arith_kernel, blocks_of(n), THREADS, 0, cuda_of(be), a, b, n, static_cast<int>(code));
  return cuda_launched(be, "arith");
}

void cuda_elementwise_fill(pyr_backend *be) {
  be->embed = cuda_embed;
  be->norm = cuda_norm;
  be->rope = cuda_rope;
  be->activate = cuda_activate;
  be->scale = cuda_scale;
  be->add = cuda_add;
  be->gate_rows = cuda_gate_rows;
  be->temper = cuda_temper;
  be->take_rows = cuda_take_rows;
  be->take_i32 = cuda_take_i32;
  be->finite = cuda_finite;
  be->iota = cuda_iota;
  be->fill = cuda_fill;
  be->look_up = cuda_look_up;
  be->mark = cuda_mark;
  be->arith = cuda_arith;
}
