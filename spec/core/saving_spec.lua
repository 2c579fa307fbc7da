-- Files that Pyramid writes are whole at any time, and saved caches know whose they are.
local files = require "pyramid.files"
local helper = require "spec.helper"
local json = require "pyramid.json"
local lfs = require "lfs"
local pyramid = require "pyramid"
local score = require "pyramid.score"
local shell = require "support.shell"
local quote = shell.quote

local folder

local function path(name) return folder .. "/" .. name end

local function list(dir)
  local names = {}
  for name in lfs.dir(dir) do
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  table.sort(names)
  return table.concat(names, " ")
end

local function mode(name) return (shell.run("stat -c %a " .. quote(path(name)))):match "%d+" end

describe("a file that is replaced", function()
  before_each(function() folder = shell.folder() end)
  after_each(function() shell.remove(folder) end)

  it("is the old one or the new one, and nothing lies beside it", function()
    assert(files.write(path "a", "one"))
    assert.equal("one", helper.read(path "a"))
    assert(files.write(path "a", function(write) write("t", "w") write "o" end))
    assert.equal("two", helper.read(path "a"))
    local ok, message, code = files.write(path "a", function(write)
      write "half"
      return nil, "no more", "memory"
    end)
    assert.same({ nil, "no more", "memory" }, { ok, message, code })
    assert.has_error(function()
      files.write(path "a", function(write) write "half" error "raised" end)
    end)
    local out = assert(require "pyramid.core".output(path "a"))
    assert(out:write "given up")
    out:close()
    out:close()
    assert.has_error(function() out:write "x" end)
    assert.equal("two", helper.read(path "a"))
    assert.equal("a", list(folder))
  end)

  it("keeps its permissions; a new one has what the umask leaves", function()
    shell.run(("cd %s && umask 027 && %s -e 'assert(require \"pyramid.files\".write(\"new\", "
      .. "\"x\"))'")
      :format(folder, quote(io.popen("realpath " .. shell.program):read "l")))
    assert.equal("640", mode "new")
    assert(os.execute("chmod 604 " .. path "new"))
    assert(files.write(path "new", "y"))
    assert.equal("604", mode "new")
  end)

  it("is found through symbolic links, which stay", function()
    lfs.mkdir(path "real")
    lfs.mkdir(path "links")
    assert(lfs.link("../real/target", path "links/one", true))
    assert(lfs.link("one", path "links/two", true))
    assert(files.write(path "links/two", "new"))                 -- a link to a link to nothing, yet
    assert.equal("new", helper.read(path "real/target"))
    assert(files.write(path "links/two", "newer"))
    assert.equal("newer", helper.read(path "real/target"))
    assert.equal("link", lfs.symlinkattributes(path "links/two").mode)
    assert.equal("link", lfs.symlinkattributes(path "links/one").mode)
    assert.equal("target", list(path "real"))
    assert(lfs.link("loop", path "loop", true))
    local ok, message, code = files.write(path "loop", "x")
    assert.is_nil(ok)
    assert.equal("io", code)
    assert.matches("Too many levels of symbolic links", message)
  end)

  it("is none where a folder, a device or a pipe is", function()
    assert(os.execute("mkfifo " .. path "pipe"))
    lfs.mkdir(path "folder")
    assert(lfs.link("/dev/null", path "null", true))
    for name, word in pairs { pipe = "is a pipe", folder = "is a directory", null = "is a device",
      ["folder/"] = "directory" } do
      local ok, message, code = files.write(path(name), "x")
      assert.is_nil(ok)
      assert.equal("io", code)
      assert.truthy(message:find(word, 1, true), message)
    end
    local ok, message = files.write(path "none/file", "x")
    assert.is_nil(ok)
    assert.matches("No such file", message)
    assert.is_nil((files.write("", "x")))
    assert.is_nil((files.write(path(("n"):rep(5000)), "x")))
    assert.is_nil((files.write(path(("n"):rep(300)), "x")))
    assert(files.write(path(("n"):rep(255)), "x"))
  end)

  it("stays where the disk is full", function()
    helper.write(path "a", "old")
    local out, err, status = shell.run(("cd %s && trap '' XFSZ; ulimit -f 8; %s -e %s"):format(
      folder,
      quote(io.popen("realpath " .. shell.program):read "l"),
      quote [[print(require "pyramid.files".write("a", ("x"):rep(1 << 20)))]]))
    assert.equal(0, status, err)
    assert.matches("^nil\ta: cannot be written: File too large\tio", out)
    assert.equal("old", helper.read(path "a"))
    assert.equal("a", list(folder))
  end)
end)

