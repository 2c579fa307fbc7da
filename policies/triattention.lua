-- TriAttention (arXiv 2604.04921): before RoPE the queries of a head lie close around a centre, and
-- the centre says which distances it looks at. Each KV head keeps the rows that a query there would
-- look at from the distances 1, 2, 4, … on, in the prompt and again whenever `slack` rows more are
-- held. Centres are a model's own: `pyramid calibrate --centres` takes them from plain text.
-- Without them the rows whose keys are unlike all others stay, as under keydiff. The authors spare
-- the prompt's rows; here they are judged, too.
local maps, policy, score = require "pyramid.maps", require "pyramid.policy",
  require "pyramid.score"

local unlike = -score.key_similarity()

return policy.scorer {
  name = "triattention",
  doc = "per head, what queries around the head's centre would look at from afar",
  generates = true,
  slack = 127,
  defaults = { map = "", sinks = 0, recent = 0 },
  score = function(o) return o.map ~= "" and maps.around(o.map) or unlike end,
}
