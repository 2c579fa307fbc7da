-- What shells complete and what manual pages say is what the scripts' option tables hold.
local helper = require "spec.helper"
local shell = require "spec.support.shell"

-- What the command prints; on standard error where it is to fail.
local function output(words, status)
  local out, err, code = shell.run(words)
  assert.equal(status or 0, code, err)
  return status and err or out
end

describe("pyramid completion", function()
  local program = shell.program

  -- What bash would offer for the last word.
  local function offered(line)
    local path = helper.tmp(".bash")
    helper.write(path, output(program .. " completion bash") .. ([[
COMP_WORDS=(%s)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_pyramid
echo "${COMPREPLY[@]}"
]]):format(line))
    local text = output("bash " .. path)
    os.remove(path)
    local found = {}
    for word in text:gmatch "%S+" do found[word] = true end
    return found
  end

  it("offers commands, a command's own options, and what they take", function()
    local found = offered "pyramid gene"
    assert.same({ generate = true }, found)
    found = offered "pyramid generate --s"
    assert.is_true(found["--speculate"] and found["--seed"] and found["--stop"])
    assert.is_nil(found["--cache-dtype"])
    assert.same({ snapkv = true }, offered "pyramid generate --policy snap")
    found = offered "pyramid generate --scaling ''"
    assert.is_true(found.yarn and found.linear and found.none)
    assert.is_nil(offered "pyramid convert --sp"["--speculate"])
  end)

  it("is known to zsh and fish, each in its own words", function()
    assert.matches("#compdef pyramid", output(program .. " completion zsh"), 1, true)
    local fish = output(program .. " completion fish")
    assert.matches("__fish_pyramid_seen_command generate' -l speculate", fish, 1, true)
    assert.matches("'bash', 'zsh', 'fish'", output(program .. " completion tcsh", 1), 1, true)
  end)
end)

describe("pyramid man", function()
  local program = shell.program

  it("has a page for each command, with all of its options", function()
    local folder = shell.folder()
    output(("%s man --folder %s"):format(program, folder))
    for _, name in ipairs { "generate", "chat", "eval", "completion", "man" } do
      local page = helper.read(("%s/pyramid-%s.1"):format(folder, name))
      local help = output(("%s %s --help"):format(program, name))
      for option in help:gmatch "\n%s+(%-%-[%w-]+)" do
        assert.matches("\\fB" .. option:gsub("%-", "\\-"), page, 1, true)
      end
      for line in page:gmatch "[^\n]+" do
        assert.is_nil(line:match "^'", "a control character at the beginning of " .. line)
      end
    end
    shell.remove(folder)
  end)

  it("says which commands there are", function()
    assert.matches("Known: .*generate", output(program .. " man nonsense", 1))
    assert.matches("Name one: ", output(program .. " man", 1), 1, true)
  end)
end)
