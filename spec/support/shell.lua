-- Runs programs for the specs: what was built, compilers, hosts.
local shell = {}

--- The folder that `make` built into.
shell.build = os.getenv "PYRAMID_BUILD" or "build"
--- The program under test.
shell.program = shell.build .. "/pyramid"

--- One word of a shell command.
function shell.quote(word)
  return "'" .. tostring(word):gsub("'", "'\\''") .. "'"
end

local function take(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "a"
  file:close()
  os.remove(path)
  return text
end

--- Runs a command line. Returns what it wrote to standard output and standard error, and its exit
--- status.
---@param line string
---@return string out, string err, integer status
function shell.run(line)
  local out, err = os.tmpname(), os.tmpname()
  local _, how, status = os.execute(("{ %s\n} >%s 2>%s"):format(line, out, err))
  return take(out), take(err), how == "exit" and status or 128 + status
end

--- Runs the program with these arguments.
function shell.pyramid(...)
  local words = { shell.quote(shell.program) }
  for i, word in ipairs { ... } do words[i + 1] = shell.quote(word) end
  return shell.run(table.concat(words, " ") .. " </dev/null")
end

--- A new folder, for the test to remove with shell.remove.
function shell.folder()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkdir -p " .. shell.quote(path)))
  return path
end

function shell.remove(path)
  assert(path:find "^/tmp/")
  os.execute("rm -rf " .. shell.quote(path))
end

return shell
