/* lmodel.c — mapped files and models for Lua.
 *
 *   core.file_open(runtime, path) -> file, mapped; core.file_read(runtime, path) -> file, read
 *   file:size() :close()
 *   core.model_new(runtime, config) -> model
 *   model:bind(role, layer, spec, as, expert) -> true
 *   model:ready() -> true
 *   model:bytes() -> integer                       model:close()
 *   model:identify(name, tokenizer's fingerprint)  model:fingerprint() -> integer
 *   core.convert_rows(runtime, output, spec, as, heads, plus, first, n) -> true
 *
 * Owns: the two userdata classes and the spelling of roles and dtypes. Does not own: where a tensor
 * lies in a file and which weight it is (lua/pyramid/loaders and families say so), nor any check of
 * that (core/base/weights.c, core/model/model.c). */
#include "lauxpyr.h"
#include "model/convert.h"
#include "model/flight.h"
#include "model/foresee.h"

#include <limits.h>
#include <stdbool.h>
#include <string.h>

#define FILE_CLASS "pyramid.file"
#define MODEL_CLASS "pyramid.model"

/* NULL: closed. Busy: a core call that may call back uses it. */
typedef struct file_box { pyr_file *file; bool busy; } file_box;
typedef struct model_box { pyr_model *model; bool busy; } model_box;

static const char *const role_names[] = {   /* in pyr_role's order */
  [PYR_W_EMBED] = "embed", [PYR_W_OUT_NORM] = "out_norm", [PYR_W_OUTPUT] = "output",
  [PYR_W_ATTN_NORM] = "attn_norm", [PYR_W_Q] = "q", [PYR_W_K] = "k", [PYR_W_V] = "v",
  [PYR_W_Q_BIAS] = "q_bias", [PYR_W_K_BIAS] = "k_bias", [PYR_W_V_BIAS] = "v_bias",
  [PYR_W_Q_NORM] = "q_norm", [PYR_W_K_NORM] = "k_norm", [PYR_W_O] = "o",
  [PYR_W_O_BIAS] = "o_bias", [PYR_W_FFN_NORM] = "ffn_norm", [PYR_W_GATE] = "gate",
  [PYR_W_UP] = "up", [PYR_W_DOWN] = "down", [PYR_W_POSITIONS] = "positions",
  [PYR_W_OUT_NORM_BIAS] = "out_norm_bias", [PYR_W_OUTPUT_BIAS] = "output_bias",
  [PYR_W_ATTN_NORM_BIAS] = "attn_norm_bias", [PYR_W_FFN_NORM_BIAS] = "ffn_norm_bias",
  [PYR_W_ATTN_POST_NORM] = "attn_post_norm", [PYR_W_FFN_POST_NORM] = "ffn_post_norm",
  [PYR_W_GATE_BIAS] = "gate_bias", [PYR_W_UP_BIAS] = "up_bias",
  [PYR_W_DOWN_BIAS] = "down_bias", [PYR_W_SINKS] = "sinks",
  [PYR_W_ROUTER] = "router", [PYR_W_ROUTER_BIAS] = "router_bias",
  [PYR_W_ROUTER_CORRECTION] = "router_correction", [PYR_W_SHARED_GATE] = "shared_gate",
  [PYR_W_SHARED_UP] = "shared_up", [PYR_W_SHARED_DOWN] = "shared_down",
  [PYR_W_SHARED_ROUTER] = "shared_router", [PYR_W_EMBED_NORM] = "embed_norm",
  [PYR_W_EMBED_NORM_BIAS] = "embed_norm_bias", [PYR_ROLES] = NULL,
};

/* ---- fields of argument tables --------------------------------------------------------------- */

/* Field `key` of the table at `arg` as an integer; raises if it is not one. */
static lua_Integer integer_field(lua_State *L, int arg, const char *key) {
  int exact;
  lua_getfield(L, arg, key);
  lua_Integer value = lua_tointegerx(L, -1, &exact);
  if (!exact) luaL_error(L, "field '%s' is not an integer (%s)", key, luaL_typename(L, -1));
  lua_pop(L, 1);
  return value;
}

/* Likewise as an int32: what does not fit becomes an extreme that the core's range check refuses.
 */
