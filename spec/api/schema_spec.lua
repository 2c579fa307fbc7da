-- JSON Schemas as grammars: against a validator that follows the specification keyword by keyword,
-- patterns against Lua's own, ranges of numbers against comparing, and what is refused.
local json = require "pyramid.json"
local plain = require "spec.support.plain_schema"
local pyramid = require "pyramid"
local text = require "pyramid.grammar.text"

local R = math.random

local function grammar_of(schema) return pyramid.grammar { schema = schema } end

describe("a schema's grammar", function()
  it("holds of JSON what a validator holds of it", function()
    local seed = os.time()
    math.randomseed(seed)
    local told, refused, empty = { [true] = 0, [false] = 0 }, 0, 0
    for n = 1, 400 do
      local schema = plain.schema(3)
      local grammar, message, code = grammar_of(plain.encode(schema))
      local where = ("seed %d, %d: %s\n"):format(seed, n, plain.encode(schema))
      if grammar then
        for _ = 1, 12 do
          local value = plain.value(2)
          local valid, found = plain.valid(schema, value), false
          -- a grammar has one order of an object's names: some order must be it
          local texts = plain.texts(value)
          for _, shown in ipairs(texts or {}) do
            local matched, why = grammar:match(shown)
            assert.not_nil(matched, why)
            found = found or matched == "whole"
          end
          if texts then
            assert.equal(valid, found, where .. plain.text(value))
            told[valid] = told[valid] + 1
          end
        end
        grammar:close()
      elseif code == "unsupported" then refused = refused + 1
      else
        assert.truthy(message:find("no value can be of it", 1, true), where .. message)
        for _ = 1, 12 do
          local value = plain.value(2)
          assert.is_false(plain.valid(schema, value), where .. plain.text(value))
        end
        empty = empty + 1
      end
    end
    assert.is_true(told[true] > 300 and told[false] > 300 and refused < 200,
      ("%d valid, %d not, %d refused, %d empty"):format(told[true], told[false], refused, empty))
  end)

  it("has an object's names in their order, white space where it may be, and no name twice",
    function()
    local grammar = assert(grammar_of [[{ "type": "object",
      "properties": { "z": { "type": "integer" }, "a": true,
        "ab\n\"": { "const": [1, { "x": 2 }] } },
      "required": ["a", "more"] }]])
    for shown, whole in pairs {
      ['{"z":1,"a":2,"more":0}'] = true, ['{"z": 1, "a": 2, "more": 0}'] = true,
      ['{"a":2,"z":1,"more":0}'] = false, ['{"a":2}'] = false, ['{"a" :2,"more":0}'] = false,
      ['{"a":2,"more":0} '] = false, ['{"a":2,"ab\\n\\"":[1,{"x":2}],"more":0}'] = true,
      ['{"a":2,"more":0,"other":{"deep":[1.5e3,null,"\\u00e9\\ud83d\\ude00"]}}'] = true,
      ['{"a":2,"more":0,"a":1}'] = false, ['{"a":2,"more":0,"ab":1,"mor":2,"moree":3}'] = true,
      ['{"a":2,"more":0,"\\u0061":1}'] = false, ['{"a":2,"more":0,"ab\\n\\"":1}'] = false,
      ['{"a":2,"more":0,}'] = false, ['{"a":"\\ud83d","more":0}'] = false,
    } do assert.equal(whole, grammar:match(shown) == "whole", shown) end
    -- a Lua table has no order of its own, and names are sorted
    grammar = assert(grammar_of { properties = { b = { type = "null" }, a = { type = "null" } },
      additionalProperties = false, type = "object" })
    assert.equal("whole", grammar:match '{"a":null,"b":null}')
    assert.is_false(grammar:match '{"b":null,"a"')
  end)

  it("may contain itself", function()
    local grammar = assert(grammar_of [[{ "$ref": "#/$defs/tree~1", "$defs": { "tree/": {
      "type": "object", "properties": { "left": { "$ref": "#/$defs/tree~1" },
        "next": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } },
      "additionalProperties": false } } }]])
    for shown, whole in pairs { ["{}"] = true, ['{"left":{"left":{},"next":null}}'] = true,
      ['{"left":null}'] = false, ['{"next":{"next":null}}'] = true, ['{"right":{}}'] = false } do
      assert.equal(whole, grammar:match(shown) == "whole", shown)
    end
    local loop = { type = "object", additionalProperties = false }
    loop.properties = { next = loop }
    assert.equal("whole", assert(grammar_of(loop)):match '{"next":{"next":{}}}')
    for _, endless in ipairs { [[{ "$ref": "#" }]], [[{ "allOf": [{ "$ref": "#" }] }]] } do
      assert.equal("whole", assert(grammar_of(endless)):match "[1]")
    end
  end)

  it("has the numbers of a range, and no others", function()
    local seed = os.time()
    math.randomseed(seed)
    local function number()
      local x = R(-3000, 3000) / ({ 1, 1, 10, 100, 1000 })[R(5)]
      return R(6) == 1 and R(-2, 2) or x
    end
    for n = 1, 300 do
      local low = R(5) > 1 and { number(), R(2) == 1 } or nil
      local high = R(5) > 1 and { number(), R(2) == 1 } or nil
      local body = text.numbers(low, high)
      local where = ("seed %d, %d: %s %s"):format(seed, n, json.encode(low), json.encode(high))
      assert.not_equal(false, body, where)
      local grammar = body and assert(pyramid.grammar("root ::= " .. body))
      for k = 1, 40 do
        local x = k % 3 == 0 and low and low[1] or k % 3 == 1 and high and high[1] or number()
        if k % 4 == 0 then x = x + R(-2, 2) / ({ 1, 10, 1000 })[R(3)] end
        local shown = ("%.4f"):format(x):gsub("0+$", ""):gsub("%.$", "")
        if shown == "-0" then shown = "0" end
        if R(4) == 1 then shown = shown .. (shown:find "%." and "00" or ".0") end
        x = tonumber(shown)
        local inside = (not low or x > low[1] or x == low[1] and low[2])
          and (not high or x < high[1] or x == high[1] and high[2])
        if x ~= 0 or not shown:find "^%-" then
          assert.equal(inside, (grammar and grammar:match(shown)) == "whole", where .. " " .. shown)
        end
      end
    end
  end)

  it("has the strings that a pattern matches", function()
    local function check(pattern, yes, no)
      local grammar = assert(grammar_of { type = "string", pattern = pattern })
      for wanted, list in pairs { [true] = yes, [false] = no } do
        for _, s in ipairs(list) do
          assert.equal(wanted, grammar:match(json.quote(s)) == "whole", pattern .. " " .. s)
        end
      end
    end
    check("^[a-c]+$", { "a", "abc" }, { "", "d", "ab\n", "xab" })
    check("b+", { "b", "abbc", "\n\"b\\" }, { "", "ac" })
    check("^a|b$", { "a", "ax", "xb" }, { "xa", "bx" })
    check("^(?:ab|(c))*?\\.x{2,3}$", { "ab.xx", ".xxx", "cab.xx" }, { "ab.x", "ab-xx", ".xxxx" })
    check("^\\d{3}-\\w\\s\\S$", { "123-a x", "123-_\té" }, { "12-a x", "123-é x", "123-a  " })
    check("^[^\\d\"\\\\]$", { "a", "\n", "é", "\127" }, { "1", '"', "\\", "ab" })
    check("^[\\u{1F600}-\\u{1F64F}\\x41\\u00e9]$", { "😀", "A", "é" }, { "a", "🙏🙏" })
    check("^\\ud83d\\ude00$", { "😀" }, { "" })
    check("^.$", { "a", "€", "\t" }, { "\n", "\r", "\u{2028}", "" })
    check("^[\\]\\-^]$", { "]", "-", "^" }, { "\\", "a" })
    check("^a{0}$", { "" }, { "a" })
    check("^[]$|^x", { "x" }, { "", "a" })
    check("", { "", "anything\0" }, {})
    check("^[\\b\\0\\cA]$", { "\b", "\0", "\1" }, { "b" })
    for pattern, wanted in pairs { ["(?=a)"] = "ahead", ["(?<!a)"] = "behind", ["(a)\\1"] = "back",
      ["\\bx"] = "\\b", ["\\p{L}"] = "\\p", ["(a$)b"] = "$ inside", ["a^"] = "^ behind",
      ["a{2000}"] = "repetitions", ["(?i)a"] = "flags" } do
      local _, message, code = grammar_of { pattern = pattern }
      assert.equal("unsupported", code)
      assert.truthy(message:find("#/pattern: ", 1, true) and message:find(wanted, 1, true), message)
    end
    for _, pattern in ipairs { "(", ")", "[a", "*", "a**", "\\", "[b-a]", "a{2,1}", "{", "}",
      "\\q", "\\u12", "(?<n", "\xff", "a{" } do
      assert.equal("format", select(3, grammar_of { pattern = pattern }), pattern)
    end
  end)

  it("knows its formats", function()
    for name, cases in pairs {
      date = { { "2024-02-29", "1900-12-31", "2000-02-29" },
        { "2023-02-29", "1900-02-29", "2024-13-01",
        "2024-04-31", "24-01-01", "2024-01-00" } },
      time = { { "23:59:59Z", "00:00:00.25+05:30", "23:59:60Z" }, { "24:00:00Z", "12:00:00",
        "12:00Z", "22:59:60Z" } },
      ["date-time"] = { { "1985-04-12T23:20:50.52Z" }, { "1985-04-12 23:20:50Z", "1985-04-12" } },
      uuid = { { "2EB8AA08-aa98-11ea-b4aa-73b441d16380" },
        { "2eb8aa08-aa98-11ea-b4aa73b441d16380" } },
      ipv4 = { { "192.168.0.1", "0.0.0.0" }, { "256.0.0.1", "1.2.3", "01.2.3.4", "1.2.3.4\n" } },
    } do
      local grammar = assert(grammar_of { type = "string", format = name })
      for i, wanted in ipairs { "whole", "other" } do
        for _, s in ipairs(cases[i]) do
          assert.equal(wanted == "whole", grammar:match(json.quote(s)) == "whole", name .. " " .. s)
        end
      end
    end
  end)

  it("refuses by name and place what it does not support, and what is no schema", function()
    for schema, wanted in pairs {
      ['{"properties":{"a":{"items":{"not":{}}}}}'] = '#/properties/a/items/not: the keyword "not"',
      ['{"if":{}}'] = '#/if: the keyword "if"', ['{"uniqueItems":true}'] = '"uniqueItems"',
      ['{"foo":1}'] = '#/foo: the keyword "foo"', ['{"format":"email"}'] = "known: date, date-time",
      ['{"oneOf":[{"type":"integer"},{"minimum":2}]}'] = "#/oneOf: a value may be of its schemas 0",
      ['{"$ref":"http://x.y/z"}'] = "only references within",
      ['{"multipleOf":0.1}'] = "#/multipleOf",
      ['{"pattern":"a","minLength":2}'] = "minLength or maxLength beside",
      ['{"maxItems":1e9}'] = "5000",
      ['{"items":[{}]}'] = "prefixItems", ['{"$schema":"http://x.y/mine"}'] = "json-schema.org",
      ['{"multipleOf":2,"minimum":3}'] = "multipleOf beside", ['{"minimum":1e300}'] = "2^53",
    } do
      local grammar, message, code = grammar_of(schema)
      assert.is_nil(grammar)
      assert.equal("unsupported", code, message)
      assert.truthy(message:find(wanted, 1, true), message)
    end
    for schema, wanted in pairs {
      ['{"type":"int"}'] = "#/type: there is no type int", ['{"properties":[1]}'] = "#/properties",
      ['{"required":"a"}'] = "#/required: a list", ['{"minLength":-1}'] = "#/minLength",
      ['{"$ref":"#/$defs/x"}'] = "names nothing", ['{"items":3}'] = "#/items: a schema is wanted",
      ['{"enum":[]}'] = "no value", ["false"] = "no value can be of it",
      ["[1]"] = "a schema is wanted",
      ['{"type":"string","enum":[1]}'] = "no value",
      ['{"minimum":3,"maximum":2,"type":"integer"}'] = "no",
      ['{"a'] = "schema: ", ["3"] = "a schema is wanted", ["null"] = "a schema is wanted",
    } do
      local grammar, message, code = grammar_of(schema)
      assert.is_nil(grammar)
      assert.equal("format", code, message)
      assert.truthy(message:find(wanted, 1, true), message)
    end
    local bomb = { type = "object" }
    for _ = 1, 20 do
      bomb = { anyOf = { bomb, { type = "null" } }, allOf = { { anyOf = { true, {} } } } }
    end
    assert.equal("unsupported", select(3, grammar_of(bomb)))
  end)
end)
