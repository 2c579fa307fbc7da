-- The world generator: the same documents everywhere, and questions whose answers stand where they
-- say.
local world = require "pyramid.tools.world"

-- FNV-1a, 64 bits.
local function hash(s)
  local h = 0xcbf29ce484222325
  for i = 1, #s do h = (h ~ s:byte(i)) * 0x100000001b3 end
  return ("%016x"):format(h)
end

describe("the world generator", function()
  it("makes a document of its seed and options alone", function()
    assert.are.equal(world.document(7, { words = 200 }).text,
      world.document(7, { words = 200 }).text)
    assert.are_not.equal(world.document(7, { words = 200 }).text,
      world.document(8, { words = 200 }).text)
  end)

  it("has not changed: the default model was trained on these documents", function()
    local all = {}
    for seed = 1, 50 do all[seed] = world.document(seed, { words = 300 }).text end
    assert.are.equal("946ae754bc22851e", hash(table.concat(all, "\0")))
  end)

  it("keeps to the length asked for", function()
    for _, words in ipairs { 100, 500, 2000 } do
      local document = world.document(world.held_out + words, { words = words, recall = 0 })
      local _, count = document.text:sub(1, document.body_bytes):gsub("%S+", "")
      assert.is_true(count >= words and count < words + 200, count)
    end
  end)

  it("puts answers and evidence where it says", function()
    for seed = world.held_out, world.held_out + 60 do
      local document = world.document(seed, { words = 400 })
      assert.is_true(#document.questions > 0)
      for _, q in ipairs(document.questions) do
        assert.are.equal(q.value, document.text:sub(q.value_bytes[1], q.value_bytes[2]))
        assert.is_truthy(q.answer:find(q.value .. "%.\"?$"))
        assert.are.equal(q.kind == "chain" and 2 or 1, #q.evidence)
        local last = q.evidence[#q.evidence]
        local sentence = document.text:sub(last[1], last[2])
        assert.is_truthy(sentence:find(q.value:match "%S+$", 1, true), sentence .. " / " .. q.value)
        assert.is_truthy(sentence:find("^[\"%u]") and sentence:find("[.\"]$"), sentence)
        for _, span in ipairs(q.evidence) do assert.is_true(span[2] < q.value_bytes[1]) end
      end
    end
  end)

  it("asks for the last place of what moves", function()
    local moved = 0
    for seed = world.held_out, world.held_out + 40 do
      local document = world.document(seed, { words = 300, kinds = { "moved" }, recall = 0 })
      for _, q in ipairs(document.questions) do
        local thing = q.question:match "^Where is (.-) now%?$"
        local body = document.text:sub(1, document.body_bytes)
        local after = body:sub(q.evidence[1][2] + 1)
        assert.is_nil(after:find(thing, 1, true))
        local _, tellings = body:gsub(thing:gsub("%-", "%%-"), "")
        if tellings > 1 then moved = moved + 1 end
      end
    end
    assert.is_true(moved > 20)
  end)

  it("keeps to the kinds asked for, and ends a prompt where the answer begins", function()
    local document = world.document(3, { words = 200, kinds = { "code" }, questions = 4 })
    for _, q in ipairs(document.questions) do
      assert.are.equal("code", q.kind)
      assert.is_truthy(q.value:find "^%d%d%d%d$")
      assert.is_truthy(world.prompt(document, q):find "\nAnswer:$")
    end
  end)

  it("asks what was given, where only that is to be asked", function()
    local document = world.document(9, { words = 200, kinds = { "gift" }, recall = 0,
      questions = 6, ask = 3 })
    assert.are.equal(6, #document.questions)
    for _, q in ipairs(document.questions) do
      assert.is_truthy(q.question:find "^What did %u%l+ give to %u%l+%?$")
    end
  end)

  it("names the options it knows", function()
    assert.has_error(function() world.document(1, { length = 3 }) end,
      "unknown option 'length'; known: ask, density, kinds, questions, recall, title, words")
    assert.has_error(function() world.document(1, { kinds = { "riddle" } }) end,
      "unknown kind 'riddle'; known: attribute, code, gift, moved, verse, chain")
  end)
end)
