--- One file of the network into one file of the disk, by the program curl.
---
---   transfer.fetch(url, path, { sum = "a5fd3b…", size = 253113024 })
---
--- What has come stays in `path` when a connection breaks, and the next try, of this call or of a
--- later one, asks for the rest alone. Two things keep two files from becoming one in this way: a
--- published sum, which the whole must have; or the server's own mark of the file, with which the
--- rest is given only of the same file: its ETag, in the answer's headers, which curl writes to
--- path.mark before the first byte comes. Without either, what was there is dropped and all of it
--- fetched.
---
---   nothing there       GET                               200, all of it
---   6 of 10 MB there    GET, Range: bytes=6000000-        206, the last 4 MB
---   another file now    …, If-Range: "mark"               200: curl gives up (33), begin anew
---   a server without    GET, Range: …                     200: likewise
---   ranges
---
--- curl is run through the shell, each of its arguments in quotes; only http and https are spoken,
--- and what began as https is never led to http.
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"

local transfer = {}

---@class pyramid.TransferOptions
---@field sum? string          as published: a SHA-256 of 64 hexadecimal digits, or the 40 by which
---  git calls a file
---@field size? integer        bytes, as published
---@field headers? string[]    what the request says beside curl's own: "Accept: …"
---@field retries? integer     tries that may bring nothing before it fails (default: 3)
---@field update? fun(done: integer, total: integer)  told of progress, some times a second

local ATTEMPTS = 1000
local HEADERS_MAX = 1 << 20
local FILE_LIMIT = 128 + 25      -- a shell's word for curl ended by SIGXFSZ (ulimit -f)

-- curl's ends by a connection that broke (curl(1), EXIT CODES): the next try may do better.
local broken = { [7] = true, [16] = true, [18] = true, [28] = true, [52] = true, [55] = true,
  [56] = true, [92] = true }

local hints = {
  [5] = "the proxy is not found", [6] = "the host is not found", [7] = "the host does not answer",
  [18] = "the connection broke", [28] = "nothing came for a minute",
  [35] = "no secure connection was made", [47] = "too many redirects", [52] = "an empty answer",
  [56] = "the connection broke", [60] = "the host's certificate is not valid",
}

---A word of a shell's command line.
---@param word string
---@return string
function transfer.quote(word)
  if word:find "%z" then fault.raise("argument", "a zero byte in '%s'", fault.quote(word)) end
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

local quote = transfer.quote

---Bytes of a regular file; 0 where there is none.
---@param path string
---@return integer
function transfer.size(path)
  local file <close>, size = files.open(path)
  return file and size --[[@as integer]] or 0
end

---Makes a folder and those above it.
---@param path string
function transfer.make_folder(path)
  if files.kind(path) == "folder" then return end
  if not os.execute("mkdir -p " .. quote(path) .. " 2>/dev/null") then
    fault.raise("io", "%s: the folder cannot be made", path)
  end
end

local sum_programs = {
  [64] = { "sha256sum", "shasum -a 256", "openssl dgst -sha256 -r" },
  [40] = { "sha1sum", "shasum", "openssl dgst -sha1 -r" },
}

---The sum of a file, in as many hexadecimal digits as another: 64 are its SHA-256, 40 what git
---calls it, the SHA-1 of "blob SIZE", a zero byte, and the file. Raises a fault where no program of
---the system makes one.
---@param path string
---@param like? string  64 digits if not given
---@return string
function transfer.sum(path, like)
  if files.kind(path) ~= "file" then fault.raise("io", "%s: no file", path) end
  local digits = like and #like == 40 and 40 or 64
  local head = digits == 40 and ("printf 'blob %d\\000' && "):format(transfer.size(path)) or ""
  for _, program in ipairs(sum_programs[digits]) do
    local pipe <close> = assert(io.popen(("{ %scat; } <%s 2>/dev/null | %s 2>/dev/null"):format(
      head, quote(path), program)))
    local sum = (pipe:read "a"):match "^%x+"
    if sum and #sum == digits then return sum:lower() end
  end
  fault.raise("io", "%s: its sum cannot be had: install one of %s", path,
    table.concat(sum_programs[digits], ", "))
