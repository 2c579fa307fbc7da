-- The scripts that make golden data: each says what it needs, what it needs can be installed, and
-- the one that writes blocks of every type forgets none. They are read here, not run: their
-- packages are not asked for by the specs.
local dtypes = require "pyramid.loaders.dtypes"
local gguf = require "pyramid.loaders.gguf"
local helper = require "spec.helper"
local lfs = require "lfs"

local folder = "scripts/maker/oracle/"

-- Modules that come from packages; what else is imported is Python's own, or lies in the folder.
local packages = { fuzzywuzzy = "fuzzywuzzy", gguf = "gguf", jinja2 = "jinja2",
  kvpress = "kvpress", numpy = "numpy", rouge = "rouge", rouge_score = "rouge-score",
  safetensors = "safetensors", sentencepiece = "sentencepiece", tokenizers = "tokenizers",
  torch = "torch", transformers = "transformers" }
local own = { ast = true, collections = true, datetime = true, glob = true, importlib = true,
  json = true, math = true, os = true, pathlib = true, random = true, re = true, shutil = true,
  string = true, subprocess = true, sys = true, tempfile = true, unicodedata = true,
  zlib = true }

local scripts = {}
for name in lfs.dir(folder) do
  if name:find "%.py$" then scripts[#scripts + 1] = name end
end
table.sort(scripts)

-- The modules that a script imports, by their first names.
local function imports(text)
  local found = {}
  for line in text:gmatch "[^\n]+" do
    local from = line:match "^%s*from ([%w_]+)[%w_.]* import "
    if from then found[from] = true end
    for item in (line:match "^%s*import ([%w_., ]+)" or ""):gmatch "[^,]+" do
      found[item:match "[%w_]+"] = true
    end
  end
  return found
end

-- package -> version
local function pins(file)
  local out = {}
  for line in helper.read(folder .. file):gmatch "[^\n]+" do
    local name, version = line:match "^([%w_.-]+)==([%w.]+)$"
    assert.is_true(name ~= nil or line:find "^#" ~= nil, file .. ": " .. line)
    if name then out[name] = version end
  end
  return out
end

describe("scripts/maker/oracle", function()
  for _, name in ipairs(scripts) do
    it("says what it needs: " .. name, function()
      local text = helper.read(folder .. name)
      local head = assert(text:match '"""(.-)"""', "no head")
      local file = assert(head:match "requirements[%w-]*%.txt", "its head names no requirements")
      local held = pins(file)
      for module in pairs(imports(text)) do
        if packages[module] and not lfs.attributes(folder .. module .. ".py") then
          assert.truthy(held[packages[module]], file .. " has no " .. module)
        else
          assert.is_true(own[module] or packages[module] ~= nil
            or lfs.attributes(folder .. module .. ".py") ~= nil, "what is " .. module .. "?")
        end
      end
    end)
  end

  -- kvpress 0.5.5 asks for transformers before 5.3: no file can have it beside the one that the
  -- other golden data was made with.
  it("needs what can be installed together", function()
    assert.is_nil(pins("requirements.txt").kvpress)
    local major, minor = pins("requirements-kvpress.txt").transformers:match "^(%d+)%.(%d+)"
    assert.is_true(tonumber(major) < 5 or tonumber(major) == 5 and tonumber(minor) < 3)
    for name, version in pairs(pins "requirements-kvpress.txt") do
      local other = pins("requirements.txt")[name]
      assert.is_true(name == "transformers" or other == nil or other == version, name)
    end
  end)
end)

describe("gguf_fixtures.py", function()
  local text = helper.read(folder .. "gguf_fixtures.py")
  -- the entries of a table or a tuple: "q4_1=T.Q4_1, …", "T.Q8_0: [0], …", "(T.F32, …)"
  local function names(table_name, pattern)
    local body = assert(text:match("\n" .. table_name .. " = (%b())")
      or text:match("\n" .. table_name .. " = dict(%b())") or text:match("\n" .. table_name
        .. " = (%b{})"), table_name)
    local out = {}
    for name in body:gmatch(pattern) do out[name:lower()] = true end
    return out
  end
  local drawn = names("CONVERTED", "([%w_]+)=")
  for name in pairs(names("DTYPES", "([%w_]+)=")) do drawn[name] = true end

  it("draws blocks of every dtype that GGUF has", function()
    local wanted = {}
    for _, info in ipairs(dtypes.all) do
      if info.gguf then wanted[info.name] = true end
    end
    assert.same(wanted, drawn)
  end)

  it("knows where each one's scales lie", function()
    local scales, rules = names("SCALES", "T%.([%w_]+)"), names("OWN_RULES", "T%.([%w_]+)")
    for name in pairs(drawn) do
      assert.is_true((scales[name] or rules[name]) == true, "neither SCALES nor OWN_RULES has "
        .. name)
    end
  end)

  it("drew values that tell decoders apart", function()
    local count = 0
    for _, file in ipairs { "dtypes.gguf", "converted.gguf" } do
      local path = helper.fixture("gguf/" .. file)
      local bytes = helper.read(path)
      for _, t in ipairs(assert(gguf.read(path)).tensors) do
        local dtype = t.name:match "^([%w_]+)%.f32$"
        if dtype and dtype ~= "from" and dtype:find "_" then
          local values = helper.floats(bytes, t.offset, t.bytes // 4)
          local wild, seen, different = 0, {}, 0
          for _, x in ipairs(values) do
            if x ~= x or math.abs(x) == math.huge then wild = wild + 1 end
            if x == x and not seen[x] then seen[x], different = true, different + 1 end
          end
          assert.equal(0, wild, t.name .. " has values that are not finite")
          assert.is_true(different > 16, t.name)
          count = count + 1
        end
      end
    end
    assert.is_true(count >= 12, count)
  end)
end)
