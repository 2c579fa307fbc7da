-- The annotations of lua/pyramid are whole: a language server and docs/lua-api.md show what they
-- say. Public functions have prose, a @param for each parameter and a @return where they return;
-- every type that is named is declared, and declared once; the page is made of them as they are.
local helper = require "spec.helper"
local shell = require "spec.support.shell"
local luacats = dofile "scripts/maker/luacats.lua"

-- What users call: these files' public functions. The parts of jinja and the loaders, and tools/,
-- are Pyramid's own.
local function is_api(path)
  if not path:find "/" then return true end
  return path:find "^testing/" or path == "families/init.lua" or path == "jinja/init.lua"
    or path == "loaders/init.lua"
end

local builtin = {}
for word in ([[any nil boolean string number integer function table thread userdata lightuserdata self
  true false fun unknown]]):gmatch "%S+" do builtin[word] = true end

-- Names in a type: "fun(a: pyramid.Cache): integer[]?" -> pyramid.Cache, integer.
local function names_in(kind)
  local out = {}
  local bare = kind:gsub('"[^"]*"', ""):gsub("[%w_]+%??%s*:", " "):gsub("^%l+(%b())", "%1")
  for name in bare:gmatch "[%a_][%w_%.]*" do out[#out + 1] = name end
  return out
end

describe("annotations", function()
  local files, declared = {}, {}
  for path in io.popen "find lua/pyramid -name '*.lua' | LC_ALL=C sort":lines() do
    local file = luacats.read(path)
    file.path = path:sub(#"lua/pyramid/" + 1)
    files[#files + 1] = file
    for _, class in ipairs(file.classes) do
      declared[class.class] = declared[class.class] or {}
      table.insert(declared[class.class], class.place)
    end
  end

  it("stand at every public function of the API", function()
    local problems, count = {}, 0
    local function problem(f, format, ...)
      problems[#problems + 1] = ("%s: %s%s"):format(f.place, f.name, format:format(...))
    end
    for _, file in ipairs(files) do
      for _, f in ipairs(is_api(file.path) and file.functions or {}) do
        count = count + 1
        if not f.documented then problem(f, " has no prose") end
        local told = {}
        for _, p in ipairs(f.params) do told[p.name] = true end
        for _, name in ipairs(f.parameters) do
          if not told[name] and name ~= "_" and name ~= "..." then
            problem(f, ": no @param %s", name)
          end
          told[name] = nil
        end
        told["..."], told.self = nil, nil
        for name in pairs(told) do problem(f, ": @param %s is no parameter", name) end
        local returns
        for _, line in ipairs(f.body) do
          local value = line:gsub("%-%-.*", ""):match "%f[%w_]return%f[^%w_]%s*([^%s;]?)"
          if value and value ~= "" and not line:find "%f[%w]return%s+end" then returns = true end
        end
        if returns and #f.returns == 0 then problem(f, " returns, and has no @return") end
        if #f.returns > 0 and not returns then problem(f, " has a @return, and returns nothing") end
        -- nil, message, code: the value may be nil, and message and code are told
        local body = table.concat(f.body, "\n")
        if body:find "return nil, " and #f.returns > 0 then
          local first = f.returns[1].type
          if not (first:find "%?$" or first:find "nil" or first == "any") then
            problem(f, ": %s may be nil", first)
          end
          if #f.returns < 2 then problem(f, ": the message of a failure has no @return") end
        end
      end
    end
    assert.same({}, problems)
    assert.is_true(count > 120, count)
  end)

  it("declare each type once", function()
    local twice = {}
    for name, places in pairs(declared) do
      if #places > 1 then twice[#twice + 1] = name .. ": " .. table.concat(places, ", ") end
    end
    assert.same({}, twice)
  end)

  it("name no type that is not declared", function()
    local unknown = {}
    for _, file in ipairs(files) do
      for _, use in ipairs(file.uses) do
        for _, name in ipairs(names_in(use[1])) do
          if not builtin[name] and not declared[name] and not (name == "file" or #name == 1) then
            unknown[#unknown + 1] = ("%s: %s (in %s)"):format(use[2], name, use[1])
          end
        end
      end
    end
    assert.same({}, unknown)
  end)

  -- Methods that C registers: { "step", cache_step }.
  for name, source in pairs { ["pyramid.Cache"] = "lua/lcache.c",
    ["pyramid.Logits"] = "lua/llogits.c", ["pyramid.Sampler"] = "lua/lsampler.c",
    ["pyramid.Vector"] = "lua/lvector.c" } do
    it("name every native method of " .. name, function()
      local told, silent, count = { set_owner = true }, {}, 0
      for _, file in ipairs(files) do
        for _, class in ipairs(file.classes) do
          for _, field in ipairs(class.class == name and class.fields or {}) do
            told[field.name] = true
          end
        end
      end
      local prefix = name:match "%.(%a+)":lower() .. "_"
      for method in helper.read(source):gmatch('{ "(%l[%l_]*)", ' .. prefix) do
        count = count + 1
        if not told[method] then silent[#silent + 1] = method end
      end
      assert.same({}, silent)
      assert.is_true(count > 2, count)
    end)
  end

  it("keep types on one line", function()
    local broken = {}
    for _, file in ipairs(files) do
      for _, use in ipairs(file.uses) do
        if use[1]:find "[:|,]%s*$" then broken[#broken + 1] = use[2] .. ": " .. use[1] end
      end
    end
    assert.same({}, broken)
  end)
end)

describe("docs/lua-api.md", function()
  it("is what scripts/maker/lua_api.lua makes of the annotations", function()
    local out, err, status = shell.pyramid "scripts/maker/lua_api.lua"
    assert.equal(0, status, err)
    if out ~= helper.read "docs/lua-api.md" then
      error("docs/lua-api.md is not current: build/pyramid scripts/maker/lua_api.lua >docs/lua-api.md", 0)
    end
  end)

  it("tells of what scripts use", function()
    local page = helper.read "docs/lua-api.md"
    for _, call in ipairs { "pyramid.model", "model:generate", "cache:prefill", "cache:scores",
      "cache:evict", "logits:top", "batch:step", "sampler:pick", "policy.compose", "policy.layers",
      "policy.from", "score.attention", "score:pool", "schedule.cosine", "testing.run",
      "testing.check", "tokenizer:encode", "chat.render" } do
      assert.truthy(page:find("\n#### " .. call .. "\n", 1, true), call)
    end
    for sample in page:gmatch "\n```lua\n(.-)\n```" do
      assert(load((sample:gsub("…", "nil"))) or load("return " .. sample), sample)
    end
    for link in page:gmatch "%]%(#([%w_-]+)%)" do
      local heading = link:gsub("%-%d+$", "")
      local found = false
      for title in page:gmatch "\n#+ ([^\n]+)" do
        found = found or title:lower():gsub("[^%w%-_ ]", ""):gsub(" ", "-") == heading
      end
      assert.is_true(found, link)
    end
  end)
end)
