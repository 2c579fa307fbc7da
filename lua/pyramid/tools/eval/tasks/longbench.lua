--- LongBench (arXiv 2308.14508) and L-Eval (arXiv 2307.11088), from the JSON lines that their
--- makers publish, with their prompts, lengths of answers and metrics.
---
---   longbench   English sets and code: input, context, answers, dataset, all_classes. Chinese sets
---               are refused: their words are cut by a dictionary that is not here
---   leval       input, instructions, outputs, evaluation: exam, f1 or rouge
---
--- All instructions of one document of L-Eval are put to one cut cache.
local lines = require "pyramid.tools.eval.lines"

local longbench = {}

local passages = "Answer the question based on the given passages. Only give me the answer and do "
  .. "not output any other words.\n\nThe following are given passages.\n{context}\n\nAnswer the "
  .. "question based on the given passages. Only give me the answer and do not output any other "
  .. "words.\n\nQuestion: {input}\nAnswer:"

-- prompt, tokens of answer, metric; `plain`: put without a chat template; `line`: only the answer's
-- first line counts
local sets = {
  narrativeqa = { "You are given a story, which can be either a novel or a movie script, and a "
    .. "question. Answer the question as concisely as you can, using a single phrase if possible. "
    .. "Do not provide any explanation.\n\nStory: {context}\n\nNow, answer the question based on "
    .. "the story as concisely as you can, using a single phrase if possible. Do not provide any "
    .. "explanation.\n\nQuestion: {input}\n\nAnswer:", 128, "f1" },
  qasper = { "You are given a scientific article and a question. Answer the question as concisely "
    .. "as you can, using a single phrase or sentence if possible. If the question cannot be "
    .. "answered based on the information in the article, write \"unanswerable\". If the question "
    .. "is a yes/no question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide any "
    .. "explanation.\n\nArticle: {context}\n\n Answer the question based on the above article as "
    .. "concisely as you can, using a single phrase or sentence if possible. If the question cannot "
    .. "be answered based on the information in the article, write \"unanswerable\". If the "
    .. "question is a yes/no question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide "
    .. "any explanation.\n\nQuestion: {input}\n\nAnswer:", 128, "f1" },
  multifieldqa_en = { "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the "
    .. "following question based on the above text, only give me the answer and do not output any "
    .. "other words.\n\nQuestion: {input}\nAnswer:", 64, "f1" },
  hotpotqa = { passages, 32, "f1" }, ["2wikimqa"] = { passages, 32, "f1" },
  musique = { passages, 32, "f1" },
  gov_report = { "You are given a report by a government agency. Write a one-page summary of the "
    .. "report.\n\nReport:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
    512, "rouge_l_sets" },
  qmsum = { "You are given a meeting transcript and a query containing a question or instruction. "
    .. "Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the "
    .. "query based on the above meeting transcript in one or more sentences.\n\nQuery: {input}\n"
    .. "Answer:", 512, "rouge_l_sets" },
  multi_news = { "You are given several news passages. Write a one-page summary of all news. \n\n"
    .. "News:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:", 512,
    "rouge_l_sets" },
  trec = { "Please determine the type of the question below. Here are some examples of "
    .. "questions.\n\n{context}\n{input}", 64, "classification", plain = true, line = true },
  triviaqa = { "Answer the question based on the given passage. Only give me the answer and do not "
    .. "output any other words. The following are some examples.\n\n{context}\n\n{input}", 32, "f1",
    plain = true, line = true },
  samsum = { "Summarize the dialogue into a few short sentences. The following are some examples."
    .. "\n\n{context}\n\n{input}", 128, "rouge_l_sets", plain = true, line = true },
  passage_count = { "There are some paragraphs below sourced from Wikipedia. Some of them may be "
    .. "duplicates. Please carefully read these paragraphs and determine how many unique paragraphs "
    .. "there are after removing duplicates. In other words, how many non-repeating paragraphs are "
    .. "there in total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after "
    .. "removing duplicates. The output format should only contain the number, such as 1, 2, 3, and "
    .. "so on.\n\nThe final answer is: ", 32, "count" },
  passage_retrieval_en = { "Here are 30 paragraphs from Wikipedia, along with an abstract. Please "
    .. "determine which paragraph the abstract is from.\n\n{context}\n\nThe following is an "
    .. "abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is from. "
    .. "The answer format must be like \"Paragraph 1\", \"Paragraph 2\", etc.\n\nThe answer is: ",
    32, "retrieval" },
  lcc = { "Please complete the code given below. \n{context}Next line of code:\n", 64, "edit",
    plain = true },
  ["repobench-p"] = { "Please complete the code given below. \n{context}{input}Next line of code:\n",
    64, "edit", plain = true },
}

