-- A browser without a window. `look` lays a page out at several widths, and a script says what is
-- wrong with it: pages lie in frames, which may be narrower than a window can be. `open` drives
-- one: keys are pressed, what is shown is asked for (Chrome's debugging protocol over a pair of
-- pipes: JSON with a NUL behind it).
local cjson = require "cjson"
local files = require "helper"
local html = require "pyramid.tools.report.html"
local shell = require "support.shell"

local browser = {}

--- The browser's program, or nil and why there is none.
function browser.find()
  for _, name in ipairs { "chromium", "chromium-browser", "google-chrome" } do
    if shell.run("command -v " .. name) ~= "" then return name end
  end
  return nil, "needs Chromium (make deps-browser)"
end

--- What the script finds, as text. It is the body of an async function of the frame's window,
--- document and width, and calls say(text).
---@param program string
---@param frames { page: string, width: integer, name: string }[]
---@param script string
---@return string
function browser.look(program, frames, script)
  local folder, parts = shell.folder(), {}
  for i, frame in ipairs(frames) do
    parts[i] = html.element("iframe", { srcdoc = frame.page, name = frame.name,
      style = ("width:%dpx;height:900px;border:0"):format(frame.width) })
  end
  files.write(folder .. "/frames.html", ([[<!DOCTYPE html><meta charset="utf-8"><body>%s
    <pre id="found">unfinished</pre><script>
    const look = async (window, document, width, say) => { %s };
    onload = async () => {
      const out = [];
      for (const f of document.querySelectorAll("iframe")) {
        const say = text => out.push(f.name + ", " + f.clientWidth + " wide: " + text);
        try { await look(f.contentWindow, f.contentDocument, f.clientWidth, say); }
        catch (error) { say(error.stack); }
      }
      document.getElementById("found").textContent = out.join("\n") || "all well";
    };</script>]]):format(table.concat(parts), script))
  local out, err = shell.run(("timeout 120 %s --headless=new --no-sandbox --disable-gpu "
    .. "--user-data-dir=%s/profile --window-size=1400,1000 --virtual-time-budget=60000 --dump-dom "
    .. "file://%s/frames.html"):format(program, folder, folder))
  shell.remove(folder)
  return out:match '<pre id="found">(.-)</pre>' or "no page: " .. err
end

-- ---- driven -------------------------------------------------------------------------------------

---@class spec.Page
---@field errors string[]   what the page wrote to its console as errors, and did not catch
local Page = {}
Page.__index = Page

local function heed(self, message)
  local p = message.params
  if message.sessionId ~= self.session then return end
  if message.method == "Runtime.exceptionThrown" then
    local d = p.exceptionDetails
    table.insert(self.errors, d.exception and d.exception.description or d.text)
  elseif message.method == "Runtime.consoleAPICalled" and p.type == "error" then
    local parts = {}
    for i, a in ipairs(p.args) do parts[i] = tostring(a.value or a.description) end
    table.insert(self.errors, table.concat(parts, " "))
  elseif message.method == "Log.entryAdded" and p.entry.level == "error" then
    table.insert(self.errors, p.entry.text .. " " .. tostring(p.entry.url))
  end
end

