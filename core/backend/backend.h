/* backend.h — the one table of operations that the core runs on. core/cpu fills it, and is the
 * reference.
 *
 * Rules for every operation. Activations are f32, row-major, contiguous unless a stride is given;
 * weights are pyr_tensor of any dtype; cache rows are f32, f16, bf16, q8_0 or fp8_e4m3. Pointers to
 * numbers are backend memory (`alloc`), so that no decision of a policy makes a device wait for its
 * host; structs and what is marked "host" are host memory. An operation never allocates: scratch is
 * set aside by `reserve`, after which calls within the reserved sizes fail only if the device does.
 * Outputs are overwritten unless "accumulates" is said. Results do not depend on the number of
 * threads, and a token's results do not depend on what else is in the call (but for matrix
 * products, whose summation order may differ between n < PYR_SMALL_N and larger n). Ties in
 * `select` go to the lower row; NaN scores rank below everything (and are a plan's error:
 * `finite`). */
#ifndef PYR_BACKEND_H
#define PYR_BACKEND_H

#include "backend/digest_args.h"

#define PYR_LINEAR_ADD 1    /* the product is added to out */
#define PYR_LINEAR_EXACT 2  /* decode steps: x is not rounded, whatever the backend may do with the
                               tokens of a prompt, so that a sequence gets the same in any company;
                               unless the runtime was asked to round these too */
#define PYR_SMALL_N 48     /* matrix products with fewer rows stream the weights once (decode, small
                              batches) */

typedef struct pyr_backend pyr_backend;
struct pyr_backend {
  const char *name;
  bool own_memory;  /* it reads no memory but its own: weights are uploaded */
  pyr_runtime *rt;
  void *state;                                         /* the backend's own */
  void *profile;                                       /* profile.c's, while it counts; else NULL */
  void (*close)(pyr_backend *be);  /* frees state; the table itself belongs to the runtime */

  /* memory: counted by the runtime */
  void *(*alloc)(pyr_backend *be, size_t bytes);       /* NULL if there is none; 64-byte aligned */
  void (*release)(pyr_backend *be, void *ptr, size_t bytes);
  /* within the backend */
  pyr_status (*copy)(pyr_backend *be, void *dst, const void *src, size_t bytes);
  pyr_status (*upload)(pyr_backend *be, void *dst, const void *host, size_t bytes);
  pyr_status (*download)(pyr_backend *be, void *host, const void *src, size_t bytes);   /* waits */
  pyr_status (*reserve)(pyr_backend *be, const pyr_work *work);  /* PYR_MEMORY; may only grow */

