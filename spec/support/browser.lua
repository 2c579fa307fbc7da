-- A browser without a window: a page is laid out at several widths, and a script says what is wrong
-- with it. Pages lie in frames, which may be narrower than a window can be.
local files = require "helper"
local html = require "pyramid.tools.report.html"
local shell = require "support.shell"

local browser = {}

--- The browser's program, or nil and why there is none.
function browser.find()
  for _, name in ipairs { "chromium", "chromium-browser", "google-chrome" } do
    if shell.run("command -v " .. name) ~= "" then return name end
  end
  return nil, "needs Chromium"
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

return browser
