-- convert: writes a model as a GGUF file, its weights in another number format.
local cli = require "pyramid.tools.cli"
local convert = require "pyramid.tools.convert"
local picture = require "pyramid.tools.picture"

local parser = cli.parser("[options] IN OUT.gguf", [[
Writes a model as one GGUF file, which llama.cpp reads, too. IN is a Hugging
Face folder or a GGUF file; of a split one, its first part.]], [[
Examples:
   pyramid convert SmolLM2-135M smollm2-q8_0.gguf --weights q8_0
   pyramid convert big-00001-of-00003.gguf big.gguf
Norms and biases are written as f32. Rows that are no whole blocks of DTYPE are
kept in q8_0 or f16, and a line says so.]])
parser:argument("model", "A Hugging Face folder or a .gguf file.")
parser:argument("out", "The file to write.")
cli.option(parser, "--weights", "DTYPE",
  ("What matrices become: %s; if not given, each stays as it is.")
  :format(table.concat(convert.dtypes, ", ")), { choices = convert.dtypes })
cli.option(parser, "--threads", "N", "How many threads; 0: one for each processor.",
  { integer = 0 })
parser:flag("--force", "Replace OUT if it is there.")
local args = cli.parse(parser, arg)

cli.hints.argument = "--force replaces it."
local progress <close> = picture.progress "converting"
local made = cli.must(convert.write(cli.need_model(args.model, "IN"), args.out,
  { weights = args.weights, threads = args.threads, force = args.force,
    progress = progress.update }))
cli.warn_of(made)
print(("%s: %d tensors, %s"):format(made.path, made.tensors, cli.bytes(made.bytes)))
print(made.description)
