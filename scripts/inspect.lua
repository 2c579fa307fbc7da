-- inspect: what a model file holds, and what a policy would keep of a prompt, layer by layer.
-- Nothing is run, unless a prompt is given.
local cli = require "pyramid.tools.cli"
local inspect = require "pyramid.tools.inspect"
local picture = require "pyramid.tools.picture"
local target = require "pyramid.tools.target"
local trace = require "pyramid.tools.trace"

local parser = cli.parser("[options] [MODEL]",
  "What a model file holds, and what a policy would keep of a prompt, without running it.", [[
Examples:
   pyramid inspect model.gguf --tensors
   pyramid inspect --policy pyramidinfer target=0.45 --length 2000
   pyramid inspect --policy-file mine.lua --prompt-file book.txt
   pyramid generate --policy h2o --trace run.jsonl -f book.txt && pyramid inspect --trace run.jsonl
What a policy keeps by the mass of scores depends on the text: then its share is
the most it can be, and --prompt-file measures it.]])
parser:argument("model",
  "A Hugging Face folder, a .gguf or a .safetensors file; the default model, if not given."):args "?"
cli.add_policy(parser)
cli.add_cache_dtype(parser)
cli.option(parser, "--length", "N",
  "Tokens of the prompt; if not given, the model's context, at most 4096.", { integer = 1 })
cli.option(parser, "--prompt-file", "FILE",
  "Read this text (- is standard input) and say what was kept of it; --length: of its "
  .. "first N tokens.")
cli.option(parser, "--threads", "N",
  "With --prompt-file: how many threads; 0: one for each processor.", { integer = 0 })
cli.option(parser, "--trace", "FILE",
  "Draw what the plans of a run did, from the file that its --trace wrote.")
parser:flag("--tensors", "List every tensor.")
parser:flag("--json", "Print one JSON object.")
local args = cli.parse(parser, arg)

local function forecast(config)
  local chosen, label = cli.one_policy(args)
  local ok, made = pcall(inspect.policy, config, chosen,
    args.length or math.min(config.context, 4096), args.cache_dtype)
  if not ok then cli.fail(made) end
  made.label = label
  return made, target.warning(chosen, label, made.fraction, made.length,
    made.at_most and " at most" or nil)
end

local function measured(path, config)
  local chosen, label = cli.one_policy(args)
  args.model = path
  local model <close> = cli.open_text_model(args)
  local ids = cli.must(model:encode(cli.read(args.prompt_file)))
  local most = math.min(args.length or config.context, config.context)
  if #ids > most then ids = table.move(ids, 1, most, 1, {}) end
  if #ids == 0 then cli.fail("the prompt is empty", "Give at least one character.") end
  local made = cli.must(inspect.measured(model, chosen, ids, args.cache_dtype))
  made.label, made.prompt = label, args.prompt_file
  return made, target.warning(chosen, label, made.fraction, made.length)
end

