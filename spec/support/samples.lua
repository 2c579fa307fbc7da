--- Samples in documents: finds them, and holds commands to what is there. A document's sample is
--- either run by its spec, or its commands are checked word for word: the script, its options, the
--- policies and their options, make's targets.
local policy = require "pyramid.policy"
local shell = require "spec.support.shell"

local samples = {}

---Fenced blocks in order. kind: what stands behind the fence, "" for what a command prints.
---@param text string
---@return { kind: string, text: string, before: string }[]   before: the last line in front of it
function samples.blocks(text)
  local list, inside, last = {}, nil, ""
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    local fence = line:match "^```(%S*)"
    if inside and fence then
      inside.text = table.concat(inside.lines, "\n") .. "\n"
      list[#list + 1], inside = inside, nil
    elseif fence then inside = { kind = fence, lines = {}, before = last }
    elseif inside then table.insert(inside.lines, line)
    elseif line ~= "" then last = line end
  end
  assert(not inside, "a block that never ends")
  return list
end

---Commands of a shell block, lines that go on joined, without their comments.
---@param text string
---@return string[]
function samples.commands(text)
  local list = {}
  for line in text:gsub("\\\n%s*", ""):gmatch "[^\n]+" do
    line = line:gsub("^%s*#.*$", ""):gsub("%s%s+#%s.*$", ""):gsub("%s+$", "")
    if line ~= "" then list[#list + 1] = line end
  end
  return list
end

---Code within the lines of a document.
---@param text string
---@return string[]
function samples.inline(text)
  local list = {}
  local plain = ("\n" .. text):gsub("\n```.-\n```", "\n")
  for code in plain:gmatch "`([^`]+)`" do list[#list + 1] = (code:gsub("%s*\n%s*", " ")) end
  return list
end

-- Words as a shell splits them, quotes taken off.
local function words_of(line)
  local list, at = {}, 1
  while true do
    at = line:find("%S", at)
    if not at then return list end
    local word = ""
    while at <= #line and not line:find("^%s", at) do
      local quote, inner, past = line:match([[^(["'])(.-)%1()]], at)
      if quote then word, at = word .. inner, past
      else word, at = word .. line:sub(at, at), at + 1 end
    end
    list[#list + 1] = word
  end
end

local helps = {}

-- What a script says of itself, or nil.
local function help_of(script)
  if helps[script] == nil then
    local out, _, status = shell.pyramid(script, "--help")
    helps[script] = status == 0 and out or false
  end
  return helps[script] or nil
end

-- An option's policy, with the options that follow it.
local function check_policy(words, at, file)
  local name, given = words[at], {}
  if not name or name:find "…" then return end
  while words[at + 1] and words[at + 1]:find "^[%a_][%w_]*=[^…]+$" do
    at = at + 1
    given[#given + 1] = words[at]
  end
  if file then return end                                                -- a file of the reader's
  local found = assert(policy.load(name))
  assert(policy.load(found, assert(policy.parse_options(found, given))))
end

local function check_pyramid(words, first)
  local script = words[first]
  if not script or script:find "%.lua$" then return end                  -- a script of the reader's
  if script == "--help" or script == "--version" then return end
  local help = assert(help_of(script), "there is no script " .. script)
  for at = first + 1, #words do
    local option = words[at]:match "^(%-%-[%a][%w-]*)"
    if option then
      assert(help:find(option:gsub("%-", "%%-") .. "%f[^%w-]"),
        ("%s has no option %s"):format(script, option))
      if option == "--policy" then check_policy(words, at + 1) end
    elseif words[at]:find "^%-%a$" then
      assert(help:find(words[at] .. " ", 1, true) or help:find(words[at] .. ",", 1, true),
        ("%s has no option %s"):format(script, words[at]))
      if words[at] == "-p" then check_policy(words, at + 1) end
    end
  end
end

local makefile

local function check_make(words, first)
  if not makefile then
    local file <close> = assert(io.open "Makefile")
    makefile = "\n" .. file:read "a"
  end
  for at = first, #words do
    local variable, value = words[at]:match "^([%u_]+)=(.*)$"
    if variable then
      assert(makefile:find("%f[%w_]" .. variable .. "%f[^%w_]"),
        "the Makefile knows no " .. variable)
      if variable == "BENCH" then check_pyramid(words_of("bench " .. value), 1) end
    elseif not words[at]:find "^%-" then
      local target = words[at]:gsub("%p", "%%%0")
      local found = makefile:find("\n[^\n:#=\t]*%f[%w_-]" .. target .. "%f[^%w_-][^\n:=]*:%f[^:=]")
      assert(found, "the Makefile has no target " .. words[at])
    end
  end
end

-- What is not ours, and need not be installed where the specs run.
local foreign = {}
for word in ([[cc gcc clang c++ g++ cmake git cd export echo cat apt apt-get dnf apk pacman pip pip3 python python3 luarocks lua
  lua5.4 busted luacheck pkg-config ldconfig docker tar curl mkdir cp sh bash nvcc ssh scp rsync zcat head
  llama-server]]):gmatch "%S+" do
  foreign[word] = true
end

---Checks a command: raises if something in it is not there.
---@param line string
function samples.check(line)
  for part in (line .. " && "):gmatch "(.-)%s*&&%s*" do
    local words = words_of(part)
    local at = 1
    while words[at] and (words[at] == "sudo" or words[at]:find "^[%u_]+=") do at = at + 1 end
    local command = words[at]
    if command == "make" then check_make(words, at + 1)
    elseif command == "build/pyramid" or command == "pyramid" then check_pyramid(words, at + 1)
    elseif command and command:find "/" then assert(io.open(command),
      "there is no file " .. command):close()
    elseif command then assert(foreign[command], "a command that nothing checks: " .. line) end
  end
end

return samples
