/* pyramid.h — the only public header of Pyramid, an embedded LLM inference toolkit.
 *
 * Two ways in. A host that wants text uses the facade at the end of this file and never sees Lua:
 *
 *     pyr_host *host;
 *     pyr_host_options options = { .threads = 2, .policy = "pyramidinfer", .policy_options =
 *     "ratio=0.8" };
 *     if (pyr_host_open("models/tiny", &options, &host) != PYR_OK) {
 *       fprintf(stderr, "%s\n", pyr_host_error(host)); pyr_host_close(host); return 1;
 *     }
 *     pyr_generate_options how = { .max_tokens = 64, .on_piece = print_piece };
 *     if (pyr_host_generate(host, "Once upon a time", &how) != PYR_OK)
 *       fprintf(stderr, "%s\n", pyr_host_error(host));
 *     pyr_host_stats stats; pyr_host_get_stats(host, &stats);
 *     pyr_host_close(host);
 *
 * A binding (ours is lua/) builds on the objects before it: runtime, file, model, tokenizer, cache,
 * sampler.
 *
 * Conventions. Everything that can fail returns a pyr_status; the message is in the runtime
 * (pyr_runtime_error) until the next failure. Constructors write *out only on success.
 * `_free(NULL)` is legal. A child retains its parent, so objects may be released in any order. One
 * runtime and its children belong to one calling thread at a time; two runtimes are independent.
 * The library never prints, exits, reads the environment or keeps mutable globals. Layers and heads
 * count from 0 in C; positions and token ids are 0-based everywhere.
 *
 * Callbacks return. A longjmp or a C++ exception out of one leaves memory, locks and a private Lua
 * half-way: it is not allowed. A child of fork(2) has no threads of its parent's: closing works
 * there, and so do calls, on one thread; on a device they are refused (PYR_DEVICE). While another
 * thread of the parent was inside a call, the child may only exec or _exit.
 *
 * Lua. libpyramid.so has a Lua 5.4 inside that nothing else sees: its process may have any other
 * Lua, or none, or run under one. libpyramid.a takes liblua5.4.a from the program that links it,
 * which then has that one Lua and no other. A host with a lua_State of Lua 5.4 adds Pyramid to it
 * by luaopen_pyramid, which libpyramid.a and the Lua module pyramid.so have, and libpyramid.so has
 * not.
 *
 * Versions. PYR_VERSION is this header's, pyr_version() the library's that runs. A program made
 * with this header runs with every later library of the same PYR_ABI, whose file the SONAME names:
 * libpyramid.so.0. What would break that raises PYR_ABI. So that option structs may grow at their
 * ends, each begins with `size`: say sizeof, or 0 for the members that version 0.1 has. What an
 * older program does not know is zero; what a newer one sets and this library does not know is
 * refused in words. Structs that others hold, or the library fills, have room reserved instead,
 * which is zero. */
#ifndef PYRAMID_H
#define PYRAMID_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PYR_VERSION "0.2.0"
#define PYR_ABI 0       /* the number of the shared library's SONAME: see "Versions" above */

#if defined(__GNUC__)
#pragma GCC visibility push(default) /* what this header declares is all that the shared library
                                        exports */
#endif

const char *pyr_version(void);   /* of the library that runs, "0.2.0"; static */

typedef enum pyr_status {
  PYR_OK = 0,
  PYR_ARGUMENT,     /* "argument": a value out of range, a call in the wrong state */
  PYR_MEMORY,       /* "memory": the allocator, or the runtime's memory limit, said no */
  PYR_BUDGET,       /* "budget": the cache's byte budget is full */
  PYR_CONTEXT,      /* "context": more tokens than the model's context length */
  PYR_IO,           /* "io": a file is missing, unreadable or unwritable */
  PYR_FORMAT,       /* "format": a file is malformed; the message names file and field */
  PYR_UNSUPPORTED,  /* "unsupported": well-formed, but not something this build can run */
  PYR_POLICY,       /* "policy": a policy raised, or returned a plan that cannot be carried out */
  PYR_CANCELLED,    /* "cancelled": the progress callback asked to stop */
  PYR_DEVICE        /* "device": the device is absent or failed */
} pyr_status;

const char *pyr_status_name(pyr_status status); /* the quoted words above; "ok" for PYR_OK */

/* ---- runtime: backend, allocator with a limit, threads, last error --------------------------- */

typedef struct pyr_runtime pyr_runtime;

/* Like lua_Alloc: size 0 frees and returns NULL; otherwise (re)allocates `size` bytes aligned to at
 * least 16, or returns NULL and leaves `ptr` alone. `old` is the size given when `ptr` was
 * allocated, 0 for a new block. */
typedef void *(*pyr_alloc_fn)(void *ud, void *ptr, size_t old, size_t size);

/* Called between layers and chunks of long work with 0 <= done <= total; returning non-zero cancels
 * the work. */
typedef int (*pyr_progress_fn)(void *ud, int64_t done, int64_t total);

typedef struct pyr_runtime_options {
  size_t size;          /* see "Versions"; in every struct that begins so */
  const char *device;   /* "cpu" (default when NULL), "cuda", or "emulated": CUDA's kernels run by
                           the processor, for specs */
  const char *isa;      /* CPU kernels: NULL picks the best that multiply in f32; "base", "avx2",
                           "avx512" force one; "avx512bf16": a prompt's products with bf16 or
                           quantised weights round activations to bf16; "avx512int8": as that, and
                           quantised weights take activations of 8 bits; they are held, in an order
                           of their own, within memory_limit; "amxbf16", "amxint8": likewise, and
                           all of these products of a prompt are of bf16 by matrix tiles, for which
                           the process asks the system (from then on signal stacks must be as large
                           as sysconf(_SC_MINSIGSTKSZ) says); "bf16", "int8": the best of each that
                           there is. pyr_runtime_isa says which */
  int threads;          /* 0: the processors this process may run on; otherwise 1..256 */
  size_t memory_limit;  /* bytes the runtime may hold at once, mapped files excluded; 0: no limit */
  pyr_alloc_fn alloc;   /* NULL: malloc family */
  void *alloc_ud;
  char *why;            /* NULL, or where the message of a failure goes, cut to why_bytes; untouched
                           where there is none */
  size_t why_bytes;
  const char *ranks;    /* since 0.2; NULL: this process is alone. "tensor": it is one of several
                           that MPI has started, each with its part of every layer; "pipeline": with
                           its own layers (docs/ranks.md). All make the same calls, on processors */
} pyr_runtime_options;

/* Which of the run's processes this is, of how many; bytes that it sent to the others and had. */
typedef struct pyr_ranks_info { int rank, size; int64_t sent, received, swaps; } pyr_ranks_info;

/* the message of a failure: see `why` */
pyr_status pyr_runtime_new(const pyr_runtime_options *options, pyr_runtime **out);
pyr_runtime *pyr_runtime_retain(pyr_runtime *rt);
void pyr_runtime_free(pyr_runtime *rt);
const char *pyr_runtime_error(const pyr_runtime *rt);  /* "" if nothing failed yet; owned by rt */
size_t pyr_runtime_memory(const pyr_runtime *rt);  /* bytes held now through the allocator */
size_t pyr_runtime_memory_peak(const pyr_runtime *rt);
int pyr_runtime_threads(const pyr_runtime *rt);
const char *pyr_runtime_isa(const pyr_runtime *rt);
pyr_ranks_info pyr_runtime_get_ranks(const pyr_runtime *rt);
/* Around what may fail on one rank alone, such as binding the weights of a file: `end` tells all
 * ranks of the lowest one's failure, and returns its status to all. */
void pyr_runtime_ranks_begin(pyr_runtime *rt);
pyr_status pyr_runtime_ranks_end(pyr_runtime *rt, pyr_status status);
void pyr_runtime_on_progress(pyr_runtime *rt, pyr_progress_fn fn, void *ud); /* NULL: none */
pyr_status pyr_runtime_check(pyr_runtime *rt);  /* asks it again: for policies that compute for
                                                   long. PYR_CANCELLED, or PYR_OK */

/* Where time goes. While it counts, each operation is timed by two readings of the clock; off, it
 * costs nothing. */
typedef struct pyr_profile_entry {
  const char *name;             /* of the operation: "linear", "attention", …; static */
  int64_t calls;
  double seconds, flops, bytes; /* flops and bytes as their arguments imply: a multiply-add is 2,
                                   nothing is read twice */
} pyr_profile_entry;
/* on: begins anew from zero; off: forgets what was counted */
pyr_status pyr_runtime_profile(pyr_runtime *rt, int on);
/* operations called; at most `room` are written */
int pyr_runtime_get_profile(pyr_runtime *rt, pyr_profile_entry *out, int room);

/* ---- tensors in files ------------------------------------------------------------------------ */

typedef enum pyr_dtype {
  PYR_F32 = 0, PYR_F16, PYR_BF16,
  PYR_Q8_0, PYR_Q4_0, PYR_Q4_K, PYR_Q5_K, PYR_Q6_K,   /* GGUF block formats, bit-compatible */
  PYR_FP8_E4M3,                                       /* of cache rows only, -448..448 */
  PYR_Q4_1, PYR_Q5_0, PYR_Q5_1, PYR_Q2_K, PYR_Q3_K, PYR_IQ4_NL,
  /* of files only, and weights are bound converted to another: */
  PYR_IQ4_XS, PYR_MXFP4, PYR_NVFP4, PYR_F64,
  PYR_DTYPES
} pyr_dtype;

/* What kernels there are for a dtype. */
enum {
  PYR_KERNEL_NONE = 0,
  PYR_KERNEL_WEIGHTS = 1,    /* products with matrices of it, and rows of a table of embeddings */
  PYR_KERNEL_ROWS = 2,       /* everything that reads or writes cache rows */
  PYR_KERNEL_BF16 = 4,       /* products in bf16, which holds all of the weights, where the runtime
                                is opened for them */
  PYR_KERNEL_BYTES = 8,      /* products of bytes, likewise */
  PYR_KERNEL_PACKS = 16      /* the same, faster, of rows that are interleaved when bound */
};

