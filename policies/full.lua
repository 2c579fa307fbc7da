-- Keeps every row: the reference that every other policy is measured against.
local policy = require "pyramid.policy"

return policy { name = "full", doc = "keeps every row" }