local function print_model(model)
  print(("%s  (%s, %s)"):format(model.path, model.format, cli.bytes(model.bytes)))
  if model.problem then print("cannot be loaded: " .. model.problem) end
  local c = model.config
  if c then
    if model.description then print(model.description) end
    local rope = c.rope.type == "none" and "none"
      or ("%s, factor %g"):format(c.rope.type, c.rope.factor)
    if c.rope.factors then rope = "by a table of factors" end
    local slides, width = 0, 0
    for _, w in ipairs(c.window or {}) do
      if w > 0 then slides, width = slides + 1, w end
    end
    print(("  family     %s"):format(c.family))
    print(("  layers     %d"):format(c.layers))
    print(("  heads      %d, K/V heads %d, of %d each"):format(c.heads, c.kv_heads, c.head_dim))
    print(("  width      %d, feed-forward %d"):format(c.width, c.ff))
    if (c.decoder.experts or 0) > 0 then
      print(("  experts    %d of %d, each %d wide%s"):format(c.decoder.experts_used,
        c.decoder.experts, c.decoder.expert_ff, c.decoder.shared_ff > 0
          and (", and one of %d that all tokens take"):format(c.decoder.shared_ff) or ""))
    end
    print(("  vocabulary %d, output %s"):format(c.vocab,
      c.tied and "tied to the embedding" or "of its own"))
    print(("  context    %d"):format(c.context))
    print(("  RoPE       base %g, scaling %s"):format(c.rope.base, rope))
    print(("  window     %s"):format(slides > 0
      and ("%d positions in %d of %d layers"):format(width, slides, c.layers) or "none"))
    print(("  cache      %s a token in f16"):format(cli.bytes(
      c.layers * c.kv_heads * c.head_dim * 4)))
  end
  if model.tokenizer then
    print(("  tokenizer  %s, %d tokens"):format(model.tokenizer.kind, model.tokenizer.tokens))
  end
  print(("  tensors    %d, %s values"):format(model.tensor_count, cli.count(model.values)))
  for _, t in ipairs(model.totals) do
    print(("    %-8s %5d tensors %18s values %12s"):format(t.dtype, t.tensors, cli.count(t.values),
      cli.bytes(t.bytes)))
  end
  if not args.tensors then return end
  print()
  for _, t in ipairs(model.tensors) do
    print(("  %-48s %-6s %-16s %s"):format(t.name, t.dtype, table.concat(t.shape, " x "),
      cli.bytes(t.bytes)))
  end
end

local function print_forecast(made, warning)
  local pic, layers = picture.new(io.stdout), #made.layers
  local wide = math.max(20, pic.width - 34)
  print(("\n%s, %s"):format(pic:paint(made.label, "bold"),
    (made.prompt and "the first %d tokens of %s" or "a prompt of %d tokens")
    :format(made.length, made.prompt)))
  local most = made.at_most and "at most " or ""
  print(("%s%.1f %% of the rows: %s of %s in %s; %s%.1f %% of the token-layers computed"):format(
    most, 100 * made.fraction, cli.bytes(made.bytes), cli.bytes(made.full_bytes), made.dtype,
      made.computed < 1 and most or "", 100 * made.computed))
  if made.at_most then
    print("How many depends on the text, by what its scores say; --prompt-file FILE measures it.")
  end
  if warning then print(pic:paint(warning, "warn")) end
  for i, layer in ipairs(made.layers) do
    local word = layer.most and " at most" or made.at_most and (" "):rep(8) or ""
    print(("  layer %3d  %s%s %6.0f %6.1f %%"):format(i,
      pic:bar(layer.rows / made.length, wide - #word, (i - 1) / layers), word, layer.rows,
        100 * layer.rows / made.length))
  end
end

if args.trace then
  if args.model or args.policies then
    cli.fail("--trace reads what a run has written, and goes with no model or policy",
      "Leave the others out.")
  end
  local runs = trace.runs(cli.must(trace.read(args.trace)))
  if args.json then cli.json(runs) os.exit(0, true) end
  if #runs == 0 then print(("%s: no plan was carried out"):format(args.trace)) end
  for i, run in ipairs(runs) do
    print((i > 1 and "\n" or "") .. table.concat(trace.draw(picture.new(io.stdout), run), "\n"))
  end
  os.exit(0, true)
end

local model = cli.must(inspect.model(cli.need_model(args.model or cli.default_model, "MODEL")))
if args.policies and not model.config then cli.fail(model.problem) end
if args.prompt_file and not args.policies then
  cli.fail("--prompt-file goes with a policy", "Give --policy or --policy-file.")
end
local made, warning
if args.policies then
  if args.prompt_file then
    made, warning = measured(model.path, model.config)
  else
    made, warning = forecast(model.config)
  end
end
if not args.prompt_file then cli.warn_of(model) end        -- who opens the model has said it
if args.json then
  model.forecast = made or nil
  if not args.tensors then model.tensors = nil end
  cli.json(model)
else
  print_model(model)
  if made then print_forecast(made, warning) end
end
