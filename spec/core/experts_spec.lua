-- Layers with experts in the forward pass. An MLP cut along its width is experts that add up to it:
-- where a router weighs those that are taken by 1, a model of experts is one of plain MLPs, and its
-- logits are the same.
local helper = require "spec.helper"
local core = require "pyramid.core"
local reference = require "spec.support.ops_reference"

local WIDTH, SLICE, SLICES, VOCAB, LAYERS = 16, 6, 4, 20, 3
local base = { layers = LAYERS, heads = 2, kv_heads = 1, head_dim = 8, width = WIDTH, vocab = VOCAB,
  context = 64, norm_eps = 1e-5, rope_style = "half", rope_dims = 8,
  rope_freq = { 1, 0.3, 0.1, 0.03 }, rope_gain = 1, ff = SLICE * SLICES }
local ids = helper.ids(9, VOCAB)

local function with(...)
  local out = {}
  for _, changes in ipairs { base, ... } do
    for key, value in pairs(changes) do out[key] = value end
  end
  return out
end

-- One file of f32: by name, where each tensor lies.
local path, places = helper.tmp(), {}
do
  local parts, at = {}, 0
  local function put(name, values, ...)
    local _, bytes = reference.pack(values)
    places[name] = { name = name, offset = at, bytes = #bytes, dtype = "f32", shape = { ... } }
    parts[#parts + 1], at = bytes, at + #bytes
  end
  local function random(name, size, rows, cols)
    local values = reference.random(rows * (cols or 1), size)
    put(name, values, rows, cols)
    return values
  end
  -- Some rows, or some columns, of a matrix.
  local function cut(values, cols, first_row, rows, first, count)
    local out = {}
    for r = first_row, first_row + rows - 1 do
      table.move(values, r * cols + first + 1, r * cols + first + count, #out + 1, out)
    end
    return out
  end
  random("embed", 1, VOCAB, WIDTH)
  random("vector", 1, WIDTH)
  random("q", 0.5, WIDTH, WIDTH)
  random("k", 0.5, 8, WIDTH)
  random("v", 0.5, 8, WIDTH)
  random("o", 0.5, WIDTH, WIDTH)
  local full = SLICE * SLICES
  local gate, up = random("gate", 0.5, full, WIDTH), random("up", 0.5, full, WIDTH)
  local down = random("down", 0.5, WIDTH, full)
  for i = 0, SLICES - 1 do
    put("gate" .. i, cut(gate, WIDTH, i * SLICE, SLICE, 0, WIDTH), SLICE, WIDTH)
    put("up" .. i, cut(up, WIDTH, i * SLICE, SLICE, 0, WIDTH), SLICE, WIDTH)
    put("down" .. i, cut(down, full, 0, WIDTH, i * SLICE, SLICE), WIDTH, SLICE)
  end
  -- what a shared expert whose own router halves it has to be
  local doubled = cut(down, full, 0, WIDTH, 3 * SLICE, SLICE)
  for i, x in ipairs(doubled) do doubled[i] = 2 * x end
  put("down3 doubled", doubled, WIDTH, SLICE)
  -- the first two of the slices
  put("gate01", cut(gate, WIDTH, 0, 2 * SLICE, 0, WIDTH), 2 * SLICE, WIDTH)
  put("up01", cut(up, WIDTH, 0, 2 * SLICE, 0, WIDTH), 2 * SLICE, WIDTH)
  put("down01", cut(down, full, 0, WIDTH, 0, 2 * SLICE), WIDTH, 2 * SLICE)
  local zeros, some = {}, {}
  for i = 1, SLICES * WIDTH do zeros[i] = 0.0 end
  for i = 1, SLICES do some[i] = i < 3 and 9.0 or -9.0 end
  put("router", zeros, SLICES, WIDTH)
  put("router of 3", cut(zeros, WIDTH, 0, 3, 0, WIDTH), 3, WIDTH)
  put("router of 1", cut(zeros, WIDTH, 0, 1, 0, WIDTH), 1, WIDTH)
  put("first two", some, SLICES)
  helper.write(path, table.concat(parts))
end

describe("a layer with experts", function()
  local opened = {}
  local function on(device)
    opened[device] = opened[device] or (function()
      local runtime = assert(core.runtime { device = device, threads = 1 })
      return { runtime = runtime, file = assert(core.file_open(runtime, path)) }
    end)()
    return opened[device]
  end
  teardown(function()
    for _, o in pairs(opened) do o.file:close() end
    os.remove(path)
  end)

  local function spec_of(o, name)
    local spec = { file = o.file }
    for key, value in pairs(places[name]) do spec[key] = value end
    return spec
  end

  -- A model of which everything but the MLPs is bound. mlps(bind, layer): binds those; bind(role,
  -- tensor [, expert [, as]]).
  local function open(device, config, mlps)
    local o = on(device)
    local model = assert(core.model_new(o.runtime, config))
    assert(model:bind("embed", nil, spec_of(o, "embed")))
    assert(model:bind("out_norm", nil, spec_of(o, "vector")))
    local place = config.norm_place or "before"
    for layer = 1, LAYERS do
      local function bind(role, name, expert, as)
        return model:bind(role, layer, spec_of(o, name), as, expert)
      end
      for _, role in ipairs { "q", "k", "v", "o" } do assert(bind(role, role)) end
      if place ~= "after" then assert(bind("attn_norm", "vector")) end
      if place ~= "after" and config.residual ~= "shared" then
        assert(bind("ffn_norm", "vector"))
      end
      if place ~= "before" then
        assert(bind("attn_post_norm", "vector"))
        assert(bind("ffn_post_norm", "vector"))
      end
      mlps(bind, layer)
    end
    return model
  end

  local function plain(suffix, gated)
    return function(bind)
      if gated ~= false then assert(bind("gate", "gate" .. suffix)) end
      assert(bind("up", "up" .. suffix))
      assert(bind("down", "down" .. suffix))
    end
  end

  local function slices(count, more, gated)
    return function(bind, layer)
      for i = 0, count - 1 do
        if gated ~= false then assert(bind("gate", "gate" .. i, i + 1)) end
        assert(bind("up", "up" .. i, i + 1))
        assert(bind("down", "down" .. i, i + 1))
      end
      more(bind, layer)
    end
  end

  -- Logits of all ids but the last, of the last by a step, and of a step of two sequences.
  local function logits_of(model)
    assert(model:ready())
    local pool, all = assert(core.pool(model, "f32", 0)), {}
    local cache, other = assert(core.cache(model, pool)), assert(core.cache(model, pool))
    local function add(logits) table.move(logits:totable(), 1, VOCAB, #all + 1, all) end
    for _, logits in ipairs(assert(cache:read_ids(table.move(ids, 1, 8, 1, {}), true))) do
      add(logits)
    end
    add(assert(cache:step(ids[9])))
    assert(other:read_ids { 3, 1 })
    for _, logits in ipairs(assert(core.step({ cache, other }, { 5, 7 }))) do add(logits) end
    cache:close()
    other:close()
    pool:close()
    model:close()
    return all
  end

  local devices = helper.device == "cpu" and { "cpu", "emulated" } or { helper.device }
  local function same(config, mlps, its_config, its_mlps)
    for _, device in ipairs(devices) do
      local got = logits_of(open(device, its_config, its_mlps))
      for i, x in ipairs(logits_of(open(device, config, mlps))) do
        if math.abs(x - got[i]) > 2e-5 then
          error(("%s: logit %d is %g, not %g (PYRAMID_SEED=%d)"):format(device, i, got[i], x,
            reference.seed))
        end
      end
    end
  end

  -- All slices, each with the weight 2 sigmoid(0).
  local all = { experts = SLICES, experts_used = SLICES, expert_ff = SLICE, router = "sigmoid",
    router_scale = 2, ff = 0 }
  local function route(bind) assert(bind("router", "router")) end

  for _, switches in ipairs { {}, { norm_place = "after" }, { residual = "parallel" },
    { norm_place = "around", residual_scale = 0.7 }, { residual = "shared" },
    { plain_mlp = true, activation = "relu2" } } do
    local name = next(switches) or "norms before"
    it(("adds up to the MLP that was cut, with %s"):format(switches[name] or name), function()
      local gated = not switches.plain_mlp
      same(with(switches), plain("", gated), with(all, switches), slices(SLICES, route, gated))
    end)
  end

  it("stands beside layers that have none", function()
    same(base, plain "", with(all, { ff = base.ff, dense = { true, false, true } }),
      function(bind, layer)
        (layer == 2 and slices(SLICES, route) or plain "")(bind, layer)
      end)
  end)

  it("takes those that a bias makes the highest", function()
    same(with { ff = 2 * SLICE }, plain "01",
      with(all, { experts_used = 2, router = "softmax", router_renormalise = true }),
      slices(SLICES, function(bind)
        route(bind)
        assert(bind("router_bias", "first two"))
      end))
  end)

  it("takes those that a correction makes the highest, with their own weights", function()
    for _, groups in ipairs { 0, 2 } do
      same(with { ff = 2 * SLICE }, plain "01",
        with(all, { experts_used = 2, groups = groups, groups_used = groups // 2 }),
        slices(SLICES, function(bind)
          route(bind)
          assert(bind("router_correction", "first two"))
        end))
    end
  end)

  it("adds a shared expert, weighed or not", function()
    local config = with(all, { experts = 3, experts_used = 3, shared_ff = SLICE })
    for weighed = 0, 1 do
      same(base, plain "", config, slices(3, function(bind)
        assert(bind("router", "router of 3"))
        assert(bind("shared_gate", "gate3"))
        assert(bind("shared_up", "up3"))
        assert(bind("shared_down", weighed == 1 and "down3 doubled" or "down3"))
        if weighed == 1 then assert(bind("shared_router", "router of 1")) end
      end))
    end
  end)

  local function expect(code, words, _, message, its_code)
    assert.equal(code, its_code)
    assert.truthy(message:find(words, 1, true), message)
  end

  it("knows what is missing, and what is bound for nothing", function()
    local function lacking(left_out)
      return open("cpu", with(all), function(bind, layer)
        route(bind)
        for i = 0, SLICES - 1 do
          for _, role in ipairs { "gate", "up", "down" } do
            if ("%s %d %d"):format(role, layer, i) ~= left_out then
              assert(bind(role, role .. i, i + 1))
            end
          end
        end
      end)
    end
    local model = lacking "up 2 3"
    expect("format", "weight expert 3's up of layer 1 is missing", model:ready())
    local o = on "cpu"
    expect("argument", "expert 4, of 4", model:bind("up", 1, spec_of(o, "up0"), nil, 5))
    expect("argument", "expert -1, of 4", model:bind("up", 1, spec_of(o, "up0"), nil, 0))
    expect("argument", "does not have but for experts", model:bind("up", 2, spec_of(o, "up")))
    expect("argument", "bound twice", model:bind("up", 1, spec_of(o, "up0"), nil, 1))
    expect("argument", "does not have", model:bind("q", 1, spec_of(o, "q"), nil, 1))
    expect("argument", "does not have", model:bind("shared_up", 1, spec_of(o, "up0")))
    expect("format", "shape [24, 16], where the model's up is [6, 16]",
      model:bind("up", 2, spec_of(o, "up"), nil, 4))
    assert(model:bind("up", 2, spec_of(o, "up3"), "f16", 4))
    expect("unsupported", "weight expert 3's up of layer 1 is f16, that of expert 0 f32",
      model:ready())
    model:close()
    model = open("cpu", base, plain "")
    expect("argument", "expert 0, of 0", model:bind("up", 1, spec_of(o, "up0"), nil, 1))
    expect("argument", "does not have", model:bind("router", 1, spec_of(o, "router")))
    model:close()
  end)

  it("keeps its router in f32, and tells models whose experts changed places apart", function()
    local prints, bytes = {}, {}
    for turned = 0, 1 do
      local model = open("cpu", with(all), function(bind)
        assert(bind("router", "router", nil, "f16"))
        for i = 0, SLICES - 1 do
          for _, role in ipairs { "gate", "up", "down" } do
            assert(bind(role, role .. i, (i + turned) % SLICES + 1))
          end
        end
      end)
      assert(model:ready())
      prints[turned], bytes[turned] = model:fingerprint(), model:bytes()
      model:close()
    end
    assert.not_equal(prints[0], prints[1])
    local values = VOCAB * WIDTH + WIDTH + LAYERS * (2 * WIDTH + 2 * WIDTH * WIDTH + 2 * 8 * WIDTH
      + 3 * SLICES * SLICE * WIDTH + SLICES * WIDTH)
    assert.equal(4 * values, bytes[0])
  end)

  it("is refused where its numbers cannot be", function()
    local o = on "cpu"
    for words, changes in pairs {
      ["experts is 1025"] = { experts = 1025 }, ["experts_used is 5"] = { experts_used = 5 },
      ["experts_used is 33"] = { experts = 64, experts_used = 33 },
      ["takes 0"] = { experts_used = 0 }, ["of width 0"] = { expert_ff = 0 },
      ["shared_ff is -1"] = { shared_ff = -1 }, ["router_scale is"] = { router_scale = 0 / 0 },
      ["groups_used is 3"] = { groups = 2, groups_used = 3 },
      ["1 of 3 groups"] = { experts_used = 1, groups = 3, groups_used = 1 },
      ["1 of 4 groups"] = { experts_used = 1, groups = 4, groups_used = 1 },
      ["1 of 2 groups"] = { groups = 2, groups_used = 1 },
      ["experts is 0"] = { experts = 0, experts_used = 0, ff = 24 },
      ["ff is 0"] = { dense = { true, false, false } },
    } do
      expect("format", words, core.model_new(o.runtime, with(all, changes)))
    end
    expect("format", "router is a sigmoid", core.model_new(o.runtime,
      with(all, { router = "softmax", experts_used = 2, groups = 2, groups_used = 1 })))
    assert.has_error(function() core.model_new(o.runtime, with(all, { router = "none" })) end)
    assert.has_error(function() core.model_new(o.runtime, with(all, { dense = { true } })) end)
  end)
end)