typedef struct pyr_dtype_info {  /* an entry of the table of dtypes; grows at its end only */
  const char *name;              /* "f32", …, "f64" */
  int32_t block;                 /* values that lie together, 1 for plain numbers, … */
  size_t block_bytes;            /* … and their bytes */
  int32_t gguf;                  /* GGUF's number for it, or -1 */
  const char *safetensors;       /* its name in safetensors, or NULL */
  int weights, rows;             /* whether a bound matrix, a cache's rows can be of it */
  int writable;                  /* whether values can be converted to it */
  pyr_dtype at_load;             /* what matrices of it become while a model is loaded; itself: they
                                    stay */
  unsigned cpu, device;          /* PYR_KERNEL_… of the processor and of devices */
} pyr_dtype_info;

/* NULL if out of range; static. */
const pyr_dtype_info *pyr_dtype_describe(pyr_dtype dtype);
const char *pyr_dtype_name(pyr_dtype dtype);  /* NULL if out of range */
int pyr_dtype_of_name(const char *name);      /* the dtype, or -1 */
int pyr_dtype_block(pyr_dtype dtype);         /* values a block: 1, 32, 64 or 256 */
size_t pyr_dtype_block_bytes(pyr_dtype dtype);               /* bytes a block */

/* Cache rows of few bits (core/base/rowbits.h). A cache keeps its first page, its newest and those
 * that are not full in its dtype; other pages are packed: keys and values each in one of these, in
 * a frame that each head of each layer learns from its first rows. Plain: as the dtype has them.
 * The numbers are those of saved caches. */
typedef enum pyr_bits { PYR_BITS_PLAIN, PYR_BITS_8, PYR_BITS_4, PYR_BITS_3, PYR_BITS_2,
                        PYR_BITS_KINDS } pyr_bits;

typedef struct pyr_file pyr_file;   /* a read-only mapping of a regular file, or its bytes in memory
                                       */
pyr_status pyr_file_open(pyr_runtime *rt, const char *path, pyr_file **out);
/* The same, read instead of mapped; counts against the memory limit. For files that may be
 * shortened or vanish while they are in use (others write them, the network, a stick): a mapping
 * then ends the process with SIGBUS. */
pyr_status pyr_file_read(pyr_runtime *rt, const char *path, pyr_file **out);
void pyr_file_free(pyr_file *file);
uint64_t pyr_file_size(const pyr_file *file);

/* Matrices that several tensors make up: value = scale * (number - zero), with a scale and a zero
 * for each group of values. The layouts are Hugging Face checkpoints' and stand in
 * core/model/packed.h. */
typedef enum pyr_packing_kind { PYR_PACKED_SCALED = 1 /* fp8_e4m3 and scales */, PYR_PACKED_GPTQ,
                                PYR_PACKED_AWQ, PYR_PACKED_MXFP4 } pyr_packing_kind;
typedef struct pyr_packing_part {   /* file NULL: there is none */
  pyr_file *file;
  uint64_t offset, bytes;
} pyr_packing_part;
typedef struct pyr_packing {
  pyr_packing_kind kind;
  int bits;                         /* of a number: 8; 4 or 8 of GPTQ; 4 of AWQ and MXFP4 */
  int64_t group[2];                 /* rows and columns that share a scale; rows: of SCALED alone;
                                       MXFP4: 1, 32 */
  int zeros_less_one;               /* 1: zeros are held less one (GPTQ's first version) */
  pyr_dtype scale_dtype;            /* f32, f16 or bf16; MXFP4's are exponents, a byte each */
  pyr_packing_part scales, zeros, order;
} pyr_packing;

typedef struct pyr_tensor_spec {  /* where a tensor lies; checked against the mapping before use */
  const char *name;                 /* for messages */
  pyr_file *file;
  uint64_t offset, bytes;           /* from the file's beginning */
  pyr_dtype dtype;
  int rank;                         /* 1 or 2 */
  int64_t shape[2];  /* row-major: [out, in] for a matrix, the contiguous dimension last */
  int64_t run, step;  /* 0: rows follow each other. Else row r (a vector's value r) is row r / run *
                         step + r % run of a larger one that begins at `offset` and ends with the
                         last row taken; f32, f16, bf16 */
  int transposed;     /* 1: the file has [in, out] of a matrix whose shape is given as [out, in];
                         with a run, which is `out` then, [in, step], of which the first `out`
                         columns from `offset` on are taken, … */
  int64_t every;      /* … or, where this is more than 1, as many that lie so far apart */
  const pyr_packing *packing;  /* NULL: the values themselves. Else file, offset and bytes are those
                                  of the numbers, dtype and transposed are not looked at, run and
                                  step of MXFP4 alone (1 and any), and `as` says what the matrix
                                  becomes (-1: f32) */
} pyr_tensor_spec;

/* ---- model ----------------------------------------------------------------------------------- */

typedef struct pyr_model pyr_model;

typedef enum pyr_rope_style { PYR_ROPE_HALF = 0 /* pairs (i, i+d/2) */,
                              PYR_ROPE_INTERLEAVED /* pairs (2i, 2i+1) */ } pyr_rope_style;

/* Switches of the decoder. What is 0 is Llama's, so that a configuration says only where a model
 * differs. docs/adding-a-family.md has the models behind each. */
typedef enum pyr_norm_kind {
  PYR_NORM_RMS = 0,         /* x / sqrt(mean x^2 + eps), times weights */
  PYR_NORM_LAYER            /* (x - mean) / sqrt(variance + eps), times weights, plus a bias */
} pyr_norm_kind;

typedef enum pyr_norm_place {
  PYR_NORM_BEFORE = 0,      /* x += f(norm(x)): attn_norm, ffn_norm */
  PYR_NORM_AFTER,           /* x += norm(f(x)): attn_post_norm, ffn_post_norm */
  PYR_NORM_AROUND           /* x += norm(f(norm(x))): all four */
} pyr_norm_place;

typedef enum pyr_residual {
  PYR_RESIDUAL_SEQUENTIAL = 0,  /* x += attention(x), then x += mlp(x) */
  PYR_RESIDUAL_PARALLEL,        /* x += attention(attn_norm(x)) + mlp(ffn_norm(x)) */
  PYR_RESIDUAL_SHARED           /* the same with one norm, attn_norm, for both */
} pyr_residual;

typedef enum pyr_qk_norm {  /* how q_norm and k_norm, where a model has them, lie over the heads */
  PYR_QK_HEAD = 0,          /* [head_dim]: each head is normed, all with the same weights */
  PYR_QK_EACH,              /* [heads*head_dim]: each head is normed, with weights of its own */
  PYR_QK_WIDTH              /* [heads*head_dim]: all heads of a token are normed as one vector */
} pyr_qk_norm;

typedef enum pyr_activation {
  PYR_ACT_SILU = 0,         /* x / (1 + e^-x) */
  PYR_ACT_GELU,             /* x/2 (1 + erf(x / sqrt 2)) */
  PYR_ACT_GELU_TANH,        /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
  PYR_ACT_RELU,             /* max(x, 0) */
  PYR_ACT_RELU2,            /* max(x, 0)^2 */
  PYR_ACT_SWIGLU_CLAMPED,   /* GPT-OSS: x of at most the limit, times 1 / (1 + e^(-1.702 x)); the
                               other factor, within plus and minus the limit, plus 1 */
  PYR_ACTIVATIONS
} pyr_activation;

typedef enum pyr_router {   /* what a router's logits become, before the highest are chosen */
  PYR_ROUTER_SOFTMAX = 0,   /* Mixtral, Qwen, OLMoE; with router_renormalise also the softmax of the
                               chosen ones alone (GPT-OSS), which is the same */
  PYR_ROUTER_SIGMOID,       /* each by itself: 1 / (1 + e^-x) (DeepSeek-V3, GLM-4) */
  PYR_ROUTERS
} pyr_router;

enum { PYR_TURN_FIRST = 0, PYR_TURN_SECOND, PYR_TURN_NONE };   /* of pyr_model_config.turns */

typedef struct pyr_model_config {
  int32_t layers, heads, kv_heads, head_dim, width, ff, vocab, context;
  float norm_eps;
  pyr_rope_style rope_style;
  int32_t rope_dims;        /* leading dimensions of a head that rotate; even, <= head_dim; 0: no
                               layer rotates */
  const float *rope_freq;   /* [rope_dims/2] radians per position, scaling applied by the loader;
                               copied */
  float rope_gain;          /* multiplies sin and cos (YaRN's attention factor); 1 otherwise */
  const int32_t *window;  /* [layers] sliding window in positions, 0 = none; NULL = none; copied */

  const uint8_t *turns;     /* [layers] PYR_TURN_…: which table turns the layer's q and k; NULL: the
                               first in all; copied */
  const float *rope_second; /* [rope_dims/2] the second table (Gemma 3's windowed layers); copied */
  float rope_second_gain;
  pyr_norm_kind norm;
  float norm_offset;        /* added to weights of norms when they are bound (Gemma: 1) */
  pyr_norm_place norm_place;
  pyr_qk_norm qk_norm;
  pyr_residual residual;
  pyr_activation activation;
  float activation_limit;   /* PYR_ACT_SWIGLU_CLAMPED's */
  int32_t plain_mlp;        /* 1: down(act(up x)); 0: down(act(gate x) * up x) */
  int32_t positions;        /* 1: PYR_W_POSITIONS is added to embeddings */
  float embed_scale, residual_scale, logit_scale;  /* multiply embeddings, what a half of a layer
                                                      adds, logits; 0: as they are */
  float score_scale;        /* multiplies q.k; 0: 1/sqrt(head_dim) */
  float score_cap, logit_cap;  /* x becomes cap * tanh(x / cap), of scaled q.k and of scaled logits;
                                  0: as it is */
  float temper;             /* multiplies queries: by 1 + temper log(1 + floor(p / temper_length)),
                               where p is the position that they are rotated to (Ministral 3); 0:
                               they stay */
  int32_t temper_length;    /* positions; 0 without temper */
  const float *slopes;      /* [heads] ALiBi (arXiv 2108.12409): -d * slopes[h] is added to the
                               score of head h and a row d positions back; NULL: none; copied */

  /* Mixture of experts: of so many MLPs of width expert_ff each token takes the experts_used that
   * its router ranks highest, and adds them up, weighted. */
  int32_t experts, experts_used, expert_ff;  /* at most 1024, 32; 0, 0, 0: a plain MLP everywhere */
  int32_t shared_ff;        /* of an MLP beside them that every token takes; 0: none */
  pyr_router router;
  int32_t router_renormalise;  /* 1: weights of a token's experts are divided by their sum */
  float router_scale;       /* multiplies the weights; 0: as they are */
  int32_t groups, groups_used;  /* the experts in `groups` runs, at most 32, of which a token has
                               only the groups_used whose two highest experts are the highest in
                               sum (DeepSeek-V3; PYR_ROUTER_SIGMOID); 0: any expert */
  const uint8_t *dense;     /* [layers] 1: the layer has a plain MLP of width ff instead; NULL: none
                               has; copied */
} pyr_model_config;

