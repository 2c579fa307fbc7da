--- The questions of pyramid.recall as tasks: `word`, facts of one word hidden in a text, which any
--- model can be asked for, and `world`, what documents of the made-up world told once. They are put
--- as recall puts them: without a chat template, as ids.
local hidden = require "pyramid.tools.hidden"
local recall = require "pyramid.tools.recall"
local world = require "pyramid.tools.world"

local facts = {}

facts.tasks = { word = { hidden.kind }, world = world.kinds }

---Cases of `questions` questions in all (of the world's kinds, of each).
---@param task string
---@param model pyramid.Model
---@param given pyramid.TaskGiven
---@return pyramid.EvalCase[]?
---@return string? message
---@return string? code
function facts.cases(task, model, given)
  local found, message, code = recall.cases(model, given.length, { kinds = facts.tasks[task],
    questions = given.questions, seed = given.seed, text = given.text,
      progress = given.progress })
  if not found then return nil, message, code end
  local out = {}
  for i, case in ipairs(found) do
    local questions = {}
    for k, q in ipairs(case.questions) do
      local judged, rest, problem = recall.prompt(model, case, q, "aware")
      if not judged then return nil, rest, problem end
      questions[k] = { text = q.question, answers = { task == "word" and q.value or q.answer },
        metric = task == "word" and "word" or "line", most = recall.room, stop = { "\n" },
          ids = table.move(judged, #case.ids + 1, #judged, 1, {}), rest = rest }
    end
    out[i] = { task = task, name = ("document %d"):format(case.seed), ids = case.ids,
      questions = questions }
  end
  return out
end

return facts
