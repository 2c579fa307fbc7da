-- README.md and the handbook's pages cannot rot. Each page's samples run in a folder of its own,
-- from which the tree is seen as a reader sees it (build/pyramid, models, docs):
--
--   lua      a file of the page if it begins with "-- NAME.lua: "; a policy passes the check that
--            pages name, specs pass, anything else runs where no command of the page runs it
--   c        is compiled and run; as cpp and python: is the file that the paragraph before links
--            to, which another spec runs
--   sh       each command's script, options, policies and targets are there. A block is also run if
--            a block of text follows it, whose lines it prints, or if it names a file of the page
--   text     what the sh block before it prints; "…" stands for anything, "> " for what is typed
--   (none)   a picture: its headings, labels and policies are there
--
-- A block of a kind that nothing here runs fails; so does a link that leads nowhere.
local helper = require "spec.helper"
local lfs = require "lfs"
local policy = require "pyramid.policy"
local samples = require "spec.support.samples"
local shell = require "spec.support.shell"
local testing = require "pyramid.testing"

local quote = shell.quote
local pages = { "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/README.md",
  "docs/getting-started.md", "docs/cookbook.md", "docs/embedding.md", "docs/benchmarks.md",
  "docs/quality.md", "docs/gpu.md", "docs/testing.md" }
local build = io.popen("realpath " .. quote(shell.build)):read "l"
local cflags = os.getenv "PYRAMID_CFLAGS" or "-g"
local root = lfs.currentdir()

-- What a sample leaves to those behind it: its names.
local names = "local pyramid, policy, score = require 'pyramid', require 'pyramid.policy', "
  .. "require 'pyramid.score'\n"

-- Why a sample on the real model does not run here; nil if it does.
local function no_real_model()
  if not helper.model then return "needs models/fetched (make models)" end
  if helper.device ~= "cpu" then return "a real model takes minutes on this device" end
  if cflags:find "sanitize" then return "a real model takes minutes under sanitizers" end
end

-- A command line in the page's folder, with what is typed. What is said in f32 is said by all
-- processors alike.
local function run(page, line, typed)
  local input = page.folder .. "/typed"
  helper.write(input, typed or "")
  return shell.run(("cd %s && PYRAMID_PRECISION=f32 PYRAMID_PATH=%s %s <%s"):format(
    quote(page.folder), quote(root), line, quote(input)))
end

-- Fails unless each line of a block of text is in what was printed.
local function assert_printed(text, out)
  for line in text:gmatch "[^\n]+" do
    local pattern = line:gsub("%p", "%%%0"):gsub("%s+", "%%s+"):gsub("\u{2026}", "[^\n]*")
    assert.truthy(("\n" .. out):find("\n" .. pattern), ("'%s' is not in:\n%s"):format(line, out))
  end
end

-- Each kind of block: what the spec does with it, and how it is called.
local runs = {}

local function run_policy(page, path, name)
  local report = assert(testing.check(path, { prunes = true, name = name }))
  assert.same({}, report.problems)
  assert.same({}, report.notes)
  local out, err, status = run(page, "build/pyramid check " .. path)
  assert.equal(0, status, out .. err)
  if helper.device == "emulated" and page.path ~= "README.md" then return end     -- one is enough
  out, err, status = run(page, ("build/pyramid generate --policy-file %s ratio=0.3 -n 5 %s")
    :format(path, quote(("Once there was a baker. "):rep(20))))
  assert.equal(0, status, out .. err)
  assert.equal("", err)                                                -- it drops rows
end

function runs.lua(page, block)
  if block.source then return assert.truthy(helper.read(block.source):find(block.text, 1, true)) end
  local path = page.folder .. "/" .. (block.file or "sample.lua")
  if block.text:find "\nreturn policy" then
    local name = assert(block.text:match 'name = "([%w_]+)"')
    if not block.file then path = ("%s/%s.lua"):format(page.folder, name) end
    helper.write(path, block.text)
    return run_policy(page, path, name)
  end
  assert(load(block.text))
  if block.file and page.text:find("build/pyramid [%l ]*" .. block.file:gsub("%p", "%%%0")) then
    return                                                             -- a command runs it
  end
  local why = block.text:find "models/fetched" and no_real_model()
  if why then return pending(why) end
  helper.write(path, (block.text:find "require" and "" or names) .. block.text)
  local out, err, status = run(page, "build/pyramid " .. path)
  assert.equal(0, status, out .. err)
  assert.equal("", err)
  local wanted = block.text:match 'print%(%("\\n(.-)"%)'
  if wanted then
    local pattern = wanted:gsub("%%%%", "\1"):gsub("%%%.?%d?[df]",
      "\2"):gsub("[%-%.%(%)%+%*%?%[%]%^%$%%]", "%%%0")
    assert.matches("\n" .. pattern:gsub("\1", "%%%%"):gsub("\2", "%%d+") .. "\n$", out)
  end