typedef enum pyr_role {     /* which weight a tensor is; shapes in brackets */
  PYR_W_EMBED = 0,          /* [vocab, width] */
  PYR_W_OUT_NORM,           /* [width] */
  PYR_W_OUTPUT,             /* [vocab, width]; absent: tied to PYR_W_EMBED */
  PYR_W_ATTN_NORM,          /* [width]; from here on per layer */
  PYR_W_Q, PYR_W_K, PYR_W_V,            /* [heads*head_dim | kv_heads*head_dim, width] */
  PYR_W_Q_BIAS, PYR_W_K_BIAS, PYR_W_V_BIAS,
  PYR_W_Q_NORM, PYR_W_K_NORM,           /* as pyr_qk_norm says, optional */
  PYR_W_O,                              /* [width, heads*head_dim] */
  PYR_W_O_BIAS,
  PYR_W_FFN_NORM,                       /* [width] */
  PYR_W_GATE, PYR_W_UP,                 /* [ff, width] */
  PYR_W_DOWN,                           /* [width, ff] */
  /* those of switches; not layered: */
  PYR_W_POSITIONS,                      /* [context, width], learned */
  PYR_W_OUT_NORM_BIAS,                  /* [width] */
  PYR_W_OUTPUT_BIAS,                    /* [vocab] */
  PYR_W_ATTN_NORM_BIAS, PYR_W_FFN_NORM_BIAS,            /* [width]; per layer, as are the rest */
  PYR_W_ATTN_POST_NORM, PYR_W_FFN_POST_NORM,            /* [width] */
  PYR_W_GATE_BIAS, PYR_W_UP_BIAS,                       /* [ff] */
  PYR_W_DOWN_BIAS,                                      /* [width] */
  PYR_W_SINKS,                          /* [heads] logits of nothing, in each head's softmax
                                           (GPT-OSS) */
  /* of layers with experts, whose own gate, up, down and their biases are expert_ff wide: */
  PYR_W_ROUTER,                         /* [experts, width], f32 always, as PYR_W_SHARED_ROUTER */
  PYR_W_ROUTER_BIAS,                    /* [experts] added to the router's logits */
  PYR_W_ROUTER_CORRECTION,              /* [experts] added to what experts are chosen by, and not to
                                           their weights */
  PYR_W_SHARED_GATE, PYR_W_SHARED_UP,   /* [shared_ff, width] */
  PYR_W_SHARED_DOWN,                    /* [width, shared_ff] */
  PYR_W_SHARED_ROUTER,                  /* [1, width]: its sigmoid weighs the shared expert */
  /* not layered: */
  PYR_W_EMBED_NORM, PYR_W_EMBED_NORM_BIAS,  /* [width] of a norm behind embeddings (BLOOM) */
  PYR_ROLES
} pyr_role;

pyr_status pyr_model_new(pyr_runtime *rt, const pyr_model_config *config, pyr_model **out);
/* The same where a runtime has ranks, each of which gets its part: o_block, down_block: how many
 * columns of PYR_W_O, and of PYR_W_DOWN and PYR_W_SHARED_DOWN, lie in one block of any dtype that
 * they have or are bound in, as they are cut between blocks. Every rank binds every weight, whole,
 * and keeps what is its. PYR_UNSUPPORTED: there is not a part for each rank. */
pyr_status pyr_model_new_ranked(pyr_runtime *rt, const pyr_model_config *config, int32_t o_block,
                                int32_t down_block, pyr_model **out);
/* Binds one weight. `as` < 0 keeps the file's dtype (mapped, not copied, where its alignment
 * allows); otherwise converts matrices to `as` (f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1).
 * Vectors are always kept as f32. `layer` is ignored for roles outside the layers. PYR_FORMAT:
 * shape or bounds; PYR_ARGUMENT: bound twice, role or layer out of range. */
pyr_status pyr_model_bind(pyr_model *model, pyr_role role, int layer, const pyr_tensor_spec *spec,
                          int as);
/* The same of one expert's PYR_W_GATE, _UP, _DOWN or their biases, 0 <= expert < experts. All
 * experts of a layer are bound in the same dtypes. */
pyr_status pyr_model_bind_expert(pyr_model *model, pyr_role role, int layer, int expert,
                                 const pyr_tensor_spec *spec, int as);
pyr_status pyr_model_ready(pyr_model *model);   /* PYR_FORMAT naming the first weight that is
                                                   missing */
pyr_model *pyr_model_retain(pyr_model *model);
void pyr_model_free(pyr_model *model);
const pyr_model_config *pyr_model_get_config(const pyr_model *model);   /* of the whole model */
pyr_runtime *pyr_model_runtime(const pyr_model *model);
uint64_t pyr_model_bytes(const pyr_model *model);     /* weights, mapped or owned, of this rank */
/* What saved caches of the model are known by: a name for messages (copied, cut at 159 bytes) and
 * its tokenizer's fingerprint, 0 for none. Beside them stands a fingerprint of the weights: names,
 * shapes, dtypes and samples of the bytes as they lie in the file. It does not see conversion, nor
 * a change between the samples alone; the same weights in another format are other ones. */
void pyr_model_identify(pyr_model *model, const char *name, uint64_t tokenizer);
uint64_t pyr_model_fingerprint(pyr_model *model);
/* What n ids are as they enter the first layer: out [n, width], host memory. Handed to
 * pyr_cache_prefill_embeddings they are the same to the model as the ids, bit for bit.
 * PYR_ARGUMENT: an id outside the vocabulary. */
pyr_status pyr_model_embed(pyr_model *model, const int32_t *ids, int64_t n, float *out);

/* ---- policies: plans of what a cache keeps --------------------------------------------------- */

typedef struct pyr_shape {  /* what a policy is told of a layer; all it may depend on */
  int32_t layer, layers;
  int64_t prompt;           /* tokens of the prefill that is running, or ran last */
  int64_t past;             /* rows the layer held before that prefill */
  int64_t rows;             /* rows the layer holds when the plan runs (its longest lane) */
  int64_t waiting;          /* decode: rows that may be ranked now: neither ranked before nor in the
                               window */
  int64_t tokens;           /* tokens the cache has seen */
  int32_t heads, kv_heads, head_dim;
} pyr_shape;

/* A score is a program over vectors of one value per row, run on a small stack, for one lane group
 * at a time: the whole layer under PYR_SHARE_LAYER, one KV head under PYR_SHARE_HEAD. */
typedef enum pyr_score_code {
  PYR_S_ATTENTION = 0, /* push attention mass of the last n queries that reach the layer; a:
                          pyr_reduce over queries, b: over heads (up to PYR_MAX); x: ramp, which
                          with PYR_VARIANCE and PYR_ENTROPY is 1 */
  PYR_S_HISTORY,       /* push attention of every query so far; b: pyr_reduce over heads; x: decay
                          per decode step */
  PYR_S_KEY_NORM,      /* push |K| (mean over the group's lanes); a: 1 its L1 norm, 0 its length */
  PYR_S_VALUE_NORM,    /* push |V|, likewise */
  PYR_S_POSITION,      /* push the original position */
  PYR_S_RANDOM,        /* push uniform [0,1) hashed from (seed n, layer, position) */
  PYR_S_CONST,         /* push x for every row */
  PYR_S_ADD, PYR_S_SUB, PYR_S_MUL, PYR_S_DIV,  /* pop two, push one */
  PYR_S_POOL,  /* a: 0 average, 1 maximum, over a centred window of odd width n, of candidates */
  PYR_S_NORMALIZE,     /* divide by the sum over the candidates */
  PYR_S_KEY_SIMILARITY,/* push the cosine of K to the mean of the candidates' normalised K
                          (KeyDiff, arXiv 2504.15364) */
  PYR_S_EXPECTED,      /* push attention expected of the next n positions (arXiv 2510.00636). a: 0
                          by the mean of the prompt's queries only, 1 and their covariance; b:
                          pyr_reduce over heads; x: the prompt's first queries, left out. Prefill
                          only */
  PYR_S_LAG,           /* push how a row differs from the next n rows' range (LagKV, arXiv
                          2504.04704); a: 1 as rank */
  PYR_S_OUTPUT_NORM,   /* push the L1 norm of W_o V, mean over the query heads (CriticalKV, arXiv
                          2502.03805) */
  PYR_S_TABLE,         /* push numbers of the policy's table n */
  PYR_S_PLACE,         /* push 0 for the first candidate to 1 for the last, evenly */
  PYR_S_SOFTMAX,       /* exp, divided by its sum over the candidates */
  PYR_S_CHUNK,         /* the mean over chunks of n consecutive candidates; the last chunk may be
                          shorter */
  PYR_S_TOP,           /* 1 for the n highest candidates (ties to the lower), 0 for others */
  PYR_S_CUSTOM,  /* pop a, push what the policy's `custom` makes of them; n: which; b: 1 where it
                    looks at the layer's inputs too, 2 where at queries, 3 at both. Prefill only */
  PYR_S_LEARNED,       /* push a learned map of what the layer read at each row's token: of the
                          normed hidden state in, w . in + b, mean over the group's lanes (KVzap,
                          arXiv 2601.07891). The policy's table n has w and b by head:
                          values[(layer * kv_heads + head) * (width + 1)], b last. In prefill of the
                          prompt's own rows only, and elsewhere refused, but where the trigger
                          tracks it: then of all rows, everywhere */
  PYR_S_PROBED,  /* push what the last probe tracked of each row (pyr_cache_probe, and a policy's
                    `prepare`); rows that it did not judge have 0 */
  PYR_S_REDUNDANCY,    /* push how like the other keys of its lane a row's key is, as a softmax over
                          the lane; of keys whose cosine is above x the last counts as less so
                          (R-KV, arXiv 2505.24133) */
  PYR_S_TOTAL,         /* the sum over the candidates, or (a: 1) the highest, for each of them */
  PYR_S_MAP,           /* each value by itself; a: pyr_mapping, x: its parameter */
  PYR_S_ALONG,         /* push how far K goes along a vector of its layer and head, mean over the
                          group's lanes: the policy's table n has it by head, values[(layer *
                          kv_heads + head) * head_dim] (Q-Filters, arXiv 2503.02812) */
  PYR_S_CENTRES,       /* push the attention that a query in the middle of its head's would give K
                          from the distances 1, 2, 4, ... up to x on, and what lies around the
                          middle, less its mean, over its deviation; b: pyr_reduce over query heads.
                          The policy's table n has by query head, [head_dim + head_dim/2] each, the
                          mean query before RoPE and the mean length of each of its pairs
                          (TriAttention, arXiv 2604.04921) */
  PYR_S_TOKENS,  /* push values[id of the row's token] of the policy's table n; 0 where there is
                    none, and of embedded rows (SepLLM, arXiv 2412.12094) */
  PYR_SCORE_CODES
} pyr_score_code;

