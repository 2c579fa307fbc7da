-- H2O (arXiv 2306.14048) that forgets nothing: what has the least attention goes down to a tier of
-- the cache, of fewer bits or in a file, where every query still finds it; of a cache without that
-- tier it leaves, as under `h2o`. Any policy can be had so: policy.demote(name, tier).
local policy = require "pyramid.policy"

return policy.named("demote", policy.demote(policy.load("h2o"):with { slack = 31 }, "warm"),
  "heavy hitters and recent rows; the rest goes down a tier of the cache, if it has one")