  /* operations on each token by itself; n tokens */
  pyr_status (*embed)(pyr_backend *be, float *out /* [n, cols] */, const pyr_tensor *table,
                      const int32_t *ids /* [n], checked by the caller */, int64_t n);
  pyr_status (*norm)(pyr_backend *be, float *out, const float *x, const pyr_norm *norm, int64_t n,
                     int64_t d);  /* n rows of d values; out may be x */
  /* out[n, w.shape[0]] = x[n, w.shape[1]] . w^T (+ bias [w.shape[0]] or NULL); flags: PYR_LINEAR_…
   */
  pyr_status (*linear)(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                       const float *bias, int64_t n, int flags);
  /* How many rows of w that follow each other should lie interleaved for `linear` to read them
   * fastest, a divisor of its rows; 0: none. And w, none of whose rows are yet, written in that
   * order, in as many bytes. NULL: never. */
  int32_t (*interleaved)(const pyr_backend *be, const pyr_tensor *w);
  pyr_status (*interleave)(pyr_backend *be, void *to, const pyr_tensor *w);
  /* rotates the first dims of each of `heads` heads of x [n, heads, head_dim] in place; angle = pos
   * * freq[i] in f32 */
  pyr_status (*rope)(pyr_backend *be, float *x, const int32_t *pos /* [n] */,
                     const float *freq /* [dims/2] */, int64_t n, int32_t heads, int32_t head_dim,
                         int32_t dims, pyr_rope_style style, float gain);
  pyr_status (*activate)(pyr_backend *be, float *gate /* in place: act(gate) * up */,
                         const float *up /* or NULL: act(gate) */, int64_t count,
                         pyr_activation act, float limit /* PYR_ACT_SWIGLU_CLAMPED's, which needs
                                                            `up` */);
  /* An MLP at once, with the result of linear, activate and linear; and whether it is taken so,
   * which depends on shapes, dtypes and flags. NULL, both: never. */
  bool (*takes_mlp)(const pyr_backend *be, const pyr_mlp *mlp);
  pyr_status (*mlp)(pyr_backend *be, const pyr_mlp *mlp);
  /* x = factor * x, in place, and then, where cap > 0, cap * tanh(x / cap) */
  pyr_status (*scale)(pyr_backend *be, float *x, int64_t count, float factor, float cap);
  /* x += factor * y */
  pyr_status (*add)(pyr_backend *be, float *x, const float *y, int64_t count, float factor);
  /* x[i] [d] *= 1 / (1 + e^-logits[i]), in place */
  pyr_status (*gate_rows)(pyr_backend *be, float *x, const float *logits /* [n] */, int64_t n,
                          int64_t d);
  /* x[i] [d] *= 1 + beta log(1 + floor(pos[i] / length)), in place; length > 0 */
  pyr_status (*temper)(pyr_backend *be, float *x, const int32_t *pos /* [n], >= 0 */, int64_t n,
                       int64_t d, float beta, int32_t length);
  /* mixtures of experts: who takes which, and their products; each expert's weights are read once
   * for all the tokens that take it, those of others not at all */
  pyr_status (*route)(pyr_backend *be, const pyr_route *route);
  pyr_status (*experts)(pyr_backend *be, const pyr_experts *experts);
  pyr_status (*take_rows)(pyr_backend *be,
                          float *x /* [n, d] in place: row i becomes row idx[i] */,
                              const int32_t *idx /* [k] ascending */, int64_t k, int64_t d);
  pyr_status (*take_i32)(pyr_backend *be, int32_t *x /* in place, likewise */, const int32_t *idx,
                         int64_t k);