/* PYR_VARIANCE: over queries, with their number less one below (0 of one query); PYR_ENTROPY: the
 * mean over queries of -p ln p, whose sum over all rows is the mean entropy of attention. Neither
 * is tracked: both are known while a prompt is read only. Source: CAKE, arXiv 2503.12491. */
typedef enum pyr_reduce { PYR_MEAN = 0, PYR_SUM, PYR_MAX, PYR_VARIANCE, PYR_ENTROPY } pyr_reduce;

/* PYR_MAP_LOG: ln x, of what is below 2^-126 that of 2^-126; PYR_MAP_POWER: x to a power above 0,
 * 0 of what is not above 0; PYR_MAP_ABOVE: 1 where x is above the parameter, else 0. */
typedef enum pyr_mapping { PYR_MAP_LOG = 0, PYR_MAP_POWER, PYR_MAP_ABOVE } pyr_mapping;

typedef struct pyr_score_op { uint8_t code, a, b; int32_t n; float x; } pyr_score_op;

#define PYR_SCORE_MAX 32
/* length 0: the signal tracked, else by position */
typedef struct pyr_score { int32_t length; pyr_score_op ops[PYR_SCORE_MAX]; } pyr_score;

/* Who survives together: one set for all lanes of the layer, which then must be of one length; a
 * set for each KV head; a budget pooled over the layer's KV heads (AdaKV, arXiv 2407.11550):
 * `keep` rows a lane on average, the candidates of all lanes ranked together, ties to the lower
 * head, then to the lower row; or one budget of all layers that say PYR_SHARE_MODEL, the sum of
 * their `keep` rows, ties to the lower layer first (KVzip, arXiv 2505.23416). While a prompt is
 * read, those that have read are cut again after each of them (CAKE, arXiv 2503.12491; LAVa,
 * 2509.09754), so that the budget and one layer is the most that is held; `mass` and `merge` are
 * refused then, and hidden states go on from all layers whose turn is later. Not in decode. */
typedef enum pyr_share {
  PYR_SHARE_LAYER = 0, PYR_SHARE_HEAD, PYR_SHARE_POOL, PYR_SHARE_MODEL
} pyr_share;
typedef enum pyr_prune { PYR_PRUNE_CACHE = 1, PYR_PRUNE_HIDDEN = 2, PYR_PRUNE_BOTH = 3 } pyr_prune;
/* PYR_ROTATE_COMPACT: once rows are evicted, keys are rotated to the positions 0..rows-1, and the
 * layer's later tokens are placed behind them (StreamingLLM's positions within the cache, arXiv
 * 2309.17453). The layer stays so from then on. Every turn begins at the key as it came, which is
 * kept beside it, so that keys do not wear out: such a layer's rows take half as many bytes more.
 */
typedef enum pyr_rotate { PYR_ROTATE_KEEP = 0, PYR_ROTATE_COMPACT } pyr_rotate;
#define PYR_KEEP_HEADS 128

/* What a page of rows is ranked by where steps read less than is held. A page keeps a digest of its
 * keys k, from which a query q is told (s, before cap and slope, is times the scale):
 * PYR_DIGEST_BOUND, the least and the highest of each channel: s = sum over channels of
 * max(q least, q highest), which no key of the page passes (Quest, arXiv 2406.10774);
 * PYR_DIGEST_BALL, their mean c and the distance r of the farthest: s = q.c + |q| r, a bound too
 * (ArkVale, NeurIPS 2024); PYR_DIGEST_MEAN, the mean alone: s = q.c (InfLLM's mean of a block,
 * arXiv 2402.04617); PYR_DIGEST_SIGNS, the mean and a bit for each channel of each key: s is the
 * highest of its rows' estimates, q.c + what the signs of k - c tell of q.(k - c) (RaBitQ, arXiv
 * 2405.12497). */
typedef enum pyr_digest {
  PYR_DIGEST_NONE = 0, PYR_DIGEST_BOUND, PYR_DIGEST_BALL, PYR_DIGEST_MEAN, PYR_DIGEST_SIGNS,
  PYR_DIGESTS
} pyr_digest;

/* What a step reads of each lane of a layer: the pages of its first and last rows, and the others
 * that the step's query ranks highest, for each lane by the highest of its query heads, ties to the
 * lower page; so many whole pages of 32 as hold `rows` rows. Nothing is evicted. Where a lane holds
 * no more than that, all of it. Under a sliding window only pages that show a row of it. */
typedef struct pyr_read {
  int64_t rows;         /* 0: all are read */
  int64_t first, last;  /* pages that hold one of so many rows at either end are always read, even
                           if they are more than `rows`; the newest page always is */
  pyr_digest by;
} pyr_read;

typedef struct pyr_plan {  /* each lane is cut by its own rows; one that holds no more than it
                              may keep is left whole */
  int64_t keep;         /* rows of a lane that survive, guards included; 1..rows; rows: nothing is
                           ranked */
  int32_t keep_count;   /* 0, or kv_heads (<= PYR_KEEP_HEADS; needs PYR_SHARE_HEAD): … */
  int32_t keep_of[PYR_KEEP_HEADS];   /* … `keep` of each head */
  int64_t first, last;  /* guarded rows at either end; guards win over keep where they exceed it */
  int64_t least;        /* with PYR_SHARE_POOL, PYR_SHARE_MODEL, mass or bounded: rows of a lane
                           that survive at least, guards included; <= keep */
  double mass;          /* 0, or in (0, 1]: as few of the candidates as hold this share of the sum
                           of their scores (a score below 0 counts 0), at least `least` and at most
                           `keep` rows with the guards; the same in all layers that share
                           PYR_SHARE_MODEL */
  int32_t bounded;      /* 1: candidates whose score is below `above` do not survive, but for
                           `least`; how many do follows what was read, and is at most `keep` */
  float above;          /* finite; as mass the same in all layers that share PYR_SHARE_MODEL */
  pyr_share share;      /* PYR_PRUNE_HIDDEN needs PYR_SHARE_LAYER */
  pyr_prune prune;      /* in decode always PYR_PRUNE_CACHE */
  int32_t merge;        /* losers are merged into survivors of their lane (core/policy/evict.h says
                           how), not merely dropped, … */
  float threshold;      /* … where their keys' cosine is at least this; -1..1 */
  pyr_rotate rotate;    /* PYR_ROTATE_COMPACT needs PYR_SHARE_LAYER, PYR_PRUNE_CACHE, a layer
                           without sliding window, and a model without learned positions and
                           slopes */
  pyr_score score;
  pyr_score weight;     /* length 0: none; while a prompt is read, with PYR_SHARE_HEAD or
                           PYR_SHARE_POOL: the layer's part of the sum of the `keep` rows of all
                           layers that have one is in proportion to its mean over the candidates of
                           the layer (below 0: 0). It is worked out over all lanes together: sums
                           (PYR_S_TOTAL, PYR_S_NORMALIZE) are of the layer, all else of a lane. It
                           and `score` have PYR_SCORE_MAX operations. Layers are cut again, as with
                           PYR_SHARE_MODEL (CAKE, arXiv 2503.12491; LAVa, 2509.09754) */
  pyr_read read;        /* what steps read from then on, until another plan says so (rows > 0).
                           Refused beside a trigger that tracks attention, which steps then give to
                           few rows, and where the device cannot. Without a `trigger` a policy's
                           `decode` is asked once a prompt, for this alone. In pyr_cache_evict it is
                           not looked at */
  int32_t losers;       /* 0: they leave the cache; PYR_TIER_WARM, PYR_TIER_COLD: they go down to
                           that tier, which the cache must have; less than 0, the same numbers: to
                           it or else one below, if it has any, else they leave. Not with merge, nor
                           where keys are or were turned (PYR_ROTATE_COMPACT) */
} pyr_plan;

typedef struct pyr_trigger {  /* when decode plans run, and what is tracked until then */
  int64_t every;        /* after this many steps; 0: never by count */
  int64_t over;         /* when the longest lane holds more rows than this; 0: never by length */
  int64_t window;       /* the last rows, never ranked in decode */
  int32_t once;         /* a row is ranked once: survivors, and all rows before the prompt's window,
                           are left alone */
  pyr_score_op track;   /* the PYR_S_ATTENTION or PYR_S_HISTORY signal that decode plans rank by
                           (with its n and x, or they are refused), or any other code: none. Tracked
                           per lane as the mean over its heads, from the prompt's queries on; or, as
                           PYR_MAX over both queries and heads, as the highest of all. Or
                           PYR_S_LEARNED: each row is given its number when it is made, also by a
                           step, and keeps it; a cache tracks one table in all layers and for good,
                           and rows from before have 0 */
  int64_t recall;       /* 0, or, of a trigger that tracks attention and does not rank rows once:
                           that is tracked of rows in lower tiers, too, while text is generated,
                           which costs another attention to them a step; and when the trigger fires,
                           so many rows of each lane, those with the most, come up before the plan
                           ranks the hot ones. They stay where the budget has no room for them */
} pyr_trigger;

