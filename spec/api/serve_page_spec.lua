-- The page of `pyramid serve`, driven in a browser as someone at a keyboard drives it. The server's
-- routes are answered in the page itself by a stand-in (support/page_server.js), so that answers
-- come at a pace, and with the failures, that a spec asks for; at the end by the server.
local browser = require "spec.support.browser"
local core = require "pyramid.core"
local helper = require "spec.helper"
local json = require "pyramid.json"
local policy = require "pyramid.policy"
local served = require "spec.support.served"
local shell = require "spec.support.shell"

local TEXT = require "pyramid.serve.page"

-- What the page is told of the policies: as the server tells it.
local function policies()
  local list = {}
  for _, name in ipairs { "pyramidinfer", "streaming", "snapkv", "full" } do
    local d = assert(policy.load(name)).definition
    list[#list + 1] = { name = name, doc = d.doc, defaults = d.defaults, limits = d.limits,
      presets = d.presets, fit = d.fit }
  end
  return json.encode(list)
end

-- What stands wrong on the page as it is laid out now: a list of texts.
local LAYOUT = [[(() => {
  const wrong = [], wide = innerWidth, seen = e => e.checkVisibility()
    && e.getClientRects().length > 0 && !e.closest(".unseen, .skip");
  const name = e => e.tagName + (e.id ? "#" + e.id : "") + " “" + e.textContent.trim().slice(0, 24)
    + "”";
  const all = [...document.querySelectorAll("body *")].filter(e => seen(e)
    && !e.closest("script, svg, option, pre *"));
  if (document.documentElement.scrollWidth > wide) wrong.push("scrolls sideways");
  if (document.documentElement.scrollHeight > innerHeight) wrong.push("the page itself scrolls");
  for (const e of all) {
    const r = e.getBoundingClientRect();
    if (r.right > wide + 1 || r.left < -1) wrong.push("out of the page: " + name(e));
    if (e.matches("button, select, input") && r.height < 16) wrong.push("flat: " + name(e));
  }
  // Texts in scrolled boxes lie outside of them: what is cut is no overlap.
  const clip = e => {
    let { left, right, top, bottom } = e.getBoundingClientRect();
    for (let p = e.parentElement; p; p = p.parentElement) {
      if (getComputedStyle(p).overflow === "visible") continue;
      const r = p.getBoundingClientRect();
      left = Math.max(left, r.left); right = Math.min(right, r.right);
      top = Math.max(top, r.top); bottom = Math.min(bottom, r.bottom);
    }
    return { left, right, top, bottom };
  };
  const solid = all.filter(e => e.matches("button, select, input, textarea, summary, figcaption, "
    + "label, dt, dd, h1, h2, .note, .words, canvas, .facts, .text, #status, #scale, #model-one"));
  const boxes = solid.map(e => [e, clip(e)]).filter(([, r]) => r.right > r.left && r.bottom > r.top);
  boxes.forEach(([e, a], i) => boxes.slice(0, i).forEach(([o, b]) => {
    if (e.contains(o) || o.contains(e)) return;
    const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (w > 1 && h > 1) wrong.push(name(e) + " covers " + name(o));
  }));
  // Labels within the pictures.
  const labels = [...document.querySelectorAll("#bytes text")].filter(seen)
    .map(e => [e, e.getBoundingClientRect()]);
  labels.forEach(([e, a], i) => labels.slice(0, i).forEach(([o, b]) => {
    if (Math.min(a.right, b.right) > Math.max(a.left, b.left) + 1
      && Math.min(a.bottom, b.bottom) > Math.max(a.top, b.top) + 1) {
      wrong.push("label " + e.textContent + " covers " + o.textContent);
    }
  }));
  return wrong.join("\n");
})()]]

-- Text on what is behind it: contrasts below 4.5.
local CONTRAST = [[(() => {
  const wrong = new Set(), canvas = document.createElement("canvas").getContext("2d",
    { willReadFrequently: true });
  const rgba = css => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (a, b) => a.slice(0, 3).map((v, i) => v * a[3] / 255 + b[i] * (1 - a[3] / 255));
  const behind = e => {
    const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(rgba(getComputedStyle(p).backgroundColor));
    return layers.reduceRight((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const light = rgb => rgb.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.closest("script, :disabled, svg, option")) continue;
    const under = behind(e), a = light(over(rgba(getComputedStyle(e).color), under));
    const b = light(under), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) wrong.add(e.tagName + "." + e.className + " " + e.textContent.slice(0, 20)
      + " " + ratio.toFixed(2));
  }
  return [...wrong].join("\n");
})()]]

