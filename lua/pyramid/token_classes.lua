--- Classes of a vocabulary's tokens, for score.tokens: which ids are separators, digits, special
--- tokens, symbols. Only what a token reads as decides, and no list of any one model.
---
---   separators   one of . , ? ! ; : or white space alone, spaces around or not: ".", " ,", "\n\n"
---   digits       digits alone, spaces around: "7", " 2024"
---   specials     what the tokenizer calls special
---   symbols      bytes of ASCII, of which none is a letter, a digit or white space: "){", " ==",
---                but not ".", which is a separator
local core = require "pyramid.core"

local token_classes = {}

token_classes.known = { separators = true, digits = true, specials = true, symbols = true }

---The class of a text; nil: of none.
---@param text string
---@return "separators"|"digits"|"symbols"|nil
function token_classes.of_text(text)
  local bare = text:match "^%s*(.-)%s*$"
  if text ~= "" and (bare == "" or bare:find "^[.,?!;:]$") then return "separators" end
  if bare:find "^%d+$" then return "digits" end
  if bare:find "^[%p]+$" then return "symbols" end
end

-- As it stands in a text. A tokenizer that drops a text's first space has a token of nothing else
-- decode to nothing: its piece says what it is.
local function text_of(tokenizer, id)
  local text = tokenizer:decode({ id }) or ""
  local piece = text == "" and tokenizer:piece(id)
  if piece and piece:gsub("\u{2581}", "") == "" and piece ~= "" then return " " end
  return text
end

local found = setmetatable({}, { __mode = "k" })       -- by tokenizer: class by id

---The class of each id that is of one.
---@param tokenizer pyramid.Tokenizer
---@return table<integer, string>
function token_classes.of(tokenizer)
  if found[tokenizer] then return found[tokenizer] end
  local _ <close> = core.plain_locale()
  local classes = {}
  for id = 0, tokenizer.vocab_size - 1 do
    classes[id] = tokenizer:is_special(id) and "specials"
      or token_classes.of_text(text_of(tokenizer, id))
  end
  found[tokenizer] = classes
  return classes
end

-- By tokenizer: by the set's key, for as long as a cache has it.
local vectors = setmetatable({}, { __mode = "k" })
local without = {}                                     -- stands for no tokenizer

local function vector_of(weights, classes)
  local list, last = {}, 0
  for id, class in pairs(classes) do
    if weights[class] then list[id + 1], last = weights[class], math.max(last, id) end
  end
  for id, weight in pairs(weights) do
    if type(id) == "number" then list[id + 1], last = weight, math.max(last, id) end
  end
  for i = 1, last + 1 do list[i] = list[i] or 0 end
  return core.vector(list)
end

---A function that makes a vector of what score.tokens says: a number for each id, 0 for those that
---it does not name. Without a tokenizer no id is of a class.
---@param tokenizer? pyramid.Tokenizer
---@return fun(set: { weights: table<string|integer, number>, key: string }): pyramid.Vector
function token_classes.reader(tokenizer)
  local of = tokenizer or without
  local known = vectors[of] or setmetatable({}, { __mode = "v" })
  vectors[of] = known
  return function(set)
    local made = known[set.key]
    if not made then
      made = vector_of(set.weights, tokenizer and token_classes.of(tokenizer) or {})
      known[set.key] = made
    end
    return made
  end
end

return token_classes