/* Numbers of a PYR_S_TABLE, and of others; host memory, unchanged while the policy lives. What lies
 * beyond is 0. */
typedef enum pyr_table_by { PYR_BY_POSITION = 0, PYR_BY_HEAD } pyr_table_by;
typedef struct pyr_table {
  pyr_table_by by;      /* values[position], or values[layer * width + kv_head] */
  int64_t count, width; /* floats; floats a layer (PYR_BY_HEAD) */
  const float *values;
} pyr_table;

/* What a PYR_S_CUSTOM is shown: one lane. Where heads share one set it is asked for each, and the
 * results' mean ranks. */
typedef struct pyr_custom_view {
  int32_t layer, head, head_dim, inputs, width;
  int64_t rows;         /* candidates */
  const int32_t *positions;           /* [rows] */
  const float *const *input;          /* [inputs][rows] what was popped, the deepest first; the same
                                         for all heads of a set */
  const void *source;   /* the core's */
  int32_t group;        /* query heads of the lane */
} pyr_custom_view;
/* Copies the candidates' K (values = 0) or V (1) to out [rows, head_dim]. */
pyr_status pyr_custom_rows(const pyr_custom_view *view, int values, float *out);
/* Copies the candidates' own queries, as RoPE turned them (turned = 1) or as they were before (0),
 * to out [rows, group, head_dim]. PYR_ARGUMENT: the operation does not ask for them. */
pyr_status pyr_custom_queries(const pyr_custom_view *view, int turned, float *out);
/* Copies what the layer read at the candidates' tokens, normed, to out [rows, width]. PYR_ARGUMENT:
 * the operation did not say that it looks at them. */
pyr_status pyr_custom_hidden(const pyr_custom_view *view, float *out);

/* A policy: pure callbacks; NULL means nothing to do. An error status carries its message through
 * pyr_runtime_set_error. Plans are asked for before the work they belong to, so that a policy that
 * fails loses nothing: `prefill` once per layer before the layer runs, `trigger` right after it
 * (rows = what the plan leaves), `decode` before the step at whose end the trigger fires (rows =
 * with that step's row). `retain`/`release` follow the caches that use the policy. */
typedef struct pyr_policy {
  void *ud;
  const char *name;     /* for messages; lives as long as ud */
  pyr_status (*prefill)(void *ud, const pyr_shape *shape, pyr_plan *plan);
  pyr_status (*trigger)(void *ud, const pyr_shape *shape, pyr_trigger *trigger);
  pyr_status (*decode)(void *ud, const pyr_shape *shape, pyr_plan *plan);
  void (*retain)(void *ud);
  void (*release)(void *ud);
  /* What scores refer to by number. `table` is asked when a plan is checked and when it runs.
   * `custom` runs when a layer's prompt has been read and writes out [view->rows]; if it fails, the
   * prefill does. */
  pyr_status (*table)(void *ud, int32_t number, pyr_table *out);
  pyr_status (*custom)(void *ud, int32_t number, const pyr_custom_view *view, float *out);
} pyr_policy;

pyr_status pyr_runtime_set_error(pyr_runtime *rt, pyr_status status, const char *format, ...);

/* ---- cache: one sequence --------------------------------------------------------------------- */

typedef struct pyr_pool pyr_pool;   /* pages under one byte budget, shared by the caches of a batch
                                       and by forks */
typedef struct pyr_cache pyr_cache;

pyr_status pyr_pool_new(pyr_model *model, pyr_dtype dtype, size_t budget /* 0: none */,
                        pyr_pool **out);
/* The same, whose pages are packed to so few bits once they are full: keys to k, values to v.
 * PYR_UNSUPPORTED: a device, or a head_dim that is no multiple of 32. */
pyr_status pyr_pool_new_packed(pyr_model *model, pyr_dtype dtype, pyr_bits k, pyr_bits v,
                               size_t budget, pyr_pool **out);
void pyr_pool_free(pyr_pool *pool);
size_t pyr_pool_bytes(const pyr_pool *pool);  /* what all its caches hold, shared pages once */

/* Tiers. Rows are appended to the hot tier, whose dtype is the pool's; plans judge its rows alone,
 * and what leaves it may go down a tier (pyr_plan.losers) instead of leaving the cache. Queries
 * attend to the rows of all tiers: with equal dtypes a cache that demotes computes what a full one
 * does, to rounding. The processor's alone. */
typedef enum pyr_tier { PYR_TIER_HOT = 0, PYR_TIER_WARM, PYR_TIER_COLD } pyr_tier;
typedef struct pyr_tier_options {
  size_t size;
  pyr_tier tier;             /* warm or cold */
  pyr_dtype dtype;           /* rows are converted once, as they come down */
  pyr_bits k, v;             /* PYR_BITS_PLAIN (0): as dtype says; else all of a lane's rows are
                                packed to so few bits once 64 of them have come down, so that it is
                                known what they look like */
  const char *file;          /* NULL: memory, which counts against the pool's budget; else its pages
                                lie in a file that is made at this path, where there must be none,
                                and has no name from then on. What lies there is no part of the
                                budget */
  size_t bytes;              /* the most that the tier may hold; 0: any number, not with a file */
  int64_t rows;              /* the most of a lane; 0: any number */
} pyr_tier_options;
/* The next tier of a pool of which no cache has been made. PYR_UNSUPPORTED: rows that a pool of
 * their own could not have (pyr_pool_new_packed), or a device. Beyond `bytes` or `rows` its oldest
 * rows go on to the tier below; the last tier says PYR_BUDGET then. */
pyr_status pyr_pool_add_tier(pyr_pool *pool, const pyr_tier_options *options);
/* Where the budget is full, a prefill or step makes room first: the oldest rows, but for the first
 * 4 and the last 64 of each lane, go down a tier. They stay there also if the call then fails. */
void pyr_pool_set_pressure(pyr_pool *pool, int demote);
pyr_runtime *pyr_pool_runtime(const pyr_pool *pool);

pyr_status pyr_cache_new(pyr_model *model, pyr_pool *pool,
                         const pyr_policy *policy /* may be NULL */, pyr_cache **out);
void pyr_cache_free(pyr_cache *cache);
pyr_model *pyr_cache_model(const pyr_cache *cache);
pyr_pool *pyr_cache_pool(const pyr_cache *cache);

#define PYR_PREFILL_ALL 1       /* logits [n, vocab]; needs every token to reach the last layer */
#define PYR_PREFILL_NO_PRUNE 2  /* append without asking the policy */
#define PYR_PREFILL_WHOLE 4     /* rows held are judged with the tokens' as one prompt, read in
                                   pieces: plans are told of no past. PYR_POLICY: a plan wants what
                                   only a prompt at once has (hidden states, preparing passes) */
#define PYR_PREFILL_STATES 8    /* hidden states [width], as the last norm leaves them, no logits */
/* Reads n >= 1 tokens; logits [vocab] of the last one (or NULL). All or nothing: on failure rows
 * are as before. */
pyr_status pyr_cache_prefill(pyr_cache *cache, const int32_t *ids, int64_t n, int flags,
                             float *logits);
/* The same of rows [n, width] instead of ids, host memory, for what is no text: images, audio,
 * series, learned prompts. They are taken as they enter the first layer, that is, after whatever
 * the model does to its embeddings (a scale, where a family has one), and count as tokens in all
 * else: positions, policies, tokens seen, saved caches. Calls of the two kinds may alternate.
 * PYR_ARGUMENT: a number that is not finite. */
pyr_status pyr_cache_prefill_embeddings(pyr_cache *cache, const float *rows, int64_t n, int flags,
                                        float *logits);
/* One token on for each of `count` distinct caches of one model, in one forward pass; logits[i] is
 * [vocab] or NULL. All or nothing. */
pyr_status pyr_step(pyr_cache *const *caches, const int32_t *ids, int count, float *const *logits);
typedef struct pyr_sampler pyr_sampler;
/* The same, and what samplers[i], if there is one, picks of the logits: picks[i], -1 where there is
 * none or no logit is finite. Logits that are NULL stay where they were computed. A device that
 * fails at the picks alone has made the step; picks not made are -1. */
pyr_status pyr_step_pick(pyr_cache *const *caches, const int32_t *ids, int count,
                         float *const *logits, pyr_sampler *const *samplers, int32_t *picks);
/* Reads n tokens that may turn out to be wrong (speculative decoding, arXiv 2211.17192), in one
 * pass over the weights: logits [n, vocab] (or NULL), those after each token, are bit for bit what
 * n calls of pyr_step give. Until another call adds, moves or drops rows, pyr_cache_truncate goes
 * back to any of them under every policy, also where attention is tracked. n is below 48;
 * PYR_POLICY: more than pyr_cache_verifiable says, and nothing has changed. All or nothing. */
pyr_status pyr_cache_verify(pyr_cache *cache, const int32_t *ids, int64_t n, float *logits);
/* The most tokens that pyr_cache_verify takes now: fewer than the steps until the policy's next
 * decode plan, as far as the context has room. 0: a cache that has read nothing, or whose next step
 * evicts. */
int64_t pyr_cache_verifiable(const pyr_cache *cache);
/* pages shared until written */
pyr_status pyr_cache_fork(const pyr_cache *cache, pyr_cache **out);
pyr_status pyr_cache_clear(pyr_cache *cache);
/* Evicts at once: in each layer, what the prefill plan of `policy` (NULL: the cache's own) says of
 * the rows held now, as if they were a prompt just read: shape.prompt and shape.rows are the
 * longest lane's rows, shape.past is 0. The cache's own policy and its triggers stay. Scores may
 * look at rows, tables, functions, and attention that the cache tracks; what only a running prefill
 * knows (other attention, expected attention, hidden states) is refused by name: PYR_POLICY. All or
 * nothing. */
pyr_status pyr_cache_evict(pyr_cache *cache, const pyr_policy *policy);
/* Reads n tokens over the cache as a prompt of theirs would be, tracks what their queries give to
 * each row that is there (track: PYR_S_ATTENTION), and leaves no rows. What was tracked is read by
 * PYR_S_PROBED, in pyr_cache_scores and in plans of pyr_cache_evict, until a call adds, moves or
 * drops rows; forks and files do not have it. Takes room for n rows of one layer at a time. All or
 * nothing; what it computed counts in pyr_cache_computed. */