static int32_t int32_field(lua_State *L, int arg, const char *key) {
  lua_Integer value = integer_field(L, arg, key);
  return value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : (int32_t)value;
}

static double number_field(lua_State *L, int arg, const char *key) {
  int exact;
  lua_getfield(L, arg, key);
  double value = lua_tonumberx(L, -1, &exact);
  if (!exact) luaL_error(L, "field '%s' is not a number (%s)", key, luaL_typename(L, -1));
  lua_pop(L, 1);
  return value;
}

/* Pushes nothing; returns the dtype that the string at `index` names, or raises. */
static pyr_dtype check_dtype(lua_State *L, int index) {
  const char *name = lua_type(L, index) == LUA_TSTRING ? lua_tostring(L, index) : "(not a string)";
  int dtype = pyr_dtype_of_name(name);
  if (dtype < 0) luaL_error(L, "unknown dtype '%s'", name);
  return (pyr_dtype)dtype;
}

/* A set of names: what kernels there are for a dtype. */
static void push_kernels(lua_State *L, unsigned kernels) {
  static const struct { unsigned bit; const char *name; } names[] = {
    { PYR_KERNEL_WEIGHTS, "weights" }, { PYR_KERNEL_ROWS, "rows" }, { PYR_KERNEL_BF16, "bf16" },
    { PYR_KERNEL_BYTES, "bytes" }, { PYR_KERNEL_PACKS, "packs" },
  };
  lua_newtable(L);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (!(kernels & names[i].bit)) continue;
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, names[i].name);
  }
}

/* core.dtypes() -> the table of dtypes, a sequence in its order: { name, block, bytes, gguf?,
 * safetensors?, weights, rows, writable, at_load, cpu, device } */
