-- What is wrong with what came of a file. Shared by those who run targets: child.lua and
-- native.lua.

-- Seconds of processor and bytes that a case may take. Files are of a few hundred KB at most, and
-- sanitizers cost a factor of three.
local LIMITS = { seconds = 5, bytes = 400 << 20 }

local codes = {}
for code in ("argument memory budget context io format unsupported policy cancelled device"):gmatch "%a+" do
  codes[code] = true
end

local function resident(what)
  for line in io.lines "/proc/self/status" do
    local kilobytes = line:match("^" .. what .. ":%s*(%d+)")
    if kilobytes then return tonumber(kilobytes) << 10 end
  end
end

--- What is wrong with how `target` reads `path`, or nil; and how it ended: "ok", a code, or
--- "raised". Memory comes before time: where a system is slow to give pages, both are too much, and
--- memory is why. limits: { seconds, bytes }; those above unless given.
return function(target, path, base, limits)
  limits = limits or LIMITS
  local clear = io.open("/proc/self/clear_refs", "w")
  if clear then
    clear:write "5"
    clear:close()
  end
  local before, began = resident "VmRSS", os.clock()
  local ok, value, message, code, named = xpcall(target.try, debug.traceback, path, base)
  local seconds, bytes = os.clock() - began, resident "VmHWM" - before
  if not ok then return "raised: " .. tostring(value), "raised" end
  local ending = value and "ok" or tostring(code)
  if not value then
    if type(message) ~= "string" or message == "" then
      return ("no message, but %s"):format(tostring(message)), ending
    end
    if not codes[code] then return ("code %s: %s"):format(tostring(code), message), ending end
    if named and not message:find(path, 1, true) then
      return "a message that does not name the file: " .. message, ending
    end
  end
  if bytes > limits.bytes then return ("%d MB"):format(bytes >> 20), ending end
  if seconds > limits.seconds then return ("%.1f seconds"):format(seconds), ending end
  return nil, ending
end