pyr_status pyr_cache_probe(pyr_cache *cache, const int32_t *ids, int64_t n,
                           const pyr_score_op *track);

/* A preparing pass: when a prompt has been read whole, it is read once more in blocks, over the
 * cache and without leaving rows, and what the passes' queries give to the rows of the block that
 * they repeat is tracked. Then the policy's prefill plans run, of all layers at once, whose scores
 * may hold PYR_S_PROBED. Each pass reads
 *
 *     [ lead ids ][ tokens at .. at + block of the prompt ]
 *
 * and judges the prompt's rows at .. at + block. A block of 0: one pass reads the lead alone, and
 * judges all of the prompt's rows. Source: KVzip, arXiv 2505.23416. */
typedef enum pyr_among { PYR_AMONG_ALL = 0, PYR_AMONG_BLOCK } pyr_among;
typedef struct pyr_preparation {
  size_t size;
  pyr_score_op track;   /* PYR_S_ATTENTION; n: the last queries of each pass, 0: all. Any other
                           code: there is no preparing pass, and plans run as ever */
  int64_t block;        /* tokens that a pass repeats at most; fewer where the context has no
                           room */
  const int32_t *first, *lead;   /* what the first pass, and each later one, begins with: ids, and
                           where -k stands the k tokens of the prompt before the block. Host memory
                           of the policy's, unchanged until it is asked again */
  int64_t first_count, lead_count;
  pyr_among among;      /* PYR_AMONG_BLOCK: attention is taken among the cache's first `sinks` rows,
                           the block's and the pass's own only (as KVzip takes it), and not among
                           all rows */
  int64_t sinks;
} pyr_preparation;

/* What goes with a policy that prepares. `prepare` is asked once a prompt, before it is read;
 * shape->layer is 0. Plans then judge the prompt's own rows: rows held before are guarded, and
 * `keep` counts shape->past of them in each lane, whatever a lane holds. Layers with a sliding
 * window are not asked and stay whole, as passes come too late to see their rows. Where no plan
 * would evict, nothing is read twice. */
typedef struct pyr_preparer {
  size_t size;
  void *ud;
  pyr_status (*prepare)(void *ud, const pyr_shape *shape, pyr_preparation *out);
  void (*retain)(void *ud);  /* these two follow the caches that use it; NULL: nothing to do */
  void (*release)(void *ud);
} pyr_preparer;

/* Who prepares the plans of a cache, and of what is forked from it; NULL: nobody. */
pyr_status pyr_cache_on_prepare(pyr_cache *cache, const pyr_preparer *preparer);
/* Drops the rows of tokens from n on (0 <= n <= tokens seen); the cache goes on from token n. A
 * cache that evicted nothing is then, bit for bit, one that never read them. Rows below n that were
 * evicted stay so, keys that were turned or merged stay as they are. PYR_POLICY, and nothing is
 * changed, where attention is tracked (what the dropped tokens gave is in sums with the rest; but
 * not of tokens that pyr_cache_verify read last), and
 * where a lane holds no row below n any more. PYR_ARGUMENT where a layer with a sliding window has
 * given back rows that the window of token n shows; the message names the first token that may be.
 * All or nothing. */
pyr_status pyr_cache_truncate(pyr_cache *cache, int64_t n);
/* To a file that is whole at any time: the old one or, once this returns, the new one. Devices and
 * pipes are refused. */
pyr_status pyr_cache_save(const pyr_cache *cache, const char *path);
/* With a text of the saver's own, which the file keeps; what a loaded cache's file kept is the
 * cache's; NULL: nothing. */
pyr_status pyr_cache_save_note(const pyr_cache *cache, const char *path, const char *note,
                               size_t length);
const char *pyr_cache_note(const pyr_cache *cache, size_t *length);
/* A hash of all that a saved file must match to be loaded into the cache, but the policy. */
uint64_t pyr_cache_identity(const pyr_cache *cache);
/* PYR_FORMAT: a file of another model or tokenizer (their fingerprints, see pyr_model_identify), or
 * no saved cache. */
pyr_status pyr_cache_load(pyr_model *model, pyr_pool *pool, const pyr_policy *policy,
                          const char *path, pyr_cache **out);

/* The first `tokens` (1 or more) of a saved cache, into one that has seen none: load and truncate.
 * Its policy, tracer and note stay. PYR_ARGUMENT: it is not empty, or the file holds fewer. */
pyr_status pyr_cache_load_prefix(pyr_cache *cache, const char *path, int64_t tokens);

int64_t pyr_cache_tokens(const pyr_cache *cache);            /* tokens seen */
int64_t pyr_cache_rows(const pyr_cache *cache, int layer, int head);  /* -1 if out of range */
pyr_status pyr_cache_positions(const pyr_cache *cache, int layer, int head,
                               int32_t *out /* [rows] */);
size_t pyr_cache_bytes(const pyr_cache *cache);   /* pages and bookkeeping, shared ones too */
size_t pyr_cache_workspace(const pyr_cache *cache);   /* of its steps and its forks'; no budget's */
/* The same of one tier; -1, or 0 bytes, of one that the cache has not. pyr_cache_rows and
 * pyr_cache_positions are of the hot one. */
int64_t pyr_cache_tier_rows(const pyr_cache *cache, pyr_tier tier, int layer, int head);
pyr_status pyr_cache_tier_positions(const pyr_cache *cache, pyr_tier tier, int layer, int head,
                                    int32_t *out);
size_t pyr_cache_tier_bytes(const pyr_cache *cache, pyr_tier tier);
int pyr_cache_has_tier(const pyr_cache *cache, pyr_tier tier);
/* Brings rows of lower tiers back to the hot one: of each lane the `rows` of them that the score
 * ranks highest, ties to the warmer tier and the lower row; fewer where there are fewer. The score
 * may look at rows and at tables; attention and probes are of hot rows, and refused. Values are not
 * rounded again. All or nothing. */
pyr_status pyr_cache_promote(pyr_cache *cache, const pyr_score *score, int64_t rows);
/* rows held in all tiers / (lanes * tokens); 1 for an empty cache */
double pyr_cache_fraction(const pyr_cache *cache);
/* Of the rows held, the share that the next step reads, at most (pyr_read); 1: all of them, or none
 * are held */
double pyr_cache_reading(const pyr_cache *cache);
/* token-layers computed so far; full: tokens * layers */
int64_t pyr_cache_computed(const pyr_cache *cache);
/* rows dropped or never stored, over all lanes */
int64_t pyr_cache_evicted(const pyr_cache *cache);
/* What a score says of the rows held now: out[position] is the mean over the lanes of `layer` and
 * `head` (-1: all of them), [tokens]; rows not held count as 0. Attention is what the cache's
 * policy tracks, alone if length is 0. PYR_ARGUMENT: a lane that there is not, or a score that only
 * a running prefill can know. */
pyr_status pyr_cache_scores(const pyr_cache *cache, int layer, int head, const pyr_score *score,
                            float *out);

/* Seeing inside: what each plan was and came to, told when it has been carried out. */
/* PYR_WHEN_PREPARED: a prefill's plan that runs when all layers have read, after `prepare` */
typedef enum pyr_when {
  PYR_WHEN_PREFILL = 0, PYR_WHEN_DECODE, PYR_WHEN_EVICT, PYR_WHEN_PREPARED
} pyr_when;
typedef struct pyr_spread { int64_t min, max, sum; } pyr_spread;   /* over the lanes of a layer */

/* One plan in one layer. Filled by the library; all of it lasts until the callback returns. */
typedef struct pyr_trace {
  size_t size;
  const pyr_policy *policy;  /* whose plan it was */
  const pyr_plan *plan;      /* what was asked */
  pyr_when when;
  int32_t layer, layers, lanes;
  int64_t tokens;            /* that the cache has seen, with those of this call */
  pyr_spread rows;           /* of a lane, before */
  pyr_spread judged;         /* … of which the plan ranked so many, all but the guarded */
  pyr_spread kept;           /* … and after */
  int64_t evicted;           /* rows, of all lanes together */
  int64_t hidden, hidden_kept;  /* prefill: tokens that reached the layer, and that go on from it */
  const char *why;  /* "no plan": keep all, and nothing else was asked; "fits": no lane holds more
                       than it may keep; else the score by which rows were ranked, as text */
  double seconds;            /* that looking, ranking and evicting took */
  size_t bytes;              /* of the layer's rows after it: pages, and what lies beside them */
} pyr_trace;

/* An error status carries its message through pyr_runtime_set_error and ends the call, which then
 * has changed nothing, as a policy's does. */
typedef struct pyr_tracer {
  size_t size;
  void *ud;
  pyr_status (*trace)(void *ud, const pyr_trace *record);
  void (*retain)(void *ud);  /* these two follow the caches that use it; NULL: nothing to do */
  void (*release)(void *ud);
} pyr_tracer;

/* Whom a cache, and what is forked from it, tells of its plans; NULL: nobody. Layers whose policy
 * is not asked (PYR_PREFILL_NO_PRUNE) have no record. A prefill may still fail after its layers
 * were told of. While somebody is told, plans are timed (on a device each is waited for), and a
 * call holds what its plans evict until all were told. Else it costs nothing. */
pyr_status pyr_cache_on_trace(pyr_cache *cache, const pyr_tracer *tracer);

/* ---- tokenizer ------------------------------------------------------------------------------- */
/* A tokenizer is built in four moves, like a model: new, then pieces, merges, added tokens and
 * steps, then ready; after that it only encodes and decodes. What a file says in JSON or GGUF is
 * put into these calls by lua/pyramid/tokenizer.lua.
 *
 * Encoding: added tokens with PYR_TOKEN_RAW are cut out of the text; what lies between goes through
 * the NORMALIZE steps; the other added tokens are cut out of that; what is left goes through the
 * SPLIT steps into words, and BPE runs in each word. Bytes that are not UTF-8 skip all of this and
 * are encoded byte by byte, so that decoding gives them back. */
typedef struct pyr_tokenizer pyr_tokenizer;

