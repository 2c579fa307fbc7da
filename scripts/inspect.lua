-- inspect: what a model file holds, and what a policy would keep of a prompt, layer by layer. Nothing is run.
local argparse = require "argparse"
local cjson = require "cjson"
local inspect = require "pyramid.inspect"
local policy = require "pyramid.policy"

local parser = argparse("pyramid inspect", "What a model file holds, and what a policy would keep of a prompt, without running it.")
parser:argument("model", "Hugging Face directory, .gguf or .safetensors file")
parser:option("--policy", "a policy's name or file, and its options as key=value"):args "+":argname { "NAME", "key=value" }
parser:option("--length", "tokens of the prompt (default: the model's context, at most 4096)"):convert(math.tointeger)
parser:option("--dtype", "of the cache's rows"):choices { "f32", "f16", "bf16", "q8_0" }:default "f16"
parser:flag("--tensors", "list every tensor")
parser:flag("--json", "one JSON object")
local args = parser:parse()

local function fail(message)
  io.stderr:write("inspect: ", message, "\n")
  os.exit(1)
end

local function size(bytes)
  for _, unit in ipairs { "B", "KiB", "MiB", "GiB" } do
    if bytes < 1024 or unit == "GiB" then return (unit == "B" and "%d %s" or "%.1f %s"):format(bytes, unit) end
    bytes = bytes / 1024
  end
end

local function count(n)
  local text = tostring(n):reverse():gsub("(%d%d%d)", "%1 "):reverse()
  return (text:gsub("^ ", ""))
end

local function forecast(config)
  local name = table.remove(args.policy, 1)
  local given, message = policy.parse_options(name, args.policy)
  if not given then fail(message) end
  local chosen
  chosen, message = policy.load(name, given)
  if not chosen then fail(message) end
  local length = args.length or math.min(config.context, 4096)
  if length < 1 then fail("--length must be at least 1") end
  local ok, made = pcall(inspect.policy, config, chosen, length, args.dtype)
  if not ok then fail(("policy %s: %s"):format(name, made)) end
  return made
end

local function print_model(model)
  print(("%s  (%s, %s)"):format(model.path, model.format, size(model.bytes)))
  if model.problem then print("cannot be loaded: " .. model.problem) end
  local c = model.config
  if c then
    if model.description then print(model.description) end
    local rope = c.rope.type == "none" and "none" or ("%s, factor %g"):format(c.rope.type, c.rope.factor)
    if c.rope.factors then rope = "by a table of factors" end
    local slides, width = 0, 0
    for _, w in ipairs(c.window or {}) do
      if w > 0 then slides, width = slides + 1, w end
    end
    print(("  family     %s"):format(c.family))
    print(("  layers     %d"):format(c.layers))
    print(("  heads      %d, K/V heads %d, of %d each"):format(c.heads, c.kv_heads, c.head_dim))
    print(("  width      %d, feed-forward %d"):format(c.width, c.ff))
    print(("  vocabulary %d, output %s"):format(c.vocab, c.tied and "tied to the embedding" or "of its own"))
    print(("  context    %d"):format(c.context))
    print(("  RoPE       base %g, scaling %s"):format(c.rope.base, rope))
    print(("  window     %s"):format(slides > 0 and ("%d positions in %d of %d layers"):format(width, slides, c.layers) or "none"))
    print(("  cache      %s a token in f16"):format(size(c.layers * c.kv_heads * c.head_dim * 4)))
  end
  if model.tokenizer then print(("  tokenizer  %s, %d tokens"):format(model.tokenizer.kind, model.tokenizer.tokens)) end
  print(("  tensors    %d, %s values"):format(model.tensor_count, count(model.values)))
  for _, t in ipairs(model.totals) do
    print(("    %-8s %5d tensors %18s values %12s"):format(t.dtype, t.tensors, count(t.values), size(t.bytes)))
  end
  if not args.tensors then return end
  print()
  for _, t in ipairs(model.tensors) do
    print(("  %-48s %-6s %-16s %s"):format(t.name, t.dtype, table.concat(t.shape, " x "), size(t.bytes)))
  end
end

local function print_forecast(made)
  print()
  print(("%s, a prompt of %d tokens"):format(made.policy, made.length))
  print(("%.1f %% of the rows: %s of %s in %s; %.1f %% of the token-layers computed"):format(100 * made.fraction,
    size(made.bytes), size(made.full_bytes), made.dtype, 100 * made.computed))
  local wide = 40
  for i, layer in ipairs(made.layers) do
    local bar = math.floor(wide * layer.rows / made.length + 0.5)
    print(("  layer %3d  %s%s %7d rows %6.1f %%"):format(i, ("█"):rep(bar), ("░"):rep(wide - bar), layer.rows,
      100 * layer.rows / made.length))
  end
end

local model, message = inspect.model(args.model)
if not model then fail(message) end
if args.policy and not model.config then fail(model.problem) end
local made = args.policy and forecast(model.config)
if args.json then
  model.forecast = made
  if not args.tensors then model.tensors = nil end
  print(cjson.encode(model))
else
  print_model(model)
  if made then print_forecast(made) end
end
