-- The template engine against jinja2 (scripts/maker/oracle/jinja.py), and against templates that
-- mean harm.
local cjson = require "cjson"
local evaluate = require "pyramid.jinja.evaluate"
local jinja = require "pyramid.jinja"
local json = require "pyramid.json"
local helper = require "spec.helper"

local golden = helper.json(helper.fixture "jinja/golden.json")
local now = os.date("*t", os.time { year = 2026, month = 3, day = 9, hour = 14, min = 5, sec = 6 })
local messages = { { role = "user", content = "Hi" }, { role = "assistant", content = "Yo" } }

local function render(source, variables)
  local template, message, code = jinja.compile(source)
  if not template then return nil, message, code end
  return template:render(variables or { messages = messages }, now)
end

describe("a template renders as jinja2 renders it:", function()
  for i, case in ipairs(golden) do
    it(("%d %s"):format(i, case.template:gsub("%s+", " "):sub(1, 50)), function()
      local output, message, code = render(case.template)
      if case.output == cjson.null then
        assert.is_nil(output, "jinja2 refuses it")
        assert.matches("^template: ", message)
        assert.is_truthy(({ argument = true, format = true, unsupported = true })[code])
      else
        assert.equal(case.output, output, message)
      end
    end)
  end
end)

describe("the meaning of a template does not hang on how it is spelled:", function()
  -- Three templates of the forms that models have; each way of writing the same gives the same
  -- text.
  local templates = {
    [[{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endfor %}]]
      .. [[{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}]],
    [[{{- bos_token }}{%- set ns = namespace(system='') %}{%- for m in messages if m['role'] == 'system' %}]]
      .. [[{%- set ns.system = ns.system + m['content'] | trim %}{%- endfor %}{%- for m in messages %}]]
      .. [[{%- if m['role'] == 'user' %}{{ '[INST] ' ~ ns.system ~ '\n\n' ~ m['content'] ~ ' [/INST]' }}]]
      .. [[{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}]],
    [[{%- macro turn(role,
      text) %}{{ '<' ~ role ~ '>' ~ text ~ '</' ~ role ~ '>\n' }}{%- endmacro %}]]
      .. [[{%- for m in messages %}{{ turn(m['role'], m['content']) }}{%- endfor %}]],
  }
  local conversations = {
    { { role = "user", content = "a" } },
    { { role = "system", content = " be kind\n" }, { role = "user", content = "l'été {{ x }}" },
      { role = "assistant", content = " ok " },
      { role = "user", content = "" } },
  }
  local spellings = {
    ["raw newlines for \\n"] = function(t) return (t:gsub("\\n", "\n")) end,
    ["other quotes"] = function(t) return (t:gsub("'", '"')) end,
    ["dots for brackets"] = function(t) return (t:gsub("%['(%a+)'%]", ".%1")) end,
    ["brackets for dots"] = function(t) return (t:gsub("ns%.system ([~+])", "ns['system'] %1")) end,
    ["blanks inside of tags"] = function(t)
      return (t:gsub("{{(%-?) *", "{{%1\n  "):gsub(" *(%-?)}}", "\t %1}}"):gsub("{%%(%-?) *",
        "{%%%1   "):gsub(" *(%-?)%%}", "  %1%%}"))
    end,
    ["comments between tags"] = function(t) return (t:gsub("{%%%-",
      "{#- a comment {%% if #}{%%-")) end,
    ["carriage returns"] = function(t) return (t:gsub("{%%%-", "\r\n{%%-")) end,
  }
  for name, spell in pairs(spellings) do
    it(name, function()
      for _, source in ipairs(templates) do
        for _, conversation in ipairs(conversations) do
          local variables = { messages = conversation, bos_token = "<s>", eos_token = "</s>",
            add_generation_prompt = true }
          local expected = assert(render(source, variables))
          assert.equal(expected, render(spell(source), variables))
        end
      end
    end)
  end
end)

