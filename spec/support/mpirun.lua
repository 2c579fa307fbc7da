-- Starts the program on several ranks, for the specs of core/ranks.
local files = require "pyramid.files"
local shell = require "spec.support.shell"

local mpirun = {}

-- Open MPI keeps files of its runs in one folder of the machine, which a run that ends takes from
-- one that begins: each process of specs has its own.
local folder = shell.folder()
mpirun.leave = setmetatable({}, { __gc = function() shell.remove(folder) end })

--- Root, and fewer processors than ranks, are fine here; Open MPI asks, other MPIs do not look.
mpirun.environment = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
  .. "OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe "
  .. ("OMPI_MCA_orte_tmpdir_base=%s "):format(folder)

local sanitized = (os.getenv "PYRAMID_CFLAGS" or ""):find "sanitize=address"
--- How many times longer anything takes than in a plain build.
mpirun.slow = sanitized and 5 or 1
if sanitized then
  mpirun.environment = mpirun.environment .. "ASAN_OPTIONS=fast_unwind_on_malloc=0 "
    .. 'LSAN_OPTIONS=print_suppressions=0:suppressions="$PWD"/spec/support/ranks/mpi.supp '
end

--- Why nothing can be started here; nil where it can.
---@return string? reason
function mpirun.missing()
  if not os.execute "command -v mpirun >/dev/null 2>&1" then return "mpirun is not found" end
  if not files.exists(shell.build .. "/libpyramid_mpi.so") then
    return "libpyramid_mpi.so is not built (make mpi)"
  end
end

--- The words of a command line.
function mpirun.words(...)
  local words = {}
  for i, word in ipairs { ... } do words[i] = shell.quote(word) end
  return table.concat(words, " ")
end

--- Runs the program on n ranks of a kind, which scripts find in RANKS. A wait that never ends is a
--- failure, not a spec that never ends.
function mpirun.run_as(kind, n, ...)
  local line = "%s RANKS=%s timeout %d mpirun -n %d %s </dev/null"
  return shell.run(line:format(mpirun.environment, kind, 300 * mpirun.slow, n,
    mpirun.words(shell.program, ...)))
end

function mpirun.run(n, ...) return mpirun.run_as("tensor", n, ...) end

return mpirun
