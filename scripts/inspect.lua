-- inspect: what a model file holds, and what a policy would keep of a prompt, layer by layer. Nothing is run.
local cli = require "pyramid.cli"
local inspect = require "pyramid.inspect"
local picture = require "pyramid.picture"

local parser = cli.parser("[options] [MODEL]",
  "What a model file holds, and what a policy would keep of a prompt, without running it.")
parser:argument("model", "A Hugging Face folder, a .gguf or a .safetensors file; the default model, if not given."):args "?"
cli.add_policy(parser)
cli.add_cache_dtype(parser)
cli.option(parser, "--length", "N", "Tokens of the prompt; if not given, the model's context, at most 4096.", { integer = 1 })
parser:flag("--tensors", "List every tensor.")
parser:flag("--json", "Print one JSON object.")
local args = cli.parse(parser, arg)

local function forecast(config)
  local chosen, label = cli.one_policy(args)
  local ok, made = pcall(inspect.policy, config, chosen, args.length or math.min(config.context, 4096), args.cache_dtype)
  if not ok then cli.fail(made) end
  made.label = label
  return made
end

local function print_model(model)
  print(("%s  (%s, %s)"):format(model.path, model.format, cli.bytes(model.bytes)))
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
    print(("  cache      %s a token in f16"):format(cli.bytes(c.layers * c.kv_heads * c.head_dim * 4)))
  end
  if model.tokenizer then print(("  tokenizer  %s, %d tokens"):format(model.tokenizer.kind, model.tokenizer.tokens)) end
  print(("  tensors    %d, %s values"):format(model.tensor_count, cli.count(model.values)))
  for _, t in ipairs(model.totals) do
    print(("    %-8s %5d tensors %18s values %12s"):format(t.dtype, t.tensors, cli.count(t.values), cli.bytes(t.bytes)))
  end
  if not args.tensors then return end
  print()
  for _, t in ipairs(model.tensors) do
    print(("  %-48s %-6s %-16s %s"):format(t.name, t.dtype, table.concat(t.shape, " x "), cli.bytes(t.bytes)))
  end
end

local function print_forecast(made)
  local pic, layers = picture.new(io.stdout), #made.layers
  local wide = math.max(20, pic.width - 34)
  print(("\n%s, a prompt of %d tokens"):format(pic:paint(made.label, "bold"), made.length))
  print(("%.1f %% of the rows: %s of %s in %s; %.1f %% of the token-layers computed"):format(100 * made.fraction,
    cli.bytes(made.bytes), cli.bytes(made.full_bytes), made.dtype, 100 * made.computed))
  for i, layer in ipairs(made.layers) do
    print(("  layer %3d  %s %6.0f %6.1f %%"):format(i, pic:bar(layer.rows / made.length, wide, (i - 1) / layers), layer.rows,
      100 * layer.rows / made.length))
  end
end

local model = cli.must(inspect.model(cli.need_model(args.model or cli.default_model, "MODEL")))
if args.policies and not model.config then cli.fail(model.problem) end
local made = args.policies and forecast(model.config)
cli.warn_of(model)
if args.json then
  model.forecast = made or nil
  if not args.tensors then model.tensors = nil end
  cli.json(model)
else
  print_model(model)
  if made then print_forecast(made) end
end