  /* cache rows */
  /* writes K, V and positions of new rows, of `count` sequences */
  pyr_status (*store)(pyr_backend *be, const pyr_append *a, int count, pyr_layout layout,
                      int32_t kv_heads);
  pyr_status (*attention)(pyr_backend *be, const pyr_attention *a, int count, pyr_layout layout,
                          int32_t heads, int32_t kv_heads, float scale);
  /* Digests of full pages; and which pages queries read, which come back as views for `attention`
   * (pyr_reading). Within the reserved heads, head_dim and rows. NULL, both: this backend reads all
   * rows that are held. A backend that has them reads the host's page tables, and has no
   * step_begin. */
  pyr_status (*digest)(pyr_backend *be, const pyr_digests_of *lanes /* host [count] */, int count,
                       pyr_layout layout, pyr_digest by);
  pyr_status (*pick_pages)(pyr_backend *be, const pyr_reading *readings /* host [count] */,
                           int count, pyr_layout layout, int32_t heads, int32_t kv_heads,
                           float scale);
  /* table[begin, end) = pages[begin, end) for each list. NULL: the backend reads the host's tables.
   */
  pyr_status (*list_pages)(pyr_backend *be, const pyr_page_list *lists /* host */, int count);
  /* *to = view for each of `count` entries. With resident lanes a step that takes no page touches
   * no description of a lane. NULL: there are none. */
  pyr_status (*list_lanes)(pyr_backend *be, const pyr_lane_entry *entries /* host */,
                           int64_t count);
  /* for each of `count` lanes, rows idx[0..k) of src move to rows 0..k of dst (pages, positions and
   * history); dst may be src; the pages of dst are writable. dst, src: host [count]; idx [k]
   * ascending. */
  pyr_status (*gather)(pyr_backend *be, const pyr_lane_view *dst, const pyr_lane_view *src,
                       int count, pyr_layout layout, const int32_t *idx, int64_t k);
  /* Rows from[i] of src become rows to[i] of dst, i < n: K and V, converted where they lie in
   * another form (to f32 and back, so that each value is rounded once; packed rows are of one form
   * if their lanes have the same `frame`), positions, and history, which is 0 where src has none.
   * Keys lie as at their positions: no lane is wide. Pages that are written are dst's
   * alone. to, from: host [n]. NULL: the backend's caches have no tiers. */
  pyr_status (*move_rows)(pyr_backend *be, const pyr_lane_view *dst, pyr_layout dst_layout,
                          const int32_t *to, const pyr_lane_view *src, pyr_layout src_layout,
                          const int32_t *from, int64_t n);
  /* Two attentions of the same queries over different rows become one over all of them: of n
   * vectors of d values, with l = log(e^lse[i] + e^other_lse[i]),
   *     out[i] = e^(lse[i] - l) out[i] + e^(other_lse[i] - l) other[i],   lse[i] = l
   * A sink counts in one of both. Where both lse are -inf nothing changes. NULL: as move_rows. */
  pyr_status (*join)(pyr_backend *be, float *out, float *lse, const float *other,
                     const float *other_lse, int64_t n, int64_t d);
  /* Rows of the lane that are not among idx [k], ascending, are merged into their most similar row
   * that is: the one whose K has the largest cosine with theirs, ties to the lower row, if that is
   * at least `threshold` (NaN never is; a row of zeros has cosine 0 with every other). K and V of a
   * row that takes m others in become the means over all m + 1. Other rows stay; pages of rows idx
   * are writable. Where the lane has `born`, a row that took others in comes anew: its `born`
   * becomes its index. links: scratch, [2 * rows]. Within the reserved head_dim. */
  pyr_status (*merge)(pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                      const int32_t *idx, int64_t k, float threshold, int32_t *links);
  /* K of row j of a lane, which came as if at position from[j], is rotated to position j. `stood`
   * NULL: it lies as it came; where from[j] = j nothing is written. Else it lies as at position
   * stood[j], where it was turned to from how it came, unless that is from[j]; where stood[j] = j
   * nothing is written. In wide pages how it came is kept beside it at the first turn, and each
   * turn begins there; other pages allow only `stood` NULL. No gain: K has it already. Within the
   * reserved head_dim. */
  pyr_status (*rotate)(pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                       const int32_t *from /* [rows] */,
                       const int32_t *stood /* [rows] */, const float *freq /* [dims/2] */,
                           int32_t dims, pyr_rope_style style);