describe("a hostile template", function()
  local many = 20000
  local hostile = {
    ["calls itself"] = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    ["loops in loops"] = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% "
      .. "endfor %}",
    ["recurses through loop()"] = "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    ["doubles a text"] = "{% set n = namespace(s='ab') %}{% for i in range(100) %}{% set n.s = "
      .. "n.s + n.s %}{% endfor %}",
    ["doubles a list"] = "{% set n = namespace(s=[1]) %}{% for i in range(100) %}{% set n.s = "
      .. "n.s + n.s %}{% endfor %}",
    ["repeats a text"] = "{{ 'a' * 1000000000000 }}",
    ["repeats a list"] = "{{ [1] * 1000000000000 }}",
    ["pads a text"] = "{{ 'a'.center(1000000000000) }}",
    ["indents by megabytes"] = "{{ ('a\n' * 100000) | indent(100000) }}",
    ["replaces by megabytes"] = "{{ ('a' * 1000000).replace('a', 'b' * 10000) }}",
    ["compares lists that share themselves"] = "{% set n = namespace(a=[1], b=[1]) %}{% for i in "
      .. "range(60) %}"
      .. "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    ["prints lists that share themselves"] = "{% set n = namespace(a=[1]) %}{% for i in "
      .. "range(50) %}{% set n.a = [n.a, n.a] %}"
      .. "{% endfor %}{{ n.a | tojson }}",
    ["looks for a long text in a longer one"] = "{% set a = 'a' * 30000000 %}{{ (a ~ 'b') in (a "
      .. "~ a) }}",
    ["begins to find again and again"] = "{% set s = 'aaaa' * 250000 %}{% for i in range(10000) %}"
      .. "{{ s.find('aaaaaaaaaab') }}{% endfor %}",
    ["slices for ever"] = "{% set s = 'a' * 1000000 %}{% for i in range(10000) %}{% set t = "
      .. "s[1:] %}{% endfor %}",
    ["slices backwards for ever"] = "{% set s = 'ab' * 500000 %}{% for i in range(10000) %}{% "
      .. "set t = s[::-1] %}{% endfor %}",
    ["sorts for ever"] = "{% for i in range(1000) %}{{ range(100000) | list | sort | length }}{% "
      .. "endfor %}",
    ["joins for ever"] = "{% for i in range(100000) %}{{ range(1000) | join }}{% endfor %}",
    ["nests parentheses"] = "{{ " .. ("("):rep(many) .. "1" .. (")"):rep(many) .. " }}",
    ["nests blocks"] = ("{% if 1 %}"):rep(many),
    ["negates for ever"] = "{{ " .. ("not "):rep(many) .. "1 }}",
    ["is long"] = ("a"):rep(300000),
    ["counts beyond 64 bits"] = "{{ 10 ** 100 }}",
    ["asks for Python's insides"] = "{{ ''.__class__.__mro__ }}",
    ["asks for another template"] = "{% include '/etc/passwd' %}",
    ["changes its list"] = "{{ messages.append(1) }}",
    ["does not end a tag"] = ("{{"):rep(many),
  }
  -- These work until the limit of steps stops them. What a step costs shows in an eighth of the
  -- steps, within an eighth of the time; that all steps do not take longer, in "loops in loops".
  local working = { ["compares lists that share themselves"] = true,
    ["prints lists that share themselves"] = true, ["slices for ever"] = true,
    ["slices backwards for ever"] = true, ["joins for ever"] = true }
  local steps = evaluate.STEPS
  after_each(function() evaluate.STEPS = steps end)

  for name, source in pairs(hostile) do
    it(name .. ": a refusal, soon", function()
      local most = working[name] and 20 / 8 or 20
      if working[name] then evaluate.STEPS = steps // 8 end
      collectgarbage()
      local held, began = collectgarbage "count", os.clock()
      local output, message, code = render(source)
      assert.is_nil(output)
      assert.is_string(message)
      assert.is_truthy(({ argument = true, format = true, unsupported = true })[code])
      assert.is_true(#message < 800, message)
      assert.is_true(os.clock() - began < most, "within seconds")
      if working[name] then
        assert.matches(("more than %d steps"):format(steps // 8), message, 1, true)
      end
      collectgarbage()
      assert.is_true(collectgarbage "count" - held < 64 * 1024, "what it held is free again")
    end)
  end

  it("repeats nothing for ever, and has nothing at once", function()
    assert.equal("[][]()0",
      render("{{ [] * 99999999999 }}{{ 99999999999 * [] }}{{ () * 99999999999 }}"
      .. "{{ ('' * 99999999999) | length }}"))
  end)

  it("is told by words what fields a tool's number lacks", function()
    assert.equal("", render("{% for t in tools %}{{ t.name }}{% endfor %}",
      { tools = { 5, true } }))
  end)

  it("asks int() for a base that is none, and gets what Jinja gives", function()
    assert.equal("5 0 5 255", render("{{ '5' | int(base=99) }} {{ 'a' | int(base=1) }} "
      .. "{{ '5' | int(0, 37) }} {{ '0xff' | int(0, 16) }}"))
  end)

  it("names what is not known", function()
    for name, source in pairs { nosuch = "{{ 1 | nosuch }}", nothere = "{{ 1 is nothere }}",
      autoescape = "{% autoescape x %}" } do
      local output, message, code = render(source)
      assert.is_nil(output)
      assert.matches(name, message)
      assert.equal("unsupported", code)
    end
  end)

  it("says the line", function()
    assert.matches("line 3", select(2, render "a\nb\n{{ 1 / 0 }}"))
    assert.matches("line 2", select(2, render "a\n{% if %}{% endif %}"))
  end)
end)

describe("a long conversation", function()
  it("takes time in proportion to its length", function()
    local source = "{% for m in messages %}{{ m.role + ': ' + m.content.split('</think>')[-1] | "
      .. "trim }}\n{% endfor %}"
    local template = assert(jinja.compile(source))
    local long = {}
    for i = 1, 4000 do
      long[i] = { role = "user", content = ("<think>x</think>  reply "):rep(50) }
    end
    local began = os.clock()
    local output = assert(template:render { messages = long })
    assert.is_true(#output > 4000 * 10)
    assert.is_true(os.clock() - began < 10)
  end)

  it("of a megabyte of blanks is trimmed at once", function()
    local began = os.clock()
    assert.equal("x", render("{{ c | trim }}", { c = (" "):rep(500000) .. "x"
      .. (" \u{3000}"):rep(200000) }))
    assert.is_true(os.clock() - began < 10)
  end)
end)

describe("variables", function()
  it("are Lua's values", function()
    assert.equal("1 2.5 True a [1, 2] None",
      render("{{ a }} {{ b }} {{ c }} {{ d }} {{ e }} {{ f }}",
      { a = 1, b = 2.5, c = true, d = "a", e = { 1, 2 }, f = cjson.null }))
  end)

  it("print their keys in the usual order", function()
    local tool = { type = "function", ["function"] = { name = "f", description = "d",
      parameters = { type = "object", properties = { b = { type = "string" },
        a = { type = "string" } }, required = { "a" } } } }
    assert.equal('{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", '
      .. '"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a"]}}}',
      render("{{ t | tojson }}", { t = tool }))
    assert.equal('{"properties": {}, "required": []}', render("{{ t | tojson }}",
      { t = { properties = {}, required = {} } }))
  end)

  it("out of JSON keep the order of their keys, and an empty object is no list", function()
    local text = '{"zeta": 1, "name": {}, "a": [], "type": {"z": [{}], "b": null}}'
    local value = assert(json.decode(text, { ordered = true }))
    assert.equal(text, render("{{ v | tojson }}", { v = value }))
    assert.equal("zeta name a type ", render("{% for k in v %}{{ k }} {% endfor %}",
      { v = value }))
    value.zeta, value.id, value.b = nil, 2, 3                -- what was added comes last
    assert.equal("name a type id b ", render("{% for k in v %}{{ k }} {% endfor %}",
      { v = value }))
  end)

  it("that hold themselves, functions or keys that are no texts are refused", function()
    local loop = {}
    loop[1] = loop
    for _, value in ipairs { loop, { a = print }, { [1.5] = 2 } } do
      local output, _, code = render("{{ v }}", { v = value })
      assert.is_nil(output)
      assert.equal("argument", code)
    end
  end)

  it("are misuse if they are no table", function()
    assert.has_error(function() jinja.compile "x":render "y" end)
    assert.has_error(function() jinja.compile(5) end)
  end)
end)