typedef struct pyr_tokenizer_options {
  size_t size;
  int32_t vocab;            /* ids are 0..vocab-1; 1..2^24. Ids without a piece are legal and never
                               produced */
  int32_t unknown;          /* id for what the vocabulary cannot say; -1: such text is dropped */
  int byte_level;           /* pieces are spelled in GPT-2's byte alphabet (U+0120 for a space),
                               merging runs over bytes */
  int byte_fallback;        /* characters without a piece become the pieces <0x00>..<0xFF> */
  int by_score;             /* no merges are listed: any two neighbours that form a piece merge,
                               highest score first */
  int whole_words;  /* a word that is a piece is not merged together first ("ignore_merges") */
  int fuse_unknown;         /* neighbouring unknown characters become one id */
  int32_t ids;              /* of the model, whose vocabulary may be padded: up to ids-1 decodes to
                               nothing; 0: as vocab */
} pyr_tokenizer_options;

#define PYR_PIECE_CLOSED 1      /* in the vocabulary, but merging never makes it: control, byte and
                                   unknown pieces */

#define PYR_TOKEN_SPECIAL 1     /* a control token: found only with PYR_ENCODE_PARSE, skipped by
                                   PYR_DECODE_PLAIN */
#define PYR_TOKEN_LSTRIP 2      /* takes the white space before it along */
#define PYR_TOKEN_RSTRIP 4      /* … and behind it */
#define PYR_TOKEN_WORD 8        /* only where no word character touches it */
#define PYR_TOKEN_RAW 16        /* looked for in the text as given, before normalisation; otherwise
                                   after it */

typedef enum pyr_stage { PYR_NORMALIZE = 0, PYR_SPLIT, PYR_DECODE } pyr_stage;

typedef enum pyr_step_kind {    /* with the stages that know it */
  PYR_STEP_NFD = 0, PYR_STEP_NFC, PYR_STEP_NFKD, PYR_STEP_NFKC, PYR_STEP_LOWER,   /* normalize */
  PYR_STEP_STRIP,       /* normalize: white space at the left (a) and right (b) end goes */
  PYR_STEP_PREPEND,     /* normalize, split: text goes before it. a: not if it begins so already; b:
                           only what begins the input */
  PYR_STEP_REPLACE,     /* all stages: each pattern, taken literally, becomes text */
  PYR_STEP_SUBSTITUTE,  /* normalize: each match of the regular expression becomes text, taken
                           literally */
  PYR_STEP_MATCH,       /* split: cut at matches of the regular expression; a: pyr_cut, b: matches
                           and gaps change roles */
  PYR_STEP_BYTES,       /* split: spell bytes in GPT-2's alphabet, where later steps need it so;
                           decode: back to bytes */
  PYR_STEP_FALLBACK,    /* decode: <0xNN> becomes that byte */
  PYR_STEP_TRIM,        /* decode: up to a times pattern goes from the beginning of the whole */
  PYR_STEP_JOIN,        /* decode: text between any two pieces */
  PYR_STEP_KINDS
} pyr_step_kind;

typedef enum pyr_cut { PYR_CUT_REMOVED = 0, PYR_CUT_ISOLATED, PYR_CUT_PREVIOUS, PYR_CUT_NEXT,
                       PYR_CUT_CONTIGUOUS } pyr_cut;

typedef struct pyr_text_step {
  pyr_step_kind kind;
  const char *pattern;  /* PCRE2 syntax where a regular expression (UTF and UCP are on); copied */
  size_t pattern_length;
  const char *text;
  size_t text_length;
  int a, b;
} pyr_text_step;

pyr_status pyr_tokenizer_new(pyr_runtime *rt, const pyr_tokenizer_options *options,
                             pyr_tokenizer **out);
/* PYR_FORMAT: id out of range or already named, empty piece, score not a number. Two ids may share
 * a text, as in some GGUF files: merging makes the later one. */
pyr_status pyr_tokenizer_piece(pyr_tokenizer *t, int32_t id, const char *piece, size_t length,
                               float score, int flags);
/* The next merge in rank. Comes after the pieces. PYR_FORMAT if left, right or both joined are no
 * pieces. A pair that is listed again takes the later rank. */
pyr_status pyr_tokenizer_merge(pyr_tokenizer *t, const char *left, size_t left_length,
                               const char *right, size_t right_length);
/* A text that is found as a whole, the longest one first. The id may have a piece already, of the
 * same text. Comes after the pieces. PYR_FORMAT: id out of range, named otherwise, or the text
 * added twice. */
pyr_status pyr_tokenizer_added(pyr_tokenizer *t, int32_t id, const char *text, size_t length,
                               int flags);
/* PYR_FORMAT: bad expression */
pyr_status pyr_tokenizer_step(pyr_tokenizer *t, pyr_stage stage, const pyr_text_step *step);
pyr_status pyr_tokenizer_around(pyr_tokenizer *t, const int32_t *before, int32_t before_count,
                                /* what PYR_ENCODE_ADD adds; copied */
                                const int32_t *after, int32_t after_count);
pyr_status pyr_tokenizer_ready(pyr_tokenizer *t);
pyr_tokenizer *pyr_tokenizer_retain(pyr_tokenizer *t);
void pyr_tokenizer_free(pyr_tokenizer *t);
pyr_runtime *pyr_tokenizer_runtime(const pyr_tokenizer *t);
/* of a ready one; equal for what encodes alike; never 0 */
uint64_t pyr_tokenizer_fingerprint(const pyr_tokenizer *t);

#define PYR_ENCODE_PARSE 1      /* texts of special tokens become their ids */
#define PYR_ENCODE_ADD 2        /* the ids of pyr_tokenizer_around are put around */
/* *ids [*count] belongs to the tokenizer until its next encode. PYR_ARGUMENT: an expression gave up
 * (its match limit). */
pyr_status pyr_tokenizer_encode(pyr_tokenizer *t, const char *text, size_t length, int flags,
                                const int32_t **ids, int64_t *count);
/* by its spelling; -1: none, or no memory */
int32_t pyr_tokenizer_id(pyr_tokenizer *t, const char *piece, size_t length);
/* The spelling of a piece, not terminated; the tokenizer's until the next call. NULL: no such id,
 * or no memory. */
const char *pyr_tokenizer_spelling(pyr_tokenizer *t, int32_t id, size_t *length);
/* PYR_TOKEN_… of an added token; 0 if a mere piece; -1: no such id */
int pyr_tokenizer_flags(const pyr_tokenizer *t, int32_t id);

/* A decoder turns ids into text one by one and never cuts a UTF-8 character: bytes wait until the
 * character is whole. Bytes that can be no character become U+FFFD, one for each maximal subpart.
 */
typedef struct pyr_decoder pyr_decoder;
#define PYR_DECODE_PLAIN 1      /* special tokens are left out */
#define PYR_DECODE_BYTES 2      /* bytes as they are, UTF-8 or not, nothing waits */
#define PYR_DECODE_CONTINUE 4   /* the text goes on from earlier ids: nothing is trimmed from its
                                   beginning */
pyr_status pyr_decoder_new(pyr_tokenizer *t, int flags, pyr_decoder **out);
/* *text [*length] belongs to the decoder until its next call; not terminated. An id without a
 * piece, of the vocabulary or of the padding beyond (ids), is the empty text. PYR_ARGUMENT: no such
 * id, nothing is taken. */
pyr_status pyr_decoder_push(pyr_decoder *d, const int32_t *ids, int64_t count, const char **text,
                            size_t *length);
/* what waits, as U+FFFD; then as new */
pyr_status pyr_decoder_finish(pyr_decoder *d, const char **text, size_t *length);
void pyr_decoder_free(pyr_decoder *d);

/* ---- sampler: logits -> id; seeded and reproducible ------------------------------------------ */

typedef struct pyr_logit_bias { int32_t id; float bias; } pyr_logit_bias;

typedef struct pyr_sampler_options { /* zeroed: greedy */
  float temperature;         /* 0: greedy */
  int32_t top_k;             /* 0: off */
  float top_p;               /* 0 or >= 1: off */
  float min_p;               /* 0: off */
  float repeat_penalty;      /* 0 or 1: off; divides positive logits of seen ids, multiplies
                                negative ones (CTRL) */
  float frequency_penalty;   /* subtracts this times the count of an id */
  float presence_penalty;    /* subtracts this once from an id seen */
  int32_t penalty_last;      /* how many last picks count; 0: all */
  uint64_t seed;
  const pyr_logit_bias *bias; /* copied; those of one id are added up */
  int32_t bias_count;
  int32_t reserved[7];       /* zero: room for later versions */
} pyr_sampler_options;

pyr_status pyr_sampler_new(pyr_runtime *rt, const pyr_sampler_options *options, pyr_sampler **out);
void pyr_sampler_free(pyr_sampler *sampler);
void pyr_sampler_reset(pyr_sampler *sampler);                /* as new: seed and history */
/* ids seen, e.g. the prompt */
pyr_status pyr_sampler_accept(pyr_sampler *sampler, const int32_t *ids, int64_t n);
/* Picks from logits [vocab] and remembers it. Ties go to the lower id. PYR_ARGUMENT: none is
 * finite; more than 2^19, and not greedy. */
pyr_status pyr_sampler_pick(pyr_sampler *sampler, const float *logits, int32_t vocab, int32_t *out);

/* ---- facade for hosts without Lua (lua/host.c)
 * ---------------------------------------------------------------------
 *
 * A host is a model with its tokenizer and policy; it generates texts, and holds conversations.
 *
 * Threads. A host and its conversations are used by one thread at a time, not always the same one;
 * a second call while one runs is PYR_ARGUMENT. Only pyr_host_cancel may come from anywhere at any
 * time, signal handlers included, while the host is open. Two hosts know nothing of each other.
 *
 * Callbacks run in the thread of the call, between its steps. They may use other hosts as they
 * like; of their own host pyr_host_cancel, pyr_host_error, pyr_host_get_stats, and closing: that
 * ends the call with PYR_CANCELLED, and the handle is gone when it returns. They must return: no
 * longjmp and no C++ exception may leave them.
 *
 * fork(2). A forked child may close what its parent had opened, and nothing else with it: threads
 * do not come along.
 *
 * Ownership. Strings and structs that are passed in are copied, or used only while the call runs.
 * Strings that come out say how long they last. Conversations keep their host's model: the two may
 * be closed in any order.
 *
 * Texts are UTF-8; bytes that are none come to the tokenizer as they are. Where a length can be
 * given, 0 means: up to the NUL. All options may be zero, every pointer in them NULL. */

