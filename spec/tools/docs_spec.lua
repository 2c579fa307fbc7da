-- docs/adding-*.md cannot rot: each ends with a checklist of the files to touch, and every path and
-- every symbol that a line of it names is in the tree. A line of a checklist is
--
--     - [ ] `path`: `symbol`, `symbol` and in words what to do; what follows a wrapped line is
--           indented
--
-- The path is a file or a folder, from the repository's root; a folder has all files right in it.
-- Everything else in `…` is a symbol: text that stands in that file, as whole words. What the
-- reader is yet to write, and commands, therefore stand without `…`.
--
-- A block of code behind "From `path`:" or "From `path`, … :" stands in that file as it is.
local helper = require "spec.helper"
local lfs = require "lfs"

-- Whether `symbol` stands in `text`, not as a part of a longer name.
local function names(text, symbol)
  local at = 1
  while true do
    local first, last = text:find(symbol, at, true)
    if not first then return false end
    local joined = symbol:find "^[%w_]" and text:sub(first - 1, first - 1):find "^[%w_]"
      or symbol:find "[%w_]$" and text:sub(last + 1, last + 1):find "^[%w_]"
    if not joined then return true end
    at = first + 1
  end
end

-- The text of a file, or of all files right in a folder; nil if there is neither.
local function text_at(path)
  local mode = lfs.attributes(path, "mode")
  if mode == "file" then return helper.read(path) end
  if mode ~= "directory" then return nil end
  local folder, out = path:gsub("/$", ""), {}
  for name in lfs.dir(folder) do
    local file = folder .. "/" .. name
    if lfs.attributes(file, "mode") == "file" then out[#out + 1] = helper.read(file) end
  end
  return table.concat(out, "\n")
end

-- What is wrong with the checklist of a page: a sequence of sentences, empty if nothing is.
local function faults(page)
  local list = page:match "\n## Checklist\n+(.*)$"
  if not list then return { "the page does not end with '## Checklist'" } end
  local out, lines = {}, 0
  for item in ("\n" .. list:gsub("\n      *", " ")):gmatch "\n([^\n]+)" do
    lines = lines + 1
    local path, rest = item:match "^%- %[ %] `([^`]+)`: (.+)$"
    local text = path and text_at(path)
    if not path then
      out[#out + 1] = "no line of a checklist: " .. item
    elseif not text then
      out[#out + 1] = path .. " is not there"
    else
      for symbol in rest:gmatch "`([^`]+)`" do
        if not names(text, symbol) then out[#out + 1] = ("%s has no %s"):format(path, symbol) end
      end
      if not rest:gsub("`[^`]+`", ""):find "%a%a%a" then
        out[#out + 1] = path .. ": no word about what to do"
      end
    end
  end
  if lines < 3 then out[#out + 1] = "a checklist of fewer than three lines" end
  return out
end

-- Blocks that are not in the file that they are said to be from.
local function misquoted(page)
  local out = {}
  for path, code in page:gmatch "From%s+`([^`]+)`[^`]-:\n\n```%l+\n(.-)```" do
    local text = text_at(path)
    if not text then
      out[#out + 1] = path .. " is not there"
    elseif not text:find(code, 1, true) then
      out[#out + 1] = path .. " has no:\n" .. code
    end
  end
  return out
end

describe("docs/adding-*.md", function()
  for name in lfs.dir "docs" do
    if name:find "^adding%-.*%.md$" then
      it(("have checklists that the tree holds true: %s"):format(name), function()
        assert.same({}, faults(helper.read("docs/" .. name)))
      end)

      it(("quote what is in the files: %s"):format(name), function()
        assert.same({}, misquoted(helper.read("docs/" .. name)))
      end)
    end
  end

  it("fail where a quotation is none", function()
    local page = "# A page\n\nSay so. From\n`core/base/dtype.h`, its guard:\n\n```c\n%s\n```\nmore"
    assert.same({}, misquoted(page:format "#ifndef PYR_DTYPE_H\n#define PYR_DTYPE_H"))
    assert.equal(1, #misquoted(page:format "#define PYR_DTYPE_C"))
    assert.equal(1, #misquoted((page:gsub("base", "none"))))
  end)

  it("fail where a path, a symbol or the form is wrong", function()
    local function list(...)
      return "# A page\n\n## Checklist\n\n" .. table.concat({ ... }, "\n") .. "\n"
    end
    local good = "- [ ] `core/base/dtype.h`: `pyr_row_to_f32`, say it"
    local folder = "- [ ] `core/base/`: `pyr_dtype_bytes` and\n      `pyr_tensor_view`, say both"
    assert.same({}, faults(list(good, folder, good)))
    for fault, line in pairs {
      ["core/base/none.h is not there"] = "- [ ] `core/base/none.h`: write it",
      ["core/base/dtype.h has no pyr_row_to"] = "- [ ] `core/base/dtype.h`: `pyr_row_to`, a part",
      ["core/base/dtype.h has no pyr_gone"] = good .. " or\n      `pyr_gone`",
      ["core/base/dtype.h: no word about what to do"] =
        "- [ ] `core/base/dtype.h`: `pyr_row_to_f32`",
      ["no line of a checklist: Then rest."] = "Then rest.",
    } do
      assert.same({ fault }, faults(list(good, line, folder, good)))
    end
    assert.same({ "a checklist of fewer than three lines" }, faults(list(good, folder)))
    assert.same({ "the page does not end with '## Checklist'" }, faults("# A page\n\n" .. good))
  end)
end)

-- A walk is a list whose steps begin as a checklist's lines do:
--
--     3. `path`: `symbol` and what happens there
describe("docs/architecture.md", function()
  it("walks through files and functions that are there", function()
    local page, steps, out = helper.read "docs/architecture.md", 0, {}
    for item in page:gsub("\n    *", " "):gmatch "\n%d+%. (`[^\n]+)" do
      local path, rest = item:match "^`([^`]+)`: (.+)$"
      local text = path and text_at(path)
      steps = steps + 1
      if not text then out[#out + 1] = "no such file: " .. item end
      for symbol in (rest or ""):gmatch "`([^`]+)`" do
        if text and not names(text, symbol) and not text_at(symbol) then
          out[#out + 1] = ("%s has no %s"):format(path, symbol)
        end
      end
    end
    assert.same({}, out)
    assert.is_true(steps >= 20)
  end)
end)
