-- Sessions: a folder of saved caches. What is taken is what would have been read, nothing that is
-- wrong is believed, and nothing that goes wrong loses a prompt.
local core = require "pyramid.core"
local helper = require "spec.helper"
local lfs = require "lfs"
local make_model = require "spec.support.small_model"
local pyramid = require "pyramid"
local shell = require "spec.support.shell"
local quote = shell.quote

local folder, tiny, small

setup(function()
  tiny = assert(pyramid.model("models/tiny", { threads = 2 }))
end)
teardown(function() tiny:close() end)
before_each(function() folder = shell.folder() end)
after_each(function() shell.remove(folder) end)

local function open(given) return assert(pyramid.sessions(folder .. "/store", given)) end

-- Prompts of any ids: the same number begins alike.
local function prompt(seed, tokens)
  local ids = {}
  for i = 1, tokens do ids[i] = 5 + (seed * 7919 + i * i * 31 + i * seed) % 300 end
  return ids
end

local function join(one, other)
  return table.move(other, 1, #other, #one + 1, table.move(one, 1, #one, 1, {}))
end

local function stored()
  local names = {}
  for name in lfs.dir(folder .. "/store") do
    if name:find "%.session$" then names[#names + 1] = folder .. "/store/" .. name end
  end
  table.sort(names)
  return names
end

-- What a cache holds, lane by lane.
local function rows_of(cache, config)
  local out = {}
  for layer = 1, config.layers do
    for head = 1, config.kv_heads do
      out[#out + 1] = table.concat(cache:positions(layer, head), " ")
    end
  end
  return out
end

-- How many rows of all lanes the other has not. Scores of a prompt in two pieces are rounded
-- otherwise in their last bit, so that of two rows as good as each other another may stay.
local function swapped(whole, cache, config)
  local count = 0
  for layer = 1, config.layers do
    for head = 1, config.kv_heads do
      local has = {}
      for _, position in ipairs(cache:positions(layer, head)) do has[position] = true end
      for _, position in ipairs(whole:positions(layer, head)) do
        count = count + (has[position] and 0 or 1)
      end
      assert.equal(whole:rows(layer, head), cache:rows(layer, head))
    end
  end
  return count
end

-- Reads a prompt at once and by a store, goes on with both, and holds one against the other.
local function same_as_at_once(model, policy, store, ids, reused)
  local name = tostring(policy)
  local whole <close> = assert(model:cache { policy = policy, dtype = "f32" })
  local cache <close> = assert(model:cache { policy = policy, dtype = "f32", sessions = store })
  local wanted, logits = assert(whole:prefill(ids)), assert(cache:prefill(ids))
  for turn = 1, 20 do
    local other, off = swapped(whole, cache, model.config), wanted:kl(logits)
    assert.is_true(other <= 2, ("%s: %d rows"):format(name, other))
    assert.is_true(off < (other == 0 and 1e-6 or 1e-2), ("%s: %g"):format(name, off))
    local id = wanted:argmax()
    if turn < 20 then wanted, logits = assert(whole:step(id)), assert(cache:step(id)) end
  end
  assert.equal(whole:tokens(), cache:tokens())
  assert.equal(whole:evicted(), cache:evicted(), name)
  assert.equal(whole:computed(), cache:computed(), name)
  if reused then assert.equal(reused, cache:reused(), name) end
  return cache:reused()
end

describe("a store of sessions", function()
  it("gives what reading at once gives, under every policy, before and after a hit", function()
    local shares, not_shared = 0, {}
    for _, name in ipairs(helper.policies()) do
      local store = open { least = 40 }
      local policy = assert(pyramid.policy(name))
      local ok, message = pcall(function()
        local begins = prompt(1, 150)
        same_as_at_once(tiny, policy, store, join(begins, prompt(2, 90)))
        local again = same_as_at_once(tiny, policy, store, join(begins, prompt(2, 90)))
        local other = same_as_at_once(tiny, policy, store, join(begins, prompt(3, 120)))
        if #store.warnings == 0 then
          assert.is_true(again >= 200 and other >= 150, ("%s: %d, %d"):format(name, again, other))
          shares = shares + 1
        else
          assert.same({ 0, 0 }, { again, other }, name)
          assert.equal(1, #store.warnings)
          assert.matches("^policy .* shares no sessions: it ", store.warnings[1])
          not_shared[name] = true
        end
      end)
      -- policies that want a map, or another model's cache, are the catalogue's to judge
      assert(ok or name == "guided", name .. ": " .. tostring(message))
    end
    assert.is_true(shares >= 12, shares)
    assert.same({ true, true, true, nil, nil }, { not_shared.h2o, not_shared.pyramidinfer,
      not_shared.kvzip, not_shared.snapkv, not_shared.keydiff })
  end)

  it("is shared by policies, as it holds rows before any cut", function()
    local store, ids = open(), prompt(1, 300)
    same_as_at_once(tiny, "snapkv", store, ids, 0)
    same_as_at_once(tiny, "full", store, ids, 268)             -- 300 less a window of 32
    same_as_at_once(tiny, "keydiff", store, ids, 268)
    same_as_at_once(tiny, { name = "mine",
      prefill = function(_, l) return { keep = l.rows // 3, guard = { first = 2 } } end }, store,
      ids, 268)
    assert.equal(1, #stored())
  end)

  it("stores at boundaries, at multiples, and where it saves enough", function()
    local function tokens_of(ids, given, o)
      shell.remove(folder .. "/store")
      local store = open(o)
      for _ = 1, 2 do
        local cache <close> = assert(tiny:cache { sessions = store })
        assert(cache:prefill(ids, given))
      end
      local out = {}
      for i, entry in ipairs(assert(store:list())) do out[i] = entry.tokens end
      table.sort(out)
      return out
    end
    local ids = prompt(4, 500)
    assert.same({ 500 }, tokens_of(ids))
    assert.same({ 200, 500 }, tokens_of(ids, { boundaries = { 200 } }))
    assert.same({ 200 }, tokens_of(prompt(4, 300), { boundaries = { 200 } }))
    assert.same({ 500 }, tokens_of(ids, { boundaries = { 200 } }, { least = 300 }))
    assert.same({ 400 }, tokens_of(ids, { boundaries = { 400, 410, 420 } }))
    assert.same({ 200, 400 }, tokens_of(ids, nil, { every = 200 }))
    assert.same({}, tokens_of(prompt(4, 100)))
  end)

  it("answers 20 requests over one system prompt from one file", function()
    local store, system = open(), prompt(5, 400)
    for request = 1, 20 do
      local cache <close> = assert(tiny:cache { sessions = store })
      assert(cache:prefill(join(system, prompt(5 + request, 30)), { boundaries = { 400 } }))
      assert.equal(request == 1 and 0 or 400, cache:reused())
    end
    assert.equal(1, #stored())
    local batch <close> = assert(tiny:batch { sessions = store })
    local handles = {}
    for i = 1, 3 do handles[i] = assert(batch:add(join(system, prompt(30 + i, 20)))) end
    assert(batch:step())
    for i = 1, 3 do assert.equal(400, handles[i]:reused()) end
  end)

  it("takes nothing of another dtype, model or context", function()
    local ids = prompt(1, 200)
    local function reused(model, given)
      given.sessions = open()
      local cache <close> = assert(model:cache(given))
      assert(cache:prefill(ids))
      return cache:reused(), #given.sessions.warnings
    end
    assert.same({ 0, 0 }, { reused(tiny, { dtype = "f16" }) })
    assert.same({ 0, 0 }, { reused(tiny, { dtype = "q8_0" }) })
    assert.same({ 199, 0 }, { reused(tiny, { dtype = "f16" }) })
    local rounded <close> = assert(pyramid.model("models/tiny", { weights = "q8_0" }))
    assert.same({ 0, 0 }, { reused(rounded, { dtype = "f16" }) })
    os.execute("mkdir " .. folder .. "/model")
    make_model(folder .. "/model")
    small = assert(pyramid.model(folder .. "/model", { threads = 1 }))
    for i, id in ipairs(ids) do ids[i] = id % 150 end
    assert.same({ 0, 0 }, { reused(small, { dtype = "f16" }) })
    assert.same({ 0, 0 }, { reused(tiny, { dtype = "f16" }) })
    small:close()
  end)

  it("believes ids, not names: a file under another prompt's name is found out", function()
    local store, ids = open(), prompt(1, 200)
    local function read(of)
      local cache <close> = assert(tiny:cache { sessions = store })
      assert(cache:prefill(of))
      return cache:reused()
    end
    assert.equal(0, read(ids))
    local honest = stored()[1]
    local other = join(prompt(1, 60), prompt(2, 140))          -- begins alike, for 60 tokens
    assert.equal(0, read(other))
    local names = stored()
    assert.equal(2, #names)
    local lie = names[1] == honest and names[2] or names[1]
    os.remove(honest)
    assert(os.rename(lie, honest))                             -- the name says: all of `ids`
    assert.equal(0, read(ids))
    assert.same({}, store.warnings)
  end)

  it("goes back in an entry that shares a beginning only", function()
    local store = open { least = 32 }
    same_as_at_once(tiny, "full", store, join(prompt(1, 100), prompt(2, 100)), 0)
    same_as_at_once(tiny, "full", store, join(prompt(1, 100), prompt(3, 40)), 100)
    same_as_at_once(tiny, "snapkv", store, join(prompt(1, 100), prompt(3, 40)), 108)
    same_as_at_once(tiny, "full", store, prompt(1, 60), 59)
  end)

  it("does with sliding windows what they allow", function()
    local windowed <close> = assert(pyramid.model(helper.decoder "gemma3", { threads = 2 }))
    local vocab = windowed.config.vocab
    local function ids_of(seed, n)
      local ids = prompt(seed, n)
      for i, id in ipairs(ids) do ids[i] = id % vocab end
      return ids
    end
    local most = windowed.config.context
    assert.is_true(most >= 100)
    local store, ids = open { least = 32 }, ids_of(1, math.min(most, 400) - 40)
    same_as_at_once(windowed, "full", store, ids, 0)
    same_as_at_once(windowed, "full", store, ids, #ids - 1)
  end)

  it("forgets what was used longest ago", function()
    local one = prompt(1, 200)
    local store = open()
    local function read(seed)
      local cache <close> = assert(tiny:cache { sessions = store })
      assert(cache:prefill(prompt(seed, 200)))
      os.execute "sleep 0.02"                                  -- times of files have a grain
      return cache:reused()
    end
    assert.equal(0, read(1))
    local bytes = lfs.attributes(stored()[1]).size
    store = open { bytes = 3 * bytes + 100 }
    assert.same({ 199, 0, 0, 199, 0 }, { read(1), read(2), read(3), read(1), read(4) })
    assert.equal(3, #stored())
    assert.same({ 199, 199, 199 }, { read(1), read(3), read(4) })
    assert.equal(0, read(2))                                   -- 2 was the oldest; now 1 goes
    assert.same({ 199, 199, 199 }, { read(3), read(4), read(2) })
    local few = open { bytes = 1000 }                          -- nothing fits: nothing is stored
    local cache <close> = assert(tiny:cache { sessions = few })
    assert(cache:prefill(one))
    assert.matches("200 tokens take more than its 1000 bytes", few.warnings[1])
  end)

  it("removes what is broken, says so, and reads the prompt", function()
    local ids = prompt(1, 200)
    local function break_with(change)
      shell.remove(folder .. "/store")
      same_as_at_once(tiny, "full", open(), ids, 0)
      local name = stored()[1]
      local bytes = change(helper.read(name))
      helper.write(name, bytes)
      local store = open()
      same_as_at_once(tiny, "full", store, ids, 0)
      return store.warnings[1], #store.warnings
    end
    local function flip(bytes, at)
      return bytes:sub(1, at - 1) .. string.char(bytes:byte(at) ~ 4) .. bytes:sub(at + 1)
    end
    local why, count = break_with(function(bytes) return flip(bytes, #bytes // 3) end)   -- a row's
    assert.matches("check sum does not match; removed$", why)
    assert.equal(1, count)
    assert.matches("is no whole session; removed$", (break_with(function(bytes)
      return bytes:sub(1, #bytes // 2)
    end)))
    assert.matches("is no whole session; removed$", (break_with(function() return "" end)))
    assert.matches("removed$", (break_with(function(bytes) return flip(bytes, 9) end)))
    -- an id of the note: it shares less, and what it shares does not load
    assert.matches("check sum does not match; removed$", (break_with(function(bytes)
      return flip(bytes, #bytes - 24 - 4 * 20)
    end)))
    -- what the store did not write, it leaves alone
    shell.remove(folder .. "/store")
    local store = open()
    helper.write(folder .. "/store/notes.session", "mine")
    same_as_at_once(tiny, "full", store, ids, 0)
    assert.equal("mine", helper.read(folder .. "/store/notes.session"))
  end)

  it("costs no prompt where it cannot be read or written", function()
    local ids, store = prompt(1, 200), open()
    shell.remove(folder .. "/store")
    same_as_at_once(tiny, "full", store, ids, 0)
    assert.equal(2, #store.warnings)
    assert.matches("No such file or directory", store.warnings[1])
    assert.matches("^nothing was stored: ", store.warnings[2])
    helper.write(folder .. "/file", "x")
    local none, message, code = pyramid.sessions(folder .. "/file")
    assert.same({ nil, "io" }, { none, code })
    assert.matches("file: the folder cannot be made: File exists", message)
    none, message, code = tiny:cache { sessions = folder .. "/no/where" }
    assert.same({ nil, "io" }, { none, code })
    assert.matches("cannot be made", message)
  end)

  it("leaves the cache empty where the last piece fails", function()
    local ids, store = prompt(1, 300), open()
    same_as_at_once(tiny, "snapkv", store, ids, 0)
    local cache <close> = assert(tiny:cache { policy = "snapkv", dtype = "f32",
      sessions = store })
    local calls, last = 0, 0
    local ok, _, code = cache:prefill(join(ids, prompt(2, 200)), { progress = function(done, total)
      calls, last = calls + 1, done / total
      return done > total / 2
    end })
    assert.same({ nil, "cancelled" }, { ok, code })
    assert.is_true(calls > 1 and last > 0.5 and last < 1)
    assert.equal(0, cache:tokens())
    assert.equal(0, cache:bytes())
    assert.equal(0, cache:reused())
    assert(cache:prefill(ids))
    assert.equal(268, cache:reused())
  end)

  it("serves caches of tiers, each kind of them apart", function()
    local store, ids = open(), join(prompt(1, 300), prompt(2, 60))
    local function tiers(warm)
      local path = os.tmpname()
      os.remove(path)
      return { hot = "f16", warm = warm, cold = { dtype = "q2", file = path, bytes = "8 MiB" } }
    end
    local by = require "pyramid.policy".demote(assert(pyramid.policy("snapkv", { rows = 60 })))
    local function read(warm, wanted)
      local whole <close> = assert(tiny:cache { policy = by, tiers = tiers(warm) })
      local cache <close> = assert(tiny:cache { policy = by, tiers = tiers(warm),
        sessions = store })
      local one, other = assert(whole:prefill(ids)), assert(cache:prefill(ids))
      assert.equal(wanted, cache:reused())
      assert.is_true(one:kl(other) < 0.02, one:kl(other))
      assert.equal(whole:rows(1, 1, "hot"), cache:rows(1, 1, "hot"))
      assert.equal(whole:rows(1, 1, "warm"), cache:rows(1, 1, "warm"))
      assert.is_true(cache:rows(1, 1, "warm") > 0)
    end
    read("q4", 0)
    local taken = #ids - 1                   -- the last token is read for its logits
    local found = assert(store:list())
    assert.is_true(#found > 0)
    assert.equal("f16 > warm f16,k=q4,v=q4 > cold f16,k=q2,v=q2", found[1].dtype)
    local reused = (function()
      local cache <close> = assert(tiny:cache { policy = by, tiers = tiers "q4",
        sessions = store })
      assert(cache:prefill(ids))
      return cache:reused()
    end)()
    assert.is_true(reused > 128 and reused <= taken)
    read("q4", reused)
    read("q3", 0)
    local plain <close> = assert(tiny:cache { policy = by, sessions = store })
    assert(plain:prefill(ids))
    assert.equal(0, plain:reused())
    assert.same({}, store.warnings)
  end)

  it("checks its options, and the call's", function()
    assert.error_matches(function() pyramid.sessions(folder, { byte = 1 }) end,
      "pyramid.sessions: unknown option 'byte' %(known: bytes, every, least, warn%)")
    assert.error_matches(function() pyramid.sessions(folder, { least = 8 }) end, "least must be 32")
    assert.error_matches(function() pyramid.sessions "" end, "a folder's path is wanted")
    assert.error_matches(function()
      local cache <close> = assert(tiny:cache())
      tiny:generate("x", { cache = cache, sessions = folder })
    end, "has its own policy, dtype, budget, policy_seconds, tiers, pressure, trace and sessions")
    local cache <close> = assert(tiny:cache())
    assert(cache:prefill(prompt(1, 40)))
    local path = folder .. "/saved"
    assert(cache:save(path))
    local ok, message, code = cache:load_prefix(path, 10)
    assert.same({ nil, "argument" }, { ok, code })
    assert.matches("has read tokens already", message)
    cache:clear()
    for _, n in ipairs { 0, 41 } do
      ok, message, code = cache:load_prefix(path, n)
      assert.same({ nil, "argument", 0 }, { ok, code, cache:tokens() })
      assert.matches(n == 0 and "no tokens" or "holds 40 tokens, and 41 are wanted", message)
    end
    assert(cache:load_prefix(path, 40))
    assert.same({ 40, 40 * tiny.config.layers }, { cache:tokens(), cache:computed() })
  end)
end)

describe("plans over a prompt in pieces", function()
  it("are refused where they want what only a prompt at once has", function()
    for name, why in pairs { pyramidinfer = "drops hidden states",
      kvzip = "reads a prompt once more" } do
      local cache <close> = assert(tiny:cache { policy = name })
      assert(cache:prefill(prompt(1, 100), { prune = false }))
      local before = rows_of(cache, tiny.config)
      local ok, message, code = cache:read_ids(prompt(2, 100), false, true, true)
      assert.same({ nil, "policy" }, { ok, code })
      assert.matches(why, message)
      assert.same(before, rows_of(cache, tiny.config))
    end
  end)
end)

-- ---- processes ----------------------------------------------------------------------------------

-- A process that reads prompts, over and over, of the numbers that it is given.
local reader = [[
local pyramid = require "pyramid"
local folder, first, last, rounds, bytes = table.unpack(arg)
local model = assert(pyramid.model("models/tiny", { threads = 1 }))
local store = assert(pyramid.sessions(folder, { bytes = math.tointeger(tonumber(bytes)) }))
for _ = 1, rounds do
  for seed = first, last do
    local ids = {}
    for i = 1, 200 do ids[i] = 5 + (seed * 7919 + i * i * 31 + i * seed) % 300 end
    local cache <close> = assert(model:cache { sessions = store })
    assert(cache:prefill(ids))
  end
end
assert(#store.warnings == 0, table.concat(store.warnings, "; "))
print "done"
]]

describe("processes that share a folder", function()
  local program = quote(io.popen("realpath " .. shell.program):read "l")

  local function line(first, last, rounds, bytes)
    return ("%s %s %s %d %d %d %d"):format(program, quote(folder .. "/reader.lua"),
      quote(folder .. "/store"), first, last, rounds, bytes)
  end

  before_each(function() helper.write(folder .. "/reader.lua", reader) end)

  local function all_whole()
    local store = open()
    local list = assert(store:list())
    assert.same({}, store.warnings)
    assert.equal(#stored(), #list)
    for seed = 1, 6 do
      local cache <close> = assert(tiny:cache { sessions = store })
      assert(cache:prefill(prompt(seed, 200)))
    end
    assert.same({}, store.warnings)
    return #list
  end

  it("do each other no harm, with room for all and for half", function()
    for _, bytes in ipairs { 0, 2500000 } do
      shell.remove(folder .. "/store")
      local out, err = shell.run(("{ %s & %s & %s & wait; }"):format(line(1, 4, 3, bytes),
        line(2, 6, 3, bytes), line(1, 6, 2, bytes)))
      assert.equal("done\ndone\ndone\n", out, err)
      assert.is_true(all_whole() <= (bytes == 0 and 6 or 3))
    end
  end)

  it("may be killed at any moment", function()
    lfs.mkdir(folder .. "/store")
    for turn = 1, 6 do
      shell.run(("%s & sleep %.2f; kill -9 $!; wait; rm -f %s/store/*.session.x"):format(
        line(1, 6, 50, 1200000), 0.12 + 0.07 * turn, folder))
      all_whole()
    end
    -- what a killed one left is removed an hour later, and not before
    local left = folder .. "/store/.pyramid-0123456789ab.tmp"
    helper.write(left, "half")
    for _, old in ipairs { false, true } do
      if old then shell.run("touch -d '2 hours ago' " .. left) end
      shell.remove(folder .. "/store/x")
      local store = open()
      local cache <close> = assert(tiny:cache { sessions = store })
      assert(cache:prefill(prompt(old and 70 or 71, 200)))
      assert.equal(old and "nil" or "file", tostring(require "pyramid.files".kind(left)))
    end
  end)

  it("go on where the folder is full", function()
    lfs.mkdir(folder .. "/store")
    local text = ("Once there was a baker who lived in Tilbury. "):rep(12)
    helper.write(folder .. "/prompt", text)
    local out, err, status = shell.run(("trap '' XFSZ; ulimit -f 64; "
      .. "%s generate --sessions %s -f %s -n 4"):format(program, quote(folder .. "/store"),
        folder .. "/prompt"))
    assert.equal(0, status, err)
    assert.is_true(#out > 1)
    assert.matches("warning: nothing was stored: .*File too large", err)
    assert.same({}, stored())
  end)
end)

describe("pyramid generate and pyramid sessions", function()
  it("share a folder, and list it", function()
    local where = folder .. "/store"
    local text = ("Once there was a baker who lived in Tilbury. "):rep(20)
    local outs = {}
    for i = 1, 2 do
      local out, err, status = shell.pyramid("generate", "--sessions", where, "--json", "-n", "8",
        text)
      assert.equal(0, status, err)
      outs[i] = require "pyramid.json".decode(out)
    end
    assert.equal(0, outs[1].reused_tokens)
    assert.equal(outs[1].prompt_tokens - 1, outs[2].reused_tokens)
    assert.equal(outs[1].text, outs[2].text)
    local out, err, status = shell.pyramid("sessions", where)
    assert.equal(0, status, err)
    assert.matches("tokens +size +used +dtype +policy +model\n", out)
    assert.matches("\n *" .. outs[1].prompt_tokens
      .. " +[%d.]+ [KM]iB +%d+ s +f16 +full +tiny\n", out)
    out = require "pyramid.json".decode((shell.pyramid("sessions", "--json", where)))
    assert.equal(1, #out.sessions)
    assert.equal(outs[1].prompt_tokens, out.sessions[1].tokens)
    shell.pyramid("sessions", "--bytes", "1", where)
    assert.same({}, stored())
    out, err, status = shell.pyramid("sessions", folder .. "/none")
    assert.equal("", out)
    assert.equal(1, status)
    assert.matches("there is no folder", err)
  end)

  it("find where a system prompt ends", function()
    local path = folder .. "/model"
    lfs.mkdir(path)
    make_model(path)
    local model <close> = assert(pyramid.model(path, { threads = 1 }))
    local store = open { least = 32 }
    local system = { role = "system", content = ("be kind and brief "):rep(4) }
    for i, asked in ipairs { "what is this", "and who are you then" } do
      local run <close> = assert(model:chat({ system, { role = "user", content = asked } },
        { sessions = store, max_tokens = 2 }))
      local begins = #assert(model:encode("<|im_start|>system\n" .. system.content
        .. "<|im_end|>\n", { add = false }))
      assert.equal(i == 1 and 0 or begins, run.stats.reused_tokens)
    end
    local talk <close> = assert(model:conversation { system = system.content, sessions = store })
    local stats = assert(talk:say("hello", { max_tokens = 2 }))
    assert.is_true(stats.reused_tokens > 32)
  end)
end)

describe("a host's sessions", function()
  it("are a folder, bounded, shared with other hosts", function()
    local host = require "pyramid.host"
    local text = ("Once there was a baker who lived in Tilbury. "):rep(20)
    for turn = 1, 2 do
      local opened = assert(host.open("models/tiny", { threads = 1, sessions = folder .. "/store",
        sessions_bytes = turn == 1 and 0 or 1 << 30 }))
      local stats = assert(opened:generate(text, { max_tokens = 2, sampler = {},
        on_token = function() end }))
      assert.equal(turn == 1 and 0 or stats.prompt_tokens - 1, stats.reused_tokens)
      opened.model:close()
    end
    local none, message, code = host.open("models/tiny", { sessions = folder .. "/no/where" })
    assert.same({ nil, "io" }, { none, code })
    assert.matches("the folder cannot be made", message)
  end)
end)

describe("the helpers of files", function()
  it("list regular files alone, with bytes and times", function()
    lfs.mkdir(folder .. "/sub")
    helper.write(folder .. "/a", "12345")
    assert(lfs.link("a", folder .. "/link", true))
    os.execute("touch -d '@1000000000' " .. folder .. "/a")
    assert.same({ { name = "a", bytes = 5, changed = 1000000000 * 10 ^ 9 // 1 | 0 } },
      core.list_files(folder))
    assert(core.touch(folder .. "/a"))
    assert.is_true(core.list_files(folder)[1].changed > 1600000000 * 10 ^ 9)
    local ok, message, code = core.touch(folder .. "/none")
    assert.same({ nil, "io" }, { ok, code })
    assert.matches("No such file", message)
    ok, message, code = core.list_files(folder .. "/none")
    assert.same({ nil, "io" }, { ok, code })
    assert.matches("No such file", message)
    assert(core.make_folder(folder .. "/sub"))
    ok, message = core.make_folder(folder .. "/a")
    assert.is_nil(ok)
    assert.matches("File exists", message)
    assert.equal("cbf29ce484222325", core.hash_text "")
    assert.equal("af63dc4c8601ec8c", core.hash_text "a")        -- FNV-1a's own test vectors
  end)
end)
