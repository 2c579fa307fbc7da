--- Runs the program under mpirun, as ranks of a kind, for specs of several processes.
local launch = require "spec.support.mpirun"
local shell = require "spec.support.shell"

local run = { missing = launch.missing() }

--- Runs the program on n ranks of a kind, which scripts find in RANKS. A wait that never ends is a
--- failure, not a spec that never ends. Returns output, errors and status.
function run.mpirun(kind, n, ...)
  return shell.run(("%s RANKS=%s timeout 300 mpirun -n %d %s </dev/null"):format(
    launch.environment, kind, n, launch.words(shell.program, ...)))
end

return run
