-- Chat prompts against transformers' rendering of the models' own templates
-- (scripts/maker/oracle/chat.py).
local cjson = require "cjson"
local chat = require "pyramid.chat"
local helper = require "spec.helper"

local root = helper.fixture "chat/"
local golden = helper.json(root .. "golden.json")

local function options(prompt)
  return { add_generation_prompt = prompt, bos = golden.bos, eos = golden.eos, date = golden.date }
end

describe("a chat prompt equals the model's template:", function()
  for name, rows in pairs(golden.templates) do
    local template = helper.read(root .. name .. ".jinja")

    -- The text is as expected, or refused with a reason where the reference refuses.
    local function same(expected, messages, given, where, text)
      local got, message, code = chat.render(text or template, messages, given)
      if expected == cjson.null then
        assert.is_nil(got, where)
        assert.is_string(message)
        assert.equal("argument", code)
      else
        assert.equal(expected, got, where)
      end
    end

    it(name, function()
      for i, messages in ipairs(golden.conversations) do
        for k, prompt in ipairs { false, true } do
          same(rows.conversations[i][k], messages, options(prompt), "conversation " .. i)
        end
      end
    end)

    it(name .. ", with tools, parts and thinking turned off", function()
      for i, call in ipairs(golden.calls) do
        local given = options(true)
        given.tools, given.thinking = call.tools, call.enable_thinking
        same(rows.calls[i], call.messages, given, "call " .. i)
      end
    end)

    it(name .. ", with dots for brackets, and blanks within its tags", function()
      local dots = template:gsub("(%w)%['(role)'%]", "%1.%2"):gsub("(%w)%['(content)'%]", "%1.%2")
      local blanks = template:gsub("{%%([-+]?) ", "{%%%1 \n  "):gsub(" ([-+]?)%%}", "\t %1%%}")
      for _, text in ipairs { dots, blanks } do
        for i, messages in ipairs(golden.conversations) do
          same(rows.conversations[i][2], messages, options(true), "conversation " .. i, text)
        end
      end
    end)

    it(name .. ", with newlines in its strings for escapes", function()
      for _, newline in ipairs { "\n", "\r\n" } do
        local text = template:gsub("\\n", "\n"):gsub("\n", newline)
        for i, messages in ipairs(golden.conversations) do
          local got = chat.render(text, messages, options(true))
          local expected = rows.conversations[i][2]
          assert.equal(expected ~= cjson.null and expected or nil, got, "conversation " .. i)
        end
      end
    end)
  end
end)

describe("a default system message", function()
  local turns = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
    .. "'<|im_end|>\\n' }}{% endfor %}"
  local user = { { role = "user", content = "u" } }
  local after = "<|im_start|>user\nu<|im_end|>\n"
  local function renders(expected, head)
    assert.equal(expected .. after, chat.render(head .. turns, user))
  end

  it("may hold quotes and escapes, in either kind of quotes", function()
    renders("<|im_start|>system\nYou're \"it\".<|im_end|>\n",
      [[{{ '<|im_start|>system\nYou\'re "it".<|im_end|>\n' }}]])
    renders("<|im_start|>system\nYou're \"it\".<|im_end|>\n",
      [[{{ "<|im_start|>system\nYou're \"it\".<|im_end|>\n" }}]])
  end)
  it("may be plain text of the template", function()
    renders("<|im_start|>system\nBe brief.<|im_end|>\n",
      "{% if not messages[0]['role'] == 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% "
        .. "endif %}")
  end)
  it("is left out of an empty conversation where the loop over messages says it", function()
    local template = helper.read(root .. "smollm2-gguf.jinja")
    assert.equal("", chat.render(template, {}))
    assert.equal("<|im_start|>assistant\n", chat.render(template, {},
      { add_generation_prompt = true }))
  end)
end)

