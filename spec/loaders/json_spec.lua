-- The JSON reader and writer: the grammar by examples with what is wrong with them, and against
-- lua-cjson on made-up documents.
local cjson = require "cjson.safe"
local core = require "pyramid.core"
local json = require "pyramid.json"
local helper = require "spec.helper"

local function value_of(text)
  local value, message = json.decode(text)
  if value == nil then error(message, 2) end
  return value
end

describe("reading JSON", function()
  it("keeps whole numbers whole and fractions as they are", function()
    for text, want in pairs { ["0"] = 0, ["-7"] = -7, ["9223372036854775807"] = math.maxinteger,
        ["-9223372036854775808"] = math.mininteger, ["65536"] = 65536 } do
      assert.equal("integer", math.type(value_of(text)), text)
      assert.equal(want, value_of(text))
    end
    for text, want in pairs { ["2.0"] = 2.0, ["1e3"] = 1000.0, ["-1.5E-3"] = -0.0015,
      ["9223372036854775808"] = 2.0 ^ 63, ["-9223372036854775809"] = -2.0 ^ 63,
        ["18446744073709551615"] = 2.0 ^ 64, ["0.1"] = 0.1, ["5e-324"] = 5e-324,
          ["1.7976931348623157e308"] = 1.7976931348623157e308, ["1e-999"] = 0.0 } do
      assert.equal("float", math.type(value_of(text)), text)
      assert.equal(want, value_of(text))
    end
    assert.equal(-math.huge, 1 / value_of "-0")
  end)

  it("reads strings, escapes and pairs of surrogates", function()
    assert.equal("a\"\\/\b\f\n\r\t\0é€😀",
      value_of [["a\"\\\/\b\f\n\r\t\u0000\u00e9\u20AC\uD83D\uDE00"]])
    assert.equal("é€😀\127", value_of '"é€😀\127"')
    assert.same({ ["\0k"] = "" }, value_of [[{ "\u0000k": "" }]])
  end)

  it("tells null, false, empty and absent apart", function()
    local o = value_of ' {"a":null,"b":false,"c":[],"d":{},"e":[null,1]}\n'
    assert.equal(json.null, o.a)
    assert.is_false(o.b)
    assert.same({}, o.c)
    assert.same({ json.null, 1 }, o.e)
    assert.is_nil(o.f)
    assert.equal(cjson.null, json.null)          -- what else knows null by this value takes ours
    assert.is_false(json.decode "false")
  end)

  local refused = {
    { "", "line 1, column 1: the text ends where a value is wanted" },
    { "{\n  \"a\": 1,\n  \"é\" 2}", "line 3, column 7: '2' where ':' is wanted" },
    { '{"a":1,}', "column 8: '}' where a key in quotes is wanted" },
      { "[1,]", "column 4: ']' where a value is wanted" },
    { "[1 2]", "'2' where ',' or ']' is wanted" },
      { "{'a':1}", "''' where a key in quotes is wanted" },
    { "[1", "the text ends where ',' or ']' is wanted" },
      { '{"a":1', "the text ends where ',' or '}' is wanted" },
    { "01", "a number that begins with 0" }, { "-", "where a digit is wanted" },
      { "1.", "where a digit is wanted" },
    { ".5", "where a value is wanted" }, { "1e", "where a digit is wanted" },
      { "+1", "where a value is wanted" },
    { "0x10", "'x' where the end of the text is wanted" },
      { "1,5", "',' where the end of the text is wanted" },
    { "1e999", "beyond the range of doubles" }, { "-1e999", "beyond the range of doubles" },
    { "NaN", "where a value is wanted" }, { "Infinity", "where a value is wanted" },
      { "-Infinity", "where a digit is wanted" },
    { "nul", "where a value is wanted" }, { "True", "where a value is wanted" },
    { "truex", "'x' where the end of the text is wanted" },
    { '"abc', "column 1: a string that does not end" }, { '"abc\\', "a string that does not end" },
    { '"a\nb"', "a control character in a string" }, { '"\0"', "a control character" },
    { '"\\x41"', "an escape that JSON does not have" },
      { '"\\u12g4"', "\\u without four hexadecimal digits" },
    { '"\\u12"', "\\u without four hexadecimal digits" },
      { '"\\ud83d"', "half of a surrogate pair" },
    { '"\\ude00"', "half of a surrogate pair" }, { '"\\ud83d\\u0041"', "half of a surrogate pair" },
    { '"\\ud83d\\ud83d"', "half of a surrogate pair" },
    { '"\xff"', "not UTF-8" }, { '"\xc0\x80"', "not UTF-8" }, { '"\xed\xa0\x80"', "not UTF-8" },
    { '"\xf4\x90\x80\x80"', "not UTF-8" },
    { '"\xe2\x82"', "not UTF-8" },
    { "\xef\xbb\xbf{}", "byte 239 where a value is wanted" },
      { "{}\0", "where the end of the text is wanted" },
    { "// no\n1", "'/' where a value is wanted" },
    { '{"a":1,"b":2,"a":3}', "column 14: key 'a' comes twice" },
      { '[{"b":{"x":1,"\\u0078":2}}]', "key 'x' comes twice" },
    { '{"a":null,"a":1}', "key 'a' comes twice" },
  }
  it("refuses what is no JSON, and says where and why", function()
    for _, case in ipairs(refused) do
      local value, message, code = json.decode(case[1])
      assert.is_nil(value, case[1])
      assert.equal("format", code)
      assert.truthy(message:find(case[2], 1, true), ("%q: %s"):format(case[1], message))
    end
  end)

  -- As Python's json.loads reads them: these spellings and no others.
  it("reads NaN and infinities where asked to, and nothing else that JSON lacks", function()
    local function read(text) return json.decode(text, { nonfinite = true }) end
    local list = assert(read '[NaN, Infinity,-Infinity,-1, {"a":NaN}]')
    assert.is_true(list[1] ~= list[1] and list[5].a ~= list[5].a)
    assert.same({ math.huge, -math.huge, -1 }, { list[2], list[3], list[4] })
    for _, case in ipairs(refused) do
      local python = case[1] == "NaN" or case[1]:find "^-?Infinity$" ~= nil
      assert.equal(python, read(case[1]) ~= nil, case[1])
    end
    for _, text in ipairs { "-NaN", "+Infinity", "nan", "inf", "Inf", "infinity", "- Infinity",
      "--Infinity", "NaN1", "Infinityx", "{NaN:1}", "{Infinity:1}", "-Inf", "[Na]", "-I",
      "N", "Infinit" } do
      assert.is_nil(read(text), text)
    end
    assert.truthy(read('[NaN,NaN]') and not json.decode('[NaN,NaN]', { nonfinite = true,
      values = 2 }))
  end)

  it("bounds depth and count, and names the limit", function()
    local function nested(n) return ("["):rep(n) .. ("]"):rep(n) end
    assert.truthy(json.decode(nested(json.DEPTH_MAX)))
    local _, message = json.decode(nested(json.DEPTH_MAX + 1))
    assert.truthy(message:find("nested too deep (the limit is 64)", 1, true), message)
    _, message = json.decode(("["):rep(1000000))
    assert.truthy(message:find("nested too deep", 1, true), message)
    _, message = json.decode(('{"a":'):rep(1000000))
    assert.truthy(message:find("nested too deep", 1, true), message)
    assert.truthy(json.decode(nested(200), { depth = 200, ordered = true }))
    assert.truthy(json.decode(('{"a":'):rep(200) .. "1" .. ("}"):rep(200), { depth = 200,
      ordered = true }))
    assert.truthy(json.decode("[1,2,3]", { values = 4 }))
    _, message = json.decode("[1,2,3,4]", { values = 4 })
    assert.truthy(message:find("too many values (the limit is 4)", 1, true), message)
    assert.truthy(json.decode(nested(200), { depth = 200 }))
    assert.has_error(function() json.decode("1", { depth = 201 }) end)
  end)
end)

