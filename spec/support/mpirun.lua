-- Starts the program on several ranks, for the specs of core/ranks.
local files = require "pyramid.files"
local shell = require "spec.support.shell"

local mpirun = {}

--- Root, and fewer processors than ranks, are fine here; Open MPI asks, other MPIs do not look.
mpirun.environment = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
  .. "OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe "

--- Why nothing can be started here; nil where it can.
---@return string? reason
function mpirun.missing()
  if not os.execute "command -v mpirun >/dev/null 2>&1" then return "mpirun is not found" end
  if not files.exists(shell.build .. "/libpyramid_mpi.so") then
    return "libpyramid_mpi.so is not built (make mpi)"
  elseif (os.getenv "PYRAMID_CFLAGS" or ""):find "sanitize" then
    return "an MPI library's own leaks would be found"
  end
end

--- The words of a command line.
function mpirun.words(...)
  local words = {}
  for i, word in ipairs { ... } do words[i] = shell.quote(word) end
  return table.concat(words, " ")
end

--- Runs the program on n ranks. A wait that never ends is a failure, not a spec that never ends.
function mpirun.run(n, ...)
  return shell.run(("%s timeout 300 mpirun -n %d %s </dev/null"):format(mpirun.environment, n,
    mpirun.words(shell.program, ...)))
end

return mpirun