-- The next message; raises when the browser has ended (its time is bounded).
local function receive(self)
  local parts = {}
  while true do
    local c = self.from:read(1)
    if not c then error("the browser ended: " .. files.read(self.folder .. "/log"):sub(-500), 0) end
    if c == "\0" then return cjson.decode(table.concat(parts)) end
    parts[#parts + 1] = c
  end
end

--- One call of the protocol; raises what the browser says against it.
---@param method string
---@param params? table
---@return table
function Page:call(method, params)
  self.calls = self.calls + 1
  self.to:write(cjson.encode { id = self.calls, method = method, sessionId = self.session,
    params = params }, "\0")
  self.to:flush()
  while true do
    local message = receive(self)
    if message.id == self.calls then
      if message.error then error(method .. ": " .. message.error.message, 0) end
      return message.result
    end
    if message.method then heed(self, message) end
  end
end

--- The value of an expression, of a promise once it has one.
---@param script string
function Page:eval(script)
  local found = self:call("Runtime.evaluate", { expression = script, awaitPromise = true,
    returnByValue = true, userGesture = true })
  if found.exceptionDetails then
    local d = found.exceptionDetails
    error((d.exception and d.exception.description or d.text) .. "\n" .. script:sub(1, 200), 0)
  end
  if found.result.value ~= cjson.null then return found.result.value end
end

--- Waits until an expression is true, and gives its value; raises with the end of what the page
--- shows where it stays false.
---@param script string
---@param limit? number   seconds (20)
function Page:wait(script, limit)
  local ok, value = pcall(self.eval, self, ([[new Promise((done, fail) => {
    const began = performance.now(), look = () => {
      let value;
      try { value = %s; } catch (error) { return fail(error); }
      if (value) return done(value);
      if (performance.now() - began > %d) return fail(new Error("in vain"));
      setTimeout(look, 20);
    };
    look();
  })]]):format(script, (limit or 20) * 1000))
  if ok then return value end
  local _, shown = pcall(self.eval, self, "document.body.innerText.slice(-600)")
  error(("%s\nwaiting for %s\nwhere the page shows %s"):format(value, script, shown), 0)
end

local codes = { Enter = 13, Tab = 9, Escape = 27, ArrowLeft = 37, ArrowUp = 38, ArrowRight = 39,
  ArrowDown = 40, Home = 36, End = 35, [" "] = 32 }
local texts = { Enter = "\r", [" "] = " " }

--- Presses and lets go of a key: "Enter", "Tab", "Escape", "ArrowDown", …
---@param key string
---@param shift? boolean
function Page:key(key, shift)
  for _, kind in ipairs { "keyDown", "keyUp" } do
    self:call("Input.dispatchKeyEvent", { type = kind, key = key, code = key == " " and "Space"
      or key, windowsVirtualKeyCode = codes[key], modifiers = shift and 8 or 0,
      text = kind == "keyDown" and texts[key] or nil })
  end
end

--- Writes into what has the focus.
---@param text string
function Page:type(text) self:call("Input.insertText", { text = text }) end

---@param width integer
---@param height? integer
function Page:size(width, height)
  self:call("Emulation.setDeviceMetricsOverride", { width = width, height = height or 900,
    deviceScaleFactor = 1, mobile = false })
end

---@param dark boolean
function Page:dark(dark)
  self:call("Emulation.setEmulatedMedia", { features = { { name = "prefers-color-scheme",
    value = dark and "dark" or "light" } } })
end

--- Goes to a page, and waits until it is there.
---@param url string
function Page:go(url)
  self:call("Page.navigate", { url = url })
  self:wait 'document.readyState === "complete" && location.href !== "about:blank"'
end

--- Loads the page again, in the process that it has: what it has just stored is there for certain,
--- where a navigation may ask another process.
function Page:reload()
  self:eval "window.before = true"
  self:call "Page.reload"
  for _ = 1, 1000 do
    local ok, there = pcall(self.eval, self, "!window.before && document.readyState === 'complete'")
    if ok and there then return end
    shell.run "sleep 0.02"
  end
  error("the page is not loaded again", 0)
end

--- Another empty page in its place, which knows nothing of what an earlier one stored.
---@param given table   as of browser.open
function Page:anew(given)
  self.session = nil
  if self.context then
    self:call("Target.disposeBrowserContext", { browserContextId = self.context })
  end
  self.errors = {}
  self.context = self:call("Target.createBrowserContext").browserContextId
  local target = self:call("Target.createTarget", { url = "about:blank",
    browserContextId = self.context }).targetId
  self.session = self:call("Target.attachToTarget", { targetId = target, flatten = true }).sessionId
  for _, domain in ipairs { "Page", "Runtime", "Log" } do self:call(domain .. ".enable") end
  self:size(given.width, given.height)
  self:dark(given.dark or false)
  if given.script then
    self:call("Page.addScriptToEvaluateOnNewDocument", { source = given.script })
  end
end

function Page:close()
  if not self.to then return end
  pcall(function()
    self.session = nil
    self:call "Browser.close"
    while self.from:read(1) do end
  end)
  self.to:close()
  self.from:close()
  self.to = nil
  shell.remove(self.folder)
end
Page.__close = Page.close

--- An empty page to be driven. `script` runs before those of each page that it goes to.
---@param program string
---@param given { width: integer, height?: integer, dark?: boolean, script?: string }
---@return spec.Page
function browser.open(program, given)
  local folder = shell.folder()
  assert(os.execute(("mkfifo %s/in %s/out"):format(folder, folder)))
  os.execute(("{ timeout 600 %s --headless=new --no-sandbox --disable-gpu --remote-debugging-pipe "
    .. "--no-first-run --hide-scrollbars --user-data-dir=%s/profile about:blank "
    .. "3<%s/in 4>%s/out >%s/log 2>&1 </dev/null; } &"):format(program, folder, folder, folder,
    folder))
  local self = setmetatable({ folder = folder, calls = 0, errors = {} }, Page)
  self.to = assert(io.open(folder .. "/in", "w"))
  self.from = assert(io.open(folder .. "/out", "r"))
  self:anew(given)
  return self
end

return browser