-- A generator of documents, and of damage to them.
local function random_document(random)
  local words = { "a", "key", "ünï", "😀", "\\n", "\\u0041", "\\ud83d\\ude00", "/", "", "%",
    "q\\\"q" }
  local numbers = { "0", "-1", "17", "1.5", "-0.25", "1e5", "2E-3", "123456789012345", "0.1",
    "3.0" }
  local space = { "", "", "", " ", "\n", "\t " }
  local function pick(list) return list[random(#list)] end
  local function make(depth)
    local kind = random(depth > 4 and 5 or 7)
    if kind == 1 then return pick(numbers) end
    if kind == 2 then return '"' .. pick(words) .. pick(words) .. '"' end
    if kind <= 5 then
      return pick { "true", "false", "null", pick(numbers), '"' .. pick(words) .. '"' }
    end
    local parts, list = {}, kind == 6
    for i = 1, random(0, 4) do
      local key = list and "" or ('"%s%d"%s:%s'):format(pick(words), i, pick(space), pick(space))
      parts[i] = pick(space) .. key .. make(depth + 1) .. pick(space)
    end
    return (list and "[" or "{") .. table.concat(parts, ",") .. pick(space) .. (list and "]" or "}")
  end
  return make(1)
end

local function damage(text, random)
  local at = random(#text + 1)
  local kind = random(3)
  if kind == 1 then return text:sub(1, at - 1) .. text:sub(at + 1) end
  if kind == 2 then
    return text:sub(1, at - 1) .. ('{}[]:,"\\truefalsn0123-+.eE'):sub(random(26)):sub(1, 1)
      .. text:sub(at)
  end
  return text:sub(1, at - 1)
end

--- Equal values, where cjson gives floats for integers.
local function same(a, b)
  if type(a) ~= type(b) then return false end
  if type(a) ~= "table" then return a == b end
  for key, value in pairs(a) do
    if not same(value, b[key]) then return false end
  end
  for key in pairs(b) do
    if a[key] == nil then return false end
  end
  return true
end

describe("beside lua-cjson", function()
  local decoder = cjson.new()
  decoder.decode_invalid_numbers(false)
  decoder.decode_max_depth(64)

  it("reads the same from documents that are whole, and writes what it reads", function()
    math.randomseed(17)
    for i = 1, 4000 do
      local text = random_document(math.random)
      local mine, theirs = value_of(text), decoder.decode(text)
      assert.is_true(same(mine, theirs), ("document %d: %s"):format(i, text))
      assert.is_true(same(value_of(json.encode(mine)), mine), text)
      assert.is_true(same(decoder.decode(json.encode(mine)), mine), text)
    end
  end)

  it("takes nothing that it refuses, and the same where it is taken", function()
    math.randomseed(18)
    local taken, both = 0, 0
    for i = 1, 12000 do
      local text = damage(random_document(math.random), math.random)
      local mine, theirs = json.decode(text), decoder.decode(text)
      if mine ~= nil then
        taken = taken + 1
        assert.is_true(same(mine, theirs), ("document %d: %s"):format(i, text))
      elseif theirs == nil then both = both + 1 end
    end
    assert.is_true(taken > 500 and both > 5000,
      ("%d taken, %d refused by both"):format(taken, both))
  end)
end)

describe("writing JSON", function()
  it("sorts keys, knows lists by their keys, and leaves slashes alone", function()
    assert.equal('{"a":[1,2.5,"x/y"],"b":{"c":null},"d":true,"e":{}}',
      json.encode { d = true, b = { c = json.null }, a = { 1, 2.5, "x/y" }, e = {} })
    assert.equal('[1,null,3]', json.encode { 1, nil, 3 })
    assert.equal('{"1":"a","2.5":"b","x":"c"}', json.encode { [1] = "a", [2.5] = "b", x = "c" })
    assert.equal("[null,null,null,-0.0015,1e+300,12345678]",
      json.encode { 0 / 0, 1 / 0, -1 / 0, -0.0015, 1e300, 12345678 })
  end)
  it("escapes what must be, and mends text that is cut", function()
    assert.equal([["\"\\\n\t\u0001\u007f\u0000é😀"]], json.encode "\"\\\n\t\1\127\0é😀")
    assert.equal('"a\u{FFFD}b\u{FFFD}\u{FFFD}"', json.encode "a\xe2b\xf0\x9f")
    assert.equal('{"\\"":1}', json.encode { ['"'] = 1 })
  end)
  it("refuses what JSON cannot say", function()
    for _, value in ipairs { print, { print }, { [{}] = 1 }, { [true] = 1 }, { [100] = 1 } } do
      assert.has_error(function() json.encode(value) end)
    end
    local circle = {}
    circle[1] = circle
    local ok, message = pcall(json.encode, circle)
    assert.is_false(ok)
    assert.truthy(message:find "in a circle")
  end)
end)

describe("want of memory while reading JSON", function()
  -- A Lua whose allocator fails at the n-th call: each allocation of a document in turn. What must
  -- come is an error of Lua.
  it("is an error, wherever it comes", function()
    local program, source = helper.tmp(""), helper.tmp ".c"
    helper.write(source, [==[
#include <lua.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lauxpyr.h"
static long left = -1;
static void *alloc(void *ud, void *p, size_t old, size_t size) {
  (void)ud, (void)old;
  if (size == 0) return free(p), NULL;
  if ((p == NULL || size > old) && left >= 0 && (left == 0 || --left == 0)) return NULL;  /* and on */
  return realloc(p, size);
}
static const char text[] = "{\"a\": [1, 2.5, null, true, \"x\\ny\","
  " \"plain text that is not a short string of Lua, for sure\", {}],"
  " \"b\\u00e9\": {\"c\": [[], [[1]], \"\\ud83d\\ude00 and a long string with an escape in it: \\t, and some more of it\"]}}";
int main(void) {
  long n, failed = 0;
  for (n = 1; n < 100000; n++) {
    left = -1;
    lua_State *L = lua_newstate(alloc, NULL);
    lua_newtable(L);
    pyr_lua_open_json(L);
    lua_getfield(L, -1, "json_decode");
    lua_pushlstring(L, text, sizeof text - 1);
    lua_pushinteger(L, 64);
    lua_pushinteger(L, 1000);
    left = n;
    int status = lua_pcall(L, 3, 1, 0);
    long unused = left;
    left = -1;
    if (status == LUA_OK && unused > 0) {
      lua_getfield(L, -1, "b\303\251");
      printf("%ld failures, then %s\n", failed, luaL_typename(L, -1));
      lua_close(L);
      return 0;
    }
    if (status == LUA_ERRMEM) failed++;
    else if (status != LUA_OK) return printf("status %d: %s\n", status, lua_tostring(L, -1)), 1;
    lua_close(L);
  }
  return 1;
}
]==])
    local build = os.getenv "PYRAMID_BUILD" or "build"
    local flags = os.getenv "PYRAMID_CFLAGS" or "-O2"
    local command = ("${CC:-cc} -std=c11 -D_GNU_SOURCE %s -Ilua -Icore $(pkg-config --cflags "
      .. "lua5.4) -o %s %s %s/obj/lua/ljson.o "
      .. "-llua5.4 -lm -ldl 2>&1 && %s 2>&1"):format(flags, program, source, build, program)
    local pipe = io.popen(command)
    local out = pipe:read "a"
    local ok = pipe:close()
    os.remove(program)
    os.remove(source)
    assert.is_true(ok, out)
    local count = tonumber(out:match "^(%d+) failures, then table")
    assert.is_true(count and count > 10, out)
  end)
end)

it("has no cjson among the modules that ship", function()
  for _, kind in ipairs { "module", "script", "policy" } do
    for _, name in ipairs(core.bundled_list(kind)) do
      assert.is_nil(core.bundled(kind, name):find('require%s*%(?%s*["\']cjson'), name)
    end
  end
end)
