-- Text of strangers on a terminal: nothing that it would obey gets there, and lines end at words.
local screen = require "pyramid.tools.screen"
local terminal = require "pyramid.terminal"

-- What a writer of a width writes for pieces.
local function written(width, pieces)
  local parts = {}
  local writer = screen.writer({ write = function(_, text) parts[#parts + 1] = text end,
    flush = function() end }, width)
  for _, piece in ipairs(pieces) do writer:push(piece) end
  writer:finish()
  return table.concat(parts)
end

describe("columns", function()
  it("are two of wide characters, none of those that join, one of bytes that are none", function()
    for text, columns in pairs { [""] = 0, abc = 3, ["日本"] = 4, ["e\u{301}"] = 1, ["é"] = 1,
      ["\xFF\xFEx"] = 3, ["\xE6\x97"] = 2, ["한글"] = 4, ["😀"] = 2, ["\0"] = 0 } do
      assert.equal(columns, terminal.columns(text), ("%q"):format(text))
    end
  end)
end)

describe("safe text", function()
  it("keeps text as it is, with its lines", function()
    for _, text in ipairs { "", "plain", "a\tb\nc", "é 日本 😀", "e\u{301}" } do
      assert.equal(text, screen.safe(text))
    end
    assert.equal("a\nb", screen.safe "a\r\nb")
  end)

  it("shows what a terminal would obey", function()
    for text, shown in pairs { ["\27[2J"] = "^[[2J", ["\7"] = "^G", ["a\rb"] = "a^Mb",
      ["\0"] = "^@", ["\127"] = "^?", ["\u{9B}31m"] = "<U+009B>31m", ["\u{202E}x"] = "<U+202E>x",
      ["\u{2066}"] = "<U+2066>", ["\xFF"] = "\u{FFFD}", ["a\xE6\x97"] = "a\u{FFFD}\u{FFFD}",
      ["\8\8x"] = "^H^Hx", ["\14"] = "^N" } do
      assert.equal(shown, screen.safe(text))
    end
  end)

  it("lets no byte through that is none of text, whatever it is given", function()
    math.randomseed(os.time())
    for _ = 1, 300 do
      local bytes = {}
      for i = 1, math.random(0, 40) do bytes[i] = string.char(math.random(0, 255)) end
      local text = table.concat(bytes)
      for _, out in ipairs { screen.safe(text), written(math.random(4, 30), bytes) } do
        assert.is_truthy(utf8.len(out))
        for _, code in utf8.codes(out) do
          assert.is_true(code == 10 or code == 9 or code >= 32 and code < 127 or code >= 160)
        end
      end
    end
  end)
end)

describe("a writer", function()
  it("breaks lines at words, however the text is cut into pieces", function()
    local text = "The quick brown fox  jumps over the lazy dog.\n\n    indented text goes on\nlast"
    local wanted = "The quick\nbrown fox\njumps over\nthe lazy\ndog.\n\n    indented\n"
      .. "text goes on\nlast\n"
    assert.equal(wanted, written(12, { text }))
    for _ = 1, 20 do
      local pieces, at = {}, 1
      while at <= #text do
        local n = math.random(1, 5)
        pieces[#pieces + 1], at = text:sub(at, at + n - 1), at + n
      end
      assert.equal(wanted, written(12, pieces))
    end
  end)

  it("breaks words that are wider than a line, and between wide characters", function()
    assert.equal("abcde\nfghij\nk lm\n", written(5, { "abcdefghijk lm" }))
    assert.equal("日本\n語日\n本x\n", written(5, { "日本語日本x" }))
    assert.equal("日本\n", written(5, { "\xE6", "\x97", "\xA5", "\xE6\x9C", "\xAC" }))
    assert.equal("ab\ncdefg\n", written(5, { "ab cdefg" }))
  end)

  it("never writes a wider line, and loses no character", function()
    local alphabet = { "a", "bc", " ", "  ", "\n", "\t", "日", "é", "e\u{301}", "-", "\27[1m",
      "longerword" }
    for _ = 1, 200 do
      local pieces, width = {}, math.random(8, 40)
      for i = 1, math.random(1, 60) do pieces[i] = alphabet[math.random(#alphabet)] end
      local out = written(width, pieces)
      for line in out:gmatch "[^\n]*" do
        assert.is_true(terminal.columns(line) <= width, ("%d: %q"):format(width, line))
      end
      local function bare(text) return (text:gsub("%s", "")) end
      assert.equal(bare(screen.safe(table.concat(pieces))), bare(out))
    end
  end)

  it("folds a text whole", function()
    assert.equal("one two\nthree", screen.fold("one two three", 8))
    assert.equal("", screen.fold("", 8))
    assert.equal("a\n\nb", screen.fold("a\n\nb", 8))
  end)
end)
