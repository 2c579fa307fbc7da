--- lua-http and cqueues, where they are installed: what `pyramid serve` speaks HTTP with.
---
--- Debian installs both for Lua 5.1 to 5.3, and of lua-http's own needs some for 5.1 or 5.2 alone;
--- their texts run on 5.4 as they are. So those folders are looked into after all others, and only
--- once somebody serves.
local library = {}

local FOLDERS = { "/usr/share/lua/5.4", "/usr/share/lua/5.3", "/usr/share/lua/5.2",
  "/usr/share/lua/5.1" }

library.HINT = "`make serve-deps` installs them, in Debian's words lua-http and lua-cqueues."

local found

---The modules: http.server, http.headers, cqueues, cqueues.condition, cqueues.signal; by their last
---words.
---@return table<string, any>?
---@return string? message
---@return string? code
function library.open()
  if found then return found end
  local path = package.path
  for _, folder in ipairs(FOLDERS) do
    package.path = ("%s;%s/?.lua;%s/?/init.lua"):format(package.path, folder, folder)
  end
  local modules = {}
  for name, module in pairs { server = "http.server", headers = "http.headers",
    cqueues = "cqueues", condition = "cqueues.condition", signal = "cqueues.signal",
    errno = "cqueues.errno", rand = "openssl.rand" } do
    local ok, value = pcall(require, module)
    if not ok then
      package.path = path
      return nil, "serving needs lua-http and cqueues for Lua 5.4: "
        .. tostring(value):match "^[^\n]*", "unsupported"
    end
    modules[name] = value
  end
  found = modules
  return found
end

return library
