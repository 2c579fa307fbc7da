-- completion.lua: what a shell reads to complete the program's commands and options.
local cli = require "pyramid.tools.cli"

local shells = { "bash", "zsh", "fish" }
local parser = cli.parser("SHELL",
  "Writes what a shell reads to complete the program's commands, their options and what these take.",
  [[
bash:  pyramid completion bash >~/.local/share/bash-completion/completions/pyramid
zsh:   pyramid completion zsh >"${fpath[1]}/_pyramid"
fish:  pyramid completion fish >~/.config/fish/completions/pyramid.fish]])
parser:argument("shell", "bash, zsh or fish."):choices(shells)
local args = cli.parse(parser, arg)

io.write(require "pyramid.tools.commands".completion(args.shell))
