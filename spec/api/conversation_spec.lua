-- model:conversation and model:chat from Lua: what is read of each turn, plain texts, formats and
-- their options. (What a C host sees of conversations is in hosts_spec.lua; what `pyramid chat`
-- prints in scripts_spec.lua.)
local chat = require "pyramid.chat"
local make_model = require "spec.support.small_model"
local pyramid = require "pyramid"
local shell = require "spec.support.shell"

local folder, small, tiny

setup(function()
  folder = shell.folder()
  make_model(folder)
  small = assert(pyramid.model(folder, { threads = 1 }))
  tiny = assert(pyramid.model("models/tiny", { threads = 2 }))
end)
teardown(function()
  small:close()
  tiny:close()
  shell.remove(folder)
end)

local function text_of(run)
  local pieces = {}
  for piece in run do pieces[#pieces + 1] = piece end
  return table.concat(pieces)
end

describe("a conversation", function()
  it("says how many tokens are new before they are read, and whether from the beginning", function()
    local told = {}
    local talk <close> = assert(small:conversation())
    for i, text in ipairs { "hello", "and more" } do
      local first = true
      local stats = assert(talk:say(text, { max_tokens = 6,
        on_prompt = function(tokens, anew) told[i] = { tokens, anew } end,
        on_piece = function() first = first and assert.truthy(told[i]) and false end }))
      assert.same({ stats.prompt_tokens, i == 1 }, told[i])
    end
  end)

  it("goes on as one plain text where format = 'none'", function()
    local talk <close> = assert(tiny:conversation { format = "none", dtype = "f32" })
    local ids = assert(tiny:encode "Once there was a baker")
    for turn, text in ipairs { "Once there was a baker", " who lived\n", " In Tilbury" } do
      if turn > 1 then
        local more = assert(tiny:encode(text, { special = false }))
        table.move(more, 1, #more, #ids + 1, ids)
      end
      local cache <close> = assert(tiny:cache { dtype = "f32" })
      local run, wanted = assert(tiny:generate(ids,
        { cache = cache, max_tokens = 5, ignore_eos = true })), {}
      for piece, id in run do
        wanted[#wanted + 1] = piece
        if #wanted <= 5 then ids[#ids + 1] = id end
      end
      assert(talk:say(text, { max_tokens = 5 }))
      assert.equal(table.concat(wanted), talk.reply)
      assert.equal(talk.reply, talk.messages[#talk.messages].content)       -- with its blanks
      assert.equal(#ids - 1, talk.cache:tokens())                           -- the last pick waits
    end
    assert.equal(0, talk.rereads)
    local none, message, code = tiny:conversation { format = "none", system = "Be brief." }
    assert.is_nil(none)
    assert.equal("argument", code)
    assert.matches("`system` needs a chat format", message)
  end)
end)

describe("model:chat", function()
  local messages = { { role = "system", content = "Be brief." },
    { role = "user", content = "hello" } }

  it("answers as a conversation's first turn, and as the rendered text itself", function()
    local talk <close> = assert(small:conversation { system = "Be brief." })
    assert(talk:say("hello", { max_tokens = 12 }))
    local run <close> = assert(small:chat(messages, { max_tokens = 12 }))
    assert.equal(talk.reply, text_of(run))
    assert.equal(talk.finish, run.finish)
    local rendered = assert(chat.render(small.tokenizer.chat_template, messages,
      { add_generation_prompt = true }))
    local ids = assert(small:encode(rendered, { add = false }))
    assert.equal(#ids, run.stats.prompt_tokens)
    local plain <close> = assert(small:generate(ids, { max_tokens = 12 }))
    assert.equal(text_of(plain), talk.reply)
  end)

  it("gives the template what it asks for", function()
    local format = "{%- for tool in tools %}{{ tool.name }}{% endfor %}{{ enable_thinking }}{{ "
      .. "date_string }}{{ mood }}"
      .. "{% for d in documents %}{{ d.title }}{% endfor %}{{ messages[0].content }}"
    local run <close> = assert(small:chat({ { role = "user", content = "x" } },
      { format = format, tools = { { name = "look" } }, thinking = false, date = "today",
        variables = { mood = "good" }, documents = { { title = "book" } }, max_tokens = 0 }))
    assert.equal(#assert(small:encode("lookFalsetodaygoodbookx", { add = false })),
      run.stats.prompt_tokens)
  end)

  it("ends where a format without tokens of its own would put the next question", function()
    local asked = { { role = "user", content = "Once there was a baker" } }
    local whole = text_of(assert(tiny:generate("Once there was a baker",
      { max_tokens = 30, ignore_eos = true })))
    local piece = whole:sub(20, 24)
    local format = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}" .. piece
      .. "{% endif %}{% endfor %}"
    for _, stop in ipairs { "never", { "never", "ever" } } do
      local run <close> = assert(tiny:chat(asked,
        { format = format, max_tokens = 30, ignore_eos = true, stop = stop }))
      assert.equal(whole:sub(1, whole:find(piece, 1, true) - 1), text_of(run))
      assert.equal("stop", run.finish)
    end
  end)

  it("refuses in words, and raises on misuse", function()
    local none, message, code = small:chat(messages, { format = "nonesuch" })
    assert.is_nil(none)
    assert.equal("unsupported", code)
    assert.matches("known: chatml", message)
    local own = small.tokenizer.chat_template
    small.tokenizer.chat_template = nil
    none, message, code = small:chat(messages)
    small.tokenizer.chat_template = own
    assert.is_nil(none)
    assert.equal("unsupported", code)
    assert.matches("^model:chat: the model has no chat format; name one with `format` %(chatml, ",
      message)
    none, message, code = small:chat({ { role = "user", content = "x" } },
      { format = "{{ raise_exception('not so') }}" })
    assert.is_nil(none)
    assert.equal("argument", code)
    assert.matches("not so", message)
    assert.error_matches(function() small:chat(messages, { tool = {} }) end,
      "model:chat: unknown option 'tool' %(known: .*tools")
    assert.error_matches(function() small:chat "hello" end,
      "model:chat: a sequence of messages is wanted")
    assert.error_matches(function() small:chat {} end,
      "model:chat: a sequence of messages is wanted")
    local cache <close> = assert(small:cache())
    assert(cache:prefill { 5, 6 })
    assert.error_matches(function() small:chat(messages, { cache = cache }) end,
      "the cache holds a text")
  end)
end)
