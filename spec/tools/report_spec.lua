-- The report of compare and eval: one chart at a time, a legend that hides, names that are short
-- and differ, labels that do not cover each other; and all that as a browser lays it out.
local browser = require "support.browser"
local chart = require "pyramid.tools.report.chart"
local made = require "support.made_report"

local function all(text, pattern)
  local list = {}
  for found in text:gmatch(pattern) do list[#list + 1] = found end
  return list
end

describe("a column of labels", function()
  it("keeps its order and its distances, near what is wanted", function()
    for _ = 1, 200 do
      local n, pitch, low = math.random(1, 40), math.random(5, 20), math.random(0, 50)
      local high = low + n * pitch + math.random(0, 300)
      local wanted = {}
      for i = 1, n do wanted[i] = low + math.random() ^ math.random(1, 4) * (high - low) end
      table.sort(wanted)
      local at = chart.spread(wanted, pitch, low, high)
      assert.equal(n, #at)
      for i, y in ipairs(at) do
        assert.is_true(y >= low - 1e-6 and y <= high + 1e-6)
        if i > 1 then assert.is_true(y - at[i - 1] >= pitch - 1e-6) end
        local free = (i == 1 or wanted[i] - wanted[i - 1] > n * pitch)
          and (i == n or wanted[i + 1] - wanted[i] > n * pitch)
        if free then assert.near(wanted[i], y, 1e-6) end
      end
    end
    assert.same({}, chart.spread({}, 10, 0, 100))
    assert.same({ 45, 55 }, chart.spread({ 50, 50 }, 10, 0, 100))
    assert.same({ 0, 10, 20 }, chart.spread({ 1, 1, 1 }, 10, 0, 5))      -- no room: still apart
  end)
end)

describe("a report", function()
  for _, policies in ipairs { 1, 3, 25, 40 } do
    it(("of %d policies shows one of its charts, by tabs"):format(policies), function()
      local page = made.page(policies)
      local tabs = all(page, '<button[^>]-role="tab"[^>]*>')
      assert.equal(8, #tabs)               -- recall in two modes, KL and perplexity, at two lengths
      assert.equal(1, select(2, table.concat(tabs):gsub('aria%-selected="true"', "")))
      assert.equal(1, select(2, table.concat(tabs):gsub('tabindex="0"', "")))
      local ids = {}
      for id in page:gmatch ' id="([^"]*)"' do
        assert.is_nil(ids[id], id)
        ids[id] = true
      end
      for _, tab in ipairs(tabs) do
        assert.is_true(ids[tab:match 'aria%-controls="([^"]*)"'])
        assert.is_true(ids[tab:match ' id="([^"]*)"'])
      end
      assert.equal(8, #all(page, '<svg[^>]-class="chart wide'))
      assert.equal(8, #all(page, '<svg[^>]-class="chart narrow'))
    end)

    it(("of %d policies has a button for each, and names that are short and differ"):format(
      policies), function()
      local page, names = made.page(policies), {}
      local legend = page:match '<ul[^>]-class="legend".-</ul>'
      for attributes, name in legend:gmatch "<button([^>]*)><svg.-</svg>([^<]*)</button>" do
        assert.matches('aria%-pressed="true"', attributes)
        assert.is_true(utf8.len(name) <= 22, name)
        assert.is_nil(names[name], name)
        names[name], names[#names + 1] = true, name
        local full = attributes:match 'title="([^"]*)"'
        if full ~= name then
          assert.is_truthy(page:find(("<b>%s</b>: %s<"):format(name, full), 1, true), full)
        end
      end
      assert.equal(policies, #names)
      for svg in page:gmatch '<svg[^>]-class="chart.-</svg>\n?' do
        local height, last = tonumber(svg:match 'viewBox="0 0 %d+ (%d+)"'), {}
        for y, label in svg:gmatch '<text class="label" x="[^"]*" y="([^"]*)">([^<]*)<' do
          y = tonumber(y)
          assert.is_true(y > 0 and y < height)
          assert.is_truthy(names[label] or label:find "^full cache", label)
          for _, other in ipairs(last) do assert.is_true(math.abs(y - other) > 13.9) end
          last[#last + 1] = y
        end
        assert.is_true(#last >= policies)
        assert.equal(1, #all(svg, 'class="mark"[^>]*tabindex="0"'))
      end
    end)
  end

  it("of one chart has no tabs to press", function()
    local page = made.page(2, { eval = true, lengths = { 300 }, modes = { "agnostic" } })
    assert.matches('<div[^>]-hidden role="tablist">', page)
    assert.equal(1, #all(page, 'role="tabpanel"'))
  end)

  local look = [[
    const all = (s, r) => [...(r || document).querySelectorAll(s)];
    const seen = e => e.getClientRects().length > 0, wait = () => new Promise(r => setTimeout(r, 300));
    const name = e => e.tagName + " “" + e.textContent.trim().slice(0, 30) + "”";
    const covered = (list, what) => {
      const boxes = list.filter(seen).map(e => [e, e.getBoundingClientRect()]);
      boxes.forEach(([e, a], i) => boxes.slice(0, i).forEach(([o, b]) => {
        const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (w > 1 && h > 2) say(what + ": " + name(e) + " covers " + name(o));
      }));
      return boxes.length;
    };
    const inside = what => {
      if (document.documentElement.scrollWidth > width) say(what + ": the page scrolls sideways");
      all("body *").filter(e => seen(e) && !e.closest(".scroll, script, title")).forEach(e => {
        const r = e.getBoundingClientRect();
        if (r.right > width + 1 || r.left < -1) say(what + ": out of the page: " + name(e));
      });
    };
    await wait();
    for (const tab of all("[role=tab]")) {
      tab.click();
      const shown = all(".chart").filter(seen);
      if (shown.length !== 1) { say("charts: " + shown.length); continue; }
      const texts = all("text", shown[0]), r = shown[0].getBoundingClientRect();
      if (covered(texts, tab.textContent) < 6) say("hardly a label");
      texts.map(t => [t, t.getBoundingClientRect()]).forEach(([t, b]) => {
        if (b.left < r.left - 1 || b.right > r.right + 1 || b.bottom > r.bottom + 1)
          say(tab.textContent + ": out of the chart: " + name(t));
        if (b.height < 9) say("too small: " + name(t));
      });
      inside(tab.textContent);
    }
    covered(all("button, select"), "buttons");
    // The legend: what is pressed goes, what has the focus dims the others.
    const key = all(".legend button")[1], other = all(".legend button")[0];
    const curve = () => all(".series[data-s='2']").filter(seen).length;
    key.click();
    if (curve() || key.getAttribute("aria-pressed") !== "false") say("hides nothing");
    key.click();
    if (!curve() || key.getAttribute("aria-pressed") !== "true") say("does not come back");
    other.focus();
    other.dispatchEvent(new window.FocusEvent("focusin", { bubbles: true }));
    const chart = all(".chart").filter(seen)[0];
    if (!chart.matches(".dim") || all(".lit", chart).length !== 1) say("dims nothing");
    all("[data-all=false]")[0].click();
    if (all(".series[data-s]").some(seen)) say("all: hides not all");
    all("[data-all=true]")[0].click();
    // Keys: tabs and points.
    const press = (e, key) => e.dispatchEvent(new window.KeyboardEvent("keydown",
      { key, bubbles: true, cancelable: true }));
    const tabs = all("[role=tab]");
    tabs[0].click(); press(tabs[0], "ArrowRight");
    if (tabs[1].getAttribute("aria-selected") !== "true") say("a tab does not heed its arrows");
    const mark = all(".chart").filter(seen)[0].querySelector(".mark[tabindex='0']");
    mark.focus(); press(mark, "ArrowRight");
    if (mark.getAttribute("tabindex") !== "-1") say("a point does not heed its arrows");
    // Tables: more at an edge is seen, and the names stay.
    await wait();
    for (const s of all(".scroll")) {
      const edge = s.parentNode.classList, more = s.scrollWidth > s.clientWidth + 1;
      if (edge.contains("right") !== more) say("the right edge lies");
      if (!more) continue;
      s.scrollLeft = s.scrollWidth; s.scrollTop = 60;
      s.dispatchEvent(new window.Event("scroll"));
      if (edge.contains("right") || !edge.contains("left")) say("the edges do not follow");
      const cell = s.querySelector("tbody tr:nth-child(4) td").getBoundingClientRect();
      if (Math.abs(cell.left - s.getBoundingClientRect().left) > 1) say("names scroll away");
      if (cell.width > width / 2) say("names take more than half");
    }]]

  it("is laid out by a browser with nothing over another and nothing too wide", function()
    local program, why = browser.find()
    if not program then return pending(why) end
    local frames = {}
    for _, policies in ipairs { 3, 25 } do
      for _, width in ipairs { 1280, 420 } do
        frames[#frames + 1] = { width = width, name = ("%d policies"):format(policies),
          page = made.page(policies, { lengths = { 1024 } }) }
      end
    end
    assert.equal("all well", (browser.look(program, frames, look)))
  end)

  it("shows tasks as a browser shows them", function()
    local program, why = browser.find()
    if not program then return pending(why) end
    assert.equal("all well", (browser.look(program, {
      { width = 420, name = "tasks", page = made.page(25, { eval = true }) },
      { width = 900, name = "tasks", page = made.page(4, { eval = true }) } }, look)))
  end)
end)
