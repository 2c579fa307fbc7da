-- child.lua: runs cases of one target in a process of its own, which may end as it will; see
-- run.lua, who starts it.
--
--   child.lua KIND SEED FROM TO SECONDS FOLDER     cases FROM … TO, until the seconds are over; the
--                                                  case at work lies in FOLDER
--   child.lua --file PATH                          what was found once: KIND.BASE.anything; says
--                                                  what is wrong, and exits 1
--
-- A case is wrong if it raises, if it fails without a message, a known code or, where a file is at
-- fault, the file's name, or if it takes more time or memory than a small file may.
package.path = "./?.lua;" .. package.path
package.cpath = (os.getenv "PYRAMID_BUILD" or "build") .. "/?.so;" .. package.cpath
local judge = require "spec.fuzz.judge"
local targets = require "spec.fuzz.targets"
local helper = require "spec.helper"

if arg[1] == "--file" then
  local kind, base = arg[2]:match "([^/.]+)%.([^/.]+)%.[^/]*$"
  local target = assert(targets[kind], "its name does not say what it is")
  local path = os.tmpname()
  helper.write(path .. target.suffix, helper.read(arg[2]))
  local wrong = judge(target, path .. target.suffix, base)
  os.remove(path)
  os.remove(path .. target.suffix)
  if wrong then print(wrong) end
  os.exit(wrong and 1 or 0, true)
end

local kind, folder = arg[1], arg[6]
local seed, from, to, limit = tonumber(arg[2]), tonumber(arg[3]), tonumber(arg[4]), tonumber(arg[5])
local target = assert(targets[kind], "no such target")
local bases, endings, tried, began = target.bases(), {}, 0, os.time()
for n = from, to do
  -- A state of the sanitizers' own that grows is no find; the collector's would be.
  if n % 50 == 0 then collectgarbage() end
  math.randomseed(seed, n)
  local base = bases[math.random(#bases)]
  local bytes = target.make(base)
  local path = ("%s/%s.%s.%d%s"):format(folder, kind, base, n, target.suffix)
  helper.write(path, bytes)
  helper.write(folder .. "/now", ("%d %s"):format(n, path))
  local wrong, ending = judge(target, path, base)
  tried, endings[ending] = tried + 1, (endings[ending] or 0) + 1
  if wrong then
    io.write("FIND ", n, " ", path, " ", (wrong:gsub("[%c]+", " | ")), "\n")
    io.flush()
  else
    os.remove(path)
  end
  if os.time() - began >= limit then break end
end
os.remove(folder .. "/now")
local list = {}
for ending, count in pairs(endings) do list[#list + 1] = ending .. "=" .. count end
io.write("DONE ", tried, " ", from + tried, " ", table.concat(list, " "), "\n")
os.exit(0, true)
