-- files(words): the spec files in whose path below spec/ one of the words is found ("cache",
-- "ops/", "ops/rows"), or whose whole path is one; all of them without words. Paths below spec/
-- without their ".lua", sorted: "ops/rows_spec".
local lfs = require "lfs"

return function(words)
  local files = {}
  local function wanted(name)
    for _, word in ipairs(words) do
      if name:find(word, 1, true) or "spec/" .. name .. ".lua" == word then return true end
    end
    return #words == 0
  end
  for room in lfs.dir "spec" do
    if room ~= "fixtures" and not room:find "%." then
      for file in lfs.dir("spec/" .. room) do
        local name = room .. "/" .. file:gsub("%.lua$", "")
        if file:find "_spec%.lua$" and wanted(name) then files[#files + 1] = name end
      end
    end
  end
  table.sort(files)
  return files
end
