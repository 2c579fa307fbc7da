-- `pyramid get`, `pyramid models` and models by their names, on a server of the specs' own
-- (spec/support/http_server.c) and a cache folder of their own.
local helper = require "spec.helper"
local json = require "pyramid.json"
local picture = require "pyramid.tools.picture"
local shell = require "spec.support.shell"
local sources = require "pyramid.tools.get.sources"
local store = require "pyramid.tools.store"

local quote = shell.quote

-- What a machine must have for these: nil, or why they stay pending.
local function missing()
  for _, command in ipairs { "curl", "sha256sum", "gzip" } do
    if not os.execute("command -v " .. command .. " >/dev/null") then
      return command .. " is not installed"
    end
  end
end
local why = missing()

describe("get", function()
  if why then return pending("fetches models: " .. why) end

  local root, cache, program, server, url
  local gguf = helper.read(helper.fixture "gguf/llama3-bf16.gguf")          -- 190,560 bytes
  local function sum_of(path)
    return io.popen("sha256sum " .. quote(path)):read "a":match "^%x+"
  end

  -- A file that the server has, and small ones beside it that say how it is served.
  local function serve(path, text, beside)
    assert(os.execute("mkdir -p " .. quote((root .. "/" .. path):match "^(.*)/")))
    if text then helper.write(root .. "/" .. path, text) end
    for suffix, value in pairs(beside or {}) do
      helper.write(("%s/%s.%s"):format(root, path, suffix), tostring(value))
    end
  end

  -- The program with a cache folder of its own: what it says, and its status.
  local function pyramid(...)
    local words = {}
    for i, word in ipairs { ... } do words[i] = quote(word) end
    return shell.run(("XDG_CACHE_HOME=%s %s %s </dev/null"):format(quote(cache), quote(program),
      table.concat(words, " ")))
  end

  local function get(...) return pyramid("get", "--retries", "0", "--hub", url, ...) end

  local function gets(...)
    local out, err, status = get(...)
    assert.equal(0, status, err)
    return out, err
  end

  -- Fails unless a word cannot be had for this reason, and nothing but `kept` is left.
  local function fails(reason, kept, word, sum)
    local got, message = sources.get(word, { hub = url, retries = 0, sum = sum,
      say = function() end, progress = picture.progress })
    assert.is_nil(got)
    assert.truthy(message:find(reason, 1, true), message)
    local left = io.popen(("cd %s/pyramid/models 2>/dev/null && find . -type f -o -type l | sort")
      :format(cache)):read "a"
    assert.equal(kept or "", (left:gsub("^%./", ""):gsub("\n$", "")))
  end

  local function stored(path) return cache .. "/pyramid/models/" .. path end
  local function put(path, text)
    assert(os.execute("mkdir -p " .. quote(stored(path):match "^(.*)/")))
    helper.write(stored(path), text)
  end

  -- The requests since the last time, "path range" each.
  local function requests()
    local list = {}
    local file = io.open(root .. "/log")
    for line in file and file:lines() or function() end do list[#list + 1] = line end
    if file then file:close() end
    os.remove(root .. "/log")
    return list
  end

  local folder = store.folder
  setup(function()
    store.folder = function() return cache .. "/pyramid/models" end
    root, cache = shell.folder(), shell.folder()
    -- away from the tree, whose models/fetched is searched, too
    program = cache .. "/pyramid-program"
    assert(os.execute(("cp %s %s"):format(quote(shell.program), program)))
    local binary = cache .. "/http_server"
    local out, err, status = shell.run(("cc -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -o %s "
      .. "spec/support/http_server.c"):format(binary))
    assert.equal(0, status, out .. err)
    server = assert(io.popen(("exec %s %s"):format(binary, root), "w"))
    local port
    for _ = 1, 100 do
      local file = io.open(root .. "/port")
      port = file and file:read "a"
      if file then file:close() break end
      os.execute "sleep 0.02"
    end
    url = "http://127.0.0.1:" .. port
  end)

  teardown(function()
    store.folder = folder
    server:close()
    shell.remove(root)
    shell.remove(cache)
  end)

  before_each(function()
    os.execute("rm -rf " .. quote(cache .. "/pyramid"))
    requests()
  end)

  it("follows redirects, and goes on where a connection broke", function()
    serve("r/model.gguf", nil, { location = "/files/model.gguf" })
    serve("files/model.gguf", gguf, { ["break"] = 80000, etag = '"one"' })
    local out = gets(url .. "/r/model.gguf?download=true")
    assert.matches("^model: it is there\n  %-%-model model\n", out)
    assert.equal(gguf, helper.read(stored "model.gguf"))
    assert.same({ "r/model.gguf ", "files/model.gguf ", "r/model.gguf bytes=80000-",
      "files/model.gguf bytes=80000-", "r/model.gguf bytes=160000-",
      "files/model.gguf bytes=160000-" }, requests())
    assert.matches("already", (gets(url .. "/r/model.gguf")))
    assert.same({}, requests())
  end)

  it("goes on at the next call, but only with the same file", function()
    serve("late.gguf", gguf, { ["break"] = 0, etag = '"new"' })
    put("late.gguf.part", gguf:sub(1, 1000))
    put("late.gguf.part.mark", 'HTTP/1.1 200 OK\r\nETag: "new"\r\n\r\n')
    fails("late.gguf: the connection broke", "late.gguf.part\n./late.gguf.part.mark",
      url .. "/late.gguf")
    assert.same({ "late.gguf bytes=1000-" }, requests())
    os.remove(root .. "/late.gguf.break")
    gets(url .. "/late.gguf")
    assert.equal(gguf, helper.read(stored "late.gguf"))
    assert.same({ "late.gguf bytes=1000-" }, requests())
    -- of another file, of one that nothing is known of, and where no ranges are known: all of it
    for name, beside in pairs { changed = { etag = '"new"' }, unknown = {},
      whole = { norange = "", etag = '"old"' } } do
      serve(name .. ".gguf", gguf, beside)
      put(name .. ".gguf.part", ("x"):rep(1000))
      if name ~= "unknown" then
        put(name .. ".gguf.part.mark", 'HTTP/1.1 200 OK\r\netag: "old"\r\n')
      end
      gets(("%s/%s.gguf"):format(url, name))
      assert.equal(gguf, helper.read(stored(name .. ".gguf")))
    end
  end)

  it("keeps what has come of a server without ranges, and its mark", function()
    serve("slow.gguf", gguf, { ["break"] = 80000, norange = "", etag = '"slow"' })
    fails("slow.gguf: ", "slow.gguf.part\n./slow.gguf.part.mark", url .. "/slow.gguf")
    assert.equal(gguf:sub(1, 80000), helper.read(stored "slow.gguf.part"))
    assert.equal(4, #requests())        -- begun, refused the rest, begun anew, refused again
    os.remove(root .. "/slow.gguf.norange")             -- the mark that was kept is the file's
    gets(url .. "/slow.gguf")
    assert.same({ "slow.gguf bytes=80000-", "slow.gguf bytes=160000-" }, requests())
    assert.equal(gguf, helper.read(stored "slow.gguf"))
  end)

  it("takes nothing whose sum differs", function()
    serve("sum.gguf", gguf)
    serve("linked.gguf", nil, { location = "/sum.gguf", linked = ("0"):rep(64) })
    local sum = sum_of(root .. "/sum.gguf")
    fails("not " .. ("1"):rep(64) .. ": not taken", nil, url .. "/sum.gguf", ("1"):rep(64))
    fails("not " .. ("0"):rep(64) .. ": not taken", nil, url .. "/linked.gguf")
    put("sum.gguf.part", ("x"):rep(1000))              -- what another file had left is begun anew
    gets(url .. "/sum.gguf", "--sum", sum:upper())
    assert.equal(sum, sum_of(stored "sum.gguf"))
  end)

  it("says what is wrong with an address", function()
    serve("busy.gguf", nil, { status = "503 Service Unavailable" })
    serve("secret.gguf", nil, { status = "401 Unauthorized" })
    serve("page.gguf", "<!doctype html>")
    serve("loop.gguf", nil, { location = "/loop.gguf" })
    serve("local.gguf", nil, { location = "file:///etc/passwd" })
    fails("the server answers 503", nil, url .. "/busy.gguf")
    fails("refused (401): not there, or only for those", nil, url .. "/secret.gguf")
    fails("what came is no GGUF file: not taken", nil, url .. "/page.gguf")
    fails("too many redirects", nil, url .. "/loop.gguf")
    fails("local.gguf: ", nil, url .. "/local.gguf")
    fails("the host does not answer", nil, "http://127.0.0.1:1/x.gguf")
    fails("must end in the name of a .gguf file", nil, url .. "/x.bin")
    fails("'smollm2' is the name of a model of its own", nil, url .. "/smollm2.gguf")
    local out, err, status = get(url .. "/no.gguf")
    assert.equal("", out)
    assert.equal(("fetching no.gguf\npyramid get: %s/no.gguf: there is no such file (404)\n"):format(
      url), err)
    assert.equal(1, status)
    out, err, status = get("org/repo", "--sum", ("1"):rep(64))
    assert.equal("", out)
    assert.equal(1, status)
    assert.matches("%-%-sum goes with a URL", err)
  end)

  it("says that the disk is full, and that curl is missing", function()
    serve("full.gguf", gguf)
    put("full.gguf", "")
    os.remove(stored "full.gguf")
    assert(os.execute("ln -s /dev/full " .. stored "full.gguf.part"))
    fails("full.gguf.part: cannot be written (is the disk full?)", "full.gguf.part",
      url .. "/full.gguf")
    local _, err, status = shell.run(("PATH=/nowhere XDG_CACHE_HOME=%s %s get %s/full.gguf"):format(
      cache, program, url))
    assert.equal(1, status)
    assert.truthy(err:find("the program curl is not found: install curl", 1, true), err)
  end)

  it("refuses names that would lead elsewhere", function()
    for _, word in ipairs { "../x", "a/..", "../a/b", "a/b:../c.gguf", "a/b:/etc/x.gguf",
      "a/b:.x.gguf", "a/b:c/../../d.gguf", "a/b:", "a/b/c", "a", "-a/b", "a/b\n", "a/b:c\\d.gguf",
      "file:///x.gguf", "a..b/c" } do
      fails("is no model's name", nil, word)
    end
    assert.same({}, requests())
    fails("must end in the name", nil, url .. "/..%2fx.gguf")
    fails("must end in the name", nil, url .. "/.gguf")
  end)

  -- A repository of the hub: files by path, all but JSON in its large storage.
  local function repository(name, held, wrong)
    local siblings = {}
    for path, text in pairs(held) do
      local place = ("%s/resolve/c0ffee/%s"):format(name, path)
      if not path:find("..", 1, true) then
        serve("cdn/" .. place, text)
        serve(place, nil, { location = "/cdn/" .. place })
      end
      local size, sum = #text, wrong and ("0"):rep(64)
      sum = sum or not path:find("..", 1, true) and sum_of(root .. "/cdn/" .. place)
        or ("0"):rep(64)
      local blob = io.popen(("printf 'blob %d\\000' | cat - %s/cdn/%s 2>/dev/null | sha1sum")
        :format(size, root, place)):read "a":match "^%x+"
      siblings[#siblings + 1] = { rfilename = path, size = size, blobId = blob,
        lfs = not path:find "%.json$" and { sha256 = sum, size = size } or nil }
    end
    serve(("api/models/%s/revision/main"):format(name),
      json.encode { sha = "c0ffee", siblings = siblings })
  end

  it("fetches the GGUF file of a repository, by which it is then called", function()
    repository("org/one", { ["README.md"] = "#", ["one.Q8_0.gguf"] = gguf,
      ["mmproj-one.gguf"] = gguf })
    local out, err = gets "org/one"
    assert.matches("^org/one: it is there\n  %-%-model org/one\n", out)
    assert.matches("fetching one.Q8_0.gguf %(0.2 MiB%)", err)
    assert.equal(gguf, helper.read(stored "org/one:one.Q8_0.gguf"))
    assert.matches("already", (gets "org/one"))
    for _, name in ipairs { "org/one", "org/one:one.Q8_0.gguf" } do
      local shown, message, status = pyramid("inspect", name)
      assert.equal(0, status, message)
      assert.truthy(shown:find(stored "org/one:one.Q8_0.gguf", 1, true))
    end
    fails("has no GGUF file 'two.gguf' (known: mmproj-one.gguf, one.Q8_0.gguf)",
      "org/one:one.Q8_0.gguf", "org/one:two.gguf")
  end)

  it("asks which one of several, and fetches all parts of a split one", function()
    local parts = { "s/m-00001-of-00002.gguf", "s/m-00002-of-00002.gguf" }
    repository("org/many", { ["a.gguf"] = gguf, [parts[1]] = gguf, [parts[2]] = gguf .. "2" })
    fails("org/many: holds several GGUF files; name one, as org/many:a.gguf (known: a.gguf, s/m-0",
      nil, "org/many")
    gets("org/many:" .. parts[2])
    assert.equal(gguf .. "2", helper.read(stored("org/many:" .. parts[2])))
    local _, err = gets("org/many:" .. parts[1])
    assert.equal("", err)
    gets "org/many:a.gguf"
    local list = json.decode((pyramid("models", "--json"))).models
    local names = {}
    for i, entry in ipairs(list) do
      if entry.name:find "^org/" then names[i] = entry.name .. " " .. entry.bytes end
    end
    assert.equal(("org/many:a.gguf %d\norg/many:%s %d"):format(#gguf, parts[1], 2 * #gguf + 1),
      table.concat(names, "\n"))
  end)

  local function qwen()
    local held = {}
    for _, name in ipairs { "config.json", "model.safetensors.index.json",
      "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors" } do
      held[name] = helper.read(helper.fixture("families/qwen2-untied/" .. name))
    end
    return held
  end

  it("fetches a folder where there is no GGUF file", function()
    local held = qwen()
    held["pytorch_model.bin"] = "pickled"
    repository("org/folder", held)
    assert.matches("^org/folder: it is there\n", (gets "org/folder"))
    held["pytorch_model.bin"] = nil
    for name, text in pairs(held) do
      assert.equal(text, helper.read(stored("org/folder/" .. name)))
    end
    assert.is_nil(io.open(stored "org/folder/pytorch_model.bin"))
    local out, err, status = pyramid("inspect", "org/folder")
    assert.equal(0, status, err)
    assert.matches("family     qwen2", out)
    assert.matches("already", (gets "org/folder"))
    -- the repository has a new commit: the folder is replaced
    held["config.json"] = held["config.json"] .. "\n"
    repository("org/folder", held)
    assert.matches("it is there\n", (gets "org/folder"))
    assert.equal(held["config.json"], helper.read(stored "org/folder/config.json"))
    assert.equal("folder\n", io.popen("ls -A " .. stored "org"):read "a")
  end)

  it("leaves no folder half done", function()
    repository("org/broken", qwen(), true)
    get "org/broken"
    assert.is_nil(io.open(stored "org/broken"))
    assert.falsy((pyramid "models"):find("org/broken", 1, true))
    repository("org/broken", qwen())
    gets "org/broken"
  end)

  it("believes no path that a hub gives", function()
    repository("org/evil", { ["../../../evil.gguf"] = gguf })
    fails("'../../../evil.gguf' is no name of a file that Pyramid would write", nil, "org/evil")
    local held = qwen()
    local index = held["model.safetensors.index.json"]
    held["model.safetensors.index.json"] = index:gsub("model%-00002%-", "../../%0")
    repository("org/worse", held)
    fails("is no name of a file that Pyramid would write", nil, "org/worse")
    serve("api/models/org/text/revision/main", "<html>")
    fails("the answer is no JSON", nil, "org/text")
    fails("org/none", nil, "org/none")
  end)

  -- A wheel with one deflated and one stored member; gzip has made what zip would.
  local function wheel(path, members)
    local body, list = {}, {}
    local at = 0
    for _, member in ipairs(members) do
      local plain = root .. "/plain"
      helper.write(plain, member.text)
      local zipped = io.popen("gzip -nc <" .. plain):read "a"
      local crc, size = ("<I4I4"):unpack(zipped, #zipped - 7)
      local data = member.stored and member.text or zipped:sub(11, -9)
      local method = member.stored and 0 or 8
      local fields = ("<I2I2I2I4I4I4I4I2I2"):pack(20, 0, method, 0, crc, #data, size,
        #member.name, 0)
      body[#body + 1] = "PK\3\4" .. fields .. member.name .. data
      list[#list + 1] = "PK\1\2\20\0" .. fields .. ("\0"):rep(10) .. ("<I4"):pack(at) .. member.name
      at = at + #body[#body]
    end
    local listed = table.concat(list)
    serve(path, table.concat(body) .. listed .. "PK\5\6" .. ("<I2I2I2I2I4I4I2"):pack(0, 0, #list,
      #list, #listed, at, 0))
    return sum_of(root .. "/" .. path)
  end

  it("joins a model of its own name out of wheels", function()
    local half = #gguf // 2
    local sums = { wheel("toy1.whl", { { name = "x", text = "no" },
        { name = "toy/part", text = gguf:sub(1, half) } }),
      wheel("toy2.whl", { { name = "toy/part", text = gguf:sub(half + 1), stored = true } }) }
    local wheels = {}
    for i, sum in ipairs(sums) do
      serve(("simple/toy%d/index"):format(i), json.encode { files = { { filename = "other.whl",
        url = "../other.whl" }, { filename = ("toy%d.whl"):format(i),
          url = i == 1 and "../../toy1.whl" or url .. "/toy2.whl" } } })
      wheels[i] = ('{ project = "toy%d", wheel = "toy%d.whl", sum = "%s", member = "toy/part" }')
        :format(i, i, sum)
    end
    local function run(sum)
      local script = ([[
        local sources = require "pyramid.tools.get.sources"
local store = require "pyramid.tools.store"
        require "pyramid.tools.store".named.toy = { file = "toy.bin", sum = %q, title = "Toy",
          terms = "none", wheels = { %s } }
        local progress = require "pyramid.tools.picture".progress
        local got, message = sources.get("toy", { index = %q, say = print, progress = progress })
        print(got and got.path or message, got and got.already)]]):format(sum,
        table.concat(wheels, ", "), url .. "/simple")
      return (pyramid("-e", script))
    end
    assert.matches("toy.bin: has the sum %x+, not 1+: not taken", run(("1"):rep(64)))
    assert.is_nil(io.open(stored "toy.gguf"))
    requests()
    local sum = sum_of(helper.fixture "gguf/llama3-bf16.gguf")
    assert.truthy(run(sum):find(stored "toy.gguf", 1, true))
    assert.same({}, requests())                         -- the wheels had been kept
    assert.equal(gguf, helper.read(stored "toy.gguf"))
    assert.equal("toy.gguf\n", io.popen("ls -A " .. stored ""):read "a")
    assert.matches("\ttrue\n$", run(sum))
  end)

  it("lists what is there, and says of other names what is", function()
    put("own.gguf", gguf)
    put("half.gguf.part", gguf)
    put("junk.gguf", "GGUF")
    local out = pyramid "models"
    assert.matches("own +186 KiB  llama +bf16 +" .. stored("own.gguf"):gsub("%p", "%%%0"), out)
    assert.matches("junk cannot be opened: ", out)
    assert.falsy(out:find("half", 1, true))
    local _, err, status = pyramid("generate", "--model", "nothing", "x")
    assert.equal(1, status)
    assert.matches("there is no model 'nothing'\n.*junk.*own.*`pyramid get` fetches: gemma3", err)
    _, err, status = pyramid("check", "--model", "own", "full")
    assert.equal(0, status, err)
  end)
end)