typedef struct pyr_host pyr_host;
typedef struct pyr_conversation pyr_conversation;

typedef struct pyr_host_options {
  size_t size;
  const char *device;          /* NULL or "cpu"; "cuda" */
  int threads;                 /* as in pyr_runtime_options */
  int read_weights;            /* not 0: weights are read into memory, not mapped: for files that
                                  may shrink or vanish while they are used, which a mapping answers
                                  with SIGBUS */
  const char *weights;         /* NULL: as in the file; "f32", "bf16", "q8_0", … */
  const char *precision;       /* "f32", the reference; "bf16", "int8": faster products, where the
                                  processor has them; NULL or "auto": "int8" for models of quantised
                                  weights, where the memory holds them so, else "f32" */
  const char *policy;          /* a name, or a path to a policy file; NULL: "full" */
  const char *policy_options;  /* "ratio=0.8 recent=0.1", or NULL */
  double policy_seconds;       /* the most that a policy's code may take at a time; 0: 10; below 0:
                                  as long as it wants */
  const char *cache_dtype;     /* NULL: "f16" */
  size_t cache_budget;         /* bytes of a text's or a conversation's cache; 0: none */
  size_t memory_limit;         /* as in pyr_runtime_options; the private Lua state may hold as much
                                  again */
  int64_t context;  /* positions, instead of those that the model was made for; 0: those */
  const char *scaling;         /* NULL or "none"; "linear", "yarn": what RoPE does to make room for
                                  a longer context */
  const char *sessions;        /* a folder: prompts begin with what it has of them; NULL: none */
  uint64_t sessions_bytes;     /* the most that its files may take; 0: 4 GiB */
} pyr_host_options;

typedef struct pyr_token {     /* what on_token is told; its pointers last until it returns */
  const char *text;            /* that has become whole by it, NUL-terminated, maybe empty */
  size_t length;
  int32_t id;                  /* -1: none; the text is what was held back until the end */
  int32_t count;               /* of the most probable ids that follow */
  double logprob;              /* natural logarithm of its probability, as the model gives it before
                                  sampling; NaN if not asked */
  const int32_t *ids;          /* [count] the most probable ids, the first most */
  const double *logprobs;      /* [count] */
} pyr_token;

typedef struct pyr_generate_options {
  size_t size;
  int max_tokens;              /* 0: 256 */
  int plain;                   /* not 0: nothing is added to the prompt, and texts of special tokens
                                  in it are ordinary text */
  pyr_sampler_options sampler;
  const char *stop;            /* stop before this text, or NULL */
  const char *const *stops;    /* more of them, the last is NULL; or NULL */
  size_t prompt_length;        /* bytes of the prompt, where it holds NUL bytes */
  int logprobs;                /* not 0: on_token is told logprob */
  int alternatives;            /* on_token is told so many of the most probable ids, at most
                                  PYR_ALTERNATIVES, and logprob */
  /* Called with each piece of text (valid UTF-8, NUL-terminated, `length` bytes); non-zero ends the
   * text there, which is no failure. May be NULL. */
  int (*on_piece)(void *ud, const char *piece, size_t length);
  int (*on_token)(void *ud, const pyr_token *token);   /* with each token, before on_piece; non-zero
                                                          likewise. May be NULL */
  pyr_progress_fn on_progress; /* while the prompt is read, and never later; non-zero:
                                  PYR_CANCELLED. May be NULL */
  void *ud;
  /* since 0.2, of pyr_host_generate_chat and pyr_host_render alone: */
  int thinking;                /* for templates that ask: 1 yes, -1 no, 0 what they do unasked */
  const char *format;          /* a format's name or a template's text; NULL: the model's own */
  const char *variables;       /* JSON: an object of whatever else the template asks for, or NULL */
} pyr_generate_options;
#define PYR_ALTERNATIVES 100

typedef struct pyr_host_stats {
  int64_t prompt_tokens, generated_tokens;
  double prefill_seconds, decode_seconds;
  size_t cache_bytes;
  double cache_fraction;       /* rows held of those that a full cache would hold */
  /* Why the text ended; static. "eos": the model ended it; "stop": a stop text; "length":
   * max_tokens; "context": it is full; "closed": a callback ended it; "": nothing was generated, or
   * the call failed. */
  const char *finish;
  int64_t context_tokens;      /* tokens that the cache has seen */
  int64_t rereads;             /* of a conversation: how often it was read from its beginning */
  int64_t reserved[6];         /* zero: room for later versions */
} pyr_host_stats;

/* *out is set even on failure (NULL only when memory ran out), so that pyr_host_error can be read;
 * always close it. */
pyr_status pyr_host_open(const char *model_path, const pyr_host_options *options, pyr_host **out);
pyr_status pyr_host_generate(pyr_host *host, const char *prompt,
                             const pyr_generate_options *options);
/* The model's answer to messages in its chat format. JSON: `messages` is a list of objects with
 * "role" and "content", a text or parts, and whatever the model's template asks for beside them
 * ("tool_calls", "tool_call_id", "name"); `tools` is NULL or a list of the functions that the model
 * may call, as OpenAI's API describes them, or with "name", "description" and "parameters" alone.
 * The template prints objects in the order of their keys. Calls come as text, spelled as the model
 * spells them. PYR_FORMAT: no JSON; PYR_ARGUMENT: no messages, or the template refuses them;
 * PYR_UNSUPPORTED: the model has no chat format, or one that is not known. */
pyr_status pyr_host_generate_chat(pyr_host *host, const char *messages, const char *tools,
                                  const pyr_generate_options *options);
/* The prompt that it would read, which lasts until the host's next call. */
pyr_status pyr_host_render(pyr_host *host, const char *messages, const char *tools,
                           const pyr_generate_options *options, const char **text, size_t *length);
/* of the last text of the host or its conversations */
void pyr_host_get_stats(const pyr_host *host, pyr_host_stats *out);
/* as generate reads it */
pyr_status pyr_host_count_tokens(pyr_host *host, const char *text, size_t length, int64_t *out);
int64_t pyr_host_context(const pyr_host *host);  /* positions that the model has; 0: no model */
int64_t pyr_host_width(const pyr_host *host);    /* numbers of an embedding; 0: no model */

/* A prompt of texts and of what is none: rows in place of tokens, taken as they enter the model's
 * first layer (pyr_cache_prefill_embeddings). Parts are read one by one, each as a prompt of its
 * own for the policy and on_progress; prompt_tokens counts rows, too. */
typedef struct pyr_part {
  const char *text;            /* or NULL: rows */
  size_t length;
  const float *rows;           /* [count][pyr_host_width(host)], all finite */
  int64_t count;
} pyr_part;
pyr_status pyr_host_generate_parts(pyr_host *host, const pyr_part *parts, int count,
                                   const pyr_generate_options *options);
/* The rows of a text's tokens, nothing put around them: *count tokens, of which out has `room`
 * rows. PYR_ARGUMENT: room is less, and nothing is written (out may be NULL to ask for *count). */
pyr_status pyr_host_embed(pyr_host *host, const char *text, size_t length, float *out,
                          int64_t room, int64_t *count);
/* Ends the call that runs, if one does, with PYR_CANCELLED as soon as it is between two steps of
 * its work or in a policy's code. Async-signal-safe. */
void pyr_host_cancel(pyr_host *host);
/* of the last failure; until the next call. Legal with NULL */
const char *pyr_host_error(const pyr_host *host);
void pyr_host_close(pyr_host *host);

/* ---- conversations: turns in the model's chat format, in one cache that each turn only adds to */

typedef struct pyr_conversation_options {
  size_t size;
  const char *system;          /* what the model is told before the first message, or NULL */
  const char *format;          /* a format's name ("chatml") or a template's text; NULL: the model's
                                  own; "none": messages are one plain text, which the model goes on
                                  with */
  /* since 0.2 */
  const char *tools;           /* as in pyr_host_generate_chat, or NULL */
  int thinking;                /* these as in pyr_generate_options */
  const char *variables;
} pyr_conversation_options;

typedef struct pyr_message { const char *role, *text; size_t length; } pyr_message;

/* *out only on success; the message of a failure is the host's, here and in all that follows.
 * PYR_UNSUPPORTED: the model has no chat format, or one that is not known. */
pyr_status pyr_conversation_open(pyr_host *host, const pyr_conversation_options *options,
                                 pyr_conversation **out);
/* Adds a message of "user", and the model's answer to it. NULL: answers what was added before. What
 * the options say is as in pyr_host_generate (prompt_length: of the message). The prompt_tokens of
 * the statistics are those that were new. A failure leaves the conversation as it was. */
pyr_status pyr_conversation_say(pyr_conversation *c, const char *text,
                                const pyr_generate_options *options);
/* Adds a message of any role that the format knows, without an answer: examples, a conversation of
 * earlier, a correction. */
pyr_status pyr_conversation_add(pyr_conversation *c, const pyr_message *message);
/* The same of a message as JSON: calls, what a tool answered, parts. */
pyr_status pyr_conversation_add_json(pyr_conversation *c, const char *message);
/* The message of an index from 0, the system's included; its strings last until the conversation's
 * next call. A content of parts is their JSON, one that there is not "". PYR_ARGUMENT: there is
 * none. */
pyr_status pyr_conversation_get(pyr_conversation *c, int64_t index, pyr_message *out);
/* shares memory until one of them goes on */
pyr_status pyr_conversation_fork(pyr_conversation *c, pyr_conversation **out);
/* messages and cache, in one file */
pyr_status pyr_conversation_save(pyr_conversation *c, const char *path);
/* Into a host of the same model, policy and cache_dtype. The options' system is not read. */
pyr_status pyr_conversation_load(pyr_host *host, const char *path,
                                 const pyr_conversation_options *options, pyr_conversation **out);
void pyr_conversation_close(pyr_conversation *c);            /* legal with NULL */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif
#endif
