-- `demote` that takes back what it should have kept: while text is generated, rows that went down a
-- tier are watched as those above are, and whenever H2O ranks, the 8 of each head that were given
-- most come up and are ranked with the others. InfiniGen and ArkVale fetch by a guess for each
-- query; here a row has to be looked at for a while. Of a cache without tiers it is `h2o`.
local policy = require "pyramid.policy"

return policy.named("recall",
  policy.demote(policy.load("h2o"):with { slack = 31 }, "warm", { recall = 8 }),
  "heavy hitters and recent rows; the rest goes down a tier, and comes back when it is looked at")