static int core_dtypes(lua_State *L) {
  lua_createtable(L, PYR_DTYPES, 0);
  for (int i = 0; i < PYR_DTYPES; i++) {
    const pyr_dtype_info *info = pyr_dtype_describe((pyr_dtype)i);
    lua_createtable(L, 0, 11);
    lua_pushstring(L, info->name), lua_setfield(L, -2, "name");
    lua_pushinteger(L, info->block), lua_setfield(L, -2, "block");
    lua_pushinteger(L, (lua_Integer)info->block_bytes), lua_setfield(L, -2, "bytes");
    if (info->gguf >= 0) lua_pushinteger(L, info->gguf), lua_setfield(L, -2, "gguf");
    if (info->safetensors)
      lua_pushstring(L, info->safetensors), lua_setfield(L, -2, "safetensors");
    lua_pushboolean(L, info->weights), lua_setfield(L, -2, "weights");
    lua_pushboolean(L, info->rows), lua_setfield(L, -2, "rows");
    lua_pushboolean(L, info->writable), lua_setfield(L, -2, "writable");
    lua_pushstring(L, pyr_dtype_name(info->at_load)), lua_setfield(L, -2, "at_load");
    push_kernels(L, info->cpu), lua_setfield(L, -2, "cpu");
    push_kernels(L, info->device), lua_setfield(L, -2, "device");
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* ---- files ----------------------------------------------------------------------------------- */

pyr_file *pyr_lua_check_file(lua_State *L, int arg) {
  file_box *box = luaL_checkudata(L, arg, FILE_CLASS);
  luaL_argcheck(L, box->file != NULL, arg, "the file is closed");
  return box->file;
}

static int new_file(lua_State *L, pyr_status (*open)(pyr_runtime *, const char *, pyr_file **)) {
  const char *path = luaL_checkstring(L, 2);
  file_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (file_box){ NULL, false };
  luaL_setmetatable(L, FILE_CLASS);
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  pyr_status status = open(rt, path, &box->file);
  return status == PYR_OK ? 1 : pyr_lua_fail(L, rt, status);
}

static int file_open(lua_State *L) { return new_file(L, pyr_file_open); }
static int file_read(lua_State *L) { return new_file(L, pyr_file_read); }

static int file_size(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_file_size(pyr_lua_check_file(L, 1)));
  return 1;
}

static int file_close(lua_State *L) {
  file_box *box = luaL_checkudata(L, 1, FILE_CLASS);
  if (box->busy) return luaL_error(L, "the file is in use: a callback may not close it");
  pyr_file *file = box->file;
  box->file = NULL;
  pyr_file_free(file);
  return 0;
}

static int file_tostring(lua_State *L) {
  file_box *box = luaL_checkudata(L, 1, FILE_CLASS);
  if (box->file)
    lua_pushfstring(L, "pyramid.file (%I bytes)", (LUAI_UACINT)pyr_file_size(box->file));
  else lua_pushliteral(L, "pyramid.file (closed)");
  return 1;
}

/* ---- models ---------------------------------------------------------------------------------- */

pyr_model *pyr_lua_check_model(lua_State *L, int arg) {
  model_box *box = luaL_checkudata(L, arg, MODEL_CLASS);
  luaL_argcheck(L, box->model != NULL, arg, "the model is closed");
  return box->model;
}

/* … for a call that changes it. */
static model_box *check_idle(lua_State *L, int arg) {
  model_box *box = luaL_checkudata(L, arg, MODEL_CLASS);
  pyr_lua_check_model(L, arg);
  if (box->busy)
    luaL_argerror(L, arg, "the model is in use: a callback of its own loading may only look at it");
  return box;
}

/* Numbers of the sequence `key` into memory that the stack keeps alive; NULL if there is none. */
static const float *read_numbers(lua_State *L, int arg, const char *key, int32_t wanted) {
  if (lua_getfield(L, arg, key) == LUA_TNIL) return NULL;
  luaL_checktype(L, -1, LUA_TTABLE);
  lua_Unsigned count = lua_rawlen(L, -1);
  if (wanted < 0 || count != (lua_Unsigned)wanted)
    luaL_error(L, "field '%s' has %I values, not %d", key, (LUAI_UACINT)count, (int)wanted);
  float *values = lua_newuserdatauv(L, (count + 1) * sizeof *values, 0);
  for (lua_Unsigned i = 0; i < count; i++) {
    int exact;
    lua_rawgeti(L, -2, (lua_Integer)i + 1);
    values[i] = (float)lua_tonumberx(L, -1, &exact);
    if (!exact)
      luaL_error(L, "field '%s' has a %s at %I", key, luaL_typename(L, -1), (LUAI_UACINT)i + 1);
    lua_pop(L, 1);
  }
  return values;
}

/* Memory for one value of `size` bytes a layer, which the stack keeps alive, above the sequence
 * `key` that they are read from; raises where that has not one a layer. NULL if there is none. */
static void *begin_layers(lua_State *L, int arg, const char *key, int32_t layers, size_t size) {
  if (lua_getfield(L, arg, key) == LUA_TNIL) return NULL;
  luaL_checktype(L, -1, LUA_TTABLE);
  lua_Unsigned count = lua_rawlen(L, -1);
  if (layers < 1 || count != (lua_Unsigned)layers)
    luaL_error(L, "field '%s' has %I values, not one a layer", key, (LUAI_UACINT)count);
  return lua_newuserdatauv(L, count * size, 0);
}

/* Reads window (integers, one a layer, 0 for none), or returns NULL if there is none. */
static const int32_t *read_window(lua_State *L, int arg, int32_t layers) {
  int32_t *window = begin_layers(L, arg, "window", layers, sizeof *window);
  for (int32_t i = 0; window && i < layers; i++) {
    int exact;
    lua_rawgeti(L, -2, i + 1);
    lua_Integer value = lua_tointegerx(L, -1, &exact);
    if (!exact) luaL_error(L, "field 'window' has a %s at %d", luaL_typename(L, -1), (int)i + 1);
    /* wider than any context: none */
    window[i] = value > INT32_MAX ? 0 : value < 0 ? -1 : (int32_t)value;
    lua_pop(L, 1);
  }
  return window;
}

/* One of `names` in the sequence `turns` for each layer; NULL if there is none. */
static const uint8_t *read_turns(lua_State *L, int arg, int32_t layers) {
  static const char *const names[] = { "first", "second", "none", NULL };
  uint8_t *turns = begin_layers(L, arg, "turns", layers, sizeof *turns);
  for (int32_t i = 0; turns && i < layers; i++) {
    lua_rawgeti(L, -2, i + 1);
    turns[i] = (uint8_t)luaL_checkoption(L, -1, NULL, names);
    lua_pop(L, 1);
  }
  return turns;
}

/* A flag for each layer in the sequence `dense`; NULL if there is none. */
static const uint8_t *read_dense(lua_State *L, int arg, int32_t layers) {
  uint8_t *dense = begin_layers(L, arg, "dense", layers, sizeof *dense);
  for (int32_t i = 0; dense && i < layers; i++) {
    lua_rawgeti(L, -2, i + 1);
    dense[i] = (uint8_t)lua_toboolean(L, -1);
    lua_pop(L, 1);
  }
  return dense;
}

/* Field `key`, one of `names`; the first of them where there is none. */
static int name_field(lua_State *L, const char *key, const char *const *names) {
  lua_getfield(L, 2, key);
  int which = luaL_checkoption(L, -1, names[0], names);
  lua_pop(L, 1);
  return which;
}

static float optional_number(lua_State *L, const char *key) {
  bool there = lua_getfield(L, 2, key) != LUA_TNIL;
  lua_pop(L, 1);
  return there ? (float)number_field(L, 2, key) : 0;
}

static int32_t flag_field(lua_State *L, const char *key) {
  lua_getfield(L, 2, key);
  int32_t flag = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return flag;
}

static int32_t optional_int(lua_State *L, const char *key) {
  bool there = lua_getfield(L, 2, key) != LUA_TNIL;
  lua_pop(L, 1);
  return there ? int32_field(L, 2, key) : 0;
}

static void read_experts(lua_State *L, pyr_model_config *c) {
  static const char *const routers[] = { "softmax", "sigmoid", NULL };
  c->experts = optional_int(L, "experts");
  c->experts_used = optional_int(L, "experts_used");
  c->expert_ff = optional_int(L, "expert_ff");
  c->shared_ff = optional_int(L, "shared_ff");
  c->router = (pyr_router)name_field(L, "router", routers);
  c->router_renormalise = flag_field(L, "router_renormalise");
  c->router_scale = optional_number(L, "router_scale");
  c->groups = optional_int(L, "groups");
  c->groups_used = optional_int(L, "groups_used");
}

/* Of the configuration's switches, those that are names, flags and single numbers. */
static void read_switches(lua_State *L, pyr_model_config *c) {
  static const char *const norms[] = { "rms", "layer", NULL };
  static const char *const places[] = { "before", "after", "around", NULL };
  static const char *const qk_norms[] = { "head", "each", "width", NULL };
  static const char *const residuals[] = { "sequential", "parallel", "shared", NULL };
  static const char *const activations[] = { "silu", "gelu", "gelu_tanh", "relu", "relu2",
                                             "swiglu_clamped", NULL };
  c->norm = (pyr_norm_kind)name_field(L, "norm", norms);
  c->norm_offset = optional_number(L, "norm_offset");
  c->norm_place = (pyr_norm_place)name_field(L, "norm_place", places);
  c->qk_norm = (pyr_qk_norm)name_field(L, "qk_norm", qk_norms);
  c->residual = (pyr_residual)name_field(L, "residual", residuals);
  c->activation = (pyr_activation)name_field(L, "activation", activations);
  c->activation_limit = optional_number(L, "activation_limit");
  c->plain_mlp = flag_field(L, "plain_mlp");
  c->positions = flag_field(L, "positions");
  c->embed_scale = optional_number(L, "embed_scale");
  c->residual_scale = optional_number(L, "residual_scale");
  c->logit_scale = optional_number(L, "logit_scale");
  c->score_scale = optional_number(L, "score_scale");
  c->temper = optional_number(L, "temper");
  c->temper_length = optional_int(L, "temper_length");
  c->score_cap = optional_number(L, "score_cap");
  c->logit_cap = optional_number(L, "logit_cap");
  c->rope_second_gain = optional_number(L, "rope_second_gain");
}

/* model_new(runtime, config) -> model | nil, message, code. config: the fields of pyr_model_config
 * by their names, those with a default (0, NULL) only where they differ; rope_style "half" or
 * "interleaved"; turns a sequence of "first", "second" and "none"; other choices by the names of
 * read_switches; arrays as sequences; o_block and down_block as in pyr_model_new_ranked. Other keys
 * are left alone. */
static int model_new(lua_State *L) {
  static const char *const styles[] = { "half", "interleaved", NULL };
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  pyr_model_config config = {
    .layers = int32_field(L, 2, "layers"), .heads = int32_field(L, 2, "heads"),
    .kv_heads = int32_field(L, 2, "kv_heads"), .head_dim = int32_field(L, 2, "head_dim"),
    .width = int32_field(L, 2, "width"), .ff = int32_field(L, 2, "ff"),
    .vocab = int32_field(L, 2, "vocab"), .context = int32_field(L, 2, "context"),
    .rope_dims = int32_field(L, 2, "rope_dims"),
    .norm_eps = (float)number_field(L, 2, "norm_eps"),
    .rope_gain = (float)number_field(L, 2, "rope_gain"),
  };
  config.rope_style = (pyr_rope_style)name_field(L, "rope_style", styles);
  read_switches(L, &config);
  read_experts(L, &config);
  config.rope_freq = read_numbers(L, 2, "rope_freq", config.rope_dims / 2);
  config.rope_second = read_numbers(L, 2, "rope_second", config.rope_dims / 2);
  config.slopes = read_numbers(L, 2, "slopes", config.heads);
  config.window = read_window(L, 2, config.layers);
  config.turns = read_turns(L, 2, config.layers);
  config.dense = read_dense(L, 2, config.layers);
  model_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (model_box){ NULL, false };
  luaL_setmetatable(L, MODEL_CLASS);
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  int32_t o_block = optional_int(L, "o_block"), down_block = optional_int(L, "down_block");
  pyr_status status = pyr_model_new_ranked(rt, &config, o_block ? o_block : 1,
                                           down_block ? down_block : 1, &box->model);
  return status == PYR_OK ? 1 : pyr_lua_fail(L, rt, status);
}

/* Where a part lies; its file stays in its table, which the caller's stack holds. */
static pyr_packing_part read_part(lua_State *L, int arg, const char *key) {
  pyr_packing_part part = { .file = NULL };
  if (lua_getfield(L, arg, key) != LUA_TNIL) {
    int table = lua_gettop(L);
    luaL_checktype(L, table, LUA_TTABLE);
    lua_Integer offset = integer_field(L, table, "offset"),
        bytes = integer_field(L, table, "bytes");
    part.offset = offset < 0 ? UINT64_MAX : (uint64_t)offset;   /* outside of any file */
    part.bytes = bytes < 0 ? UINT64_MAX : (uint64_t)bytes;
    lua_getfield(L, table, "file");
    part.file = pyr_lua_check_file(L, table + 1);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return part;
}

/* The field `packing` of the description at `arg`, in a userdata that is left on the stack with
 * what it needs; NULL, and nil on the stack, where there is none:
 * { kind = "scaled" | "gptq" | "awq" | "mxfp4", bits, group = { rows, columns }, zeros_less_one,
 *   scale_dtype, scales, zeros, order }, the last three { file, offset, bytes } or nil. */
static const pyr_packing *read_packing(lua_State *L, int arg) {
  static const char *const kinds[] = { "scaled", "gptq", "awq", "mxfp4", NULL };
  static const pyr_packing_kind numbers[] = { PYR_PACKED_SCALED, PYR_PACKED_GPTQ,
                                              PYR_PACKED_AWQ, PYR_PACKED_MXFP4 };
  if (lua_getfield(L, arg, "packing") == LUA_TNIL) return NULL;
  int table = lua_gettop(L);
  luaL_checktype(L, table, LUA_TTABLE);
  pyr_packing *packing = lua_newuserdatauv(L, sizeof *packing, 0);   /* the stack keeps it */
  *packing = (pyr_packing){ .bits = 0 };
  lua_getfield(L, table, "kind");
  packing->kind = numbers[luaL_checkoption(L, -1, NULL, kinds)];
  lua_Integer bits = integer_field(L, table, "bits");
  packing->bits = bits < 0 || bits > 64 ? 0 : (int)bits;   /* 0 is refused, as what it was is */
  lua_getfield(L, table, "group");
  luaL_checktype(L, -1, LUA_TTABLE);
  for (int i = 0; i < 2; i++) {
    lua_rawgeti(L, -1, i + 1);
    packing->group[i] = luaL_checkinteger(L, -1);
    lua_pop(L, 1);
  }
  lua_getfield(L, table, "zeros_less_one");
  packing->zeros_less_one = lua_toboolean(L, -1);
  lua_getfield(L, table, "scale_dtype");
  packing->scale_dtype = check_dtype(L, -1);
  packing->scales = read_part(L, table, "scales");
  packing->zeros = read_part(L, table, "zeros");
  packing->order = read_part(L, table, "order");
  lua_settop(L, table + 1);
  return packing;
}

/* Reads the tensor's description at `arg`: { name = string, file = file, offset = integer, bytes =
 * integer, dtype = string, shape = { n } or { out, in }, run = integer?, step = integer?,
 * transposed = boolean?, every = integer?, packing = table? }. Leaves file and name on the stack,
 * which keeps them; allocates nothing after it took the file out of its box. */
static file_box *read_spec(lua_State *L, int arg, pyr_tensor_spec *out) {
  pyr_tensor_spec spec = { .offset = 0 };
  lua_Integer offset = integer_field(L, arg, "offset"), bytes = integer_field(L, arg, "bytes");
  spec.offset = offset < 0 ? UINT64_MAX : (uint64_t)offset;   /* outside of any file */
  spec.bytes = bytes < 0 ? UINT64_MAX : (uint64_t)bytes;
  if (lua_getfield(L, arg, "run") != LUA_TNIL) {
    spec.run = integer_field(L, arg, "run");
    spec.step = integer_field(L, arg, "step");
  }
  lua_getfield(L, arg, "transposed");
  spec.transposed = lua_toboolean(L, -1);
  if (lua_getfield(L, arg, "every") != LUA_TNIL) spec.every = integer_field(L, arg, "every");
  lua_getfield(L, arg, "dtype");
  spec.dtype = check_dtype(L, -1);
  lua_getfield(L, arg, "shape");
  luaL_checktype(L, -1, LUA_TTABLE);
  lua_Unsigned rank = lua_rawlen(L, -1);
  spec.rank = rank > 2 ? 3 : (int)rank;
  for (int i = 0; i < spec.rank && i < 2; i++) {
    int exact;
    lua_rawgeti(L, -1, i + 1);
    spec.shape[i] = lua_tointegerx(L, -1, &exact);
    if (!exact) luaL_error(L, "field 'shape' has a %s at %d", luaL_typename(L, -1), i + 1);
    lua_pop(L, 1);
  }
  spec.packing = read_packing(L, arg);
  lua_getfield(L, arg, "file");
  if (lua_getfield(L, arg, "name") == LUA_TSTRING) spec.name = lua_tostring(L, -1);
  spec.file = pyr_lua_check_file(L, lua_gettop(L) - 1);
  *out = spec;
  return lua_touserdata(L, -2);
}

/* Layers and experts count from 1 in Lua; what is none becomes -1, which the core refuses. */
static int count_from_0(lua_Integer i) { return i < 1 || i > INT_MAX ? -1 : (int)i - 1; }

/* model:bind(role, layer | nil, spec, as | nil, expert | nil) -> true | nil, message, code; spec as
 * above; expert: from 1, where the layer has experts */
static int model_bind(lua_State *L) {
  pyr_role role = (pyr_role)luaL_checkoption(L, 2, NULL, role_names);
  lua_Integer layer = luaL_optinteger(L, 3, 1);
  luaL_checktype(L, 4, LUA_TTABLE);
  lua_settop(L, 6);
  int as = lua_isnil(L, 5) ? -1 : (int)check_dtype(L, 5);
  bool of_expert = !lua_isnil(L, 6);
  int expert = count_from_0(luaL_optinteger(L, 6, 1));

  pyr_tensor_spec spec;
  file_box *file = read_spec(L, 4, &spec);
  model_box *box = check_idle(L, 1);
  pyr_model *model = box->model;
  bool shared = file->busy;                   /* an outer call binds from it, too */

  int at = count_from_0(layer);
  lua_State *outer = pyr_lua_enter(L);
  box->busy = file->busy = true;
  pyr_status status = of_expert ? pyr_model_bind_expert(model, role, at, expert, &spec, as)
      : pyr_model_bind(model, role, at, &spec, as);
  box->busy = false;
  file->busy = shared;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_model_runtime(model), status);
  lua_pushboolean(L, 1);
  return 1;
}

static int model_ready(lua_State *L) {
  model_box *box = check_idle(L, 1);
  pyr_model *model = box->model;
  lua_State *outer = pyr_lua_enter(L);
  box->busy = true;
  pyr_status status = pyr_model_ready(model);
  box->busy = false;
  pyr_lua_leave(L, outer);
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_model_runtime(model), status);
  lua_pushboolean(L, 1);
  return 1;
}

