-- plan: what a model would take of each of several processes or GPUs, before one is started.
local cli = require "pyramid.tools.cli"
local options = require "pyramid.options"
local picture = require "pyramid.tools.picture"
local plan = require "pyramid.tools.plan"

local names, machines = {}, {}
for name in pairs(plan.shapes) do names[#names + 1] = name end
table.sort(names)
for name in pairs(plan.hardware) do machines[#machines + 1] = name end
table.sort(machines)

local parser = cli.parser("[options] [MODEL]", [[
What a model would take of each of several processes (tensor parallel) or GPUs:
bytes of weights, rows and scratch, what goes between them, the largest batch,
and how fast it could be. Nothing is read but a file's header.]], [[
Examples:
   pyramid plan smollm2 --ranks 2 --prompt 2048 --policy pyramidinfer
   pyramid plan 13b --memory "80 GiB" --batch 32 --prompt 512 --hardware a100
   pyramid plan llama-3.1-405b --gpus 8 --memory "141 GB" --weights q8_0 --hardware h200
Shapes that need no file: ]] .. table.concat(names, ", ") .. [[.
Speed is a roofline: what memory, products and exchanges allow at best, not
what is reached. Scratch is that of this processor's kernels.]])
parser:argument("model", "A model's folder or file, or a shape's name; the default model, if not "
  .. "given."):args "?"
cli.option(parser, "--ranks", "N", "Processes that each have a part of every layer.",
  { integer = 1 })
cli.option(parser, "--gpus", "N", "The same.", { integer = 1 })
cli.option(parser, "--stages", "N", "Of a pipeline: how many layers each should have.",
  { integer = 1 })
cli.option(parser, "--memory", "SIZE", "What each of them has, such as \"80 GiB\".")
cli.option(parser, "--batch", "N", "Sequences.", { default = "1", integer = 1 })
cli.option(parser, "--prompt", "N", "Tokens of each prompt.", { default = "512", integer = 1 })
cli.option(parser, "--generate", "N", "Tokens made of each.", { default = "0", integer = 0 })
cli.add_policy(parser)
cli.add_cache_dtype(parser)
cli.option(parser, "--weights", "DTYPE",
  "What matrices are converted to; of a shape what they are, f16 unless said.")
cli.option(parser, "--threads", "N", "Of a rank, whose kernels set scratch aside for each.",
  { default = "1", integer = 1 })
cli.option(parser, "--hardware", "NAME", "Figures as makers state them.", { choices = machines })
cli.option(parser, "--bandwidth", "GB/S", "Of a rank's memory.", { number = true })
cli.option(parser, "--flops", "TFLOP/S", "Of a rank's products.", { number = true })
cli.option(parser, "--link", "GB/S", "From a rank to the others.", { number = true })
cli.option(parser, "--latency", "US", "Microseconds that an exchange takes.", { number = true })
parser:flag("--json", "Print one JSON object.")
local args = cli.parse(parser, arg)

if args.ranks and args.gpus then
  cli.fail("--ranks and --gpus are the same", "Give one of them.")
end
local hardware = {}
for key, value in pairs(plan.hardware[args.hardware] or {}) do hardware[key] = value end
for _, key in ipairs { "bandwidth", "flops", "link", "latency" } do
  if args[key] and args[key] <= 0 then cli.fail(("--%s must be above 0"):format(key)) end
  hardware[key] = args[key] or hardware[key]
end
local ok, memory = pcall(options.bytes, "--memory", args.memory)
if not ok then cli.fail(options.without_place(memory)) end

local what = args.model or cli.default_model
local chosen, label
if args.policies then chosen, label = cli.one_policy(args) end
local made = cli.must(plan.make(plan.shapes[what] and what or cli.need_model(what, "MODEL"), {
  ranks = args.ranks or args.gpus, stages = args.stages, memory = memory, batch = args.batch,
  prompt = args.prompt, generate = args.generate, policy = chosen, cache_dtype = args.cache_dtype,
  weights = args.weights, threads = args.threads, hardware = hardware }))

-- What each rank takes, and how fast it is, is worked out of ranks that have a part of every layer.
if made.stages then
  for _, key in ipairs { "ranks", "fits", "largest_batch", "prompt_seconds", "step_seconds",
    "step_rate", "rate" } do
    made[key] = nil
  end
end

if args.json then
  made.config = nil
  cli.json(made)
  os.exit(0, true)
end
local c = made.config
print(("%s: %d layers, width %d, %d heads over %d, vocabulary %d"):format(made.model, c.layers,
  c.width, c.heads, c.kv_heads, c.vocab))
print(("%d sequences of %d + %d tokens, rows in %s: %s of %s a token"):format(args.batch,
  args.prompt, args.generate, args.cache_dtype, cli.percent(made.fraction),
  cli.bytes(made.row_bytes)) .. (label and ", " .. label or ""))
if c.context and args.prompt + args.generate > c.context then
  print(("that is more than the model's context of %d"):format(c.context))
end
if made.stages then
  print(("stages that take equal time: --ranks pipeline:%s"):format(table.concat(made.stages, "+")))
  return
end
local rows = { { "rank", "heads", "K/V", "MLP", "weights", "rows", "reading", "scratch", "total",
  "sent a prompt", "a step" } }
for _, r in ipairs(made.ranks) do
  rows[#rows + 1] = { tostring(r.rank), tostring(r.heads), tostring(r.kv_heads), tostring(r.ff),
    cli.bytes(r.weights), cli.bytes(r.rows), cli.bytes(r.reading), cli.bytes(r.scratch),
    cli.bytes(r.total), cli.bytes(r.prompt_sent), cli.bytes(r.step_sent) }
end
print(table.concat(picture.table(rows, ">"), "\n"))
if made.fits ~= nil then
  print(("%s; the largest batch that does: %d"):format(
    made.fits and "it fits" or "it does not fit", made.largest_batch))
end
if made.step_seconds then
  print(("at best: a prompt in %.3g s, a step in %.3g ms, %.4g tokens a second%s"):format(
    made.prompt_seconds, made.step_seconds * 1e3, made.step_rate,
    made.rate and (", %.4g with the prompts"):format(made.rate) or ""))
end