---Names of the sets that are known, sorted.
---@return string[]
function longbench.sets()
  local names = {}
  for name in pairs(sets) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function text_of(value) return type(value) == "string" and value or "" end

local readers = {}

function readers.longbench(path, text)
  local list, message, code = lines.json(path, text)
  if not list then return nil, message, code end
  local out = {}
  for i, entry in ipairs(list) do
    local name = text_of(entry.dataset):gsub("_e$", "")
    local set = sets[name]
    if not set then
      return nil, ("%s, line %d: the set '%s' is not known (%s)"):format(path, entry.line, name,
        table.concat(longbench.sets(), ", ")), "unsupported"
    end
    if type(entry.context) ~= "string" or type(entry.answers) ~= "table" then
      return nil, ("%s, line %d: no context and answers"):format(path, entry.line), "format"
    end
    local lead, tail = set[1]:match "^(.-){context}(.*)$"
    local input = text_of(entry.input)
    tail = tail:gsub("{input}", function() return input end)
    out[i] = { task = name, name = ("line %d"):format(entry.line), plain = set.plain,
      context = lead .. entry.context, questions = { { text = tail, prefix = "",
        answers = entry.answers, metric = set[3], most = set[2], first_line = set.line,
          classes = type(entry.all_classes) == "table" and entry.all_classes or nil } } }
  end
  return out
end

-- L-Eval's instructions to the system, by file and kind.
local function leval_system(source, kind)
  if source:find "gsm" then
    return "Given several question answer pairs, you need to follow a similar format to answer the "
      .. "last question. Make sure the response is end with The answer is _ . "
  end
  if source:find "coursera" then
    return "Now you are given a very long document. Please follow the instruction based on this "
      .. "document. For multi-choice questions, there could be a sinlge correct option or multiple "
      .. "correct options. Please only provide the letter corresponding to the answer (like A or "
      .. "AB) when answering. "
  end
  if kind == "exam" then
    return "Now you are given a very long document. Please follow the instruction based on this "
      .. "document. For multi-choice questions, there is only a sinlge correct option. Please only "
      .. "provide the letter corresponding to the answer (like A or B) when answering. For other "
      .. "questions, please directly give the concise and accurate answer. "
  end
  return "Now you are given a very long document. Please follow the instruction after this "
    .. "document. These instructions may include summarizing a document, answering questions based "
    .. "on the document, or writing a required paragraph. "
end

local function leval_question(source, kind, instruction, answer)
  local q = { answers = { answer }, prefix = "", most = 512 }
  if source:find "gsm" then
    q.text, q.metric = "\n\n" .. instruction, "number"
  elseif kind == "exam" then
    q.text = (" \nQuestion: %s.  Please directly give answer without any additonal output or "
      .. "explanation "):format(instruction)
    q.prefix, q.metric = "\nAnswer:", source:find "coursera" and "letters" or "choice"
  else
    local _, words = answer:gsub("%S+", "")
    q.text = (" Instruction: %s \nAnswer this question with %d words."):format(instruction, words)
    q.metric = kind == "rouge" and "rouge" or "f1"
  end
  return q
end

function readers.leval(path, text)
  local list, message, code = lines.json(path, text)
  if not list then return nil, message, code end
  local out, file = {}, path:match "([^/]*)$":gsub("%.jsonl$", "")
  for _, entry in ipairs(list) do
    local kind = text_of(entry.evaluation)
    if type(entry.input) ~= "string" or type(entry.instructions) ~= "table"
      or type(entry.outputs) ~= "table" or #entry.outputs ~= #entry.instructions then
      return nil, ("%s, line %d: no input, instructions and outputs"):format(path, entry.line),
        "format"
    end
    -- what people or a judge model would score is left out, as L-Eval's own program does
    if kind == "exam" or kind == "f1" or kind == "rouge" then
      local source = text_of(entry.source) ~= "" and entry.source .. " " .. file or file
      local questions = {}
      for i, instruction in ipairs(entry.instructions) do
        questions[i] = leval_question(source, kind, instruction, entry.outputs[i])
      end
      local lead = source:find "gsm" and "" or "Document is as follows. "
      out[#out + 1] = { task = file, name = ("line %d"):format(entry.line),
        system = leval_system(source, kind), context = lead .. entry.input,
          questions = questions }
    end
  end
  if #out == 0 then
    return nil, path .. ": nothing in it is scored by exam, f1 or rouge", "format"
  end
  return out
end

longbench.tasks = readers

return longbench
