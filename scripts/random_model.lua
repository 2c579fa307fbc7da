-- random_model.lua: writes a Llama of a stated shape with random weights, to measure with.
local cli = require "pyramid.tools.cli"
local picture = require "pyramid.tools.picture"
local random_model = require "pyramid.tools.random_model"

local names, size = {}, {}
for name, shape in pairs(random_model.shapes) do
  names[#names + 1], size[name] = name, random_model.parameters(shape)
end
table.sort(names, function(a, b) return size[a] < size[b] end)

local parser = cli.parser("[options] OUT", [[
Writes a Llama with random weights: a Hugging Face folder (config.json,
model.safetensors), or a GGUF file, which holds a vocabulary of made-up words
too and loads in llama.cpp. The same shape and seed give the same model in
either format.]], [[
Examples:
   pyramid random_model build/134m --shape 134m
   pyramid random_model build/1.1b-q8_0.gguf --shape 1.1b --dtype q8_0
Shapes (layers, width, heads, KV heads, feed-forward):
]] .. table.concat(picture.table((function()
  local rows = {}
  for i, name in ipairs(names) do
    local s = random_model.shapes[name]
    rows[i] = { "   " .. name, s.layers .. ",", s.width .. ",", s.heads .. ",", s.kv_heads .. ",",
      tostring(s.ff) }
  end
  return rows
end)(), "<>"), "\n"))
parser:argument("out", "A folder, or a file that ends in .gguf.")
cli.option(parser, "--shape", "NAME", "What it looks like.", { default = "134m", choices = names })
cli.option(parser, "--dtype", "DTYPE", "bf16, f16, f32; in GGUF files also quantised types.",
  { default = "bf16", choices = random_model.dtypes })
cli.option(parser, "--format", "NAME", "safetensors or gguf; what OUT's name says, if not given.",
  { choices = { "safetensors", "gguf" } })
cli.option(parser, "--seed", "N", "The same seed gives the same weights.",
  { default = "1", integer = 0 })
local args = cli.parse(parser, arg)

local named = args.out:find "%.gguf$" and "gguf" or "safetensors"
if args.format and args.format ~= named then
  cli.fail(("--format %s does not fit the name '%s'"):format(args.format, args.out),
    "GGUF files end in .gguf, folders do not.")
end
if named == "safetensors" and args.dtype:find "^q" then
  cli.fail(("safetensors cannot hold %s"):format(args.dtype), "Let OUT end in .gguf.")
end
local shape = random_model.shapes[args.shape]
cli.must(random_model.write(args.out, { shape = shape, dtype = args.dtype, seed = args.seed }))
print(("%s: %.0f million weights, %s, seed %d"):format(args.out, size[args.shape] / 1e6,
  args.dtype, args.seed))
