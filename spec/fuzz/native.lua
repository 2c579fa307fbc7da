-- native.lua: the Lua half of native.c, which sets KIND. Its value is a function of a case's bytes:
-- what is wrong, or nil.
package.path = "./?.lua;" .. package.path
local judge = require "spec.fuzz.judge"
local targets = require "spec.fuzz.targets"
local helper = require "spec.helper"

local kind = _G.KIND
local target = assert(targets[kind], "PYRAMID_FUZZ_KIND is no target")
local base = target.bases()[1]
local path = os.tmpname()
os.remove(path)
path = path .. target.suffix

-- Where a corpus is wanted: cases of the target's own.
local corpus = os.getenv "PYRAMID_FUZZ_CORPUS"
for n = 1, corpus and 20 or 0 do
  math.randomseed(1, n)
  helper.write(("%s/%d"):format(corpus, n), target.make(base))
end

return function(bytes)
  helper.write(path, bytes)
  local wrong = judge(target, path, base)
  os.remove(path)
  return wrong
end
