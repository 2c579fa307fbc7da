--- The program's commands as their option tables say them: what shells complete, and manual pages.
local argparse = require "argparse"
local cli = require "pyramid.tools.cli"
local picture = require "pyramid.tools.picture"
local policy = require "pyramid.policy"
local scripts = require "pyramid.scripts"

local commands = {}

-- A script's parser: the script is run up to where it would read its arguments. What does not read
-- any that way has none.
local function parser_of(name)
  local given, wanted, found = arg, {}, nil
  cli.on_parser = function(parser)
    found = parser
    error(wanted)
  end
  _G.arg = { [0] = "pyramid " .. name }
  local chunk = scripts.load(name)
  local ok, why = pcall(chunk)
  cli.on_parser, _G.arg = nil, given
  if not ok and why ~= wanted then return nil, why end
  return found
end

---@class pyramid.Command
---@field name string
---@field summary string
---@field parser table     an argparse parser

---All commands that tell their options, by name. Scripts of the user's own folders are run, too, up
---to where they read their arguments.
---@return pyramid.Command[]
function commands.list()
  local found, summaries = {}, scripts.list()
  for _, name in ipairs(commands.names(summaries)) do
    local parser = parser_of(name)
    if parser then
      found[#found + 1] = { name = name, summary = summaries[name], parser = parser }
    end
  end
  return found
end

---@param summaries? table<string, string>
---@return string[]
function commands.names(summaries)
  local names = {}
  for name in pairs(summaries or scripts.list()) do
    -- what runs the specs takes its words as they are
    if name ~= "spec" then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

---What a command's --help says; without a name, all commands with what they do.
---@param name? string
---@return string?
---@return string? message
function commands.help(name)
  local summaries = scripts.list()
  if name then
    if not summaries[name] then return nil, ("there is no command '%s'"):format(name) end
    local parser, why = parser_of(name)
    if parser then
      return (parser:get_help():gsub("^Usage: pyramid %S+", "Usage: pyramid " .. name)) .. "\n"
    end
    if why then return nil, ("%s: %s"):format(name, tostring(why)) end
    return ("pyramid %s: %s\n"):format(name, summaries[name])
  end
  local rows = {}
  for i, each in ipairs(commands.names(summaries)) do
    rows[i] = { "  " .. each, summaries[each] }
  end
  return table.concat(picture.table(rows, "<"), "\n") .. "\n\npyramid help COMMAND says more.\n"
end

-- argparse writes completions for commands of one parser: each script's options become those of a
-- command.
local function as_one(list)
  local all = argparse("pyramid")
  for _, each in ipairs(list) do
    local command = all:command(each.name, each.summary)
    for _, option in ipairs(each.parser._options) do
      local names = option._aliases
      if names[1] == "--policy" then option:choices(policy.list()) end
      if names[1] ~= "-h" then table.insert(command._options, option) end
    end
    for _, argument in ipairs(each.parser._arguments) do
      table.insert(command._arguments, argument)
    end
  end
  return all
end

---What a shell reads to complete the program's commands and their options.
---@param shell "bash"|"zsh"|"fish"
---@return string
function commands.completion(shell)
  local all = as_one(commands.list())
  return all["get_" .. shell .. "_complete"](all)
end

-- ---- manual pages -------------------------------------------------------------------------------

-- Text as roff takes it: no line begins with a control character, and backslashes and dashes are
-- themselves.
local function roff(text)
  text = text:gsub("\\", "\\e"):gsub("%-", "\\-")
  return (("\n" .. text):gsub("\n([.'])", "\n\\&%1"):sub(2))
end

local function option_lines(option)
  local names = {}
  for i, name in ipairs(option._aliases) do names[i] = roff(name) end
  local head = "\\fB" .. table.concat(names, "\\fR, \\fB") .. "\\fR"
  local takes = option._maxargs and option._maxargs > 0
  local argname = type(option._argname) == "table" and table.concat(option._argname, " ")
    or option._argname
  if takes and argname then head = head .. " \\fI" .. roff(argname) .. "\\fR" end
  local text = option._description or ""
  if option._default and option._default ~= "" and not text:find("(default", 1, true) then
    text = ("%s (default: %s)"):format(text, tostring(option._default))
  end
  return (".TP\n%s\n%s"):format(head, roff(text))
end

---A command's manual page, in roff's man macros (section 1).
---@param command pyramid.Command
---@param version string
---@return string
function commands.manual(command, version)
  local parser, name = command.parser, "pyramid-" .. command.name
  local usage = parser:get_usage():gsub("^Usage: %S+%s?%S*%s*", "")
  local lines = { (".TH %s 1 \"\" \"Pyramid %s\""):format(name:upper(), version), ".SH NAME",
    ("%s \\- %s"):format(roff(name), roff(command.summary)), ".SH SYNOPSIS",
    ("\\fBpyramid %s\\fR %s"):format(roff(command.name), roff(usage)), ".SH DESCRIPTION",
    roff(parser._description or "") }
  for _, part in ipairs { { "ARGUMENTS", parser._arguments }, { "OPTIONS", parser._options } } do
    if #part[2] > 0 then lines[#lines + 1] = ".SH " .. part[1] end
    for _, each in ipairs(part[2]) do
      if each._aliases then lines[#lines + 1] = option_lines(each)
      else
        lines[#lines + 1] = (".TP\n\\fI%s\\fR\n%s"):format(roff(each._name),
          roff(each._description or ""))
      end
    end
  end
  if parser._epilog then
    lines[#lines + 1] = ".SH NOTES\n.nf\n" .. roff(parser._epilog:gsub("%s+$", "")) .. "\n.fi"
  end
  return table.concat(lines, "\n") .. "\n"
end

return commands
