-- Pages of docs/ that say what the code does: the walk through PyramidInfer shows what its script
-- prints, its formulas are what the runtime counts, and the glossary and the policies' page name
-- files that are there.
local helper = require "spec.helper"
local lfs = require "lfs"
local samples = require "spec.support.samples"
local shell = require "spec.support.shell"

-- The block that follows the command which prints it.
local function printed_by(page, command)
  local blocks = samples.blocks(helper.read(page))
  for i, block in ipairs(blocks) do
    if block.kind == "sh" and block.text:find(command, 1, true) then return blocks[i + 1].text end
  end
  error(page .. " has no command " .. command)
end

describe("docs/pyramidinfer.md", function()
  it("shows what its script prints", function()
    local out, err, status = shell.pyramid "scripts/examples/six_tokens.lua"
    assert.equal(0, status, err)
    assert.equal(out, printed_by("docs/pyramidinfer.md", "six_tokens.lua"))
  end)

  it("has a sample that prints what it shows", function()
    local blocks, count = samples.blocks(helper.read "docs/pyramidinfer.md"), 0
    for i, block in ipairs(blocks) do
      if block.kind == "lua" then
        local folder = shell.folder()
        helper.write(folder .. "/sample.lua", block.text)
        local out, err, status = shell.pyramid(folder .. "/sample.lua")
        shell.remove(folder)
        assert.equal(0, status, err)
        assert.equal(out, blocks[i + 1].text)
        count = count + 1
      end
    end
    assert.equal(1, count)
  end)

  -- "prompt, linear  421.33 GFLOP  421.68 GFLOP  5.405": name, formula, counted.
  local function counted(text)
    local found = {}
    for line in text:gmatch "[^\n]+" do
      local name, formula, count = line:match "^(%l[%l, ]-) +([%d.]+) [GM]%a+ +([%d.]+) [GM]"
      if name then
        found[#found + 1] = { name = name, formula = tonumber(formula), count = tonumber(count) }
      end
    end
    return found
  end

  local function agree(text)
    local rows = counted(text)
    assert.equal(15, #rows)                                       -- five for each of three policies
    for _, row in ipairs(rows) do
      local bound = row.name == "prompt, mass" and 0.5 or row.name == "rows" and 0.2 or 0.04
      assert.is_true(math.abs(row.formula - row.count) <= bound * row.formula + 0.02,
        ("%s: %g by the formula, %g counted"):format(row.name, row.formula, row.count))
    end
  end

  it("has formulas that the runtime counts by", function()
    local out, err, status = shell.pyramid("scripts/examples/costs.lua", "models/tiny",
      "docs/policies.md", "1000")
    assert.equal(0, status, err)
    agree(out)
    agree(printed_by("docs/pyramidinfer.md", "costs.lua"))
  end)
end)

describe("docs/adding-a-family.md", function()
  -- Its Tulip is Qwen3's fixture under another name.
  it("has samples that run, one after the other", function()
    local folder, fixture, text = shell.folder(), helper.fixture "families/qwen3", ""
    local program = io.popen("realpath " .. shell.quote(shell.program)):read "l"
    assert(os.execute(("mkdir -p %s/path/to/tulip"):format(folder)))
    local config = helper.read(fixture .. "/config.json")
    config = config:gsub('"qwen3"', '"tulip"'):gsub("Qwen3ForCausalLM", "TulipForCausalLM")
    helper.write(folder .. "/path/to/tulip/config.json", config)
    helper.write(folder .. "/path/to/tulip/model.safetensors",
      helper.read(fixture .. "/model.safetensors"))
    for _, block in ipairs(samples.blocks(helper.read "docs/adding-a-family.md")) do
      if block.kind == "lua" then text = text .. block.text end
    end
    helper.write(folder .. "/sample.lua", text)
    local out, err, status = shell.run(("cd %s && %s sample.lua"):format(folder, program))
    shell.remove(folder)
    assert.equal(0, status, err)
    assert.matches("^pyramid%.model %(tulip, 3 layers, 4 heads over 2 of 32, .-\n%d[%d ]+\n$", out)
    assert.equal(20, select(2, out:match "\n(.+)$":gsub("%d+", "")))
    -- the comment behind print shows the line's beginning
    local shown = text:match "print%(model%)%s+%-%- (.-)…"
    assert.equal(shown, out:sub(1, #shown))
  end)
end)

-- The anchors of a page's headings, as GitHub makes them: the second of a name ends in -1.
local function anchors_of(text)
  local anchors, seen = {}, {}
  for title in ("\n" .. text):gsub("\n```.-\n```", "\n"):gmatch "\n#+ ([^\n]+)" do
    local name = title:gsub("%]%b()", ""):lower():gsub("[^%w%-_ \128-\255]", ""):gsub(" ", "-")
    anchors[seen[name] and ("%s-%d"):format(name, seen[name]) or name] = true
    seen[name] = (seen[name] or 0) + 1
  end
  return anchors
end

describe("pages of docs/", function()
  for file in lfs.dir "docs" do
    if file:find "%.md$" then
      -- a bundle comes without .git and the large report
      it("link to what is there: " .. file, function()
        local text = helper.read("docs/" .. file)
        for link in text:gmatch "%]%(([^)%s]+)%)" do
          local path, anchor = link:match "^([^#]*)#?(.*)$"
          if not path:find "^https?:" then
            local held = path == "" or lfs.attributes("docs/" .. path)
            assert.truthy(held or path:find "report%.html$" and not lfs.attributes ".git", link)
            local target = path == "" and text or anchor ~= "" and helper.read("docs/" .. path)
            assert.is_true(anchor == "" or anchors_of(target)[anchor] == true, link)
          end
        end
      end)
    end
  end

  it("explain each word once", function()
    local seen, count = {}, 0
    for word in helper.read("docs/glossary.md"):gmatch "\n%*%*([^*]+)%.%*%*" do
      assert.is_nil(seen[word], word)
      seen[word], count = true, count + 1
    end
    assert.is_true(count > 40, count)
  end)
end)