static int model_bytes(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_model_bytes(pyr_lua_check_model(L, 1)));
  return 1;
}

/* core.deal(costs of layers, tail, stages) -> layers of each stage | nil: that many do not fit */
static int core_deal(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  double tail = luaL_checknumber(L, 2);
  lua_Integer count = luaL_len(L, 1), stages = luaL_checkinteger(L, 3);
  luaL_argcheck(L, count >= 1 && count <= 1 << 16, 1, "costs of layers are wanted");
  luaL_argcheck(L, stages >= 1 && stages <= 1 << 16, 3, "a number of stages is wanted");
  double *cost = lua_newuserdatauv(L, (size_t)count * sizeof *cost, 0);
  int32_t *layers = lua_newuserdatauv(L, (size_t)stages * sizeof *layers, 0);
  for (lua_Integer i = 0; i < count; i++) {
    lua_geti(L, 1, i + 1);
    cost[i] = luaL_checknumber(L, -1);
    lua_pop(L, 1);
  }
  if (pyr_stages_deal(cost, (int)count, tail, (int)stages, layers) != 0) return 0;
  lua_createtable(L, (int)stages, 0);
  for (lua_Integer i = 0; i < stages; i++) {
    lua_pushinteger(L, layers[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* model:foresee_weight(role, layer | nil, expert | nil, dtype, tied) -> bytes, of this rank */
static int model_foresee_weight(lua_State *L) {
  const pyr_model *model = pyr_lua_check_model(L, 1);
  pyr_role role = (pyr_role)luaL_checkoption(L, 2, NULL, role_names);
  lua_Integer layer = luaL_optinteger(L, 3, 1), expert = luaL_optinteger(L, 4, 0);
  int layers = pyr_model_get_config(model)->layers;
  luaL_argcheck(L, layer >= 1 && layer <= layers, 3, "no such layer");
  luaL_argcheck(L, expert >= 0 && expert <= INT32_MAX, 4, "no such expert");
  uint64_t bytes = pyr_model_foresee_weight(model, role, (int)layer - 1, (int)expert - 1,
                                            lua_toboolean(L, 6), check_dtype(L, 5));
  lua_pushinteger(L, (lua_Integer)bytes);
  return 1;
}

/* model:foresee(prompt, batch, rows, masses, computed | nil) -> { prompt_bytes =, … } as
 * pyr_foreseen has them | nil, message, code; computed: tokens that reach each layer */
static int model_foresee(lua_State *L) {
  pyr_model *model = pyr_lua_check_model(L, 1);
  pyr_foresight what = { .size = sizeof what, .prompt = luaL_checkinteger(L, 2),
                         .batch = luaL_checkinteger(L, 3), .rows = luaL_checkinteger(L, 4),
                         .masses = lua_toboolean(L, 5) };
  lua_settop(L, 6);
  if (!lua_isnil(L, 6)) {
    int layers = pyr_model_get_config(model)->layers;
    luaL_checktype(L, 6, LUA_TTABLE);
    int64_t *computed = lua_newuserdatauv(L, (size_t)layers * sizeof *computed, 0);
    for (int i = 0; i < layers; i++) {
      lua_rawgeti(L, 6, i + 1);
      computed[i] = luaL_checkinteger(L, -1);
      luaL_argcheck(L, computed[i] >= 0 && computed[i] <= INT32_MAX, 6, "no number of tokens");
      lua_pop(L, 1);
    }
    what.computed = computed;
  }
  pyr_foreseen made;
  pyr_status status = pyr_model_foresee(model, &what, &made);
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_model_runtime(model), status);
  lua_createtable(L, 0, 10);
  const struct { const char *name; int64_t value; } fields[] = {
    { "prompt_bytes", made.prompt_bytes }, { "step_bytes", made.step_bytes },
    { "prompt_sent", made.prompt_sent }, { "prompt_swaps", made.prompt_swaps },
    { "step_sent", made.step_sent }, { "step_swaps", made.step_swaps },
    { "heads", made.heads }, { "kv_heads", made.kv_heads }, { "ff", made.ff },
    { "vocab", made.vocab },
  };
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    lua_pushinteger(L, fields[i].value);
    lua_setfield(L, -2, fields[i].name);
  }
  return 1;
}

static int model_identify(lua_State *L) {
  const char *name = luaL_optstring(L, 2, NULL);
  lua_Integer tokenizer = luaL_optinteger(L, 3, 0);
  pyr_model_identify(pyr_lua_check_model(L, 1), name, (uint64_t)tokenizer);
  return 0;
}

static int model_fingerprint(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_model_fingerprint(pyr_lua_check_model(L, 1)));
  return 1;
}

static int model_close(lua_State *L) {
  model_box *box = luaL_checkudata(L, 1, MODEL_CLASS);
  if (box->busy) check_idle(L, 1);
  pyr_model *model = box->model;
  box->model = NULL;
  pyr_model_free(model);
  return 0;
}

static int model_tostring(lua_State *L) {
  model_box *box = luaL_checkudata(L, 1, MODEL_CLASS);
  if (box->model)
    lua_pushfstring(L, "pyramid.model (%d layers, %I bytes)",
                    (int)pyr_model_get_config(box->model)->layers,
                        (LUAI_UACINT)pyr_model_bytes(box->model));
  else lua_pushliteral(L, "pyramid.model (closed)");
  return 1;
}

/* ---- converted rows -------------------------------------------------------------------------- */

/* core.convert_rows(runtime, output, spec, as, heads, plus, first, n) -> true | nil, message, code:
 * rows [first, first + n), from 0, go to a file that is being written (lfile.c), as convert.h has
 * it. Calls nothing back: progress is the caller's, between two calls. */
static int core_convert_rows(lua_State *L) {
  lua_settop(L, 8);
  pyr_dtype as = check_dtype(L, 4);
  lua_Integer heads = luaL_checkinteger(L, 5), first = luaL_checkinteger(L, 7),
      n = luaL_checkinteger(L, 8);
  float plus = (float)luaL_checknumber(L, 6);
  luaL_argcheck(L, heads >= 0 && heads <= 1 << 20, 5, "no number of heads");
  pyr_tensor_spec spec;
  read_spec(L, 3, &spec);
  pyr_output *out = pyr_lua_check_output(L, 2);
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  pyr_status status = pyr_convert_rows(rt, &spec, as, (int32_t)heads, plus, first, n, out);
  if (status != PYR_OK) return pyr_lua_fail(L, rt, status);
  lua_pushboolean(L, 1);
  return 1;
}

/* ---- entry ----------------------------------------------------------------------------------- */

void pyr_lua_open_model(lua_State *L) {
  static const luaL_Reg functions[] = { { "file_open", file_open }, { "file_read", file_read },
                                        { "model_new", model_new }, { "deal", core_deal },
                                        { "dtypes", core_dtypes },
                                        { "convert_rows", core_convert_rows }, { NULL, NULL } };
  static const luaL_Reg file_methods[] = { { "size", file_size }, { "__tostring", file_tostring },
                                           { NULL, NULL } };
  static const luaL_Reg model_methods[] = {
    { "bind", model_bind }, { "ready", model_ready }, { "bytes", model_bytes },
        { "identify", model_identify }, { "foresee", model_foresee },
        { "foresee_weight", model_foresee_weight },
    { "fingerprint", model_fingerprint }, { "__tostring", model_tostring }, { NULL, NULL }
  };
  pyr_lua_new_class(L, FILE_CLASS, file_methods, file_close);
  pyr_lua_new_class(L, MODEL_CLASS, model_methods, model_close);
  luaL_setfuncs(L, functions, 0);
}
