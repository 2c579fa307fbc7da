--- What happened so far, and what is held, in Prometheus' text.
local metrics = {}

local function line(out, name, kind, help, value)
  out[#out + 1] = ("# HELP pyramid_%s %s\n# TYPE pyramid_%s %s"):format(name, help, name, kind)
  if type(value) == "table" then
    local labels = {}
    for label in pairs(value) do labels[#labels + 1] = label end
    table.sort(labels)
    for _, label in ipairs(labels) do
      out[#out + 1] = ("pyramid_%s{%s} %.14g"):format(name, label, value[label])
    end
  else
    out[#out + 1] = ("pyramid_%s %.14g"):format(name, value)
  end
end

---@param server pyramid.ServeServer
---@return string
function metrics.text(server)
  local engine, out = server.engine, {}
  local c = engine.counts
  local held, peak = engine.model:memory()
  local entries, prompts = engine.shelf:count()
  local answered = {}
  for status, count in pairs(server.answered) do
    answered[('status="%d"'):format(status)] = count
  end
  line(out, "requests_total", "counter", "Requests taken in by the engine, by how they ended.",
    { ['end="finished"'] = c.finished, ['end="failed"'] = c.failed,
      ['end="cancelled"'] = c.cancelled, ['end="refused"'] = c.refused })
  line(out, "http_responses_total", "counter", "Answers, by HTTP status; 0: the client had gone.",
    next(answered) and answered or { ['status="200"'] = 0 })
  line(out, "prompt_tokens_total", "counter", "Tokens of prompts.", c.prompt_tokens)
  line(out, "reused_tokens_total", "counter",
    "Tokens of prompts that were read for an earlier request.", c.reused_tokens)
  line(out, "generated_tokens_total", "counter", "Tokens written.", c.generated_tokens)
  line(out, "evicted_rows_total", "counter", "Rows that policies dropped.", c.evicted_rows)
  line(out, "steps_total", "counter", "Decode steps, each of all texts that are written.", c.steps)
  line(out, "step_seconds_total", "counter", "Time in them.", c.step_seconds)
  line(out, "read_seconds_total", "counter", "Time in which prompts were read, steps included.",
    c.read_seconds)
  line(out, "first_token_seconds", "summary", "From a request's arrival to its first text.",
    nil or c.first_seconds)
  out[#out] = ("pyramid_first_token_seconds_sum %.14g\npyramid_first_token_seconds_count %d")
    :format(c.first_seconds, c.first_count)
  line(out, "waiting", "gauge", "Requests that wait.", #engine.waiting)
  line(out, "reading", "gauge", "Requests whose prompts are read.", #engine.reading)
  line(out, "writing", "gauge", "Texts that are written.", #engine.running)
  line(out, "calls", "gauge", "HTTP requests that are being answered.", server.calls)
  line(out, "connections", "gauge", "Connections.",
    server.front and server.front.n_connections or 0)
  line(out, "cache_bytes", "gauge", "Bytes of rows, shared pages once.", engine:bytes())
  line(out, "cache_bytes_limit", "gauge", "The most that they may be; 0: any.", engine.memory)
  line(out, "kept_caches", "gauge", "Caches that are kept after their requests.", entries)
  line(out, "kept_prompts", "gauge", "… of which prompts can begin with so many.", prompts)
  line(out, "memory_bytes", "gauge", "Bytes that the core holds, mapped files excluded.", held)
  line(out, "memory_peak_bytes", "gauge", "The most that it held.", peak)
  line(out, "lua_bytes", "gauge", "Bytes that Lua holds.", collectgarbage "count" * 1024)
  return table.concat(out, "\n") .. "\n"
end

return metrics
