-- A prompt narrowed twice. From depth `at` on only those tokens are computed that a learned map of
-- hidden states says deeper layers will look at, with neighbours, so that what a sentence tells
-- stays together; from depth `late` on, where nothing that was told is looked for any more, only
-- the newest. What is learned is what a second reading gives the rows of deeper layers (KVzip,
-- arXiv 2505.23416, guessed as in KVzap, arXiv 2601.07891): `pyramid calibrate --learn` writes it.
-- Without a map the tokens whose keys are unlike all others are handed on (KeyDiff, arXiv
-- 2504.15364): a guess too, and a worse one.
local maps, policy, score = require "pyramid.maps", require "pyramid.policy",
  require "pyramid.score"

local unlike, newest = -score.key_similarity(), score.position()

return policy {
  name = "narrow",
  doc = "a learned map says which tokens deeper layers compute; the last ones only the newest",
  defaults = { at = 0.35, handed = 0.75, late = 0.8, kernel = 9, map = "", sinks = 4, recent = 32 },
  limits = { at = { 0, 1 }, handed = { 0, 1 }, late = { 0, 1 }, kernel = { 1, 63, 2 },
    sinks = { 0 }, recent = { 1 } },
  fit = "handed",
  prefill = function(o, l)
    local late = l.index == math.floor(o.late * l.layers)
    if not late and l.index ~= math.floor(o.at * l.layers) then return nil end
    local rows = math.max(o.sinks + o.recent, late and 0 or math.floor(o.handed * l.prompt))
    local worth = o.map ~= "" and maps.learned(o.map).deeper or unlike
    return { keep = math.min(l.rows, l.past + rows), guard = { first = o.sinks, last = o.recent },
      score = late and newest or worth:pool("avg", o.kernel), prune = "hidden" }
  end,
}
