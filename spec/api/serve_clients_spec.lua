-- `pyramid serve` and clients that others wrote: OpenAI's package for Python, where
-- `make deps-clients` has put it.
local served = require "spec.support.served"
local shell = require "spec.support.shell"

local python = os.getenv "PYTHON_CLIENTS" or "build/clients/bin/python"

local function needs(module)
  local missing = served.missing()
  if missing then return missing end
  local _, _, status = shell.run(("%s -c 'import %s'"):format(python, module))
  return status ~= 0 and ("needs Python's %s (make deps-clients)"):format(module) or nil
end

describe("pyramid serve, asked by others' clients", function()
  it("answers OpenAI's package", function()
    local missing = needs "openai"
    if missing then return pending(missing) end
    local server = served.start "--model models/tiny --threads 2 --template chatml"
    local out, err, status = shell.run(("%s spec/support/clients/openai_client.py %s"):format(
      python, server.url))
    server:stop()
    assert.equal(0, status, out .. err)
    assert.matches("held: leaving", out)
  end)
end)
