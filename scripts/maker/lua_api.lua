-- lua_api.lua: makes docs/lua-api.md of the annotations in lua/pyramid.
--
--   build/pyramid scripts/maker/lua_api.lua >docs/lua-api.md
--
-- What is told, and in which order, is listed here; what is told of it stands in the sources. A
-- section has a file's first words (`head`), functions of modules (`modules`) and classes
-- (`classes`), which bring their methods and fields. `hide` names what is public in Lua and meant
-- for Pyramid's own files.
local luacats = dofile "scripts/maker/luacats.lua"

local sections = {
  { "The module", modules = { { "init.lua", "pyramid", as = "pyramid" } },
    classes = { "pyramid" } },
  { "Model", classes = { "pyramid.Model", "pyramid.ModelOptions", "pyramid.Config",
    "pyramid.TextEmbeddingOptions", "pyramid.ProfileEntry", "pyramid.Ranks" },
    hide = { "native", "runtime" } },
  { "Cache", classes = { "pyramid.Cache", "pyramid.CacheOptions", "pyramid.PrefillOptions",
    "pyramid.Trace", "pyramid.Spread" } },
  { "Logits", classes = { "pyramid.Logits" } },
  { "Generation", head = "generate.lua", classes = { "pyramid.Generation",
    "pyramid.GenerateOptions", "pyramid.SpeculateOptions", "pyramid.GenerationStats" } },
  { "Likelihood", head = "likelihood.lua", classes = { "pyramid.ScoreOptions",
    "pyramid.Likelihood" } },
  { "Conversation", head = "conversation.lua", classes = { "pyramid.Conversation",
    "pyramid.ConversationOptions",
    "pyramid.SayOptions", "pyramid.Message", "pyramid.ChatAnswerOptions" } },
  { "Batch", head = "batch.lua", classes = { "pyramid.Batch", "pyramid.BatchEntry" } },
  { "Sampler", head = "sampler.lua", classes = { "pyramid.Sampler", "pyramid.SamplerOptions" } },
  { "Policy", modules = { { "policy.lua", "module", as = "policy" },
    { "compose.lua", "compose", as = "policy" }, { "scorer.lua", "scorer", as = "policy" } },
    classes = { "pyramid.Policy", "pyramid.PolicyLike", "pyramid.Definition", "pyramid.Layer",
      "pyramid.Plan", "pyramid.Trigger", "pyramid.ComposedParts", "pyramid.Scorer" },
    hide = { "shape", "call", "bind", "fitted", "in_force" } },
  { "Score", modules = { { "score.lua", "score", as = "score" } }, classes = { "pyramid.Score" },
    hide = { "program", "anchor", "is_signal" } },
  { "Vector", head = "vector.lua", classes = { "pyramid.Vector", "pyramid.Lane" } },
  { "Schedule", modules = { { "schedule.lua", "schedule", as = "schedule" } } },
  { "Testing", modules = { { "testing.lua", "testing", as = "testing" },
    { "testing/checks.lua", "checks", as = "testing",
      names = { policy = "check", folder = "check_folder" } } },
    classes = { "pyramid.testing.Given", "pyramid.testing.Attention", "pyramid.testing.Rows",
      "pyramid.testing.Run", "pyramid.testing.Wanted", "pyramid.testing.Report",
      "pyramid.testing.Assertions" } },
  { "Tokenizer", head = "tokenizer.lua", classes = { "pyramid.Tokenizer",
    "pyramid.TokenizerOptions", "pyramid.EncodeOptions", "pyramid.DecodeOptions",
    "pyramid.Decoder", "pyramid.DecoderOptions" } },
  { "Chat templates", modules = { { "chat.lua", "chat", as = "chat" } },
    classes = { "pyramid.ChatOptions", "pyramid.jinja.Template" }, hide = { "trim" } },
  { "Families", modules = { { "families/init.lua", "families", as = "families" } },
    classes = { "pyramid.Family" } },
  { "JSON", modules = { { "json.lua", "json", as = "json" } }, classes = { "pyramid.JsonLimits" } },
}

-- ---- what there is ------------------------------------------------------------------------------

local files, order, classes = {}, {}, {}