describe("the page", function()
  local program, why = browser.find()
  local folder, page

  local function open(given)
    given = given or {}
    local how = { width = given.width or 1280, height = given.height or 800,
      script = helper.read "spec/support/page_server.js" .. "\nfake.policies = " .. policies()
        .. ";\n" .. (given.setup or "") }
    if page then page:anew(how) else page = browser.open(program, how) end
    page:go("file://" .. folder .. "/page.html")
    if not given.silent then page:wait "document.querySelectorAll('#policy option').length > 1" end
    return page
  end

  -- A spec that needs the browser.
  local function shows(name, f)
    it(name, function()
      if not program then return pending(why) end
      f()
      assert.same({}, page.errors)
    end)
  end

  local function text(selector)
    return page:eval(("(document.querySelector(%s) || {}).textContent"):format(
      json.quote(selector)))
  end
  local function asked(at)
    return page:eval(("fake.requests.at(%d)"):format(at or -1))
  end
  local function done()
    page:wait "document.getElementById('stop').hidden && !!fake.requests.length"
  end
  local function say(words)
    page:eval "document.getElementById('message').focus(), 1"
    page:type(words)
    page:wait "document.getElementById('message').value"
    page:key "Enter"
    page:wait "!document.getElementById('message').value"
  end
  local function choose(id, value)
    page:eval(("{ const e = document.getElementById(%s); e.value = %s; "
      .. "e.dispatchEvent(new Event('input', { bubbles: true })); "
      .. "e.dispatchEvent(new Event('change', { bubbles: true })); }"):format(json.quote(id),
        json.quote(value)))
  end
  -- The memory of the whole answer has been drawn: what is asked for next is no longer overtaken.
  local function drawn()
    done()
    page:wait "!document.getElementById('seen').hidden"
    page:wait [[Number(document.getElementById('tile-tokens').textContent.replace(/\D/g, ""))
      === fake.texts['chatcmpl-' + fake.requests.length].tokens.length]]
    page:wait "document.querySelectorAll('#tokens span').length"
  end

  setup(function()
    folder = shell.folder()
    helper.write(folder .. "/page.html", TEXT)
  end)
  teardown(function()
    if page then page:close() end
    shell.remove(folder)
  end)

  it("is one text that loads nothing", function()
    assert.is_nil(TEXT:find "@%u+@")
    assert.is_nil(TEXT:find "<link[^>]+href=\"[^d]")
    assert.is_nil(TEXT:find "<script[^>]+src")
    assert.is_nil(TEXT:find "https?://%w" and TEXT:gsub("http://www.w3.org/2000/svg", "")
      :gsub("http://fake", ""):find "https?://%w" or nil)
    assert.is_nil(TEXT:find "innerHTML")
    assert.is_nil(TEXT:find "insertAdjacentHTML")
    assert.is_nil(TEXT:find "document%.write")
    assert.is_truthy(TEXT:find("require-trusted-types-for 'script'", 1, true))
    assert.is_truthy(TEXT:find("connect-src 'self'", 1, true))
    local ids = {}
    for id in TEXT:match "<body>(.-)<script>":gmatch ' id="([^"]*)"' do
      assert.is_nil(ids[id], id)
      ids[id] = true
    end
    for id in TEXT:gmatch ' for="([^"]*)"' do assert.is_true(ids[id], id) end
    for id in TEXT:match "<body>(.-)<script>":gmatch 'aria%-[%w]+by="([^"]*)"' do
      assert.is_true(ids[id], id)
    end
    for id in TEXT:gmatch '%$%("([%w_-]+)"%)' do
      assert.is_true(ids[id] or id:find "^option%-" ~= nil, id)
    end
  end)

  shows("streams an answer, and draws what is kept of it", function()
    open { setup = "fake.pause = 160; fake.answers = ['One two three four five six seven eight nine "
      .. "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen.'];" }
    assert.equal("tiny", text "#model-one")
    choose("policy", "pyramidinfer")
    assert.equal("each layer hands its pivotal context to the next", text "#policy-doc")
    say "Tell me about the cities of the plain, and about all the rivers in between."
    page:wait "document.querySelector('.assistant .words').textContent.split(' ').length >= 5"
    local part = text ".assistant .words"                    -- in the middle of it
    assert.is_true(#part < 90, part)
    assert.is_true(page:eval "!document.getElementById('stop').hidden")
    page:wait "document.querySelectorAll('#tokens span').length > 5"
    assert.is_true(page:eval "!document.getElementById('stop').hidden")   -- while it is written
    local early = page:eval "document.querySelectorAll('#tokens span').length"
    drawn()
    page:wait(("document.querySelectorAll('#tokens span').length > %d"):format(early))
    assert.equal("One two three four five six seven eight nine ten eleven twelve thirteen fourteen "
      .. "fifteen sixteen seventeen eighteen.", text ".assistant .words")
    local request = asked()
    assert.same({ { role = "user", content = "Tell me about the cities of the plain, and about all "
      .. "the rivers in between." } }, request.messages)
    assert.equal("tiny", request.model)
    assert.is_true(request.stream)
    assert.same({ include_usage = true }, request.stream_options)
    assert.same({ policy = "pyramidinfer" }, request.pyramid)
    -- numbers
    assert.matches("^pyramidinfer · 18 tokens", text ".assistant .facts")
    assert.matches("%d+ %%", text "#tile-share")
    assert.equal("pyramidinfer", text "#tile-policy")
    assert.matches("asked, 18 answered", text "#tile-parts")
    -- the picture: blue where rows are held, the page's colour where none is
    local cells = page:eval [[(() => {
      const c = document.getElementById("map"), g = c.getContext("2d");
      const at = (x, y) => [...g.getImageData(Math.round(x * c.width), Math.round(y * c.height), 1,
        1).data].slice(0, 3).join();
      let first = 0, last = 0, marked = 0;
      for (let x = 0.08; x < 0.8; x += 0.002) {
        first += at(x, 0.03) === "0,104,168";
        last += at(x, 0.87) === "0,104,168";
        marked += at(x, 0.87) === "192,74,0";
      }
      return { first, last, marked };
    })()]]
    assert.is_true(cells.first > 340, "layer 1 has all: " .. cells.first)
    assert.is_true(cells.last > 20 and cells.last < 300, "the last has some: " .. cells.last)
    assert.is_true(cells.marked > 0)                         -- where the answer begins
    -- bytes
    assert.is_true(page:eval "document.querySelectorAll('#bytes .held').length === 1")
    assert.matches("Bytes over time: ", page:eval "document.getElementById('bytes').ariaLabel")
    -- tokens, by what holds them
    local shades = page:eval [[(() => {
      const v = [...document.querySelectorAll("#tokens span")].map(s =>
        Number(s.style.getPropertyValue("--v")));
      return { kinds: new Set(v).size, first: v[0], least: Math.min(...v), n: v.length };
    })()]]
    assert.is_true(shades.kinds > 4)
    assert.equal(100, shades.first)
    assert.is_true(shades.least < 50)
    assert.equal(page:eval "Object.values(fake.texts)[0].tokens.length", shades.n)
    assert.equal(18, page:eval "document.querySelectorAll('#tokens .answer').length")
  end)

  shows("shows what comes from the model as text", function()
    local evil = "<img src=x onerror=\"document.title='taken'\"> <script>document.title='taken'"
      .. "</script> **<b>bold</b>** `<i>code</i>`\n\n# <u>head</u>\n\n- <s>item</s>\n\n```\n"
      .. "<svg onload=alert(1)>\n```\n&amp; <a href='javascript:alert(1)'>link</a>"
    open { setup = "fake.answers = [" .. json.quote(evil):gsub("</", "<\\/") .. "]; "
      .. "fake.policies[0].doc = '<b>doc</b>'; fake.models = ['<i>model</i>'];" }
    say "<b>mine</b> <script>document.title = 'taken'</script>"
    drawn()
    assert.equal("Pyramid", page:eval "document.title")
    assert.equal(0, page:eval("document.querySelectorAll('#log img, #log script, #log i, #log u, "
      .. "#log s, #log a, #log svg, #tokens script, #tokens img, #tokens b').length"))
    assert.equal("<i>model</i>", text "#model-one")
    assert.equal("<b>mine</b> <script>document.title = 'taken'</script>", text ".user .words")
    local shown = text ".assistant .words"
    for _, part in ipairs { "<img src=x onerror=", "<script>", "<b>bold</b>", "<i>code</i>",
      "<u>head</u>", "<s>item</s>", "<svg onload=alert(1)>", "&amp;", "javascript:alert(1)" } do
      assert.is_truthy(shown:find(part, 1, true), part)
    end
    assert.equal("<b>bold</b>", text ".assistant .words b")
    assert.equal("<i>code</i>", text ".assistant .words p code")
    assert.equal("<svg onload=alert(1)>", text ".assistant .words pre code")
    assert.is_truthy(text "#tokens":find("<script>document.title='taken'", 1, true))
    page:eval "document.getElementById('forgot').click(), 1"
    assert.equal("Pyramid", page:eval "document.title")
    -- and the browser itself refuses to make elements of text
    assert.has_error(function() page:eval "document.body.innerHTML = '<p>x</p>'" end)
    page:eval "1"
    page.errors = {}
  end)

  shows("loses no letter of a text, makes only elements it knows, and is quick about it", function()
    open()
    local found = page:eval("(() => { " .. core.bundled("text", "serve/page/base.js")
      .. core.bundled("text", "serve/page/words.js") .. [[ return (() => {
      const known = new Set(["P", "B", "CODE", "PRE", "UL", "OL", "LI"]), wrong = [];
      const signs = ["*", "**", "`", "``", "```", "#", "- ", "1. ", "\n", "\n\n", " ", "<b>", "&lt;",
        "a", "bc", "Ω", "7", "~~~", "</p>", "\t", "<script>", "*a*"];
      let state = 7;
      const draw = n => (state = (state * 48271) % 2147483647) % n;
      const letters = text => text.replace(/[^a-zA-ZΩ<>&;\/]/g, "");
      for (let round = 0; round < 3000; round++) {
        let text = "";
        for (let i = draw(40); i >= 0; i--) text += signs[draw(signs.length)];
        const box = words(text, document.createElement("div"));
        for (const e of box.querySelectorAll("*")) if (!known.has(e.tagName)) wrong.push(e.tagName);
        // the rest of a fence's line names its language, and is not shown
        const plain = text.replace(/(^|\n)(\s*(?:```+|~~~+))[^\n]*/g, "$1$2");
        if (letters(box.textContent) !== letters(plain) && letters(box.textContent) !== letters(text)
          && !text.match(/```|~~~/)) wrong.push(text);
      }
      const began = performance.now();
      for (const text of ["`".repeat(20000), "**a ".repeat(8000), "`a".repeat(9000), "# ".repeat(9000),
        "- ".repeat(9000), "1. a\n".repeat(3000), "*".repeat(20000), "**a**".repeat(4000)]) {
        words(text, document.createElement("div"));
      }
      return { wrong: wrong.slice(0, 3), took: performance.now() - began };
    })(); })()]])
    assert.same({}, found.wrong)
    assert.is_true(found.took < 4000, found.took)
  end)

  shows("takes policy, options, dtype, budget and sampling from its controls", function()
    open()
    say "One."
    drawn()
    assert.is_nil(asked().pyramid)                           -- the server's own
    choose("policy", "snapkv")
    assert.matches("next answer", text "#settings-said")
    choose("target", "40")
    choose("option-window", "16")
    choose("option-pool", "avg")
    choose("dtype", "q8_0")
    choose("budget", "64 MiB")
    choose("temperature", "0.7")
    choose("max_tokens", "33")
    assert.matches("pool avg, window 16", text "#options-short")
    assert.matches("temperature 0.7, 33 tokens at most", text "#sampling-short")
    page:eval "document.querySelector('[aria-label=\"Answer again\"]').click(), 1"
    page:wait "fake.requests.length === 2"
    drawn()
    local request = asked()
    assert.same({ policy = "snapkv", options = { target = 0.4, window = 16, pool = "avg" },
      cache_dtype = "q8_0", budget = "64 MiB" }, request.pyramid)
    assert.equal(0.7, request.temperature)
    assert.equal(33, request.max_tokens)
    assert.equal(1, #request.messages)                       -- the answer before is asked anew
    assert.equal(2, page:eval "document.querySelectorAll('.said').length")
    page:wait "document.getElementById('tile-policy').textContent === 'snapkv'"
    -- a value that is the policy's own is not said; a preset is its options
    choose("option-window", "32")
    page:eval "document.getElementById('options-reset').click(), 1"
    assert.equal("", text "#options-short")
    choose("policy", "pyramidinfer")
    choose("option-preset", "13b")
    say "Two."
    page:wait "fake.requests.length === 3"
    done()
    assert.same({ policy = "pyramidinfer", options = { interval = 2, ratio = 0.8 },
      cache_dtype = "q8_0", budget = "64 MiB" }, asked().pyramid)
    assert.equal(3, #asked().messages)
    -- they outlive a reload, and so does what was said
    page:reload()
    page:wait "document.getElementById('policy').value === 'pyramidinfer'"
    assert.equal("64 MiB", page:eval "document.getElementById('budget').value")
    assert.matches("interval 2", text "#options-short")
    assert.equal(4, page:eval "document.querySelectorAll('.said').length")
  end)

  shows("lists what was forgotten", function()
    open { setup = "fake.layers = 6;" }
    choose("policy", "streaming")
    say "Aldermoor has a market on Monday, and the ferryman keeps a key under a blue boat by the sea."
    drawn()
    page:eval "document.getElementById('forgot').click(), 1"
    assert.equal("true", page:eval "document.getElementById('forgot').getAttribute('aria-pressed')")
    page:wait [[document.querySelectorAll('#tokens .gone').length > 8
      && document.querySelectorAll('#tokens .gone').length
        === [...document.querySelectorAll("#gone b")].reduce((n, b) => {
          const [from, to] = b.textContent.match(/\d+/g).map(Number);
          return n + (to ?? from) - from + 1;
        }, 0)]]
    local gone = page:eval "document.querySelectorAll('#tokens .gone').length"
    assert.matches(("^%d of %%d+ tokens are held by no layer, in 1 place"):format(gone),
      text "#token-said")
    assert.matches("ferryman keeps a key", text "#gone mark")
    assert.matches("^tokens %d+ to %d+", text "#gone b")
    -- what surrounds it is there, too
    assert.is_true(#text "#gone q" > #text "#gone mark")
    page:eval "document.getElementById('forgot').click(), 1"
    assert.is_true(page:eval("document.getElementById('gone').hidden && "
      .. "!document.getElementById('tokens').hidden"))
    -- a policy that keeps all
    choose("policy", "full")
    page:eval "document.querySelector('[aria-label=\"Answer again\"]').click(), 1"
    page:wait "fake.requests.length === 2"
    drawn()
    page:wait "document.getElementById('tile-share').textContent === '100 %'"
    page:eval "document.getElementById('forgot').click(), 1"
    assert.equal("Nothing: every token is still held by at least one layer.", text "#token-said")
    choose("forgot-limit", "0.5")
    assert.equal("Nothing: every token is held by more than half of the layers.",
      text "#token-said")
  end)

  shows("counts no layer as forgetful that looks back only so far", function()
    open { setup = "fake.layers = 4; fake.window = [8, 8, 8, 0];" }
    choose("policy", "pyramidinfer")
    page:eval "fake.policies; 1"
    say(("word "):rep(40))
    drawn()
    -- token 20 can be held by layer 4 alone
    local said = page:eval [[(() => { const s = document.getElementById("token-20");
      s.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      return document.getElementById("token-said").textContent; })()]]
    assert.matches("3 look back less far", said)
  end)

  shows("stops by Esc and by its button, and keeps what was written", function()
    open { setup = "fake.pause = 60;" }
    say "Count."
    page:wait "document.querySelector('.assistant .words').textContent.length > 12"
    page:key "Escape"
    done()
    assert.equal(1, page:eval "fake.aborted")
    assert.equal("Stopped.", text "#status")
    assert.is_true(#text ".assistant .words" > 12)
    assert.is_true(#text ".assistant .words" < 60)
    assert.matches("stopped$", text ".assistant .facts")
    assert.equal("message", page:eval "document.activeElement.id")
    say "And again."
    page:wait "document.querySelectorAll('.assistant .words')[1]?.textContent.length > 5"
    page:eval "document.getElementById('stop').click(), 1"
    done()
    assert.equal(2, page:eval "fake.aborted")
    -- what was cut is part of what is asked next
    assert.equal(3, #asked().messages)
    -- Esc where nothing runs does nothing
    page:key "Escape"
    assert.equal(2, page:eval "fake.aborted")
  end)

  shows("edits, answers anew, begins anew, and has a system prompt", function()
    open { setup = "fake.answers = ['First.', 'Second.', 'Third.', 'Fourth.'];" }
    page:eval "document.getElementById('system-box').open = true, 1"
    choose("system", "You are terse.")
    assert.matches("You are terse", text "#system-short")
    say "Hello"
    drawn()
    assert.same({ role = "system", content = "You are terse." }, asked().messages[1])
    page:eval "document.querySelector('[aria-label=\"Answer again\"]').click(), 1"
    page:wait "fake.requests.length === 2"
    done()
    assert.equal("Second.", text ".assistant .words")
    page:eval "document.querySelector('[aria-label=\"Edit message 1\"]').click(), 1"
    assert.equal("Hello", page:eval "document.getElementById('message').value")
    assert.equal(0, page:eval "document.querySelectorAll('.said').length")
    page:type " there"
    page:key("Enter", true)                                  -- a line, not an end
    page:type "you"
    page:key "Enter"
    page:wait "fake.requests.length === 3"
    drawn()
    assert.equal("Hello there\nyou", asked().messages[2].content)
    page:eval "document.getElementById('new').click(), 1"
    assert.equal(0, page:eval "document.querySelectorAll('.said').length")
    assert.is_true(page:eval "document.getElementById('seen').hidden")
    assert.is_true(page:eval "!!document.querySelector('.start')")
    say "Afresh"
    page:wait "fake.requests.length === 4"
    done()
    assert.equal(2, #asked().messages)
    -- an empty message is none
    page:eval "document.getElementById('message').focus(), 1"
    page:type "   "
    page:key "Enter"
    assert.equal(4, page:eval "fake.requests.length")
  end)

  shows("a new chat while an answer is written leaves nothing of it", function()
    open { setup = "fake.pause = 40;" }
    say "Count."
    page:wait "document.querySelector('.assistant .words').textContent.length > 5"
    page:eval "document.getElementById('new').click(), 1"
    page:wait "fake.aborted === 1"
    page:eval "new Promise(r => setTimeout(r, 500))"
    assert.equal(0, page:eval "document.querySelectorAll('.said').length")
    assert.is_true(page:eval "document.getElementById('seen').hidden")
    assert.is_true(page:eval "!document.getElementById('send').hidden")
  end)

  shows("says in words what went wrong, and goes on", function()
    open()
    local function trouble(setup, what, help)
      page:eval(setup .. "; 1")
      local before = page:eval "fake.calls.filter(c => c.includes('chat/comp')).length"
      say "Hello"
      page:wait(("fake.calls.filter(c => c.includes('chat/comp')).length > %d"):format(before))
      page:wait "document.getElementById('stop').hidden"
      assert.matches(what, text ".said:last-child .trouble")
      if help then assert.matches(help, text ".said:last-child .trouble") end
      assert.matches(what, text "#status")
      page.errors = {}
      page:eval "document.getElementById('new').click(), 1"
    end
    trouble("fake.fail['v1/chat/completions'] = { status: 429, message: 'queue', headers: "
      .. "{ 'Retry-After': '7' } }", "as much to do as it takes", "Try again in 7 s")
    trouble("fake.fail['v1/chat/completions'] = { status: 400, message: \"'pyramid.budget': no "
      .. "size\" }", "'pyramid.budget': no size")
    trouble("fake.fail['v1/chat/completions'] = { status: 413, message: 'at most 4 bytes' }",
      "larger than the server takes", "4 bytes")
    trouble("fake.fail['v1/chat/completions'] = { status: 500, message: 'oh' }",
      "went wrong in the server", "oh")
    trouble("fake.cut = 3", "broke off", "ended it early")
    trouble("fake.cut = 3; fake.broken = true", "broke off", "connection")
    trouble("fake.answers = ['']", "answered nothing")
    page:eval "fake.answers = ['Fine.']; fake.down = true; 1"
    say "Hello"
    page:wait "document.querySelector('.trouble')"
    assert.matches("does not answer", text ".trouble")
    page:eval "fake.down = false; document.querySelector('.trouble button').click(); 1"
    page:wait "document.querySelector('.assistant .words')?.textContent === 'Fine.'"
    assert.equal(0, page:eval "document.querySelectorAll('.trouble').length")
    assert.equal(1, #asked().messages)
    -- what was never answered is asked with what came after it
    page:eval "fake.fail['v1/chat/completions'] = { status: 500, message: 'oh' }; 1"
    say "Why?"
    page:wait "document.querySelector('.trouble')"
    assert.equal(0, page:eval "document.querySelectorAll('[aria-label=\"Answer again\"]').length")
    say "How?"
    page:wait "fake.requests.length && document.querySelectorAll('.assistant .words').length === 2"
    done()
    assert.same({ "Hello", "Fine.", "Why?\n\nHow?" }, page:eval
      "fake.requests.at(-1).messages.map(m => m.content)")
    page:eval "document.getElementById('new').click(), 1"
    say "Hello"
    -- a memory that is no longer kept
    drawn()
    page:eval "fake.gone = new Set(Object.keys(fake.texts)); 1"
    say "More"
    done()
    page:eval "fake.gone = new Set(Object.keys(fake.texts)); 1"
    page:reload()
    page:wait "document.querySelectorAll('.said').length === 4"
    page:eval "document.querySelector('[aria-label=\"Memory of answer 2\"]').click(), 1"
    page:wait "!document.getElementById('lens-said').hidden"
    assert.matches("no longer keeps", text "#lens-said")
    assert.equal("", page:eval(LAYOUT))
  end)

  shows("asks for the API key where the server wants one", function()
    open { setup = "fake.key = 'open sesame';", silent = true }
    page:wait "!document.getElementById('key-box').hidden"
    page:wait "document.activeElement.id === 'key'"
    page:type "wrong"
    page:key "Enter"
    page:wait "/not take this API key/.test(document.getElementById('status').textContent)"
    assert.is_true(page:eval "!document.getElementById('key-box').hidden")
    page:eval "document.getElementById('key').value = ''; document.getElementById('key').focus(); 1"
    page:type "open sesame"
    page:key "Enter"
    page:wait "document.querySelectorAll('#policy option').length > 1"
    assert.is_true(page:eval "document.getElementById('key-box').hidden")
    say "Hello"
    drawn()
    assert.equal("password", page:eval "document.getElementById('key').type")
    assert.is_nil(page:eval "localStorage.getItem('pyramid.key')")
    page.errors = {}
  end)

  shows("pages through contexts that are longer than its window", function()
    open { setup = "fake.most = 50;" }
    say(("some words to fill it "):rep(30))
    drawn()
    page:wait "!document.getElementById('pager').hidden"
    local total = page:eval "Object.values(fake.texts)[0].tokens.length"
    assert.is_true(total > 150)
    page:wait(("document.getElementById('pager-said').textContent === '%d–%d of %d'"):format(
      total - 50, total - 1, total))
    assert.is_true(page:eval "document.getElementById('later').disabled")
    page:eval "document.getElementById('earlier').click(), 1"
    page:wait(("document.getElementById('pager-said').textContent === '%d–%d of %d'"):format(
      total - 100, total - 51, total))
    local first = "document.querySelector('#tokens span').id"
    assert.equal(("token-%d"):format(total - 100), page:eval(first))
    -- a click while a page is on its way asks for the same page again
    page:wait "(b => (b.click(), b.disabled))(document.getElementById('earlier'))"
    page:wait "(document.querySelector('#tokens span') || {}).id === 'token-0'"
    assert.equal("", page:eval(LAYOUT))
  end)

  shows("is worked by the keyboard alone", function()
    open { setup = "fake.layers = 6;" }
    assert.equal("message", page:eval "document.activeElement.id")
    page:type "A message from the keyboard, long enough to be cut somewhere in the middle of it."
    page:key "Enter"
    drawn()
    -- Tab comes by everything that can be worked, in the order of the page, and sees where it is.
    page:eval "document.getElementById('options-box').open = true; document.activeElement.blur(); 1"
    page:eval "document.querySelector('.skip').focus(); 1"
    local came, order, want = {}, {}, page:eval [[(() => {
      const can = [...document.querySelectorAll("a, button, select, input, textarea, summary, "
        + "[tabindex='0']")].filter(e => e.checkVisibility() && e.getClientRects().length && !e.disabled);
      can.forEach((e, i) => e.dataset.order = i);
      return can.length;
    })()]]
    for _ = 1, want + 3 do
      local now = page:eval [[(() => {
        const e = document.activeElement, s = getComputedStyle(e);
        const named = (e.labels && e.labels.length) || e.getAttribute("aria-label")
          || e.textContent.trim();
        return { order: Number(e.dataset.order ?? -1), what: e.tagName + "#" + e.id,
          ring: s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1, named: !!named };
      })()]]
      if now.order >= 0 and not came[now.order] then
        came[now.order], order[#order + 1] = true, now.order
        assert.is_true(now.ring or now.order == 0, now.what .. " shows no focus")
        assert.is_true(now.named, now.what .. " has no name")
      end
      page:key "Tab"
    end
    for i = 0, want - 1 do
      assert.is_true(came[i], page:eval(("document.querySelector('[data-order=\"%d\"]').outerHTML")
        :format(i)))
    end
    for i = 2, #order do assert.is_true(order[i] > order[i - 1]) end
    -- the picture and the tokens by arrows
    page:eval "document.getElementById('map').focus(), 1"
    page:key "ArrowRight"
    assert.matches("^Layer 1, token 0: 100 %%", text "#map-said")
    for _ = 1, 3 do page:key "ArrowDown" end
    for _ = 1, 9 do page:key "ArrowRight" end
    assert.matches("^Layer 4, token 9: ", text "#map-said")
    page:key "Enter"
    assert.equal("tokens", page:eval "document.activeElement.id")
    assert.matches("^Token 9 ", text "#token-said")
    page:key "ArrowRight"
    assert.matches("^Token 10 ", text "#token-said")
    page:key "End"
    assert.is_true(page:eval("document.getElementById('tokens').getAttribute("
      .. "'aria-activedescendant') === document.querySelector('#tokens span:last-child').id"))
    page:key "Home"
    page:key "ArrowDown"
    assert.is_true(tonumber(text "#token-said":match "^Token (%d+)") > 0)
    page:key "ArrowUp"
    assert.matches("^Token %d ", text "#token-said")
  end)

  for _, width in ipairs { 390, 880, 1280, 1900 } do
    shows(("is laid out with nothing over another at %d"):format(width), function()
      open { width = width, height = width == 390 and 844 or 800,
        setup = "fake.layers = 30; fake.heads = 3; fake.tiers = true; fake.answers = ['# A heading\\n"
          .. "**Bold** words and `code`, a veryveryverylongwordthatneverendsandgoesonandonandonandon"
          .. "andonandonandonandon.\\n\\n- one\\n- two\\n\\n```\\nlong = \"a line of code that is "
          .. "longer than any narrow screen is wide, and so it has to scroll by itself\"\\n```'];"
          .. "fake.models = ['a-model-with-a-name-that-is-rather-long-Q4_K_M-instruct-v0.1'];" }
      local function look(where)
        assert.equal("", page:eval(LAYOUT), where)
        assert.equal("", page:eval(CONTRAST), where)
      end
      look "at first"
      choose("policy", "pyramidinfer")
      choose("target", "45")
      say(("A long message, of many words, that is to fill some lines. "):rep(16))
      drawn()
      page:eval "new Promise(r => setTimeout(r, 500))"
      for _, dark in ipairs { false, true } do
        page:dark(dark)
        page:eval "new Promise(r => setTimeout(r, 60))"
        for _, tab in ipairs { "chat", "lens" } do
          if width == 390 then
            page:eval(("document.getElementById('tab-%s').click(), 1"):format(tab))
            page:eval "new Promise(r => setTimeout(r, 60))"
          end
          look(tab)
        end
        page:eval "document.getElementById('lens').scrollTop = 400, 1"
        look "further down"
        page:eval "document.getElementById('forgot').click(), 1"
        page:eval "document.getElementById('lens').scrollTop = 9999, 1"
        look "forgotten"
        page:eval "document.getElementById('forgot').click(), 1"
        page:eval [[document.getElementById("options-box").open = true,
          document.getElementById("sampling-box").open = true,
          document.getElementById("lens").scrollTop = 0, 1]]
        look "options"
        page:eval "document.querySelectorAll('#folds details').forEach(d => d.open = false), 1"
      end
      if width == 390 then
        -- one of the two is shown, and the tabs are worked by arrows
        page:eval "document.getElementById('tab-lens').focus(), 1"
        page:key "ArrowLeft"
        assert.is_true(page:eval("document.getElementById('lens').getClientRects().length === 0 "
          .. "&& document.getElementById('chat').getClientRects().length > 0"))
        assert.matches("Memory · %d+ %%", text "#tab-lens")
      else
        assert.equal(0, page:eval "document.getElementById('tabs').getClientRects().length")
      end
    end)
  end

  shows("follows a long context without a halt", function()
    open { setup = "fake.layers = 30; fake.heads = 3; fake.pause = 100;" }
    choose("policy", "pyramidinfer")
    page:eval "document.getElementById('message').value = 'lorem ipsum dolor '.repeat(2700), 1"
    page:eval "document.getElementById('message').focus(), 1"
    page:key "Enter"
    page:wait "document.querySelectorAll('#tokens span').length > 8000"
    drawn()
    -- painting anew what has changed little
    local took = page:eval [[(async () => {
      let most = 0;
      for (let i = 0; i < 3; i++) {
        document.querySelector(".shown [aria-pressed]").click();
        const began = performance.now();
        await new Promise(r => requestAnimationFrame(() => setTimeout(r)));
        most = Math.max(most, performance.now() - began);
      }
      return most;
    })()]]
    assert.is_true(took < 1500, took)
  end)

  -- The server's page, with the server's answers.
  local function of_server(words, f)
    local missing = served.missing()
    if missing or not program then return pending(missing or why) end
    local server = served.start(words)
    local _ <close> = setmetatable({}, { __close = function() server:stop() end })
    page = page or browser.open(program, { width = 1280, height = 800 })
    page:anew { width = 1280, height = 800 }
    page:go(server.url .. "/")
    f(server)
    assert.same({}, page.errors)
  end

  it("talks to the server: streams, cuts, shows its memory, forgets, stops", function()
    of_server("--model models/tiny --threads 2 --template chatml --max-tokens 400", function(server)
      page:wait "document.querySelectorAll('#policy option').length > 30"
      assert.equal("tiny", text "#model-one")
      choose("policy", "streaming")
      choose("option-rows", "48")
      choose("max_tokens", "40")
      choose("seed", "3")
      local asked_of = "Once upon a time there was a ferryman who kept a key under a blue boat. "
      say(asked_of:rep(6))
      page:wait "document.querySelector('.assistant .words')?.textContent.length > 5"
      page:wait "document.getElementById('stop').hidden"
      page:wait "!document.getElementById('seen').hidden"
      page:wait "document.querySelectorAll('#tokens span').length > 100"
      assert.matches("streaming, rows=48 · 40 tokens", text ".assistant .facts")
      assert.equal("streaming", text "#tile-policy")
      -- it says what the server says
      local id = page:eval "JSON.parse(sessionStorage['pyramid.chat'])[1].facts.id"
      local memory = server:ask("/pyramid/memory?id=" .. id)
      assert.equal(math.tointeger(memory.tokens), math.tointeger(page:eval
        "document.querySelectorAll('#tokens span').length"))
      local gone, shown = 0, table.concat(memory.text.texts)
      for _, count in ipairs(memory.text.held) do gone = gone + (count == 0 and 1 or 0) end
      assert.is_true(gone > 20 and gone < memory.tokens)
      assert.equal(gone, page:eval "document.querySelectorAll('#tokens .gone').length")
      assert.is_truthy(shown:find(asked_of, 1, true))
      assert.matches("ferryman", text "#tokens")
      page:eval "document.getElementById('forgot').click(), 1"
      assert.matches(("^%d of %d tokens are held by no layer"):format(gone, memory.tokens),
        text "#token-said")
      assert.equal("", page:eval(LAYOUT))
      -- another policy, the same question
      choose("policy", "full")
      page:eval "document.querySelector('[aria-label=\"Answer again\"]').click(), 1"
      page:wait "document.getElementById('tile-policy').textContent === 'full'"
      page:wait "document.getElementById('stop').hidden"
      assert.equal("100 %", text "#tile-share")
      -- what the server refuses, in its words
      choose("budget", "many bytes")
      say "More"
      page:wait "document.querySelector('.trouble')"
      assert.matches("budget", text ".trouble")
      page.errors = {}
      -- Esc: the server is told, and goes on
      choose("budget", "")
      choose("max_tokens", "400")
      page:eval "document.getElementById('new').click(), 1"
      say "Once"
      page:wait "document.querySelector('.assistant .words')?.textContent.length > 5"
      page:key "Escape"
      page:wait "document.getElementById('stop').hidden"
      assert.equal("Stopped.", text "#status")
      assert.is_true(server:rests(5))
    end)
  end)

  it("asks for the server's API key", function()
    of_server("--model models/tiny --threads 2 --template chatml --api-key sesame", function()
      page:wait "!document.getElementById('key-box').hidden && document.activeElement.id === 'key'"
      page.errors = {}
      page:type "sesame"
      page:key "Enter"
      page:wait "document.querySelectorAll('#policy option').length > 30"
      choose("max_tokens", "5")
      say "Hello"
      page:wait "document.querySelectorAll('#tokens span').length > 5"
      assert.equal(0, page:eval "document.querySelectorAll('.trouble').length")
    end)
  end)
end)
