-- What may lie in a model's folder, or stand in a small file, and must cost neither time nor
-- memory: pipes, devices, links in a circle, sparse files, counts that promise more than there is.
local helper = require "spec.helper"
local lfs = require "lfs"
local shell = require "support.shell"
local quote = shell.quote

local folder
local function path(name) return folder .. "/" .. name end

-- In a process of its own with a second of processor time and 400 MB (none under sanitizers, which
-- map terabytes), so that what hangs or swells fails here and not the run.
local cflags = os.getenv "PYRAMID_CFLAGS" or ""
local limits = cflags:find "sanitize" and "" or "ulimit -v 600000; "

local function open(file)
  local code = ([[local ok, message, code = require "pyramid".model(%q, { threads = 1 })
    print(ok and "opened" or code, message, collectgarbage "count" // 1024)]]):format(file)
  local out, err, status = shell.run(("%stimeout 20 %s -e %s"):format(limits, quote(shell.program),
    quote(code)))
  assert.equal(0, status, file .. ": " .. out .. err)
  return out
end

describe("a model's folder with", function()
  before_each(function()
    folder = shell.folder()
    assert(os.execute(("cp -rL models/tiny %s"):format(path "m")))
  end)
  after_each(function() shell.remove(folder) end)

  local names = { "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json" }
  for what, make in pairs { ["a pipe"] = "mkfifo %s",
    ["a link to /dev/zero"] = "ln -s /dev/zero %s", ["a folder"] = "mkdir %s",
      ["a link to a pipe"] = "mkfifo %s.pipe; ln -s %s.pipe %s" } do
    it(what .. " in place of any of its files refuses it by name", function()
      for _, name in ipairs(names) do
        local target = path("m/" .. name)
        local kept = lfs.attributes(target) and helper.read(target)
        os.remove(target)
        assert(os.execute((make:gsub("%%s", quote(target)))))
        local out = open(path "m")
        if name ~= "added_tokens.json" and name ~= "special_tokens_map.json"
          or not out:find "^opened" then
          assert.matches("^io\t[^\n]*" .. name:gsub("%p", "%%%0"), out)
          assert.matches("is a [dp]", out)
        end
        assert(os.execute("rm -rf " .. quote(target) .. "*"))
        if kept then helper.write(target, kept) end
      end
    end)
  end

  it("links in a circle, or a file of /proc that has no size, refuses it", function()
    os.remove(path "m/config.json")
    assert(lfs.link("config.json", path "m/config.json", true))
    assert.matches("^io\t", open(path "m"))
    os.remove(path "m/config.json")
    assert(lfs.link("/proc/self/environ", path "m/config.json", true))
    assert.matches("^format\t", open(path "m"))
  end)

  it("a configuration, an index or a tokenizer of gigabytes refuses it by the limit", function()
    for name, limit in pairs { ["config.json"] = 1 << 20, ["tokenizer.json"] = 1 << 28,
      ["generation_config.json"] = 1 << 20 } do
      local target = path("m/" .. name)
      local kept = helper.read(target)
      assert(os.execute("truncate -s 8G " .. quote(target)))
      local out = open(path "m")
      assert.matches("^format\t.*more than the limit of " .. limit, out)
      helper.write(target, kept)
    end
  end)

  it("an index whose files lie elsewhere, or are too many, refuses it", function()
    os.remove(path "m/model.safetensors")
    for _, name in ipairs { "../m2/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..",
      ".", "", ".hidden" } do
      helper.write(path "m/model.safetensors.index.json",
        ('{"weight_map":{"a":"%s"}}'):format(name))
      assert.matches("^format\t.*mapped to something that is no file name", open(path "m"))
    end
    local parts = {}
    for i = 1, 5000 do parts[i] = ('"t%d":"s%d"'):format(i, i) end
    helper.write(path "m/model.safetensors.index.json",
      '{"weight_map":{' .. table.concat(parts, ",") .. "}}")
    assert.matches("^format\t.*more than 4096 files", open(path "m"))
  end)

  it("a safetensors header that is longer than the format allows, or deep, refuses it", function()
    local target = path "m/model.safetensors"
    helper.write(target, ("<i8"):pack(1 << 30) .. "{")
    assert(os.execute("truncate -s 4G " .. quote(target)))
    assert.matches("^format\t.*header length 1073741824", open(path "m"))
    local deep = '{"a":' .. ("["):rep(100000)
    helper.write(target, ("<i8"):pack(#deep) .. deep)
    assert.matches("^format\t.*nested too deep %(the limit is 64%)", open(path "m"))
  end)
end)

describe("a GGUF file", function()
  before_each(function() folder = shell.folder() end)
  after_each(function() shell.remove(folder) end)

  local function gguf(tensors, keys, body)
    helper.write(path "x.gguf", "GGUF" .. ("<I4i8i8"):pack(3, tensors, keys) .. body)
    assert(os.execute("truncate -s 64G " .. quote(path "x.gguf")))  -- sparse: a few KB of disk
    return open(path "x.gguf")
  end
  local function array(kind, count) return ("<s8I4I4i8"):pack("k", 9, kind, count) end

  it("that is a pipe or a device is refused", function()
    assert(os.execute("mkfifo " .. path "x.gguf"))
    assert.matches("^io\t.*is a pipe", open(path "x.gguf"))
    assert.matches("^io\t.*is a device", open "/dev/zero")
  end)

  it("whose counts promise gigabytes is refused by the limit's name", function()
    assert.matches("^format\t.*metadata count: 1000000 %(the limit is 65536%)",
      gguf(0, 1000000, ""))
    assert.matches("^format\t.*tensor count: 1000000 %(the limit is 65536%)", gguf(1000000, 0, ""))
    for _, kind in ipairs { 0, 4, 7, 8, 12 } do
      assert.matches("^format\t.*more than 8388608 elements %(the limit of headers%)",
        gguf(0, 1, array(kind, 1 << 24)))
    end
    assert.matches("^format\t.*the header is longer than 268435456 bytes",
      gguf(0, 1, ("<s8I4i8"):pack("k", 8, 1 << 33)))
    assert.matches("^format\t", gguf(0, 1, array(9, 1 << 24)))
    assert.matches("^format\t.*nested deeper than 4",
      gguf(0, 1, array(9, 1) .. ("<I4i8"):pack(9, 1):rep(2000)))
    local many = {}
    for i = 1, 60 do
      many[i] = ("<s8I4I4i8"):pack("k" .. i, 9, 0, 1 << 20) .. ("\0"):rep(1 << 10)
    end
    assert.matches("^format\t", gguf(0, 60, table.concat(many)))
  end)

  it("whose tensors overflow is refused", function()
    local function tensor(dims, kind, offset)
      local packed = {}
      for i, n in ipairs(dims) do packed[i] = ("<i8"):pack(n) end
      return ("<s8I4"):pack("t", #dims) .. table.concat(packed) .. ("<I4i8"):pack(kind, offset)
    end
    for _, dims in ipairs { { 1 << 62, 4 }, { 1 << 32, 1 << 32 }, { math.maxinteger, 1 },
      { 1 << 40, 1 << 20 } } do
      assert.matches("^format\t", gguf(1, 0, tensor(dims, 0, 0)))
    end
    assert.matches("^format\t", gguf(1, 0, tensor({ 32, 1 }, 0, 1 << 60)))
    assert.matches("^format\t.*absurd", gguf(1, 0, tensor({ -1, 1 }, 0, 0)))
  end)
end)
