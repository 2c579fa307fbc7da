-- serve.lua: answers over HTTP as OpenAI's API does, many requests at once, each under its policy.
local cli = require "pyramid.tools.cli"

local parser = cli.parser("[options]",
  "Serves a model over HTTP: /v1/completions, /v1/chat/completions, /v1/models, /tokenize, "
  .. "/health, /metrics, and a page at /. A request may name its own policy, row format and budget "
  .. '("pyramid": { "policy": "h2o" }).', [[
Ctrl-C ends it once the requests that are going on have been answered; a second one ends it at once.
docs/serving.md has requests and answers.]])
cli.add_model(parser)
cli.option(parser, "--host", "ADDRESS", "Where it listens; other machines reach it on 0.0.0.0.",
  { default = "127.0.0.1" })
cli.option(parser, "--port", "N", "The port; 0: one that is free.",
  { default = "8080", integer = 0 })
cli.option(parser, "--api-key", "KEY", "Who asks must know it; may be repeated.", { many = true })
cli.option(parser, "--api-key-file", "FILE", "The same, one on each line.")
cli.option(parser, "--name", "NAME", "What the model is called (default: its file's name).")
cli.option(parser, "--template", "NAME", "The chat format, if not the model's own.")
cli.add_policy(parser)
cli.add_cache_dtype(parser)
cli.option(parser, "--memory", "SIZE", "The most bytes that the rows of all requests may take.",
  { default = "2 GiB" })
cli.option(parser, "--parallel", "N", "How many texts are written at once, at most.",
  { default = "64", integer = 1 })
cli.option(parser, "--queue", "N", "How many requests may wait; more get status 429.",
  { default = "256", integer = 0 })
cli.option(parser, "--kept", "N",
  "How many caches stay after their requests, for prompts that begin alike.",
  { default = "16", integer = 0 })
cli.add_sessions(parser)
parser:flag("--share", "Prompts of one user may begin with what was read for another.")
cli.option(parser, "--max-tokens", "N", "Of an answer in a chat that does not say.",
  { short = "-n", default = "1024", integer = 1 })
cli.option(parser, "--body", "SIZE", "The most bytes of a request.", { default = "4 MiB" })
cli.option(parser, "--connections", "N", "How many at once.", { default = "256", integer = 1 })
cli.option(parser, "--timeout", "SECONDS", "The longest that a request may take.",
  { default = "600", integer = 1 })
cli.option(parser, "--grace", "SECONDS", "How long requests may go on once it is to end.",
  { default = "30", integer = 0 })
cli.option(parser, "--policy-seconds", "SECONDS", "How long a policy may think at a time.",
  { default = "10", number = true })
parser:flag("--quiet", "Says nothing of requests.")
local args = cli.parse(parser, arg)

local library = require "pyramid.serve.library"
local modules, message = library.open()
if not modules then cli.fail(message, library.HINT) end

-- Before threads begin: they inherit it, and so nobody but the server is told of these signals.
modules.signal.block(modules.signal.SIGINT, modules.signal.SIGTERM)

local keys = table.move(args.api_key or {}, 1, #(args.api_key or {}), 1, {})
if args.api_key_file then
  for line in cli.read(args.api_key_file):gmatch "[^\r\n]+" do
    if not line:find "^%s*$" then keys[#keys + 1] = line:match "^%s*(.-)%s*$" end
  end
  if #keys == 0 then cli.fail(args.api_key_file .. ": holds no key", "One stands on each line.") end
end

local serve = require "pyramid.serve"
local policy = args.policies and cli.one_policy(args) or nil
local model <close> = cli.open_text_model(args)
local server <close> = cli.must(serve.open(model, { host = args.host, port = args.port,
  api_keys = keys, name = args.name, template = args.template, policy = policy,
  dtype = args.cache_dtype, memory = args.memory, parallel = args.parallel, queue = args.queue,
  kept = args.kept, share = args.share, sessions = cli.sessions(args),
  max_tokens = args.max_tokens, body = args.body,
  connections = args.connections, seconds = args.timeout, grace = args.grace,
  policy_seconds = args.policy_seconds, signals = true, log = not args.quiet and function(line)
    io.stderr:write(os.date "%H:%M:%S ", line, "\n")
  end or nil }))
if not server.loopback and #keys == 0 then
  cli.warn "other machines reach this without a key; --api-key KEY asks for one"
end
io.stdout:write(("serving %s on http://%s:%d\n"):format(server.name, server.host, server.port))
io.stdout:flush()
server:run()