describe("whatever a template or a message holds,", function()
  it("rendering never raises", function()
    local seed, rendered, refused = 7, 0, 0
    local function random(n)
      seed = (seed * 1103515245 + 12345) % (1 << 31)
      return seed // 65536 % n + 1
    end
    local roles = { "system", "user", "assistant", "tool", "", "USER" }
    local contents = { "", " ", "\n\n", "<think>", "</think>", "a</think>b<think>",
      "<tool_response>", "<<SYS>>", "\u{a0}\u{2003}", "\xff\xe2\x80", "text", "\0", "%1 %b()" }
    local names, texts = {}, {}
    for name in pairs(golden.templates) do names[#names + 1] = name end
    table.sort(names)
    for i, name in ipairs(names) do texts[i] = helper.read(root .. name .. ".jinja") end
    for _ = 1, 1500 do
      local template = texts[random(#texts)]
      -- cut something out, or put a piece of another template there
      for _ = 1, random(3) == 1 and 0 or random(2) do
        local from = random(#template + 1)
        local to = math.min(#template, from + random(random(2) == 1 and 12 or 400))
        local other = texts[random(#texts)]
        local at = random(#other)
        template = template:sub(1, from - 1) .. (random(3) == 1 and other:sub(at, at + random(200))
          or "")
          .. template:sub(to + 1)
      end
      local messages = {}
      for i = 1, random(6) - 1 do
        messages[i] = { role = roles[random(#roles)], content = contents[random(#contents)] }
      end
      local given = { add_generation_prompt = random(2) == 1 }
      if random(2) == 1 then given.date = "1 Jan 2025" end
      if random(3) == 1 then given.thinking = false end
      local ok, text, message, code = pcall(chat.render, template, messages, given)
      assert.is_true(ok, text)
      if text then rendered = rendered + 1
      else
        refused = refused + 1
        assert.is_string(message)
        assert.is_truthy(code == "argument" or code == "unsupported" or code == "format")
      end
    end
    assert.is_true(rendered > 200 and refused > 300,
      ("%d rendered, %d refused"):format(rendered, refused))
  end)

  it("its time is linear", function()
    local n = 1 << 16
    local long = {
      spaces = "a" .. (" "):rep(n) .. "b", newlines = "a" .. ("\n"):rep(n) .. "b",
        ends = (" \n"):rep(n // 2),
      unicode = "b" .. ("\u{a0} \u{2003}\n"):rep(n // 8) .. "c",
      thoughts = "<think>" .. ("\n"):rep(n) .. "x</think>" .. ("\n"):rep(n),
        answers = ("</think>"):rep(n // 8),
      responses = "<tool_response>" .. (" "):rep(n),
    }
    local templates = { "llama-3", "llama-2", "chatml" }
    for name in pairs(golden.templates) do
      templates[#templates + 1] = helper.read(root .. name .. ".jinja")
    end
    local started = os.clock()
    for _, template in ipairs(templates) do
      for _, content in pairs(long) do
        assert.is_string(chat.render(template, { { role = "user", content = content },
          { role = "assistant", content = content } }, { date = "now" }))
      end
    end
    -- 26 templates of 7 pairs of messages, some 20 MB; quadratic time would be minutes
    assert.is_true(os.clock() - started < 10)
  end)

  it("a template beyond all published ones is refused", function()
    local text, message, code = chat.render("{{ 1 }}" .. (" "):rep(1 << 18),
      { { role = "user", content = "u" } })
    assert.is_nil(text)
    assert.matches("262144 bytes", message, 1, true)
    assert.equal("unsupported", code)
  end)
end)

describe("chat", function()
  it("refuses what is neither a template nor a format's name", function()
    for _, template in ipairs { "", "chatlm" } do
      local compiled, message, code = chat.compile(template)
      assert.is_nil(compiled)
      assert.matches("chatml", message, 1, true)
      assert.equal("unsupported", code)
      assert.equal("unsupported", select(3, chat.render(template, golden.conversations[1])))
    end
    local _, message, code = chat.render("{% if %}", golden.conversations[1])
    assert.matches("chat template: line 1", message, 1, true)
    assert.equal("format", code)
  end)

  it("takes a format's name", function()
    local messages = golden.conversations[4]
    for name, template in pairs { chatml = "chatml", ["llama-2"] = "llama-2",
      ["llama-3"] = "llama-3", zephyr = "zephyr", ["phi-3"] = "phi-3-vision",
        mistral = "mistral-v1" } do
      local expected = golden.templates[template].conversations[2][2]
      local got = assert(chat.render(name, golden.conversations[2], options(true)))
      if name == "mistral" then got = got:gsub("%[INST%]", " [INST]", 1) end
      assert.equal(expected, got, name)
      assert.is_string(chat.render(name, messages, options(true)))
    end
    assert.is_true(#chat.list() >= 6)
  end)

  it("shuts Qwen3's thinking if told so", function()
    local template = helper.read(root .. "qwen3.jinja")
    local text = chat.render(template, golden.conversations[1],
      { add_generation_prompt = true, thinking = false })
    assert.equal("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", text)
  end)

  it("hands tools over as templates expect them, and variables that no option sets", function()
    local f = { name = "f", parameters = { type = "object", properties = {} } }
    local function tools(list)
      return chat.render("{% for t in tools %}{{ t | tojson }};{% endfor %}", {}, { tools = list })
    end
    local wrapped = '{"type": "function", "function": {"name": "f", "parameters": {"type": '
      .. '"object", "properties": {}}}};'
    assert.equal(wrapped, tools { f })
    assert.equal(wrapped, tools { { type = "function", ["function"] = f } })
    assert.equal('{"name": "f"};', tools { { name = "f" } })
    local own = { date_string = "today", enable_thinking = true, mood = "good" }
    local asks = "{{ date_string }} {{ enable_thinking }} {{ mood }}"
    assert.equal("today True good", chat.render(asks, {}, { variables = own }))
    assert.equal("now False good", chat.render(asks, {}, { variables = own, date = "now",
      thinking = false }))
  end)

  it("raises on misuse", function()
    assert.has_error(function() chat.render(nil, {}) end)
    assert.has_error(function() chat.render("chatml", "hello") end)
    assert.has_error(function() chat.render("chatml", { { role = "user" } }) end)
    assert.has_error(function() chat.render("chatml", { "hello" }) end)
    assert.has_error(function() chat.render("chatml", { { role = "user", content = 5 } }) end)
    assert.has_error(function() chat.render("chatml", {}, { generation = true }) end)
  end)
end)