end

-- ---- one run of curl ----------------------------------------------------------------------------

-- Prints the part's size now and then, for a bar; ends with the line that reads it, and with curl.
local WATCH = [[
while sleep 0.2; do if [ -f %s ]; then wc -c <%s || exit; fi; done 2>/dev/null &
watch=$!
trap 'kill $watch 2>/dev/null' EXIT
trap 'exit 130' HUP INT TERM
]]

-- Headers of all answers on the way, redirects too: { [name] = value } of each, the last one last.
local function read_headers(text)
  local answers = {}
  for line in (text or ""):gmatch "[^\r\n]+" do
    if line:find "^HTTP/" then answers[#answers + 1] = {}
    elseif #answers > 0 then
      local name, value = line:match "^([^:]+):%s*(.-)%s*$"
      if name then answers[#answers][name:lower()] = value end
    end
  end
  return answers
end

-- How long a file is that is coming: said by the range of a rest, or the length of a whole.
local function length_of(answers)
  local last = answers[#answers] or {}
  return math.tointeger(tonumber((last["content-range"] or ""):match "/(%d+)$"
    or last.location == nil and last["content-length"] or nil))
end

local function mark_path(path) return path .. ".mark" end

---@class pyramid.TransferEnd
---@field status integer   curl's exit status
---@field http integer     the last answer's, or 0
---@field message string   curl's own words, or ""
---@field answers table<string, string>[]  headers of each answer

---@return pyramid.TransferEnd
local function run(url, path, headers, given)
  local heads = mark_path(path)
  local words = { "curl", "-sS", "-g", "-f", "-L", "--max-redirs", "8", "--proto", "=http,https",
    "--proto-redir", url:find "^https:" and "=https" or "=http,https", "--connect-timeout", "30",
    "--speed-limit", "1", "--speed-time", "60", "-C", "-", "-D", heads, "-o", path, "-w",
    "\nhttp %{http_code}\n" }
  for _, header in ipairs(headers) do table.move({ "-H", header }, 1, 2, #words + 1, words) end
  table.move({ "--url", url }, 1, 2, #words + 1, words)
  for i, word in ipairs(words) do words[i] = quote(word) end
  local watch = given.update and WATCH:gsub("%%s", (quote(path):gsub("%%", "%%%%"))) or ""
  local pipe = assert(io.popen(("%s%s 2>&1\necho \"end $?\""):format(watch,
    table.concat(words, " "))))
  local ended = { status = -1, http = 0, message = "" }
  local total = given.size
  for line in pipe:lines() do
    local size, status = line:match "^%s*(%d+)$", line:match "^end (%d+)$"
    if size and given.update then
      total = total or length_of(read_headers(files.read(heads, HEADERS_MAX)))
      if total then given.update(math.tointeger(size), total) end
    end
    ended.http = math.tointeger(line:match "^http (%d+)$") or ended.http
    ended.message = line:match "^curl: %(%d+%) (.*)$" or ended.message
    if status then
      ended.status = math.tointeger(status)
      break
    end
  end
  pipe:close()
  ended.answers = read_headers(files.read(heads, HEADERS_MAX))
  if ended.status == 127 then
    fault.raise("io", "the program curl is not found: install curl, or fetch %s by other means", url)
  end
  if ended.status == -1 or ended.status == 130 then
    fault.raise("io", "interrupted; what has come is kept for the next time")
  end
  return ended
end

-- ---- a whole file -------------------------------------------------------------------------------

local function refuse(url, path, ended)
  local http = ended.http
  if transfer.size(path) == 0 then os.remove(mark_path(path)) end
  if http == 404 or http == 410 then
    fault.raise("io", "%s: there is no such file (%d)", url, http)
  end
  if http == 401 or http == 403 then
    fault.raise("io", "%s: refused (%d): not there, or only for those who have signed in", url, http)
  end
  if http >= 400 then fault.raise("io", "%s: the server answers %d", url, http) end
  if ended.status == 23 or ended.status == FILE_LIMIT then
    fault.raise("io", "%s: cannot be written (is the disk full?); what has come is kept there", path)
  end
  fault.raise("io", "%s: %s", url, hints[ended.status]
    or ended.message ~= "" and fault.quote(ended.message) or "curl ended with " .. ended.status)
end

-- The server's mark of a file, by which the rest is asked for: a strong ETag, or when it was
-- changed.
local function mark_of(answers)
  local last = answers[#answers] or {}
  return last.etag and not last.etag:find "^W/" and last.etag or last["last-modified"]
end

-- The published SHA-256 that a hub sends along, on any of the answers on the way to a file.
local function sum_of(answers)
  for _, answer in ipairs(answers) do
    local sum = (answer["x-linked-etag"] or ""):match '^"?(%x+)"?$'
    if sum and #sum == 64 then return sum end
  end
end

-- Brings the rest of a file. Returns the sum that the server has published, or nil.
local function bring(url, path, given)
  local fruitless, begun_anew = 0, false
  local published
  local function drop()
    os.remove(path)
    os.remove(mark_path(path))
  end
  for _ = 1, ATTEMPTS do
    local have = transfer.size(path)
    if given.sum and have > 0 and have == given.size then
      os.remove(mark_path(path))
      return nil
    end
    local before = files.read(mark_path(path), HEADERS_MAX)
    local mark = mark_of(read_headers(before))
    if have > (given.size or math.huge) or have > 0 and not given.sum and not mark then
      drop()
      have, before = 0, nil
    end
    local headers = table.move(given.headers or {}, 1, #(given.headers or {}), 1, {})
    if have > 0 and mark and not given.sum then headers[#headers + 1] = "If-Range: " .. mark end
    local ended = run(url, path, headers, given)
    published = published or sum_of(ended.answers)
    local now = transfer.size(path)
    if have > 0 and before and (ended.http == 0 or ended.http >= 400) then
      fault.check(files.write(mark_path(path), before))          -- that answer was not the file's
    end
    if ended.status == 0 then
      os.remove(mark_path(path))
      return published
    elseif (ended.status == 33 or ended.http == 416) and not begun_anew then
      begun_anew = true
      drop()
    elseif broken[ended.status] or ended.http == 429 or ended.http >= 500 then
      fruitless = now > have and 0 or fruitless + 1
      if fruitless > (given.retries or 3) then refuse(url, path, ended) end
      if fruitless > 0 then os.execute("sleep " .. fruitless) end
    else
      refuse(url, path, ended)
    end
  end
  fault.raise("io", "%s: the connection broke %d times", url, ATTEMPTS)
end

local function fetch(url, path, given)
  local host = url:match "^https?://([^/?#]+)"
  if not host or url:find "[%c%s]" then
    fault.raise("argument", "'%s' is no address: http:// or https://, a host, a path",
      fault.quote(url))
  end
  local resumed = transfer.size(path) > 0
  local sum = bring(url, path, given)
  sum = given.sum or sum
  local size = transfer.size(path)
  local wrong
  if given.size and size ~= given.size then
    wrong = ("%d bytes, not %d"):format(size, given.size)
  elseif sum then
    local got = transfer.sum(path, sum)
    if got ~= sum:lower() then wrong = ("the sum %s, not %s"):format(got, sum) end
  end
  if not wrong then return true end
  os.remove(path)
  -- what an earlier call had left may have been of another file
  if resumed then return fetch(url, path, given) end
  fault.raise("format", "%s: has %s: not taken", url, wrong)
end

---Fetches a URL into a file, going on with what is in it. Of a failure of the connection it keeps
---what has come; a file that is not what was published is removed.
---@param url string
---@param path string
---@param given? pyramid.TransferOptions
---@return true?
---@return string? message
---@return string? code
function transfer.fetch(url, path, given) return fault.catch(fetch, url, path, given or {}) end

---A small answer as a text, such as that of an API.
---@param url string
---@param given? pyramid.TransferOptions
---@param limit integer  the most bytes that are read of it
---@return string?
---@return string? message
---@return string? code
function transfer.text(url, given, limit)
  local path = os.tmpname()
  local text
  local ok, message, code = transfer.fetch(url, path, given)
  if ok then text, message, code = files.read(path, limit) end
  os.remove(path)
  os.remove(path .. ".mark")
  return text, message, code
end

return transfer