describe("a saved cache", function()
  local model

  setup(function() model = assert(pyramid.model("models/tiny", { threads = 1 })) end)
  teardown(function() model:close() end)
  before_each(function() folder = shell.folder() end)
  after_each(function() shell.remove(folder) end)

  local function saved(of, name)
    local cache <close> = assert(of:cache { dtype = "f32" })
    assert(cache:prefill { 1, 2, 3, 4, 5, 6, 7, 8 })
    assert(cache:save(path(name or "cache")))
    return helper.read(path(name or "cache"))
  end

  local function refused(by, pattern)
    local loaded, message, code = by:load_cache(path "cache", { dtype = "f32" })
    assert.is_nil(loaded)
    assert.equal("format", code, message)
    assert.truthy(message:find(path "cache", 1, true))
    assert.truthy(message:find(pattern), message)
    return message
  end

  it("is one of two whole files where two save it at once", function()
    local script = [[
      local pyramid = require "pyramid"
      local m = assert(pyramid.model("models/tiny", { threads = 1 }))
      local c = assert(m:cache { policy = "full" })
      local ids = {}
      for i = 1, 100 * tonumber(arg[1]) do ids[i] = i % 1000 end
      assert(c:prefill(ids))
      for i = 1, 25 do
        assert(c:save(arg[2]))
        local d <close> = assert(m:load_cache(arg[2], { policy = "full" }))
        assert(d:tokens() == 200 or d:tokens() == 300)
      end
      print "done"]]
    helper.write(path "race.lua", script)
    local out, err = shell.run(("for i in 2 3; do %s %s $i %s & done; wait"):format(quote(
      shell.program), path "race.lua", path "cache"))
    assert.equal("done\ndone\n", out, err)
    assert.equal("cache race.lua", list(folder))
  end)

  it("goes through a link, and to no device", function()
    assert(lfs.link("cache", path "link", true))
    local cache <close> = assert(model:cache { dtype = "f32" })
    assert(cache:prefill { 1, 2, 3 })
    assert(cache:save(path "link"))
    assert.equal("link", lfs.symlinkattributes(path "link").mode)
    local again <close> = assert(model:load_cache(path "cache", { dtype = "f32" }))
    assert.equal(3, again:tokens())
    for _, to in ipairs { "/dev/null", "/dev/full", folder } do
      local ok, message, code = cache:save(to)
      assert.is_nil(ok)
      assert.equal("io", code)
      assert.matches("is a d", message)
    end
    assert(os.execute("mkfifo " .. path "pipe"))
    local loaded, message, code = model:load_cache(path "pipe")
    assert.is_nil(loaded)
    assert.equal("io", code)
    assert.matches("is a pipe", message)
  end)

  it("belongs to its model's weights, however they are loaded", function()
    saved(model)
    for _, how in ipairs { { map = false }, { weights = "f32" },
      { weights = "q8_0", map = false } } do
      how.threads = 1
      local same <close> = assert(pyramid.model("models/tiny", how))
      assert(same:load_cache(path "cache", { dtype = "f32" })):close()
    end
  end)

  it("is refused by another model, and both are named", function()
    -- the same in all but a few bytes of one matrix: every sampled weight is another
    assert(os.execute(("cp -rL models/tiny %s"):format(path "other")))
    local file = path "other/model.safetensors"
    local bytes = helper.read(file)
    local head = ("<i8"):unpack(bytes)
    local first = 8 + head
    helper.write(file, bytes:sub(1, first) .. bytes:sub(first + 1):gsub("^(.?.?.?.?)",
      function(four)
      return (four:gsub(".", function(c) return string.char(c:byte() ~ 1) end))
    end))
    local other <close> = assert(pyramid.model(path "other", { threads = 1 }))
    saved(model)
    local message = refused(other, "belongs to another model")
    assert.matches("it was saved from tiny: llama, .* %(weights %x+, tokenizer %x+%)", message)
    assert.matches("is to be loaded into other: llama, ", message)
    local strange <close> = assert(pyramid.model(helper.fixture "families/llama-mha",
      { threads = 1 }))
    message = refused(strange, "belongs to another model")
    assert.matches("loaded into llama%-mha: llama, ", message)
  end)

  it("is refused under another tokenizer", function()
    assert(os.execute(("cp -rL models/tiny %s"):format(path "other")))
    local tokenizer = assert(json.decode(helper.read(path "other/tokenizer.json")))
    local vocab = tokenizer.model.vocab
    vocab.a, vocab.b = vocab.b, vocab.a                         -- two ids change places
    helper.write(path "other/tokenizer.json", json.encode(tokenizer))
    local other <close> = assert(pyramid.model(path "other", { threads = 1 }))
    saved(model)
    refused(other, "belongs to another tokenizer")
    os.remove(path "other/tokenizer.json")
    os.remove(path "other/tokenizer_config.json")
    local without <close> = assert(pyramid.model(path "other", { threads = 1 }))
    assert(without:load_cache(path "cache", { dtype = "f32" })):close()
  end)

  -- A file with other bytes at `at` (from 0), and the sum that belongs to them.
  local function patched(bytes, at, new)
    local body = bytes:sub(1, at) .. new .. bytes:sub(at + #new + 1, -9)
    local hash = 0xcbf29ce484222325
    for i = 1, #body do hash = (hash ~ body:byte(i)) * 0x100000001b3 end
    return body .. ("<i8"):pack(hash)
  end

  it("of an older version is refused by its number", function()
    local bytes = saved(model)
    for version = 1, 4 do
      helper.write(path "cache", patched(bytes, 8, ("<I4"):pack(version)))
      refused(model, ("version is %d, of an older build"):format(version))
    end
    for _, version in ipairs { 0, 1000 } do
      helper.write(path "cache", patched(bytes, 8, ("<I4"):pack(version)))
      refused(model, "version is one this build does not read")
    end
  end)

  -- Eight tokens: their ids, and how many they are, before the note's length and the sum.
  local function without_ids(bytes)
    local body = bytes:sub(1, -9 - 8 - 8 * 4 - 8)
    return patched(body .. ("<i8i8"):pack(0, 0), 8, ("<I4"):pack(5))
  end

  it("of a version without tokens is read, and says that it has none where they are asked for",
    function()
      helper.write(path "cache", without_ids(saved(model)))
      local loaded <close> = assert(model:load_cache(path "cache", { dtype = "f32" }))
      assert.equal(8, loaded:tokens())
      assert(loaded:step(9))
      local function by(which)
        return { name = "some", prefill = function() return { keep = 2, score = which } end }
      end
      local ok, message, code = loaded:evict(by(score.tokens { 9 }))
      assert.is_nil(ok)
      assert.equal("policy", code)
      assert.matches("tokens of rows that were saved without them", message)
      assert(loaded:evict(by(score.position())))
    end)

  it("whose tokens are none of the model's is refused", function()
    local bytes = saved(model)
    local at = #bytes - 8 - 8 - 8 * 4
    for _, id in ipairs { -2, model.config.vocab, 0x7fffffff } do
      helper.write(path "cache", patched(bytes, at + 8, ("<i4"):pack(id)))
      refused(model, "the tokens are no ids of the model's")
    end
    helper.write(path "cache", patched(bytes, at - 8, ("<i8"):pack(7)))
    refused(model, "the tokens are not as many as the counters say")
  end)

  it("whose counters no cache could have is refused", function()
    local bytes = saved(model)
    assert.equal(8, ("<i8"):unpack(bytes, 65))                  -- tokens
    for at = 64, 88, 8 do                                       -- tokens, prompt, computed, evicted
      for _, value in ipairs { math.maxinteger, math.mininteger, -1, 1 << 62, 1 << 40 } do
        helper.write(path "cache", patched(bytes, at, ("<i8"):pack(value)))
        refused(model, "counters are out of range")
      end
    end
    helper.write(path "cache", patched(bytes, 0, "PYRCACHE"))
    assert(model:load_cache(path "cache", { dtype = "f32" })):close()
  end)

  it("says nothing strange of a model whose name is", function()
    local bytes = saved(model)
    local text = patched(patched(bytes, 48, ("<i8"):pack(1)), 96, ("\27[2J\n"):rep(32))
    helper.write(path "cache", text)
    assert.not_matches("[%c]", refused(model, "belongs to another model"))
  end)
end)

describe("a path with a zero byte", function()
  it("is refused, not cut short", function()
    local model <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    local cache <close> = assert(model:cache())
    folder = shell.folder()
    local cut = path "cut"
    for _, made in ipairs { table.pack(cache:save(cut .. "\0x")),
      table.pack(model:load_cache(cut .. "\0x")) } do
      assert.is_nil(made[1])
      assert.matches("zero byte", made[2])
      assert.equal("io", made[3])
    end
    assert.is_nil(lfs.attributes(cut))
    shell.remove(folder)
  end)
end)

describe("weights that are read", function()
  it("are the mapped ones, count, and stay when the file goes", function()
    folder = shell.folder()
    assert(os.execute(("cp -rL models/tiny %s"):format(path "m")))
    local mapped <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    local read <close> = assert(pyramid.model(path "m", { threads = 1, map = false }))
    local size = lfs.attributes(path "m/model.safetensors", "size")
    assert.is_true(read:memory() >= mapped:memory() + size,
      ("%d and %d"):format(read:memory(), mapped:memory()))
    local function logits(of)
      local cache <close> = assert(of:cache { dtype = "f32" })
      return assert(cache:prefill { 1, 5, 9, 200, 31 }):totable()
    end
    local before = logits(mapped)
    helper.write(path "m/model.safetensors", "")  -- a mapping would end this process here
    assert.same(before, logits(read))
    shell.remove(folder)
    local none, message, code = pyramid.model("models/tiny", { map = false, memory = 1 << 20 })
    assert.is_nil(none)
    assert.equal("memory", code, message)
    assert.has_error(function() pyramid.model("models/tiny", { map = "no" }) end)
    local out, _, status = shell.pyramid("generate", "--no-map", "-n", "3", "Once")
    assert.equal(0, status)
    assert.equal((shell.pyramid("generate", "-n", "3", "Once")), out)
  end)
end)