end

function runs.c(page, block)
  if block.source then return assert.truthy(helper.read(block.source):find(block.text, 1, true)) end
  if helper.device ~= "cpu" then return pending "a C host of the default device" end
  local source, program = page.folder .. "/app.c", page.folder .. "/app"
  helper.write(source, block.text)
  local out, err, status = shell.run((
    "cc -std=c11 -Wall -Wextra -Werror %s -Icore -o %s %s -L%s -lpyramid -Wl,-rpath,%s -lpthread")
    :format(cflags, program, source, build, build))
  assert.equal(0, status, out .. err)
  out, err, status = run(page, program)
  assert.equal(0, status, out .. err)
  assert.is_true(#out > 20, out)
end

function runs.cpp(_, block)
  assert.truthy(block.source, "nothing compiles this: quote a file that a spec runs")
  assert.truthy(helper.read(block.source):find(block.text, 1, true), block.source)
end
runs.python = runs.cpp

function runs.sh(page, block)
  local commands = samples.commands(block.text)
  assert.is_true(#commands > 0)
  local mine = block.shown ~= nil
  for _, line in ipairs(commands) do
    samples.check(line)
    for file in pairs(page.files) do mine = mine or line:find("build/pyramid", 1, true) ~= nil and
      line:find(file, 1, true) ~= nil end
  end
  if not mine then return end
  if helper.device == "emulated" then return pending "takes minutes on the emulator" end
  local text, typed = block.shown or "", {}
  for _, line in ipairs(commands) do
    local script = page.files[line:match "^build/pyramid ([%w_]+%.lua)" or ""] or ""
    local why = (line .. script):find "models/fetched" and no_real_model()
    if why then return pending(why) end
    if line:find "^build/pyramid chat" and not line:find "%.lua" then
      text = text:gsub("> ([^\n]*\n)", function(said) typed[#typed + 1] = said return "" end)
    end
  end
  local all = {}
  for _, line in ipairs(commands) do
    local made = line:match "^build/pyramid convert %S+ (build/%S+)"
    if made then os.remove(made) end                     -- from an earlier run
    local out, err, status = run(page, line, table.concat(typed))
    assert.equal(0, status, line .. "\n" .. out .. err)
    all[#all + 1] = out .. "\n" .. err
  end
  if helper.device == "cpu" then assert_printed(text, table.concat(all, "\n")) end
end

function runs.text(_, block) assert.truthy(block.shows, "no command before it prints this") end

-- A picture: what `make SCRIPT` ends with, or rows that begin with a policy.
runs[""] = function(page, block)
  local before = page.text:sub(1, page.text:find(block.text, 1, true))
  local script = before:match ".*`make (%w+)` ends"
  if not script then
    for line in block.text:gmatch "\n(%l[^\n]*)" do
      local words = line:match "^(.-)  +"
      local name, options = words:match "^(%S+)%s*(.*)$"
      local given = {}
      for option in options:gmatch "%S+" do given[#given + 1] = option end
      local found = assert(policy.load(name))
      assert(policy.load(found, assert(policy.parse_options(found, given))))
    end
    return
  end
  local source = helper.read(("scripts/%s.lua"):format(script))
  for heading in block.text:gmatch "── (%a+ %a+)" do
    assert.truthy(source:find(heading, 1, true), heading)
  end
  for label in block.text:gmatch "\n  ([%l%u][%l%u ]-)  +%S" do
    assert.truthy(source:find(label, 1, true), label)
  end
end

-- A page: its blocks with what they belong to.
--   file    the name that the block says it has      shown, shows   the text behind a command
--   source  the file that the paragraph before links to, by "From [NAME](…)"
local function open(path)
  local page = { path = path, text = helper.read(path), files = {} }
  page.blocks = samples.blocks(page.text)
  local at = 1
  for i, block in ipairs(page.blocks) do
    local first, last = page.text:find(block.text, at, true)
    local paragraph = page.text:sub(at, first - 1):match "([^\n].*)\n\n```%w*\n$" or ""
    paragraph = paragraph:gsub("^.*\n\n", "")
    at = last + 1
    local linked = paragraph:match "[Ff]rom%s+%[[^%]]*%]%(([^)]+)%)"
    block.source = linked and (path:match "^(.*/)" or "") .. linked
    block.file = block.kind == "lua" and not block.source
      and block.text:match "^%-%- ([%w_]+%.lua): "
    if block.file then page.files[block.file] = block.text end
    local behind = page.blocks[i + 1]
    if block.kind == "sh" and behind and behind.kind == "text" then
      block.shown, behind.shows = behind.text, true
    end
  end
  return page
end

for _, path in ipairs(pages) do
  describe(path, function()
    local page = open(path)

    setup(function()
      page.folder = shell.folder()
      for entry in lfs.dir "." do
        if not entry:find "^%." and entry ~= "build" then
          assert(lfs.link(root .. "/" .. entry, page.folder .. "/" .. entry, true))
        end
      end
      assert(lfs.link(build, page.folder .. "/build", true))
      for file, text in pairs(page.files) do helper.write(page.folder .. "/" .. file, text) end
    end)
    teardown(function() shell.remove(page.folder) end)

    for i, block in ipairs(page.blocks) do
      local first = block.text:match "[^\n]*[%w][^\n]*" or ""
      it(("runs its sample %d, %s: %s"):format(i, block.kind, first:sub(1, 50)), function()
        assert.truthy(runs[block.kind], ("nothing runs samples of kind '%s'"):format(block.kind))
        runs[block.kind](page, block)
      end)
    end

    it("names only commands and options that there are in its lines, too", function()
      for _, code in ipairs(samples.inline(page.text)) do
        if code:find "^build/pyramid " or code:find "^pyramid " or code:find "^make " then
          local ok, message = pcall(samples.check, (code:gsub("%s*…$", "")))
          assert.is_true(ok, ("`%s`: %s"):format(code, message))
        elseif code:find "^for .* do " or code:find "^local " then
          assert(load((code:gsub("…", "nil"))))
        end
      end
    end)

    it("links to what there is, and keeps its columns", function()
      local inside = false
      for line in (page.text .. "\n"):gmatch "([^\n]*)\n" do
        inside = inside ~= (line:find "^```" ~= nil)
        local columns = utf8.len(line) or #line
        assert.is_true(columns <= 100 or line:find "^|" ~= nil, line)
      end
      assert.is_false(inside)
      for target in page.text:gmatch "%]%(([^)%s]+)%)" do
        if not target:find "^https?://" then
          local to = (path:match "^(.*/)" or "") .. target:gsub("#.*$", "")
          assert.truthy(lfs.attributes(to), ("%s: a link to %s leads nowhere"):format(path, target))
        end
      end
    end)
  end)
end

it("README.md is short, and the handbook's map has every page", function()
  local _, lines = helper.read "README.md":gsub("\n", "")
  assert.is_true(lines <= 150, lines)
  local map = helper.read "docs/README.md"
  for entry in lfs.dir "docs" do
    if entry:find "%.md$" and entry ~= "README.md" then
      assert.truthy(map:find("](" .. entry .. ")", 1, true), entry)
    end
  end
end)

-- The checker itself: what is not there is found.
describe("samples", function()
  it("are refused where something in them is not there", function()
    for line, message in pairs {
      ["build/pyramid nonesuch"] = "there is no script nonesuch",
      ["pyramid inspect --lenght 3"] = "inspect has no option --lenght",
      ["build/pyramid compare --policy snapvk"] = "unknown policy 'snapvk'",
      ["build/pyramid compare --policy snapkv rato=1 --budgets 0.3"] = "unknown option 'rato'",
      ["sudo make instal PREFIX=/usr"] = "the Makefile has no target instal",
      ["make install PERFIX=/usr"] = "the Makefile knows no PERFIX",
      ["make bench BENCH=\"--shaep 134m\""] = "bench has no option --shaep",
      ["frobnicate it"] = "a command that nothing checks",
      ["kernels/nonesuch.sh"] = "nonesuch.sh",
    } do
      local ok, said = pcall(samples.check, line)
      assert.is_false(ok, line)
      assert.truthy(tostring(said):find(message, 1, true), said)
    end
    for _, line in ipairs { "make test SPEC=ops/rows",
      "build/pyramid compare --policy snapkv window=8 --budgets 0.3", "cd build && make build",
        "DEVICE=1 build/pyramid inspect --json" } do
      samples.check(line)
    end
    assert.same({ "a b c", "d" }, samples.commands "# one\na b \\\n  c   # two\n\nd\n")
    local found = samples.blocks "x\n```sh\nls\n```\ny `z`\n```\nout\n```\n"
    assert.same({ "sh", "" }, { found[1].kind, found[2].kind })
    assert.equal("ls\n", found[1].text)
    assert.same({ "z" }, samples.inline "x\n```sh\nls `q`\n```\ny `z`\n")
  end)
end)
