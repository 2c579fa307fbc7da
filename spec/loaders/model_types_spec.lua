-- Which model types load: docs/model-types.md, which scripts/maker/oracle/model_types.py made, has
-- the families that there are, and a reason for each of the others.
local core = require "pyramid.core"
local families = require "pyramid.families"
local helper = require "spec.helper"

-- Types of the page that load as a family of another name, and families that do not load there:
-- their classes are none of transformers'.
local aliases = { ["gpt-sw3"] = "gpt2", gemma3 = "gemma3_text", got_ocr2 = "qwen2",
  moss_transcribe_diarize = "qwen3" }
local foreign = { internlm2 = true, minicpm = true }

describe("docs/model-types.md", function()
  local page = helper.read "docs/model-types.md"
  local rows = {}
  for kind, loads, reason in page:gmatch "\n| ([%w_-]+) | [%w_]+ | (%l*) |%s*([^|\n]-)%s*|" do
    if kind ~= "type" then rows[kind] = { loads = loads == "yes", reason = reason } end
  end

  it("has every bundled family, and nothing else that loads", function()
    local has, want = {}, {}
    for kind, row in pairs(rows) do
      if row.loads and aliases[kind] then assert.truthy(families.find(aliases[kind]))
      elseif row.loads then has[#has + 1] = kind end
    end
    for _, name in ipairs(families.list()) do
      if core.bundled("module", "pyramid.families." .. name) and not foreign[name] then
        want[#want + 1] = name
      end
    end
    table.sort(has)
    assert.same(want, has)
  end)

  it("counts them, and has a reason for each of the others", function()
    local count, all = 0, 0
    for kind, row in pairs(rows) do
      all = all + 1
      count = count + (row.loads and 1 or 0)
      assert.equal(row.loads, row.reason == "", kind)
    end
    assert.truthy(page:find(("%d of %d\ntypes load"):format(count, all), 1, true))
  end)
end)
