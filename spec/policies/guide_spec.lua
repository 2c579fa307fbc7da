-- The guide for authors of policies, docs/policies.md, cannot rot: its files are written down and
-- run, its commands give what it shows, its tables name everything there is, and its mistakes are
-- answered as it says.
local helper = require "spec.helper"
local lfs = require "lfs"
local policy = require "pyramid.policy"
local samples = require "spec.support.samples"
local score = require "pyramid.score"
local shell = require "spec.support.shell"
local testing = require "pyramid.testing"

local guide = helper.read "docs/policies.md"

-- { kind, text } of each fenced block, in order.
local blocks = samples.blocks(guide)

-- Rows of the table under a heading as lists of cells; code without its quotes.
local function table_after(heading)
  local rows, at = {}, assert(guide:find(heading, 1, true), heading)
  local text = guide:sub(at):match "\n(|.-)\n\n"
  for line in text:gmatch "[^\n]+" do
    local cells = {}
    for cell in line:gmatch "|%s*([^|]-)%s*%f[|]" do
      cells[#cells + 1] = cell:match "^`(.*)`$" or cell
    end
    rows[#rows + 1] = cells
  end
  return table.move(rows, 3, #rows, 1, {})
end

local folder = shell.folder()
local program = shell.program:find "^/" and shell.program
  or lfs.currentdir() .. "/" .. shell.program

setup(function()
  for _, block in ipairs(blocks) do
    local file = block.text:match "^%-%- ([%w_]+%.lua): "
    if block.kind == "lua" and file then helper.write(folder .. "/" .. file, block.text) end
  end
end)

teardown(function() shell.remove(folder) end)

describe("the guide", function()
  it("writes a policy and its spec", function()
    assert.truthy(lfs.attributes(folder .. "/lately.lua"))
    assert.truthy(lfs.attributes(folder .. "/lately_spec.lua"))
    assert(testing.check(folder .. "/lately.lua", { falls = true, prunes = true, name = "lately" }))
  end)

  for i, block in ipairs(blocks) do
    if block.kind == "sh" then
      for _, line in ipairs(samples.commands(block.text)) do
        it("runs: " .. line, function()
          local script = line:match "^build/pyramid ([%w_]+)"
          assert.truthy(script, "a command that this spec does not know how to run")
          assert.truthy(lfs.attributes(("scripts/%s.lua"):format(script)),
            "there is no script " .. script)
          local out, err, status = shell.run(("cd %s && PYRAMID_PATH=%s %s%s"):format(shell.quote(
            folder), shell.quote(lfs.currentdir()), shell.quote(program),
              line:sub(#"build/pyramid" + 1)))
          assert.equal(0, status, out .. err)
          local shown = blocks[i + 1]
          for wanted in (shown and shown.kind == "text" and shown.text or ""):gmatch "[^\n]+" do
            assert.truthy(out:find(wanted, 1, true), ("'%s' is not in:\n%s"):format(wanted, out))
          end
        end)
      end
    elseif block.kind == "lua" and not block.text:find "^%-%- [%w_]+%.lua: " then
      it("means what it says of " .. block.text:match "policy%.%w+", function()
        assert(testing.check(assert(load(block.text))(), { prunes = true, name = "mine" }))
      end)
    end
  end

  it("has no sample that nothing runs", function()
    local known = { lua = true, sh = true, text = true }  -- text: what the command before it prints
    for i, block in ipairs(blocks) do
      assert.is_true(known[block.kind], ("nothing runs samples of kind '%s'"):format(block.kind))
      assert.is_true(block.kind ~= "text" or blocks[i - 1].kind == "sh",
        "nothing says what prints this")
      if block.kind == "sh" then
        for _, line in ipairs(samples.commands(block.text)) do samples.check(line) end
      end
    end
    for _, code in ipairs(samples.inline(guide)) do
      if code:find "^pyramid %l+" or code:find "^build/pyramid " then samples.check(code) end
    end
  end)

  it("names every policy of the folder, and only those", function()
    local named, names = {}, {}
    for _, row in ipairs(table_after "## What comes along") do
      named[#named + 1] = row[1]
      assert(policy.load(row[1]))
    end
    for file in lfs.dir "policies" do
      if file:find "%.lua$" then names[#names + 1] = file:sub(1, -5) end
    end
    table.sort(named)
    table.sort(names)
    assert.same(names, named)
  end)

  it("names every field of plans and triggers, every field of a layer, every score", function()
    -- The known fields, as a mistake tells them.
    local function fields(kind, heading)
      local definition = { name = "x", [kind] = function() return { nonsense = 1 } end }
      if kind == "trigger" then definition.decode = function() end end
      local _, message = pcall(testing.run, policy(definition), { prompt = 4 })
      local known, named = assert(message:match "known: ([^)]*)", message), {}
      for _, row in ipairs(table_after(heading)) do named[row[1]] = true end
      for field in known:gmatch "[%w_]+" do
        assert.is_true(named[field], ("%s: the field '%s' is not told of"):format(kind, field))
      end
    end
    fields("prefill", "**A plan**")
    fields("trigger", "**A trigger**")
    for field in pairs(testing.layer()) do
      assert.truthy(guide:find("`" .. field .. "`", 1, true), "a layer's " .. field)
    end
    local inner = { is = true, is_signal = true, program = true, anchor = true,
      hold = true, digest = true, queries = true }
    for name in pairs(score) do
      assert.truthy(inner[name] or guide:find("score." .. name, 1, true),
        ("score.%s is not told of"):format(name))
    end
  end)

  for _, row in ipairs(table_after "## Common mistakes") do
    it("answers " .. row[1], function()
      local make = assert(load(
        "local score = require 'pyramid.score' return function(o, l) return " .. row[1]
          .. " end"))()
      local ok, message = pcall(testing.run, policy { name = "mistaken", prefill = make },
        { prompt = 64 })
      assert.is_false(ok)
      assert.truthy(message:find(row[2], 1, true), message)
      assert.truthy(message:find("policy mistaken, layer 1, prefill: ", 1, true), message)
    end)
  end
end)
