--- The page at `/`: a chat beside a picture of what the cache keeps. One text, which loads nothing
--- from anywhere; its parts lie in the folder page, for editors, and come in the bundle as they
--- are. Colours are those of the reports.
---
--- The page talks to the server's own routes: v1/models and v1/chat/completions as any client,
--- pyramid/policies for its controls and pyramid/memory (microscope.lua) for its pictures. They are
--- relative to where the page was loaded from, so that a proxy may put it anywhere.
local caches = require "pyramid.cache"
local core = require "pyramid.core"
local json = require "pyramid.json"
local style = require "pyramid.tools.report.style"

-- In the order in which they may use each other when the page begins.
local SCRIPTS = { "base", "words", "settings", "pictures", "lens", "chat", "page" }

local function part(name)
  return (assert(core.bundled("text", "serve/page/" .. name), name))
end

-- Keys and values of several bits: what is worth a choice beside the dtypes.
local dtypes = table.move(caches.dtypes, 1, #caches.dtypes, 1, {})
table.insert(dtypes, "k=q8_0,v=q4")

local scripts = { ("const DTYPES = %s;"):format(json.encode(dtypes)) }
for i, name in ipairs(SCRIPTS) do scripts[i + 1] = part(name .. ".js") end

local parts = { CSS = style.tokens .. part "page.css", JS = table.concat(scripts, "\n") }

return (part("page.html"):gsub("@(%u+)@", parts))