local function read(name)
  if not files[name] then
    files[name] = luacats.read("lua/pyramid/" .. name)
    order[#order + 1] = files[name]
  end
  return files[name]
end

for path in io.popen "find lua/pyramid -name '*.lua' ! -path '*/tools/*' | LC_ALL=C sort":lines() do
  local file = read(path:sub(#"lua/pyramid/" + 1))
  for _, class in ipairs(file.classes) do classes[class.class] = class end
end

-- Methods of a class: functions on its variable, then fields that are functions.
local function methods_of(name)
  local list, known = {}, {}
  for _, file in ipairs(order) do
    for _, f in ipairs(file.functions) do
      if f.class == name then
        list[#list + 1], known[f.name] = f, true
      end
    end
  end
  return list, known
end

-- ---- text ---------------------------------------------------------------------------------------

local out = {}
local function say(text) out[#out + 1] = text end

local function length(text) return utf8.len(text) or #text end

-- A paragraph at 100 columns.
local function wrapped(text, indent)
  local line = ""
  for word in text:gmatch "%S+" do
    if line ~= "" and length(line) + 1 + length(word) > 100 then
      say(line)
      line = (indent or "") .. word
    else
      line = line == "" and word or line .. " " .. word
    end
  end
  say(line)
end

local function cell(text) return (text:gsub("|", "\\|")) end

-- Prose of annotations: paragraphs, and samples, which are indented.
local function prose(lines)
  local paragraph, sample = {}, {}
  local function flush()
    if #paragraph > 0 then
      wrapped(table.concat(paragraph, " "))
      say ""
    end
    if #sample > 0 then
      local is_lua = load((table.concat(sample, "\n"):gsub("…", "nil")))
        or load("return " .. table.concat(sample, "\n"))
      say(is_lua and "```lua" or "```text")
      for _, line in ipairs(sample) do say((line:gsub("^   ", ""))) end
      say "```"
      say ""
    end
    paragraph, sample = {}, {}
  end
  for i, line in ipairs(lines) do
    if line:find "^   +%S" then
      if #paragraph > 0 then flush() end
      sample[#sample + 1] = line
    elseif line == "" and #sample > 0 and (lines[i + 1] or ""):find "^   +%S" then
      sample[#sample + 1] = line
    elseif line == "" then flush()
    else
      if #sample > 0 then flush() end
      paragraph[#paragraph + 1] = line:match "^%s*(.*)"
    end
  end
  flush()
end

local function sentence(text)
  if text == "" then return "" end
  local first = text:match "^[%z\1-\127\194-\244][\128-\191]*"
  return first:upper() .. text:sub(#first + 1)
end

-- Whether returns end as a failure does: a value or nil, a message, a code.
local function fails(returns)
  local n = #returns
  return n >= 3 and (returns[2].name == "message" or returns[2].name == "size")
    or n >= 3 and returns[2].type == "string?" and returns[3].type == "string?"
end

-- A type as code, and as a link where it is a class of this page: pyramid.Cache?, pyramid.Cache[].
local listed = {}
for _, section in ipairs(sections) do
  for _, name in ipairs(section.classes or {}) do listed[name] = name ~= "pyramid" end
end

local function linked(kind)
  local name, suffix = kind:match "^([%w_%.]+)([%[%]%?]*)$"
  local shown = ("`%s`"):format(kind)
  if not name or not listed[name] or suffix:find "%].*%[" then return shown end
  return ("[%s](#%s)"):format(shown, (name:lower():gsub("[^%w_]", "")))
end

local function without_nil(kind) return (kind:gsub("%?$", ""):gsub("|nil$", "")) end

local function returns_text(returns)
  if #returns == 0 then return nil end
  local parts, last = {}, #returns
  if fails(returns) then last = 1 end
  for i = 1, last do
    local r = returns[i]
    local kind = fails(returns) and without_nil(r.type) or r.type
    parts[i] = linked(kind) .. (r.name and r.name ~= "message" and " " .. r.name or "")
      .. (r.doc and r.doc ~= "" and " (" .. r.doc .. ")" or "")
  end
  local text = "Returns " .. table.concat(parts, ", ")
  return text .. (fails(returns) and "; on failure `nil`, a message and a code." or ".")
end

local function parameters_text(params, names)
  local list = {}
  for _, name in ipairs(names) do
    local optional = ""
    for _, p in ipairs(params) do
      local may_be_nil = p.optional or p.type:find "%?$" or p.type:find "|nil$"
      if p.name == name and may_be_nil then optional = "?" end
    end
    list[#list + 1] = name .. optional
  end
  return table.concat(list, ", ")
end

local function bullets(params)
  for _, p in ipairs(params) do
    local doc = p.doc ~= "" and "; " .. p.doc or ""
    wrapped(("- `%s`: %s%s"):format(p.name, linked(p.type), doc), "  ")
  end
  if #params > 0 then say "" end
end

-- "fun(self: X, id: integer): A?, string?" -> parameters and returns.
local function of_function_type(kind)
  local inner, rest = kind:match "^fun(%b())%s*:?%s*(.*)$"
  local params, returns, depth, part = {}, {}, 0, ""
  local function add(list, text)
    text = text:match "^%s*(.-)%s*$"
    if text == "" then return end
    if list == params then
      local name, of = text:match "^([%w_%.]+%??)%s*:%s*(.*)$"
      name = name or text
      if name ~= "self" then
        list[#list + 1] = { name = name:gsub("%?$", ""), optional = name:find "%?$" ~= nil,
          type = of or "any", doc = "" }
      end
    else list[#list + 1] = { type = text } end
  end
  local function split(text, list)
    part, depth = "", 0
    for c in text:gmatch "." do
      if c:find "[%(%[{<]" then depth = depth + 1
      elseif c:find "[%)%]}>]" then depth = depth - 1 end
      if c == "," and depth == 0 then add(list, part) part = "" else part = part .. c end
    end
    add(list, part)
  end
  split(inner:sub(2, -2), params)
  split(rest, returns)
  return params, returns
end

-- ---- entries ------------------------------------------------------------------------------------

-- GitHub's: letters, digits, - and _; the second of a name gets "-1".
local anchors = {}

local function anchor(heading)
  local name = heading:lower():gsub("[^%w%-_ ]", ""):gsub(" ", "-")
  anchors[name] = (anchors[name] or -1) + 1
  return anchors[name] > 0 and ("%s-%d"):format(name, anchors[name]) or name
end

local function entry(call, signature, f, told)
  told[#told + 1] = { call, anchor(call) }
  say("#### " .. call)
  say ""
  say(("`%s`"):format(signature))
  say ""
  prose(f.doc)
  bullets(f.params)
  local text = returns_text(f.returns)
  if text then
    wrapped(text)
    say ""
  end
end

local function module_functions(module, hide, told)
  for _, f in ipairs(read(module[1]).functions) do
    if f.owner == module[2] and not f.method and not hide[f.name] then
      local call = module.as .. "." .. (module.names and module.names[f.name] or f.name)
      entry(call, ("%s(%s)"):format(call, parameters_text(f.params, f.parameters)), f, told)
    end
  end
end

-- A class's name in calls: pyramid.testing.Run -> run.
local function receiver(name) return name:match "([%w_]+)$":lower() end

local function class_entry(name, hide, told)
  local class = assert(classes[name], "no class " .. name)
  local methods, known = methods_of(name)
  local fields, functions = {}, {}
  for _, field in ipairs(class.fields) do
    if not field.hidden and not hide[field.name] then
      if field.type:find "^fun%(self" or name == "pyramid" and field.type:find "^fun%(" then
        if not known[field.name] then functions[#functions + 1] = field end
      else fields[#fields + 1] = field end
    end
  end
  if name ~= "pyramid" then
    anchor(name)
    say("### " .. name)
    say ""
  end
  local about = table.concat(class.doc, "\n")
  if about ~= "" then prose(class.doc) end
  if class.about.doc ~= "" then
    wrapped(sentence(class.about.doc) .. (class.about.doc:find "[%.:]$" and "" or "."))
    say ""
  end
  if class.alias then
    say(("`%s`"):format(class.alias))
    say ""
  end
  local signs = { add = "+", sub = "-", mul = "*", div = "/", unm = "unary -", len = "#" }
  local operators = {}
  for i, text in ipairs(class.operators) do
    operators[i] = ("`%s`"):format(assert(signs[text:match "^%l+"], text))
  end
  if #operators > 0 then
    say("Operators: " .. table.concat(operators, ", ") .. ".")
    say ""
  end
  if #fields > 0 then
    say "| field | type | |"
    say "| --- | --- | --- |"
    for _, f in ipairs(fields) do
      local shown = f.name:find "^%[" and f.name or f.name .. (f.optional and "?" or "")
      say(("| `%s` | %s | %s |"):format(shown, cell(linked(f.type)), cell(f.doc)))
    end
    say ""
  end
  local object = receiver(name)
  for _, f in ipairs(methods) do
    if not hide[f.name] then
      local call = object .. (f.method and ":" or ".") .. f.name
      entry(call, ("%s(%s)"):format(call, parameters_text(f.params, f.parameters)), f, told)
    end
  end
  for _, field in ipairs(functions) do
    local params, returns = of_function_type(field.type)
    local names = {}
    for i, p in ipairs(params) do names[i] = p.name end
    local call = object .. (name == "pyramid" and "." or ":") .. field.name
    local doc = field.doc
    if doc ~= "" then doc = sentence(doc) .. (doc:find "[%.:]$" and "" or ".") end
    entry(call, ("%s(%s)"):format(call, parameters_text(params, names)),
      { doc = { doc }, params = params, returns = returns }, told)
  end
end

-- ---- the page -----------------------------------------------------------------------------------

local bodies = {}
for i, section in ipairs(sections) do
  out = {}
  local hide, told = {}, {}
  for _, name in ipairs(section.hide or {}) do hide[name] = true end
  local first = section.modules and section.modules[1]
  local head = section.head or first and first[1]
  local place = anchor(section[1])
  say("## " .. section[1])
  say ""
  if first and section[1] ~= "The module" then
    local name = first[1]:gsub("%.lua$", ""):gsub("/init$", "")
    say(("`local %s = require \"pyramid.%s\"`"):format(first.as, name))
    say ""
  end
  prose(head and read(head).head or {})
  for _, module in ipairs(section.modules or {}) do module_functions(module, hide, told) end
  for _, name in ipairs(section.classes or {}) do class_entry(name, hide, told) end
  bodies[i] = { heading = section[1], anchor = place, told = told, lines = out }
end

out = {}
say "# The Lua API"
say ""
say "<!-- Made by scripts/maker/lua_api.lua of the annotations in lua/pyramid: change those. -->"
say ""
wrapped [[Every object and function that scripts use, by what it belongs to. The same text stands in
the annotations ([LuaCATS](https://luals.github.io/wiki/annotations/)) of
[lua/pyramid](../lua/pyramid), which a language server shows while you type; `.luarc.json` leads it
there. For a project of your own, name the folder where `make install` puts them in your
`.luarc.json`: `"workspace.library": ["/usr/local/share/pyramid/lua"]`.]]
say ""
wrapped [[How all of it behaves: ids, positions and logits count from 0, layers, heads and Lua's own
lists from 1. What can go wrong in the world (a missing file, a full budget, a malformed model)
returns `nil`, a message and a code: `argument`, `memory`, `budget`, `context`, `io`, `format`,
`unsupported`, `policy`, `cancelled` or `device`. Misuse (a wrong type, an option that there is not,
a closed object) raises. A failed call leaves everything as it was. `close()`, leaving a `<close>`
variable's block and the garbage collector do the same, and more than once is once. A `?` marks what
may be left out, or be nil.]]
say ""
for _, body in ipairs(bodies) do
  local links = {}
  for i, told in ipairs(body.told) do
    links[i] = ("[%s](#%s)"):format(told[1]:match "[%.:]([%w_]+)$", told[2])
  end
  wrapped(("- [%s](#%s)%s"):format(body.heading, body.anchor,
    #links > 0 and ": " .. table.concat(links, ", ") or ""), "  ")
end
for _, body in ipairs(bodies) do
  say ""
  while body.lines[#body.lines] == "" do body.lines[#body.lines] = nil end
  for _, line in ipairs(body.lines) do say(line) end
end
io.write(table.concat(out, "\n"), "\n")
