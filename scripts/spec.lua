-- spec.lua: runs Busted specs, such as those of a policy, inside this program.
--
-- pyramid spec mine_spec.lua [--filter=…]: what Busted's own command does, with the Lua and the
-- library that are in here.
if #arg == 0 or arg[1] == "--help" or arg[1] == "-h" then
  print("Usage: pyramid spec FILE… [options of busted]\n\nRuns Busted specs. pyramid.testing "
    .. "tests policies without a model.")
  os.exit(#arg == 0 and 1 or 0)
end
if not pcall(require, "busted.runner") then
  io.stderr:write("pyramid spec: Busted for Lua 5.4 is not installed\n",
    "Debian: apt install lua-busted; elsewhere: luarocks install busted.\n")
  os.exit(1)
end
require "busted.runner" { standalone = false }
