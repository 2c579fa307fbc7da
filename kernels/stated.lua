-- Local memory that kernels may use, in bytes, by name; see registers.lua. All others may use none.
--
-- Sines and cosines of angles beyond 105615 are reduced with the help of a table in local memory: positions so far out, of
-- the fastest pairs only.
local reduction = { stack = 32, spills = 0 }

return { rope_kernel = reduction, rotate_kernel = reduction, turns_kernel = reduction, mean_turns_kernel = reduction }