  /* scores: vectors of one f32 a candidate; groups of `count` lanes or heads */
  pyr_status (*mass)(pyr_backend *be, const pyr_mass *m, pyr_layout layout, int32_t heads,
                     int32_t kv_heads, float scale);
  /* out[n] = reduce over r of in[r*stride + i], r < count (PYR_MEAN, PYR_SUM, PYR_MAX), times
   * `scale` */
  pyr_status (*reduce_rows)(pyr_backend *be, float *out, const float *in, int32_t count,
                            int64_t stride, int64_t n, pyr_reduce how, float scale);
  /* out[i] = sqrt of the sum of squares of K or V of rows [begin, end); absolute (0 or 1): the sum
   * of their absolute values */
  pyr_status (*row_norms)(pyr_backend *be, float *out, const pyr_lane_view *lane,
                          pyr_layout layout, int64_t begin, int64_t end, pyr_plane plane,
                          int absolute);
  pyr_status (*arith)(pyr_backend *be, float *a /* in place */, const float *b, int64_t n,
                      pyr_score_code code /* ADD..DIV; x/0 = 0 */);
  pyr_status (*pool)(pyr_backend *be, float *out, const float *in, int64_t n,
                     int32_t width /* odd; at the ends, of the values inside */, pyr_pooling how);
  /* by the sum; a zero sum leaves x */
  pyr_status (*normalize)(pyr_backend *be, float *x, int64_t n);
  pyr_status (*softmax)(pyr_backend *be, float *x, int64_t n);
  /* each value becomes the sum of all, taken in double precision, or (PYR_MAX) the highest */
  pyr_status (*total)(pyr_backend *be, float *x, int64_t n, pyr_reduce how);
  /* each value by itself, in place (pyr_mapping); NaN stays NaN, but under PYR_MAP_ABOVE */
  pyr_status (*map)(pyr_backend *be, float *x, int64_t n, pyr_mapping how, float value);
  /* less the mean, divided by the standard deviation (over n), which counts as 1e-6 at least */
  pyr_status (*standardize)(pyr_backend *be, float *x, int64_t n);
  /* each value becomes the mean of its run of width */
  pyr_status (*chunk)(pyr_backend *be, float *x, int64_t n, int64_t width);
  /* out[i] = 1 where i is in idx [k], else 0 */
  pyr_status (*mark)(pyr_backend *be, float *out, int64_t n, const int32_t *idx, int64_t k);
  /* ascending indices of the k highest of score[n], each plus `offset`, ties to the lower; linear
   * time, no sort */
  pyr_status (*select)(pyr_backend *be, int32_t *idx /* [k] */, const float *score, int64_t n,
                       int64_t k, int32_t offset);
  pyr_status (*choose)(pyr_backend *be, const pyr_choice *c);  /* linear time, no sort */
  /* *fault becomes 1 if any of x is NaN or infinite; else it stays as it is */
  pyr_status (*finite)(pyr_backend *be, int32_t *fault, const float *x, int64_t n);
  /* out[i] = first + i */
  pyr_status (*iota)(pyr_backend *be, int32_t *out, int32_t first, int64_t n);
  /* positions, seed and value: as pyr_filling says; what it does not read may be NULL or 0 */
  pyr_status (*fill)(pyr_backend *be, float *out, const int32_t *positions, int64_t n,
                     pyr_filling what, uint64_t seed, float value);
  /* out[i] = values[ids[positions[i]]]; 0 where a position is none of [0, known), or its id none of
   * [0, vocab) */
  pyr_status (*look_up)(pyr_backend *be, float *out, const int32_t *positions, int64_t n,
                        const int32_t *ids, int64_t known, const float *values, int64_t vocab);

