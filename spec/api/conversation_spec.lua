-- model:conversation and model:chat from Lua: what is read of each turn, plain texts, formats and
-- their options. (What a C host sees of conversations is in hosts_spec.lua; what `pyramid chat`
-- prints in scripts_spec.lua.)
local chat = require "pyramid.chat"
local helper = require "spec.helper"
local json = require "pyramid.json"
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

describe("a conversation told otherwise", function()
  local say = { max_tokens = 7, sampler = { temperature = 0 } }

  -- What a conversation says that is told all of it at once, and never of what was taken back.
  local function fresh(model, given, told, question)
    local talk <close> = assert(model:conversation(given))
    for _, one in ipairs(told) do assert(talk:add(one[1], one[2])) end
    local stats = assert(talk:say(question, say))
    return talk.reply, stats.prompt_tokens
  end

  it("takes turns back, and its cache goes back with them", function()
    for _, format in ipairs { "none", "chatml" } do
      local talk <close> = assert(tiny:conversation { format = format, dtype = "f32" })
      local replies, tokens = {}, {}
      local questions = { "The box was blue.", " It rained.", " Toby had a dog." }
      for i, text in ipairs(questions) do
        assert(talk:say(text, say))
        replies[i], tokens[i] = talk.reply, talk.cache:tokens()
      end
      assert.equal(" Toby had a dog.", talk:undo())
      assert.equal(4, #talk.messages)
      assert.equal(tokens[2], talk.cache:tokens())
      assert(talk:say(" Toby had a dog.", say))
      assert.equal(replies[3], talk.reply)
      for i = 3, 2, -1 do
        assert.equal(questions[i], talk:undo())
        assert.equal(tokens[i - 1], talk.cache:tokens())
      end
      assert(talk:say(" It rained.", say))
      assert.equal(replies[2], talk.reply)
      assert.equal(tokens[2], talk.cache:tokens())
      talk:undo()
      assert.equal("The box was blue.", talk:undo())
      assert.same({}, talk.messages)
      assert.is_nil(talk.cache)
      local none, message, code = talk:undo()
      assert.is_nil(none)
      assert.equal("argument", code)
      assert.matches("nothing was said", message)
      assert(talk:say("The box was blue.", say))
      assert.equal(replies[1], talk.reply)
      assert.equal(0, talk.rereads)
    end
  end)

  it("reads anew where a policy has evicted what a turn needs", function()
    local talk <close> = assert(tiny:conversation { format = "none",
      policy = pyramid.policy("h2o", { rows = 16 }) })
    local long = ("The box was blue and the lamp was red. "):rep(4)
    assert(talk:say(long, say))
    assert(talk:say(" It rained.", { max_tokens = 40 }))
    talk:undo()
    assert.equal(2, #talk.messages)
    assert(talk:say(" It rained.", say))
    assert.equal(1, talk.rereads)
  end)

  it("takes back what has no answer, and what tools said", function()
    local talk <close> = assert(tiny:conversation { format = "chatml", system = "Be brief." })
    assert(talk:say("The box was blue.", say))
    local tokens = talk.cache:tokens()
    assert(talk:add("user", "Was it?"))
    assert.equal("Was it?", talk:undo())
    assert.equal(tokens, talk.cache:tokens())
    assert.equal(3, #talk.messages)
    assert(talk:say("What rained?", say))
    assert(talk:say({ role = "tool", content = "Cats." }, say))
    assert.equal(7, #talk.messages)
    assert.equal("What rained?", talk:undo())
    assert.equal(3, #talk.messages)
    assert.equal(tokens, talk.cache:tokens())
  end)

  it("does so in a fork, and in one of a file", function()
    local path = folder .. "/it.chat"
    local talk <close> = assert(tiny:conversation { format = "none", dtype = "f32" })
    assert(talk:say("The box was blue.", say))
    assert(talk:say(" It rained.", say))
    local reply = talk.reply
    local fork <close> = assert(talk:fork())
    fork:undo()
    assert(fork:say(" It rained.", say))
    assert.equal(reply, fork.reply)
    assert.equal(4, #talk.messages)
    assert(talk:save(path))
    local loaded <close> = assert(tiny:load_conversation(path, { format = "none", dtype = "f32" }))
    assert.equal(" It rained.", loaded:undo())
    assert(loaded:say(" It rained.", say))
    assert.equal(1, loaded.rereads)
    assert.equal(4, #loaded.messages)
    -- the messages alone: the cache is made anew
    assert(talk:save(path, { cache = false }))
    assert.is_true(#helper.read(path) < 4000)
    local bare <close> = assert(tiny:load_conversation(path, { format = "none", dtype = "f32" }))
    assert.same(talk.messages, bare.messages)
    assert.is_nil(bare.cache)
    assert(bare:say(" Toby had a dog.", say))
    assert(talk:set_policy "full")
    assert(talk:say(" Toby had a dog.", say))
    assert.equal(talk.reply, bare.reply)
  end)

  it("has another system message, or none", function()
    local o = { format = "chatml", dtype = "f32" }
    local with = { format = "chatml", dtype = "f32", system = "You are Rex." }
    local talk <close> = assert(tiny:conversation(o))
    assert(talk:say("Who?", say))
    local first = talk.reply
    assert(talk:set_system "You are Rex.")
    assert(talk:say("Where?", say))
    local wanted, count = fresh(tiny, with, { { "user", "Who?" }, { "assistant", first } },
      "Where?")
    assert.equal(wanted, talk.reply)
    assert.is_true(talk.cache:tokens() >= count)
    assert.equal(1, talk.rereads)
    local second = talk.reply
    assert(talk:set_system "You are Rex.")                   -- no change, and nothing read anew
    assert(talk:say("When?", say))
    assert.equal(1, talk.rereads)
    talk:undo()
    assert(talk:set_system(nil))
    assert(talk:say("When?", say))
    assert.equal(2, talk.rereads)
    assert.equal((fresh(tiny, o, { { "user", "Who?" }, { "assistant", first },
      { "user", "Where?" }, { "assistant", second } }, "When?")), talk.reply)
    assert.error_matches(function() talk:set_system(5) end, "a text is wanted, or nil")
    local plain <close> = assert(tiny:conversation { format = "none" })
    local none, message, code = plain:set_system "x"
    assert.is_nil(none)
    assert.equal("argument", code)
    assert.matches("texts alone", message)
    assert.same({}, plain.messages)
    local picky <close> = assert(tiny:conversation { format = "{% for m in messages %}"
      .. "{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
      .. "{{ m.content }}{% endfor %}" })
    none, message = picky:set_system "x"
    assert.is_nil(none)
    assert.matches("no system here", message)
    assert.same({}, picky.messages)
  end)

  it("has another policy, under which all of it is read again", function()
    local talk <close> = assert(tiny:conversation { format = "none", dtype = "f32" })
    local long = ("The box was blue and the lamp was red. "):rep(4)
    assert(talk:say(long, say))
    local first = talk.reply
    local none, message, code = talk:set_policy "nonesuch"
    assert.is_nil(none)
    assert.is_string(message)
    assert.is_string(code)
    assert.is_true(talk.cache:tokens() > 0)                  -- it stays as it is
    assert(talk:set_policy(pyramid.policy("streaming", { rows = 16 })))
    assert.equal(2, #talk.messages)
    assert(talk:say(" It rained.", say))
    assert.equal(1, talk.rereads)
    assert.is_true(talk.cache:fraction() < 0.6)
    assert.equal((fresh(tiny, { format = "none", dtype = "f32",
      policy = pyramid.policy("streaming", { rows = 16 }) }, { { "user", long },
        { "assistant", first } },
      " It rained.")), talk.reply)
    local other <close> = assert(talk:fork())
    assert(other:set_policy "full")
    assert(talk:say(" It rained.", say))                     -- the fork's policy is its own
    assert.is_true(talk.cache:fraction() < 0.6)
  end)

  it("keeps what was written of a stop text where an answer is ended within it", function()
    local whole <close> = assert(tiny:conversation { format = "none", dtype = "f32" })
    assert(whole:say("The box was blue.", { max_tokens = 20 }))
    local stop = whole.reply:sub(9, 16)
    local talk <close> = assert(tiny:conversation { format = "none", dtype = "f32" })
    local held
    assert(talk:say("The box was blue.", { max_tokens = 20, stop = stop .. "\1",
      on_piece = function(_, _, run)
        held = run.pending ~= "" and run.pending or held
        return held ~= nil
      end }))
    assert.equal("closed", talk.finish)
    assert.equal(stop:sub(1, #held), held)
    assert.equal(whole.reply:sub(1, #talk.reply), talk.reply)
    assert.equal(held, talk.reply:sub(-#held))
    local reply = talk.reply
    assert(talk:say(" It rained.", say))
    assert.equal(0, talk.rereads)
    assert.equal((fresh(tiny, { format = "none", dtype = "f32" }, { { "user",
      "The box was blue." }, { "assistant", reply } }, " It rained.")), talk.reply)
  end)

  it("raises where it is closed", function()
    local talk = assert(tiny:conversation { format = "none" })
    talk:close()
    assert.error_matches(function() talk:undo() end, "closed")
    assert.error_matches(function() talk:set_policy "full" end, "closed")
  end)
end)

describe("tools in a conversation", function()
  -- Tools, their calls and their answers as a template tells them.
  local format = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}"
    .. "<|im_start|>{{ m.role }} {{ m.name }}:{% if m.content is string %}{{ m.content }}"
    .. "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    .. "{% for c in m.tool_calls %}({{ c.function.arguments | tojson }}){% endfor %}<|im_end|>"
    .. "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
  local tools = { { name = "look", parameters = { type = "object", properties = {} } } }
  local arguments = json.decode('{"z": 1, "a": {}, "l": []}', { ordered = true })
  local call = { role = "assistant", tool_calls = { { type = "function",
    ["function"] = { name = "look", arguments = arguments } } } }

  local function read_as(wanted, talk, given)
    local stats = assert(talk:say(given, { max_tokens = 2 }))
    assert.equal(#assert(small:encode(wanted, { add = false })), stats.prompt_tokens)
    return talk.reply
  end

  it("reach the template, with all that messages hold, and are in a saved one", function()
    local talk <close> = assert(small:conversation { format = format, tools = tools })
    assert(talk:add("user", "look"))
    assert(talk:add(call))
    local begins = '[look]<|im_start|>user :look<|im_end|><|im_start|>assistant :'
      .. '({"z": 1, "a": {}, "l": []})<|im_end|>'
    local answer = read_as(begins .. "<|im_start|>tool look:5<|im_end|><|im_start|>", talk,
      { role = "tool", name = "look", content = "5" })
    assert.equal(answer, talk.messages[4].content)
    local path = folder .. "/tools.talk"
    assert(talk:save(path))
    local again <close> = assert(small:load_conversation(path, { format = format, tools = tools }))
    assert.same(talk.messages, again.messages)
    local reply = talk.reply
    local more = { { type = "text", text = "and " }, { type = "text", text = "more" } }
    assert(talk:say(more, { max_tokens = 4 }))
    assert(again:say(more, { max_tokens = 4 }))
    assert.equal(talk.reply, again.reply)
    assert.equal(0, again.rereads)
    -- an answer told another way is not what the cache holds: it is read again
    talk.messages[4] = call
    assert(talk:say("x", { max_tokens = 1 }))
    assert.equal(1, talk.rereads)
    assert.is_string(reply)
  end)

  it("are refused where there is no format, and messages that are none raise", function()
    for _, given in ipairs { { tools = tools }, { variables = {} }, { documents = {} } } do
      given.format = "none"
      assert.equal("argument", select(3, small:conversation(given)))
    end
    local plain <close> = assert(small:conversation { format = "none" })
    for _, message in ipairs { call, { role = "user", content = { { type = "text" } } } } do
      assert.equal("argument", select(3, plain:add(message)))
      assert.equal("argument", select(3, plain:say(message)))
    end
    local talk <close> = assert(small:conversation { format = format })
    for _, odd in ipairs { { role = "user" }, { role = 5, content = "x" } } do
      assert.error_matches(function() talk:add(odd) end, "conversation:add: ")
      assert.error_matches(function() talk:say(odd) end, "conversation:say: ")
    end
    assert.error_matches(function() talk:add "user" end, "a role and a text are wanted")
    assert.equal(0, #talk.messages)
    talk.messages[1] = { role = "user", content = "x", look = print }
    local none, message, code = talk:save(folder .. "/odd.talk")
    assert.is_nil(none)
    assert.equal("conversation:save: message 1 holds a function", message)
    assert.equal("argument", code)
  end)

  it("saved by version 1, with a role and a text for each message, still load", function()
    local talk <close> = assert(small:conversation())
    assert(talk:say("hello", { max_tokens = 3 }))
    local path = folder .. "/old.talk"
    local cache <close> = assert(talk.cache:fork())
    local ids = string.pack("<s8", string.pack("<i4", 5))
    assert(cache:save(path, "pyramid conversation 1\n" .. string.pack("<s8i8i8i8s8s8", "", 0, 0, 1,
      "user", "a\0b") .. ids .. ids))
    local old <close> = assert(small:load_conversation(path))
    assert.same({ { role = "user", content = "a\0b" } }, old.messages)
    for _, note in ipairs { "pyramid conversation 3\n", "pyramid conversation 2\n",
      "pyramid conversation 2\n" .. string.pack("<s8i8i8i8", "", 0, 0, 1) .. "l\xff",
      "pyramid conversation 2\n" .. string.pack("<s8i8i8i8", "", 0, 0, 1) .. "t" .. ids .. ids,
      "pyramid conversation 2\n" .. string.pack("<s8i8i8i8", "", 0, 0, 1)
        .. string.pack("<c1i8", "l", 1):rep(200) } do
      assert(cache:save(path, note))
      local none, message, code = small:load_conversation(path)
      assert.is_nil(none)
      assert.equal("format", code, message)
    end
  end)
end)

describe("model:generate with messages", function()
  it("is model:chat", function()
    local messages = { { role = "user", content = "hello" } }
    local run <close> = assert(small:generate(messages, { max_tokens = 12, logprobs = true }))
    local wanted <close> = assert(small:chat(messages, { max_tokens = 12 }))
    assert.equal(text_of(wanted), text_of(run))
    assert.equal(run.stats.generated_tokens, #run.logprobs)
    local told <close> = assert(small:generate(messages, { max_tokens = 0, thinking = true,
      tools = { {}, {} }, format = "{{ enable_thinking }}{{ tools | length }}" }))
    assert.equal(#assert(small:encode("True2", { add = false })), told.stats.prompt_tokens)
    assert.error_matches(function() small:generate { { role = "user" } } end,
      "model:generate: the content of message 1 is neither a text nor parts", 1, true)
    assert.error_matches(function() small:generate("hello", { tools = {} }) end,
      "model:generate: unknown option 'tools'", 1, true)
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
