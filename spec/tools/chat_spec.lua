-- pyramid chat as somebody meets it who sits at a terminal. What it says to files and pipes is in
-- scripts_spec.lua.
local helper = require "helper"
local pyramid = require "pyramid"
local shell = require "support.shell"
local terminal = require "pyramid.terminal"
local typist = require "support.typist"

local it = helper.cpu_only("what is typed and shown, whatever computes", it)
local tiny = "models/tiny"
local ASK = "> $"                  -- the prompt, and nothing behind it

describe("pyramid chat at a terminal", function()
  local folder

  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)
  before_each(function() os.execute("rm -rf " .. folder .. "/state") end)

  -- Begins a chat and waits until it asks.
  local function begin(arguments, given)
    given = given or {}
    local t = typist.start(("env -u LC_ALL %s TERM=%s XDG_STATE_HOME=%s/state %s chat %s"):format(
      given.env or "NO_COLOR=1", given.term or "xterm", folder, shell.quote(shell.program),
      arguments or "-t 0 -n 12 --template none"), given)
    t:expect(given.ask or ASK)
    return t
  end

  -- Types a line, and gives what is shown until it asks again.
  local function say(t, line, ask)
    t:type(line .. "\r")
    t:expect "\n"
    t:expect(ask or ASK)
    return (t.before:gsub("\27%[%?2004%l\r?", ""):gsub("\r", ""))
  end

  local function leave(t, how)
    t:type(how or "\4")
    assert.equal(0, t:finish())
    t:close()
  end

  -- With the library that edits lines, where it is installed, and without it.
  local readers = { ["--no-edit"] = "-t 0 -n 12 --template none --no-edit" }
  if terminal.library() then readers.library = "-t 0 -n 12 --template none" end

  it("finds a library that edits lines", function()
    if not terminal.library() then pending(select(2, terminal.library())) end
    assert.matches("^readline %d", terminal.library())
  end)

  for name, arguments in pairs(readers) do
    describe("with " .. name, function()
      it("ends an answer at Ctrl-C, keeps what there is of it, and goes on", function()
        local path = folder .. "/cut.chat"
        local t <close> = begin((arguments:gsub("12", "-1")))
        t:type "The box was blue\r"
        t:expect "blue\r\n"
        t:expect "%l%l%l %l%l%l?"
        t:type "\3"
        t:expect "\n"
        t:expect(ASK)
        say(t, "/save " .. path)
        assert.matches("1 turn, ", say(t, "/stats"))
        local model <close> = assert(pyramid.model(tiny))
        local talk <close> = assert(model:load_conversation(path, { format = "none" }))
        local partial = talk.messages[2].content
        assert.equal("assistant", talk.messages[2].role)
        assert.is_true(#partial > 4)
        -- what follows is what a model says that has read both
        local run <close> = assert(model:generate(
          "The box was blue" .. partial .. " and Rex",
          { max_tokens = 2000, dtype = "f16" }))
        local wanted = ""
        for piece in run do
          wanted = wanted .. piece
          if #wanted > 30 then break end
        end
        t:type " and Rex\r"
        t:expect "Rex\r\n"
        t:expect "%l%l%l %l%l%l?[^\n]*\n"
        t:type "\3"
        t:expect(ASK)
        local got = t.shown:match(".* and Rex\r\n(.*)$"):gsub("\27%[%?2004%l\r?", "")
          :gsub("%^C", ""):gsub("\r?\n", " ")
        assert.equal(wanted:sub(1, 20):gsub("\n", " "), got:sub(1, 20))
        assert.matches("2 turns, ", say(t, "/stats"))
        leave(t)
      end)

      it("clears the line at Ctrl-C, and ends at the second, or at Ctrl-D", function()
        local t <close> = begin(arguments)
        t:type "never said"
        t:expect "never said"
        t:type "\3"
        t:expect(ASK)
        assert.not_matches("once more", t.before)
        assert.equal("once", say(t, "/set max_tokens=0") == "" and "once")
        t:type "\3"
        t:expect "Ctrl%-C once more"
        t:expect(ASK)
        t:type "x"                                 -- a line between them: it begins anew
        t:expect "x"
        t:type "\3"
        t:expect(ASK)
        t:type "\3"
        t:expect "Ctrl%-C once more"
        t:expect(ASK)
        leave(t, "\3")
        assert.not_matches("never said.*never said", t.shown)
      end)

      it("shows the line again when it goes on after a stop", function()
        local t <close> = begin(arguments)
        t:type "half"
        t:expect "half"
        t.pty:signal(19)
        t:look(0.2)
        t.pty:signal(18)
        if name == "library" then t:expect "> half" end
        t:type " a line\27\rtwo\r"                          -- Alt-Enter breaks a line
        t:expect "two"
        t:expect(ASK)
        leave(t)
        assert.equal("half a line\\ntwo\n",
          helper.read(folder .. "/state/pyramid/chat_history"))
      end)

      it("takes what is pasted for one message, with its lines", function()
        local path = folder .. "/pasted.chat"
        local t <close> = begin(arguments)
        t:paste "/one\ntwo \27 \t日本\nthree"
        t:expect "three"
        t:type "\r"
        t:expect "\n"
        t:expect(ASK)
        say(t, "/save " .. path)
        local model <close> = assert(pyramid.model(tiny))
        local talk <close> = assert(model:load_conversation(path, { format = "none" }))
        assert.equal(2, #talk.messages)
        assert.matches("^/one\ntwo .*\t日本\nthree$", talk.messages[1].content)
        leave(t)
      end)

      it("cuts no line, and no character", function()
        local path = folder .. "/long.chat"
        local t <close> = begin(arguments)
        local words = ("the 日本語 é "):rep(500)          -- 10,000 bytes
        assert.equal(8500, #words)
        words = words .. ("x"):rep(10000 - #words)
        t:type(words)
        t:expect(("x"):rep(15))
        t:type "\r"
        t:expect "\n"
        t:expect(ASK)
        for _, byte in ipairs { "\xE6", "\x97", "\xA5", "\xE6\x9C", "\xAC" } do
          t:type(byte)                                 -- 日本, byte by byte
          t:look(0.05)
        end
        t:type "\127x\r"                             -- a character is rubbed out whole
        t:expect "\n"
        t:expect(ASK)
        say(t, "/save " .. path)
        local model <close> = assert(pyramid.model(tiny))
        local talk <close> = assert(model:load_conversation(path, { format = "none" }))
        assert.equal("日x", talk.messages[#talk.messages - 1].content)
        leave(t)
        local history = helper.read(folder .. "/state/pyramid/chat_history")
        assert.equal(words .. "\n日x\n/save " .. path .. "\n", history)
      end)
    end)
  end

  it("takes any keys, where it reads them itself", function()
    math.randomseed(os.time())
    local t <close> = begin "-t 0 -n 1 --template none --no-edit --no-history"
    for _ = 1, 20 do
      local keys = {}
      for i = 1, 200 do
        local byte = math.random(0, 255)
        -- not those by which the terminal itself stops, ends or signals, while there is an answer
        keys[i] = ("\3\4\19\26\28"):find(string.char(byte), 1, true) and "\27[200~"
          or string.char(byte)
      end
      t:type(table.concat(keys))
      t:look(0.01)
    end
    -- twice: the first may follow a key that takes the next as it is
    t:type "\27[201~\r\27[201~\r/set seed=12345\r/set\r"
    t:expect "seed = 12345"
    t:expect(ASK)
    leave(t)
  end)

  it("reads whole lines of any length where there is no terminal", function()
    local model <close> = assert(pyramid.model(tiny))
    local words = ("the box was blue "):rep(400)            -- 6,800 bytes
    helper.write(folder .. "/said", words .. "\n/stats\n")
    local out = shell.run(("%s chat -n 0 --template none <%s/said"):format(
      shell.quote(shell.program), folder))
    assert.matches((", %d tokens seen"):format(#model:encode(words)), out)
  end)

  it("wraps at words where the terminal ends, and follows its window", function()
    local t <close> = begin("-t 0 -n -1 --template none", { columns = 20 })
    t:type "Once upon\r"
    t:expect "upon\r\n"
    t:expect "[^\n]*\n[^\n]*\n"
    t.pty:resize(31, 24)
    t:expect "[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n"
    local shown = t.shown                 -- a terminal throws away what is under way at a Ctrl-C
    t:type "\3"
    t:expect(ASK)
    local lines, widest = {}, 0
    for line in shown:match "Once upon\r\n(.*)\r\n[^\n]*$":gmatch "[^\r\n]+" do
      line = line:gsub("\27%[%?2004%l\r?", "")
      lines[#lines + 1] = line
      widest = math.max(widest, utf8.len(line))
    end
    assert.is_true(#lines >= 6)
    assert.is_true(utf8.len(lines[1]) <= 20 and utf8.len(lines[2]) <= 20, lines[1])
    assert.is_true(widest > 20 and widest <= 31, tostring(widest))
    -- at words: put together, the lines are what the model says
    local text = table.concat(lines, " ")
    local model <close> = assert(pyramid.model(tiny))
    local run <close> = assert(model:generate("Once upon", { max_tokens = 400 }))
    local wanted = ""
    for piece in run do wanted = wanted .. piece end
    text = text:match "^%s*(.-)%s*$"
    assert.equal(wanted:match "^%s*(.*)$":gsub("%s+", " "):sub(1, #text), text)
    for _, command in ipairs { "/stats", "/memory", "/help", "/set" } do
      t.pty:resize(24, 24)
      for line in say(t, command):gmatch "[^\n]+" do
        assert.is_true(terminal.columns(line) <= 24, line)
      end
    end
    leave(t)
  end)

  it("sends nothing to the terminal that it would obey", function()
    local hostile = folder .. "/hostile.gbnf"
    helper.write(hostile, [[root ::= "hi \x1b[31m \x1b]0;owned\x07 \r\x7f \x9b2J \u202E end"]] .. "\n")
    local t <close> = begin("-t 0 --template none --grammar " .. hostile, { columns = 100 })
    local shown = say(t, "x")
    assert.equal("hi ^[[31m ^[]0;owned^G ^M^? <U+009B>2J <U+202E> end\n", shown)
    assert.not_matches("\27%[31m", t.shown)
    assert.not_matches("\27%]", t.shown)
    assert.not_matches("[\a\127]", t.shown)
    -- what it said is still what it said
    say(t, "/save " .. folder .. "/hostile.chat")
    leave(t)
    local model <close> = assert(pyramid.model(tiny))
    local talk <close> = assert(model:load_conversation(folder .. "/hostile.chat",
      { format = "none" }))
    assert.matches("\27[31m", talk.messages[2].content, 1, true)
  end)

  it("sends no control sequences where TERM is dumb, and no colours where NO_COLOR is set",
    function()
      local t = begin(nil, { term = "dumb", env = "" })
      say(t, "The box was blue.")
      say(t, "/memory")
      leave(t)
      assert.not_matches("\27", t.shown)
      t = begin(nil, {})
      say(t, "The box was blue.")
      say(t, "/memory")
      leave(t)
      assert.not_matches("\27%[[%d;]*m", t.shown)
      t = begin(nil, { env = "-u NO_COLOR", ask = "> \27%[0m$" })
      assert.matches("\27%[[%d;]*m", t.shown)
      leave(t)
    end)

  it("has a seed of its own each time, unless one is given", function()
    local seen = {}
    for i = 1, 2 do
      local t <close> = begin "-n 12 --template none"
      seen[i] = say(t, "/set"):match "seed = (%d+)"
      leave(t)
    end
    assert.not_equal(seen[1], seen[2])
    local t <close> = begin "-n 12 --template none --seed 7"
    assert.matches("seed = 7\n", say(t, "/set"))
    local first = say(t, "Once")
    say(t, "/reset")
    assert.equal(first, say(t, "Once"))
    leave(t)
  end)

  it("keeps its history where nobody else reads it, and no more than a thousand lines", function()
    local path = folder .. "/state/pyramid/chat_history"
    os.execute(("mkdir -p %s/state/pyramid"):format(folder))
    local lines = {}
    for i = 1, 1500 do lines[i] = "said " .. i end
    helper.write(path, table.concat(lines, "\n") .. "\n")
    os.execute("chmod 644 " .. path)
    local t = begin()
    if terminal.library() then
      t:type "\27[A"                                          -- what was said last
      t:expect "said 1500"
      t:type "\21"
    end
    say(t, "back\\slash")
    leave(t)
    local kept = helper.read(path)
    assert.equal(1001, select(2, kept:gsub("\n", "")))
    assert.matches("^said 501\n", kept)
    assert.matches("said 1500\nback\\\\slash\n$", kept)
    assert.equal("600\n", (shell.run("stat -c %a " .. path)))
    t = begin "-t 0 -n 1 --template none --no-history"
    say(t, "secret")
    leave(t)
    assert.equal(kept, helper.read(path))
  end)

  it("completes commands and what they take", function()
    if not terminal.library() then pending(select(2, terminal.library())) end
    local t <close> = begin()
    t:type "/mem\t"
    t:expect "/memory "
    t:type "\21/policy snap\t"
    t:expect "/policy snapkv "
    t:type "\21/set top_\t\t"
    t:expect "top_k=.*top_p="
    t:type "\21/load models/ti\t"
    t:expect "models/tiny/"
    t:type "\21"
    leave(t)
  end)

  it("gives a message up at Ctrl-C while it is read", function()
    local t <close> = begin("-t 0 -n 4 --template none --max-context 100000 --cache-dtype f32",
      { columns = 60 })
    t:paste(("the box was blue "):rep(4000))
    t:expect "blue "                                         -- the rest goes in while one waits
    t:type "\r"
    t:expect "prefill of %d+ tokens.-%%"                     -- the bar is shown
    t:type "\3"
    t:expect "not read"
    t:expect(ASK)
    assert.matches("\27%[K", t.shown)                        -- … and taken away
    assert.matches("0 turns, 0 tokens", say(t, "/stats"))
    assert.matches("%w", say(t, "Once"))
    assert.matches("1 turn, ", say(t, "/stats"))
    leave(t)
  end)

  it("gives a message up at Ctrl-C where a policy does not return", function()
    local path = folder .. "/slow.lua"
    helper.write(path, [[
return require "pyramid.policy" { name = "slow", prefill = function() while true do end end }]])
    local t <close> = begin("-t 0 -n 4 --template none --policy-seconds 0 --policy-file " .. path)
    t:type "Once\r"
    t:expect "Once\r\n"
    for _ = 1, 3 do t:look(0.1) end
    t:type "\3"
    t:expect "not read"
    t:expect(ASK)
    say(t, "/policy full")
    assert.matches("%w", say(t, "Once"))
    leave(t)
  end)

  it("is not alone: generate sends no control characters either, and ends at Ctrl-C", function()
    local hostile = folder .. "/hostile.gbnf"
    helper.write(hostile, [[root ::= "hi \x1b[31m" [^x]*]] .. "\n")
    local t <close> = typist.start(("env TERM=xterm NO_COLOR=1 %s generate -n -1 --grammar %s x")
      :format(shell.quote(shell.program), hostile))
    t:expect "hi %^%[%[31m"
    t:type "\3"
    assert.equal(130, t:finish())
    assert.not_matches("\27%[31m", t.shown)
  end)

  it("leaves the terminal as it was, and keeps --resume's conversation, when it is told to end",
    function()
      local line = "-t 0 -n 8 --template none --resume story"
      local t = begin(line)
      say(t, "The box was blue.")
      t.pty:signal(15)
      assert.equal(0, t:finish())
      assert.is_true(t.pty:cooked())
      t:close()
      assert.equal("600\n",
        (shell.run("stat -c %a " .. folder .. "/state/pyramid/chats/story.chat")))
      t = begin(line)
      assert.matches("story.chat: 2\r?\n?%s*messages", t.shown)
      assert.matches("1 turn, ", say(t, "/stats"))
      say(t, " It rained.")
      leave(t)
      t = begin(line)
      assert.matches("2 turns, ", say(t, "/stats"))
      say(t, " Toby had a dog.")
      t.pty:signal(9)                                        -- its messages are there at once
      t:finish()
      t:close()
      t = begin(line)
      assert.matches("story.chat: 6\r?\n?%s*messages", t.shown)
      assert.matches("3 turns, ", say(t, "/stats"))
      say(t, " Rex.")
      assert.matches("4 turns, ", say(t, "/stats"))
      say(t, "/save " .. folder .. "/copy.chat")             -- and the name has it, too
      leave(t)
      t = begin(line)
      assert.matches("4 turns, %d%d tokens", say(t, "/stats"))
      leave(t)
      local out, err, status = shell.run(("XDG_STATE_HOME=%s/state %s chat %s --cache-dtype f32 "
        .. "</dev/null"):format(folder, shell.quote(shell.program), line))
      assert.equal("", out)
      assert.equal(1, status)
      assert.matches("Give the model, %-%-policy and %-%-cache%-dtype that it was kept with", err)
      out, err, status = shell.run(shell.quote(shell.program)
        .. " chat --template none --resume 'x y' </dev/null")
      assert.equal("", out)
      assert.equal(1, status)
      assert.matches("'x y' is no name", err)
    end)
end)

describe("commands of pyramid chat", function()
  local folder

  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  -- What is said to it, line by line: what it prints, and its notes.
  local function talk(said, arguments)
    helper.write(folder .. "/said", said)
    local out, err, status = shell.run(("%s chat -n 12 -t 0 %s <%s/said"):format(
      shell.quote(shell.program), arguments or "--template none", folder))
    assert.equal(0, status, err)
    return out, (err:gsub("^There is no chat format[^\n]*\n", ""))
  end

  it("/help names each of them", function()
    local _, err = talk "/help\n"
    for _, name in ipairs { "help", "save", "load", "regen", "undo", "system", "set", "policy",
      "memory", "stats", "reset", "exit" } do
      assert.matches("/" .. name .. "[^\n]*: ", err)
    end
  end)

  it("/set shows and checks, and changes all it is given or nothing", function()
    local out, err = talk("/set top_k = 5 min_p=0.25 max_tokens=3\n/set\n"
      .. "/set top_k=7 top_p=x\n/set nonsense=1\n/set top_k\n/set top_k=1.5\n/set top_k=-3\n"
      .. "/set max_tokens=-2\n/set seed=99999999999999999999\n/set\n")
    local first, second = out:match "^(temperature.-\nmax_tokens = 3\n)(temperature.*)$"
    assert.equal(first, second)
    assert.matches("top_k = 5\n", first)
    assert.matches("min_p = 0.25\n", first)
    assert.matches("top_p must be a number, not 'x'\n", err)
    assert.matches("there is no setting 'nonsense' %(known: temperature, .*max_tokens%)\n", err)
    assert.matches("'top_k' is not NAME=VALUE\n", err)
    assert.matches("top_k must be an integer, not '1.5'\n", err)
    assert.matches("top_k must be between", err)
    assert.matches("max_tokens must be 0 or more, or %-1\n", err)
    assert.matches("seed must be an integer", err)
  end)

  it("/undo and /regen take turns back", function()
    local alone = talk "The box was blue.\n"
    local out, err = talk("/undo\n/regen\nThe box was blue.\n It rained.\n/undo\n/undo\n/undo\n"
      .. "The box was blue.\n/regen\n/stats\n")
    local one = alone:gsub("%p", "%%%0")
    assert.matches("^" .. one .. ".*" .. one .. one .. "full: 1 turn, ", out)
    assert.equal(3, select(2, err:gsub("nothing was said that could be undone", "")))
    assert.matches("taken back:  ?It rained.\ntaken back: The box was blue.\n", err)
    assert.not_matches("read anew", out)
  end)

  it("/regen draws another answer", function()
    helper.write(folder .. "/said", "The box was blue.\n/regen\n/regen\n")
    local out = shell.run(("%s chat -n 12 --seed 5 -t 1.5 --template none <%s/said"):format(
      shell.quote(shell.program), folder))
    local a, b, c = out:match "^([^\n]*)\n([^\n]*)\n([^\n]*)\n"
    assert.is_true(a ~= b or b ~= c)
  end)

  it("/save and /load take a conversation along", function()
    local path = folder .. "/it.chat"
    local whole = talk("The box was blue.\n It rained.\n")
    local first = talk("The box was blue.\n/save " .. path .. "\n")
    local rest, out, err
    rest, err = talk(("/load %s\n It rained.\n/stats\n"):format(path))
    assert.equal(whole, first .. rest:match "^(.-)full: 2 turns")
    assert.matches("^2 messages, %d+ tokens in the cache\n", err)
    out, err = talk(("/save\n/load\n/save %s/none/x\n/load %s/none\n/load %s/said\n"):format(folder,
      folder, folder))
    assert.matches("^/save needs the name of a file\n/load needs the name of a file\n", err)
    assert.matches("none/x[^\n]*\n[^\n]*none: No such file[^\n]*\n[^\n]*said: ", err)
    assert.equal("", out)
    out, err = talk("/load " .. path .. "\n", "--template none --cache-dtype f32")
    assert.matches("dtype differs", err)
    assert.equal("", out)
    out = talk(("Once\n/load %s/none\n/stats\n"):format(folder))
    assert.matches("1 turn", out)                           -- what was there stays
  end)

  it("/system tells it something else first", function()
    local chatml = "--template chatml --cache-dtype f32 "
    local wanted = talk("Who?\n", chatml .. "--system 'You are Rex.'")
    local out, err = talk("/system\n/system You are Rex.\n/system\nWho?\n", chatml)
    assert.equal("(nothing)\nYou are Rex.\n" .. wanted, out)
    assert.equal("", err)
    out, err = talk("Who?\n/undo\n/system You are Rex.\nWho?\n/system -\n/system\nWhere?\n/stats\n",
      chatml)
    assert.matches("\n" .. wanted:gsub("%p", "%%%0") .. "%(nothing%)\n", out)
    assert.matches("read anew with the next message", err)
    assert.matches("2 turns[^\n]*read anew 1 times", out)
    out, err = talk "/system Be brief.\n"
    assert.equal("", out)
    assert.matches("knows texts alone", err)
  end)

  it("/policy has the conversation read again under another", function()
    local out, err = talk(("The box was blue and the lamp was red. "):rep(4) .. "\n"
      .. "/policy\n/policy streaming rows=16\n/policy\n It rained.\n/stats\n/policy nonesuch\n"
      .. "/policy h2o rows=x\n/policy h2o nonsense=1\n/stats\n")
    assert.matches("\nfull\nstreaming rows=16\n", out)
    assert.matches("streaming rows=16: 2 turns, %d+ tokens seen; [^\n]*read anew 1 times\n", out)
    assert.equal(2, select(2, out:gsub("streaming rows=16: 2 turns", "")))
    assert.is_true(tonumber(out:match ", (%d+%.%d) %% of the rows") < 60)
    assert.matches("read anew with the next message\n", err)
    assert.matches("nonesuch", err)
    assert.matches("option 'rows' must be a number", err)
    assert.matches("unknown option 'nonsense'", err)
  end)

  it("/memory draws what is kept", function()
    local out = talk("/memory\n" .. ("The box was blue and the lamp was red. "):rep(4)
      .. "\n/memory\n", "--template none --policy streaming rows=16")
    assert.matches("nothing is read yet\n", out)
    local model <close> = assert(pyramid.model(tiny))
    for layer = 1, model.config.layers do
      assert.matches(("\n *%d [█▓▒░ ]+ +%%d+\n"):format(layer), out)
    end
  end)

  it("/reset and /exit end what was", function()
    local out, err = talk "Once\n/reset\n/stats\n/exit\nnever said\n"
    assert.matches("forgotten", err)
    assert.matches("0 turns, 0 tokens", out)
    assert.not_matches("never", out)
  end)
end)