  /* signals of rows (scores, as above), each from its own lane */
  pyr_status (*read_rows)(pyr_backend *be, float *out /* [end-begin, head_dim] */,
                          const pyr_lane_view *lane, pyr_layout layout, int64_t begin, int64_t end,
                          pyr_plane plane);
  /* out[i] = cos(k_i, mean over [begin, end) of k_j/|k_j|); 0 if either is zero */
  pyr_status (*key_similarity)(pyr_backend *be, float *out, const pyr_lane_view *lane,
                               pyr_layout layout, int64_t begin, int64_t end);
  /* How like the other keys of its lane a row's key is: of all n rows, with u_i = k_i/|k_i|,
   * s_i = 1/n (sum over j != i of u_i . u_j - sum over j whose last row alike is i of u_i . u_j);
   * the last row alike of j is the highest i != j with u_i . u_j > threshold. out = softmax of s
   * over all n rows, of rows [begin, end). Within the reserved head_dim and rows. */
  pyr_status (*redundancy)(pyr_backend *be, float *out, const pyr_lane_view *lane,
                           pyr_layout layout, int64_t begin, int64_t end, float threshold);
  /* out[h*(end-begin) + i] = what pyr_along says of k_i and head h, h < count; within the reserved
   * head_dim */
  pyr_status (*along)(pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                      int64_t begin, int64_t end, const pyr_along *a, int32_t count);
  /* Runs of `lag` rows from `begin` on, to the lane's last row. For a row x of a run that has a
   * whole run r behind it, of K and of V: s = std over channels of (x - min r)/(max r - min r),
   * divided by channels - 1, a channel without a range counting as 0; softmax of s over the run.
   * out = the mean of both; `ranked`: its rank in the run, over lag. Other rows: 1. */
  pyr_status (*lag)(pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                    int64_t begin, int64_t end, int64_t lag, int ranked);
  /* out[h*(end-begin) + i] = sum over the rows of o of |o[:, columns of query head first+h] . v_i|,
   * h < count */
  pyr_status (*output_norm)(pyr_backend *be, float *out, const pyr_lane_view *lane,
                            pyr_layout layout, int64_t begin, int64_t end, const pyr_tensor *o,
                                int32_t first, int32_t count);
  /* Adds the moments of n queries q [n, heads, head_dim] that rope turned to q_pos; `begin`: they
   * are the first, and their means become `shift`. */
  pyr_status (*moments)(pyr_backend *be, const pyr_moments *m, const float *q,
                        const int32_t *q_pos, int64_t n, bool begin);
  /* In place: sum becomes scale * R mean, outer becomes scale^2/2 * R covariance R^T, of the
   * `count` queries added, R the mean of rope's rotations to positions [next, next + future). count
   * == 0: zeros. */
  pyr_status (*moments_end)(pyr_backend *be, const pyr_moments *m, int64_t count, int64_t next,
                            int64_t future, float scale);
  /* out[h*(end-begin) + i] = mean_h . k_i + k_i^T outer_h k_i, of heads first+h, h < count (m after
   * moments_end) */
  pyr_status (*expected)(pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                         int64_t begin, int64_t end, const pyr_moments *m, int32_t first,
                             int32_t count);

  /* ids[i]: what picks[i] comes to, -1 if no logit is finite. Waits. NULL where logits are the
   * host's memory, who picks himself. */
  pyr_status (*pick)(pyr_backend *be, const pyr_pick *picks /* host [count] */, int count,
                     int64_t vocab, int32_t *ids /* host [count] */);

  /* Between these two, the operations of a decode step may be noted instead of done: step_end does
   * them all, or none if not `run`. Only embed, norm, linear, rope, activate, scale, add,
   * gate_rows, temper, route, experts, store and attention are called in between, within `work`,
   * which is reserved, on lanes that have a `table`. NULL: operations are done as they come. */
  pyr_status (*step_begin)(pyr_backend *be, const void *model, const pyr_work *work, int layers);
  pyr_status (*step_end)(pyr_backend *be, bool run);

  /* for scripts that measure; NULL where the processor is the device */
  pyr_status (*facts)(pyr_backend *be, pyr_facts *out);
  void (*step_counts)(pyr_backend *be, pyr_step_counts *out);
  void (*way_counts)(pyr_backend *be, pyr_way_counts *out);
  pyr_status (*trim)(pyr_backend *be);  /* what was released goes back to the driver */
  /* seconds of: copying `size` bytes within the device's memory; the library's product of two
   * square matrices, `size` a side */
  pyr_status (*measure)(pyr_backend *be, pyr_ceiling what, int64_t size, int times,
                        double *seconds);
};

static inline pyr_status pyr_fill_value(pyr_backend *be, float *out, int64_t n, float value) {
  return be->fill(be, out, NULL, n, PYR_FILL_VALUE, 0, value);
}
/* n values of four bytes each, floats or integers */
static inline pyr_status pyr_fill_zeros(pyr_backend *be, void *out, int64_t n) {
  return pyr_fill_value(be, (float *)out, n, 0.0f);
}

pyr_status pyr_cpu_backend_open(pyr_runtime *rt, const char *isa, pyr_backend *be);  /* fills *be */

#endif
