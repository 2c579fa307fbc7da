--- The report of pyramid.compare, and of pyramid.eval, as one HTML page: what was found, curves of
--- quality against memory, every number, and pictures of what each policy kept. Tells what is in
--- the entries; measures and decides nothing but how to show it.
local core = require "pyramid.core"
local chart = require "pyramid.tools.report.chart"
local compare = require "pyramid.tools.compare"
local html = require "pyramid.tools.report.html"
local png = require "pyramid.tools.report.png"
local style = require "pyramid.tools.report.style"

local comparison = {}

local element, text = html.element, html.text

local function percent(share) return share and ("%.0f %%"):format(100 * share) or "–" end
local function figure(value, format) return value and format:format(value) or "–" end

local function size(bytes)
  if not bytes then return "–" end
  if bytes < 1 << 20 then return ("%.0f KiB"):format(bytes / 1024) end
  return ("%.1f MiB"):format(bytes / (1 << 20))
end

local function seconds(value)
  if not value then return "–" end
  return value < 1 and ("%.0f ms"):format(value * 1000) or ("%.2f s"):format(value)
end

-- What questions are called: compare puts questions about documents, eval tasks (about.protocol).
local names = { compare = { title = "Cache policies compared: ", score = "Recall",
  drawn = "exact answers to %d questions; higher is better; lines: 95 %% of what chance could do",
  axis = "right answers", by = "Right answers by kind of question",
  column = "Exact answers, and half of the 95 % interval" },
  eval = { title = "Tasks under cache policies: ", score = "Score",
    drawn = "mean score of %d questions of the tasks that count; higher is better; lines: 95 %% of "
      .. "what chance could do",
    axis = "score", by = "Score by task", column = "Mean over the questions of tasks that count, "
      .. "and half of the 95 % interval" } }

local function names_of(about) return about.protocol and names.eval or names.compare end

local function plural(n, one, many) return ("%d %s"):format(n, n == 1 and one or many) end

-- ---- what belongs together ----------------------------------------------------------------------

-- Entries by length and mode, in their order: { name, length, mode, entries, full }.
local function groups_of(entries)
  local groups = {}
  for _, entry in ipairs(entries) do
    local group = groups[#groups]
    if not group or group.length ~= entry.length or group.mode ~= entry.mode then
      group = { length = entry.length, mode = entry.mode, entries = {}, full = entry,
        name = ("%d tokens, %s"):format(entry.length, entry.mode) }
      groups[#groups + 1] = group
    end
    table.insert(group.entries, entry)
  end
  return groups
end

-- Series in their order; the full cache is number 0.
local function series_of(entries)
  local list, index = {}, {}
  for i, entry in ipairs(entries) do
    if i == 1 then index[entry.series] = 0
    elseif not index[entry.series] then
      list[#list + 1] = entry.series
      index[entry.series] = #list
    end
  end
  return list, index
end

-- Names short enough to stand beside a curve, by series. A name that is too long keeps the values
-- of its options; if that does not do, the policy's name, with a number if several would be called
-- so.
local most_letters = 22

local function cut(name, width)
  local length = utf8.len(name)
  return length and length > width and name:sub(1, utf8.offset(name, width) - 1) .. "…" or name
end

local function short_names(series)
  local short, taken = {}, {}
  local function take(name, as)
    if taken[as] or (utf8.len(as) or #as) > most_letters then return false end
    short[name], taken[as] = as, true
    return true
  end
  for _, name in ipairs(series) do take(name, name) end
  for _, name in ipairs(series) do
    if not short[name] and not take(name, (name:gsub(" [^ =]*=", " "))) then
      local n, first = 1, name:match "^%S*"
      local done = take(name, cut(first, most_letters))
      while utf8.len(name) and not done do
        n = n + 1
        done = take(name, ("%s %d"):format(cut(first, most_letters - 4), n))
      end
    end
  end
  return setmetatable(short, { __index = function(_, name) return name end })
end

-- What an entry is called where there is little room.
local function label_of(entry, short)
  local as = short[entry.series]
  if as == entry.series or entry.label:sub(1, #entry.series) ~= entry.series then
    return entry.label
  end
  return as .. entry.label:sub(#entry.series + 1)
end

local function text_of(entry) return entry.document or entry.file end

-- ---- what was found -----------------------------------------------------------------------------

local function item(entry)
  return ("%s: %s of the questions with %s of the rows"):format(element("b", nil,
    text(entry.label)), percent(entry.recall.accuracy), percent(entry.fraction))
end

local function finding(group, first)
  local full, cheapest, best = group.full, nil, nil
  local lines = { element("h3", nil, text(group.name)) }
  if not full.recall then return nil end
  local useless = full.recall.accuracy < 0.05
  lines[2] = element("p", nil, ("The full cache answers <b>%s</b> of %s (± %.0f points)."):format(
    percent(full.recall.accuracy), plural(full.recall.asked, "question", "questions"),
      100 * full.recall.uncertainty))
  for i, entry in ipairs(group.entries) do
    local r = i > 1 and entry.recall
    if r and not compare.answers_better(full.recall, r) and entry.fraction < 0.999
      and (not cheapest or entry.fraction < cheapest.fraction) then cheapest = entry end
    if r and entry.fraction <= 0.5 and (not best or r.accuracy > best.recall.accuracy) then
      best = entry
    end
  end
  local alike = 0  -- as good as the best, as far as so many questions tell
  for i, entry in ipairs(best and group.entries or {}) do
    if i > 1 and entry ~= best and entry.recall and entry.fraction <= 0.5
      and not compare.answers_better(best.recall, entry.recall) then alike = alike + 1 end
  end
  local items = {
    useless and "The model itself hardly answers at this length: recall says little about policies here."
      or cheapest and ("Fewest rows with no loss that %s would show – "):format(plural(
        full.recall.asked, "question", "questions"))
        .. item(cheapest)
      or "Every policy answers fewer than the full cache, by more than the error.",
  }
  if best and not useless then
    items[2] = "Most answers with at most half of the rows – " .. item(best) .. (alike > 0
      and ("; %s no worse beyond the error"):format(plural(alike, "other is", "others are")) or "")
  end
  local closest  -- texts have no mode: said once for a length
  for i, entry in ipairs(group.entries) do
    local t = first and i > 1 and text_of(entry)
    if t and t.context_fraction <= 0.5 and (not closest or t.kl < text_of(closest).kl) then
      closest = entry
    end
  end
  if closest then
    items[#items + 1] = (
      "Closest to its predictions with at most half of the rows – <b>%s</b>: KL %s, same first "
        .. "choice %s")
      :format(text(closest.label), chart.number(text_of(closest).kl),
        percent(text_of(closest).top1))
  end
  for i, each in ipairs(items) do items[i] = element("li", nil, each) end
  lines[3] = element("ul", nil, items)
  return element("div", { class = "card" }, lines)
end

local function findings(groups)
  local cards, seen = {}, {}
  for _, group in ipairs(groups) do
    cards[#cards + 1] = finding(group, not seen[group.length])
    seen[group.length] = true
  end
  return #cards > 0 and { element("div", { class = "cards" }, cards) } or {}
end

-- ---- curves -------------------------------------------------------------------------------------

-- Curves of what `value` says of entries, against the rows that `rows` says they kept; `sign` is 1
-- where more is better, else -1; `errors` tells what compare.pareto wants to know of an entry's
-- errors, and half of an interval to be drawn. Also all y, and the points of the front, the full
-- cache among them.
local function curves_of(group, series, index, short, rows, value, sign, title, errors)
  local curves, points, ys, front = {}, {}, {}, {}
  for i, name in ipairs(series) do
    curves[i] = { name = name, short = short[name], index = i, points = {} }
  end
  for _, entry in ipairs(group.entries) do
    local y, x, number = value(entry), rows(entry), index[entry.series]
    if y and x then
      local known = errors(entry)
      ys[#ys + 1] = math.min(y + (known.half or 0), known.most or math.huge)
      points[#points + 1] = { x = x, y = sign * y, right = known.right, asked = known.asked,
        answers = known.answers, each = known.each,
          shown = { x = x, y = y, half = known.half, title = title(entry),
            budget = entry.budget or x } }
      if number > 0 then table.insert(curves[number].points, points[#points].shown) end
    end
  end
  for i, on in ipairs(compare.pareto(points)) do
    local shown = points[i].shown
    if on then
      shown.front, front[#front + 1] = true, shown
      shown.title = shown.title .. "\non the front"
    end
  end
  table.sort(front, function(one, other) return one.x < other.x end)
  for i = #curves, 1, -1 do
    if #curves[i].points == 0 then table.remove(curves, i)
    else table.sort(curves[i].points, function(one, other) return one.budget < other.budget end) end
  end
  return curves, ys, front
end

local function spoken(what, group)
  return ("%s against rows kept, %s. The same numbers are in the table below."):format(what,
    group.name)
end

local function rows_scale(xs)
  local low = math.huge
  for _, x in ipairs(xs) do low = math.min(low, x) end
  return chart.scale(xs, { low = math.max(0, math.floor(low * 10 - 0.5) / 10), high = 1,
    ticks = 6 })
end

local function rows_of(entry) return entry.fraction end
local function text_rows(source) return function(entry) return entry[source]
  and entry[source].context_fraction end end

-- One axis for all charts of a length, so that they can be read across: the share kept of what was
-- read under the policy.
local x_label = "rows kept of what was read"

local function x_of(groups, length)
  local xs = {}
  for _, group in ipairs(groups) do
    for _, entry in ipairs(group.length == length and group.entries or {}) do
      local list = { entry, entry.document, entry.file }
      for _, of in pairs(list) do
        xs[#xs + 1] = of == entry and entry.fraction or of.context_fraction
      end
    end
  end
  return rows_scale(xs)
end

-- A chart with what its tab says, what stands above it and below that.
local function card(tab, caption, small, svg)
  return { tab = tab, figure = element("figure", nil, { element("figcaption", nil,
    text(caption) .. element("small", nil, text(small))), svg }) }
end

local function title_of(entry, rows, ...)
  local lines = { entry.label, ("%.1f %% of the rows"):format(100 * rows), ... }
  if entry.silent then lines[#lines + 1] = "pruned nothing" end
  return table.concat(lines, "\n")
end

local function recall_chart(group, series, index, short, x, called)
  if not group.full.recall then return nil end
  local curves, ys, front = curves_of(group, series, index, short, rows_of,
    function(entry) return entry.recall and entry.recall.accuracy end, 1, function(entry)
      local r = entry.recall
      local answers = ("answers %s (± %.0f points) of %d questions"):format(percent(r.accuracy),
        100 * r.uncertainty, r.asked)
      return title_of(entry, entry.fraction, answers,
        r.evidence and ("evidence held: %s"):format(percent(r.evidence)) or nil)
    end, function(entry)
      local r = entry.recall
      return { right = r.right, asked = r.asked, answers = r.answers, half = r.uncertainty,
        most = 1 }
    end)
  return card(("%s, %s"):format(called.score, group.mode),
    ("%s, %s"):format(called.score, group.name),
    called.drawn:format(group.full.recall.asked),
    chart.render { describe = spoken(called.score, group), x = x,
      y = chart.scale(ys, { low = 0 }), x_label = x_label, y_label = called.axis,
      x_format = percent, y_format = percent, curves = curves, front = front,
      reference = { y = group.full.recall.accuracy,
        label = ("full cache %s"):format(percent(group.full.recall.accuracy)) } })
end

local function kl_chart(group, series, index, short, x, source, where, kind)
  if not group.full[source] then return nil end
  local curves, ys, front = curves_of(group, series, index, short, text_rows(source),
    function(entry) local t = entry[source] return t and t.kl > 0 and t.kl or nil end, -1,
      function(entry)
      return title_of(entry, entry[source].context_fraction,
        ("KL %s nats"):format(chart.number(entry[source].kl)),
          ("same first choice: %.1f %%"):format(100 * entry[source].top1))
    end, function(entry) return { each = entry[source].kl_each } end)
  if #curves == 0 then return nil end
  local scale = chart.scale(ys, { low = 0, log = 20 })
  return card("KL" .. kind, "Distance from the full cache, " .. group.name,
    ("KL(full ‖ policy) of %s%s; lower is better"):format(where,
      scale.log and "; logarithmic" or ""),
        chart.render { describe = spoken("KL divergence from the full cache", group), x = x,
          y = scale, x_label = x_label, y_label = "KL in nats", x_format = percent,
            y_format = chart.number, curves = curves, front = front })
end

local function perplexity_chart(group, series, index, short, x, source, where, kind)
  local full = group.full[source]
  if not full then return nil end
  local curves, ys, front = curves_of(group, series, index, short, text_rows(source),
    function(entry) return entry[source] and entry[source].perplexity end, -1, function(entry)
      return title_of(entry, entry[source].context_fraction,
        ("perplexity %.3f (%+.1f %%)"):format(entry[source].perplexity,
          100 * (entry[source].perplexity / full.perplexity - 1)),
            ("%.4f bits per byte"):format(entry[source].bits_per_byte))
    end, function(entry) return { each = entry[source].loss_each } end)
  local scale = chart.scale(ys, { log = 6 })
  return card("Perplexity" .. kind, "Perplexity, " .. group.name,
    ("of %s%s; lower is better"):format(where, scale.log and "; logarithmic" or ""), chart.render {
    describe = spoken("Perplexity", group), x = x, y = scale, x_label = x_label,
      y_label = "perplexity",
    x_format = percent, y_format = chart.number, curves = curves, front = front,
    reference = { y = full.perplexity,
      label = ("full cache %s"):format(chart.number(full.perplexity)) } })
end

-- Buttons that hide a policy; pointing at one dims the others.
local function legend(series, short)
  local items, long = {}, {}
  for i, name in ipairs(series) do
    items[i] = element("li", nil, element("button", { type = "button", ["data-s"] = i,
      class = chart.colour(i), ["aria-pressed"] = "true", title = name }, {
      element("svg", { viewBox = "0 0 26 14", ["aria-hidden"] = "true", class = "mark" }, {
        element("path", { class = "curve", d = "M1 7h24", ["stroke-dasharray"] = i > 7 and "5 3" }),
        element("path", { class = "on", d = chart.marker(i, 13, 7, 4.2) }) }), text(short[name]) }))
    if short[name] ~= name then
      long[#long + 1] = element("li", nil, element("b", nil, text(short[name])) .. ": "
        .. text(name))
    end
  end
  items[#items + 1] = element("li", { class = "key" }, { element("svg",
    { viewBox = "0 0 26 14", ["aria-hidden"] = "true" },
      element("path", { class = "front", d = "M5 7h16" })), "the front" })
  return element("div", { class = "controls" }, {
    element("button", { type = "button", ["data-all"] = "true" }, "Show all"),
    element("button", { type = "button", ["data-all"] = "false" }, "Hide all") })
    .. element("ul", { class = "legend", ["aria-label"] = "Policies and how they are drawn" },
      items)
    .. (#long > 0 and element("ul", { class = "note names", ["aria-label"] = "Names in full" },
      long) or "")
end

-- The charts of one length: recall in each mode, then texts, which have no mode.
local function charts_of(group, groups, series, index, short, about)
  local cards, x = {}, x_of(groups, group.length)
  local function add(svg) cards[#cards + 1] = svg end
  for _, other in ipairs(groups) do
    if other.length == group.length then
      add(recall_chart(other, series, index, short, x, names_of(about)))
    end
  end
  local plain = { name = ("%d tokens"):format(group.length), full = group.full,
    entries = group.entries }
  for _, text_kind in ipairs { { "document", "how documents go on", "" },
    { "file", (about.settings.text or ""):match "[^/]*$", group.full.document and ", text" or "" } }
  do
    add(kl_chart(plain, series, index, short, x, table.unpack(text_kind)))
    add(perplexity_chart(plain, series, index, short, x, table.unpack(text_kind)))
  end
  return cards
end

-- One chart at a time, chosen by tabs: a row of them for each length. Without a script, all.
local function curves_section(groups, series, index, short, about)
  local rows, panels, seen = {}, {}, {}
  for _, group in ipairs(groups) do
    local tabs = { element("span", nil, ("%d tokens"):format(group.length)) }
    for _, each in ipairs(not seen[group.length]
      and charts_of(group, groups, series, index, short, about) or {}) do
      local n = #panels + 1
      tabs[#tabs + 1] = element("button", { type = "button", role = "tab", id = ("tab%d"):format(n),
        ["aria-controls"] = ("chart%d"):format(n), ["aria-selected"] = tostring(n == 1),
        tabindex = n == 1 and "0" or "-1" }, text(each.tab))
      panels[n] = element("div", { role = "tabpanel", id = ("chart%d"):format(n),
        ["aria-labelledby"] = ("tab%d"):format(n) }, each.figure)
    end
    if #tabs > 1 then
      rows[#rows + 1] = element("div", { class = "choices", role = "presentation" }, tabs)
    end
    seen[group.length] = true
  end
  if #panels == 0 then return {} end
  return { element("h2", nil, "Quality against memory"),
    element("p", { class = "soft" },
      "Each point is a policy at one budget: further left keeps fewer rows. Filled points lie on "
      .. "the front: nothing with as few rows is better, and nothing with fewer rows is as good, "
      .. "as far as the errors of what was measured tell. Point at one, or tap it, for its "
      .. "numbers. Below, press a policy to hide it, point at it to dim the others."),
    element("div", { class = "charts" }, {
      element("div", { class = "controls tabs", role = "tablist", ["aria-label"] = "Charts",
        hidden = #panels == 1 }, rows),
      table.concat(panels), legend(series, short) }) }
end

-- ---- tables -------------------------------------------------------------------------------------

local function notes(entry)
  local out = {}
  if entry.front then out[1] = element("span", { class = "badge front-badge" }, "front") end
  if entry.silent then out[#out + 1] = element("span", { class = "badge silent" }, "pruned nothing")
  elseif entry.missed then
    out[#out + 1] = element("span", { class = "badge silent" },
      ("asked %s, kept %s"):format(percent(entry.asked), percent(entry.fraction)))
  end
  return table.concat(out)
end

-- A table whose columns are { name, cell = fn(entry) -> text, sorted value, attributes; word, down
-- }.
local function table_of(label, columns, entries, index)
  local head, body = {}, {}
  for i, column in ipairs(columns) do
    head[i] = element("th", { scope = "col", class = column.word and "word",
      ["data-down"] = column.down and "1", title = column.title },
        element("button", { type = "button" }, text(column.name)))
  end
  for _, entry in ipairs(entries) do
    local cells = {}
    for i, column in ipairs(columns) do
      local shown, value, attributes = column.cell(entry)
      attributes = attributes or {}
      attributes.class = attributes.class or column.word and "word"
      attributes["data-v"] = value and ("%.6g"):format(value) or shown == "–" and ""
      cells[i] = element("td", attributes, shown)
    end
    body[#body + 1] = element("tr", { ["data-g"] = ("%d %s"):format(entry.length, entry.mode),
      ["data-front"] = entry.front and "1", class = index[entry.series] == 0 and "full" }, cells)
  end
  return element("div", { class = "edges" }, element("div", { class = "scroll", tabindex = "0",
    role = "region", ["aria-label"] = label }, element("table", nil,
      { element("thead", nil, element("tr", nil, head)), element("tbody", nil, body) })))
end

local function policy_column(index, short)
  return { name = "Policy", word = true, cell = function(entry)
    return text(label_of(entry, short)), nil, { title = entry.label,
      class = "policy " .. chart.colour(index[entry.series]) }
  end }
end

local length_column = { name = "Tokens", cell = function(entry) return ("%d"):format(entry.length),
  entry.length end }
local mode_column = { name = "Mode", word = true,
  cell = function(entry) return text(entry.mode) end }
local rows_column = { name = "Rows", title = "Rows kept, of what was read under the policy",
  cell = function(entry) return figure(entry.fraction and 100 * entry.fraction, "%.1f %%"),
    entry.fraction end }

-- Lengths and modes are named only if there are several.
local function first_columns(groups, index, short)
  local columns, lengths, modes = { policy_column(index, short) }, false, false
  for _, group in ipairs(groups) do
    lengths, modes = lengths or group.length ~= groups[1].length,
      modes or group.mode ~= groups[1].mode
  end
  if lengths then columns[2] = length_column end
  if modes then columns[#columns + 1] = mode_column end
  columns[#columns + 1] = rows_column
  return columns
end

-- Of tasks: what is kept of the full cache's score, and the bytes it is kept in.
local function pooled_columns(add, about)
  add { name = "Of full", down = true, title = "Share of the full cache's score, over the tasks "
    .. "that count, and half of its 95 % interval", cell = function(entry)
    local p = entry.pooled
    if not p or not p.share then return "–" end
    local half = p.half < math.huge and ("± %.0f"):format(100 * p.half) or ""
    return ("%s <span class=soft>%s</span>"):format(percent(p.share), half), p.share
  end }
  add { name = "p", title = "McNemar: how often chance would make as great a difference from the "
    .. "full cache", cell = function(entry)
    local p = entry.pooled
    return figure(p and p.p, "%.2g"), p and p.p
  end }
  for _, name in ipairs(about.kinds) do
    if about.protocol.nats[name] then
      add { name = name .. ", nats lost", title = "A token of answers that are given, over the "
        .. "full cache", cell = function(entry)
        local of = entry.tasks[name]
        return figure(of and of.lost, "%+.3f"), of and of.lost
      end }
    end
  end
  add { name = "KV", title = "Bytes held after the cut, mean", cell = function(entry)
    return size(entry.bytes), entry.bytes
  end }
end

local function recall_columns(columns, about)
  local called = names_of(about)
  local function add(column) columns[#columns + 1] = column end
  add { name = called.score, down = true, title = called.column,
    cell = function(entry)
    local r = entry.recall
    if not r then return "–" end
    return ("%s <span class=soft>± %.0f</span>"):format(percent(r.accuracy), 100 * r.uncertainty),
      r.accuracy
  end }
  if about.protocol then return pooled_columns(add, about) end
  add { name = "Evidence", down = true, cell = function(entry)
    return percent(entry.recall and entry.recall.evidence), entry.recall and entry.recall.evidence
  end, title = "Of the sentences that hold the answers: tokens whose rows are held, mean over "
    .. "layers" }
end

local function text_columns(columns, source, suffix)
  local function add(name, title, format, pick, down)
    columns[#columns + 1] = { name = name .. suffix, title = title, down = down,
      cell = function(entry)
      local value = entry[source] and pick(entry[source])
      return figure(value, format), value
    end }
  end
  add("Perplexity", "Of the tokens scored", "%.3f", function(t) return t.perplexity end)
  add("Bits/byte", "Compares between tokenizers", "%.4f", function(t) return t.bits_per_byte end)
  add("KL", "KL(full ‖ policy), nats, mean over the tokens scored", "%.4f",
    function(t) return t.kl end)
  add("Top-1", "Tokens where the most probable one is the full cache's", "%.1f %%",
    function(t) return 100 * t.top1 end, true)
end

local function work_columns(columns)
  local function add(name, title, show, pick, down)
    columns[#columns + 1] = { name = name, title = title, down = down, cell = function(entry)
      local t = text_of(entry)
      local value = t and pick(t)
      return show(value), value
    end }
  end
  add("KV", "Bytes held after the context", size, function(t) return t.cache_bytes end)
  add("In the end", "Rows held when all tokens were fed, of a full cache's", percent,
    function(t) return t.fraction end)
  add("Computed", "Token-layers computed, of all", percent, function(t) return t.computed end)
  add("Read", "The context, median", seconds, function(t) return t.prefill_seconds end)
  add("Write/s", "Tokens a second, one by one, median",
    function(value) return figure(value, "%.0f") end,
    function(t) return t.decode_rate end, true)
end

local function tables_section(groups, entries, index, short, about)
  local full = groups[1].full
  local columns = first_columns(groups, index, short)
  if full.recall then recall_columns(columns, about) end
  columns[#columns + 1] = { name = "Notes", word = true,
    cell = function(entry) return notes(entry), entry.front and 0 or 1 end }
  if full.document then text_columns(columns, "document", "") end
  if full.file then text_columns(columns, "file", full.document and " (text)" or "") end
  if full.document or full.file then work_columns(columns) end
  local choices = { element("option", { value = "" }, "all") }
  for _, group in ipairs(groups) do
    choices[#choices + 1] = element("option", { value = ("%d %s"):format(group.length,
      group.mode) }, text(group.name))
  end
  local out = { element("h2", nil, "Every measurement"), element("div", { class = "controls" }, {
    element("label", nil, { "Show ", element("select", { id = "group" }, choices) }),
    element("label", { hidden = not full.recall },
      { element("input", { type = "checkbox", id = "only" }), " only the front" }) }),
    table_of("Every measurement", columns, entries, index) }
  if full.recall then
    columns = first_columns(groups, index, short)
    for _, kind in ipairs(about.kinds) do
      columns[#columns + 1] = { name = kind, down = true, cell = function(entry)
        local n = entry.recall and entry.recall.kinds[kind]
        if not n then return "–" end
        local value = n.right / n.asked
        return percent(value), value, { class = "share", style = ("--v:%.2f"):format(value),
          title = ("%g of %d"):format(n.right, n.asked) }
      end }
    end
    local by = names_of(about).by
    out[#out + 1] = element("h2", nil, by)
    out[#out + 1] = table_of(by, columns, entries, index)
  end
  return out
end

-- ---- what was kept ------------------------------------------------------------------------------

local strip_left, strip_width, strip_right = 22, 292, 358
local row_height, row_gap, head_height = 12, 2, 24
local colour = { 74, 134, 204 }  -- readable on the page's light ground and on its dark one

-- Sentences that are marked, in the document's order, each once, with all that is asked of it.
local function marked(kept)
  local list, at = {}, {}
  for _, mark in ipairs(kept.marks) do
    local key = ("%d %d"):format(mark.first, mark.last)
    if not at[key] then
      at[key] = { first = mark.first, last = mark.last, text = mark.text, asked = {} }
      list[#list + 1] = at[key]
    end
    table.insert(at[key].asked, mark)
  end
  table.sort(list, function(one, other) return one.first < other.first end)
  return list
end

local function kept_picture(entry)
  local kept, layers, out = entry.kept, #entry.kept.layers, {}
  local function x(position) return strip_left + strip_width * position / kept.tokens end
  local height = head_height + layers * (row_height + row_gap) + 18
  local function add(...) out[#out + 1] = element(...) end
  add("text", { x = strip_right, y = 10, ["text-anchor"] = "end" },
    entry.recall and "evid." or "rows")
  for layer = layers, 1, -1 do
    local y = head_height + (layers - layer) * (row_height + row_gap)
    local said = entry.recall and ("%.0f %%"):format(100 * entry.recall.survival[layer])
      or ("%.0f"):format(kept.rows[layer])
    add("rect", { class = "field", x = strip_left, y = y, width = strip_width,
      height = row_height })
    add("image", { class = "strip", x = strip_left, y = y, width = strip_width,
      height = row_height, preserveAspectRatio = "none",
        href = png.uri(png.strip(kept.layers[layer], table.unpack(colour))) })
    add("text", { x = strip_left - 5, y = y + 10, ["text-anchor"] = "end" }, ("%d"):format(layer))
    add("text", { x = strip_right, y = y + 10, ["text-anchor"] = "end" }, said)
  end
  for i, mark in ipairs(marked(kept)) do
    local from, to, kinds = x(mark.first), math.max(x(mark.last + 1), x(mark.first) + 2), {}
    for k, asked in ipairs(mark.asked) do kinds[k] = asked.kind end
    add("g", { class = "span" }, { element("title", nil,
      text(("%d. %s (%s)"):format(i, mark.text, table.concat(kinds, ", ")))),
        element("rect", { class = "evidence", x = from, y = 15, width = to - from, height = 6 }),
          element("rect", { class = "band", x = from, y = head_height - 3, width = to - from,
            height = layers * (row_height + row_gap) + 1 }) })
  end
  add("text", { x = strip_left, y = height - 5 }, "0")
  add("text", { x = strip_left + strip_width / 2, y = height - 5, ["text-anchor"] = "middle" },
    "positions in the document")
  add("text", { x = strip_left + strip_width, y = height - 5, ["text-anchor"] = "end" },
    ("%d"):format(kept.tokens))
  return element("svg", { viewBox = ("0 0 360 %d"):format(height), role = "img", ["aria-label"] =
    ("What %s kept of a document of %d tokens, layer by layer, the last layer on top: %s of the "
      .. "rows."):format(entry.label,
      kept.tokens, percent(entry.kept_fraction)) }, out)
end

local function kept_figure(entry, index, short)
  local kept, sum = entry.kept, 0
  for _, rows in ipairs(kept.rows) do sum = sum + rows end
  entry.kept_fraction = sum / (#kept.rows * kept.tokens)
  local first, last = kept.rows[1], kept.rows[#kept.rows]
  return element("figure", { ["data-budget"] = entry.budget and ("%g"):format(entry.budget)
    or false }, {
    element("figcaption", nil, { element("span",
      { class = "dot " .. chart.colour(index[entry.series]) }, ""), text(label_of(entry, short)),
      element("small", nil,
        text(("%s of the rows of this document: %.0f in layer 1, %.0f in layer %d"):format(
        percent(entry.kept_fraction), first, last, #kept.rows))) }), kept_picture(entry) })
end

local function marks_list(kept)
  local items = {}
  for i, mark in ipairs(marked(kept)) do
    local parts = { element("q", nil, text(mark.text)) }
    for k, asked in ipairs(mark.asked) do
      parts[k + 1] = element("div", nil, ("%s: %s <b>%s</b>"):format(text(asked.kind),
        text(asked.question), text(asked.answer)))
    end
    items[i] = element("li", nil, parts)
  end
  return element("details", nil, { element("summary", nil,
    plural(#items, "sentence is marked", "sentences are marked")),
      element("ol", { class = "marks" }, items) })
end

-- The budgets that pictures can be chosen by, and the one shown first.
local function budget_choice(entries)
  local budgets, seen = {}, {}
  for _, entry in ipairs(entries) do
    if entry.kept and entry.budget and not seen[entry.budget] then
      seen[entry.budget] = true
      budgets[#budgets + 1] = entry.budget
    end
  end
  table.sort(budgets)
  if #budgets < 2 then return "" end
  local first = budgets[1]
  for _, budget in ipairs(budgets) do
    if math.abs(budget - 0.4) < math.abs(first - 0.4) then first = budget end
  end
  local buttons = {}
  for i, budget in ipairs(budgets) do
    buttons[i] = element("button", { type = "button", value = ("%g"):format(budget),
      ["aria-pressed"] = tostring(budget == first) }, percent(budget))
  end
  return element("div", { class = "controls choices", role = "group",
    ["aria-label"] = "Rows asked for", ["data-picks"] = ("%g"):format(first) },
      { "<span>Rows asked for:</span>", table.unpack(buttons) })
end

local function kept_section(groups, index, short)
  local out, any = {}, false
  for _, group in ipairs(groups) do
    local figures, shown = {}, nil
    for i, entry in ipairs(group.entries) do
      if i > 1 and entry.kept then
        figures[#figures + 1] = kept_figure(entry, index, short)
        shown = entry.kept
      end
    end
    if shown then
      any = true
      local aware = group.mode == "aware"
      local about = aware
        and ("Read together with the question “%s”; marked is what answers it."):format(
          shown.marks[1].question)
        or "Read before any question is known; marked is what the questions about it need."
      out[#out + 1] = element("div", nil, { element("h3", nil, text(group.name)),
        element("p", { class = "soft" }, text(about)), marks_list(shown),
          budget_choice(group.entries), element("div", { class = "kept" }, figures) })
    end
  end
  if not any then return {} end
  return { element("h2", nil, "What each policy kept of one document"),
    element("p", { class = "soft" },
      "Layers from the last, on top, to the first; the document from left to right. The deeper "
      .. "the blue, the more of the KV heads still hold the position. Orange marks sentences "
      .. "that hold answers: point at one, "
      .. "or tap it, to read it. On the right: of all questions’ evidence, how much each layer "
      .. "still holds."),
    element("p", { class = "note" }, { element("span", { class = "scale" },
      "no head <i></i> all heads") }), table.concat(out) }
end

-- ---- how it was measured ------------------------------------------------------------------------

local function task_method(about, add)
  add("Score: the mean over questions of the task's published metric. A task counts if the full "
    .. "cache reaches 80 %.")
  add(("Questions: up to %d about one context. Agnostic: the context is read under the policy, and "
    .. "each question goes on in a fork of that cache. Aware: context and question are read "
    .. "together; what calls for the answer is read after the cut. Answers are greedy%s."):format(
    about.protocol.per_context, about.protocol.chat and ", in the model's chat template" or ""))
  add("Of full: the sum of scores over the sum of the full cache's on the same questions, over the "
    .. "tasks that count; its interval takes contexts, not questions, as independent. p: the exact "
    .. "test of McNemar over questions that one of the two scored higher.")
end

local function method(groups, about)
  local s, full = about.settings, groups[1].full
  local items = {}
  local function add(said) items[#items + 1] = element("li", nil, text(said)) end
  add("Rows: K and V of one token in one layer and KV head; the share is of what was read under "
    .. "the policy, once it has cut. "
    .. "KV: bytes, in " .. s.cache_dtype
      .. ". A policy that kept another share than it was asked for is named by what it kept.")
  add("Whatever is scored or answered comes from logits after the cut: a context's last token, "
    .. "and a question or its “Answer:”, "
    .. "are read when the policy has judged, so that no policy is judged by what the full cache "
    .. "foretold.")
  if about.protocol then task_method(about, add)
  elseif full.recall then
    add("Recall: questions about facts that held-out documents tell once. An answer is right if "
      .. "the line generated greedily is "
      .. "the expected one, letter for letter. Agnostic: the document is read under the policy, "
      .. "then the question is appended; "
      .. "aware: both are read together. ± is half of a 95 % interval (Wilson); of two policies, "
      .. "which are asked the same, one is "
      .. "called better only if chance would make it so in fewer than 5 of 100 (McNemar).")
    add("Evidence: tokens of the sentences that hold the answer whose rows are still held after "
      .. "the cut, mean over KV "
      .. "heads and layers.")
  end
  if text_of(full) then
    add("Perplexity, bits per byte, KL, top-1: a context is read under the policy, and the "
      .. s.predict .. " true tokens after "
      .. "it are fed one by one. KL(full ‖ policy) is over the whole vocabulary, in nats; top-1 "
      .. "is how often both find the same "
      .. "token most probable. Texts have no mode.")
    add("Read and write: medians over contexts; policies take turns context by context. Scoring "
      .. "is not in the times.")
  end
  add("Pruned nothing: the policy dropped no row at all, so it is the full cache under another "
    .. "name.")
  return { element("details", nil, { element("summary", nil, "How it was measured"),
    element("ul", { class = "note" }, items) }) }
end

local function join(list) return table.concat(list, ", ") end

local function footer(about)
  local s, m, rows = about.settings, about.machine, {}
  local function add(name, value)
    if value then rows[#rows + 1] = element("dt", nil, text(name)) .. element("dd", nil, value) end
  end
  local budgets = {}
  for i, budget in ipairs(s.budgets) do budgets[i] = ("%g"):format(budget) end
  local documents = {}
  if about.protocol then
    documents[1] = ("%d questions of each task (%s)"):format(s.questions, join(about.kinds))
    if s.text then documents[2] = "haystacks of " .. s.text end
  elseif s.questions > 0 then
    documents[1] = ("%d questions of each kind (%s)"):format(s.questions, join(about.kinds))
  end
  if s.documents > 0 then
    documents[#documents + 1] = plural(s.documents, "continued document", "continued documents")
  end
  if s.text and s.windows then
    documents[#documents + 1] = ("up to %s of %s"):format(plural(s.windows, "stretch",
      "stretches"), s.text)
  end
  add("Command", element("code", nil, text(about.command)))
  add("Model", text(("%s (%s)"):format(about.model, about.path)))
  add("Weights", text(("%s, prompt precision %s, cache in %s"):format(s.weights
    or "as in the file", s.precision, s.cache_dtype)))
  if s.predict then
    documents[#documents + 1] = ("%d tokens scored after each context"):format(s.predict)
  end
  add("Texts", text(("%s; seeds from %d"):format(table.concat(documents, "; "), s.first_seed)))
  add("Budgets", text(join(budgets)))
  add("Machine", text(("%s, %s, %s%s"):format(m.cpu, about.isa,
    plural(about.threads, "thread", "threads"),
      about.load and (", load %.1f at the end"):format(about.load) or "")))
  add("Version", text(("Pyramid %s%s, oneDNN %s"):format(about.version,
    m.commit and (" (%s)"):format(m.commit) or "", m.onednn)))
  add("Made", text(("%s; %s measured now, in %.0f s"):format(about.date,
    plural(about.measured, "result", "results"), about.seconds)))
  return element("dl", nil, rows)
end

-- ---- the page -----------------------------------------------------------------------------------

--- The page.
---@param entries pyramid.CompareEntry[]   of compare.summary
---@param about table
---  command, date, model, path, version, machine, threads, isa, load?, measured, seconds, kinds,
---  settings;
---                      share: how much of it is done, if not all; protocol: of eval, chat and
---                      per_context
---@return string
function comparison.render(entries, about)
  local _ <close> = core.plain_locale()
  local groups = groups_of(entries)
  local series, index = series_of(entries)
  local short = short_names(series)
  local name = about.path:match "([^/]+)/*$" or about.path
  local main = {}
  for _, part in ipairs { findings(groups), curves_section(groups, series, index, short, about),
    tables_section(groups, entries, index, short, about), kept_section(groups, index, short),
      method(groups, about) } do
    main[#main + 1] = table.concat(part, "\n")
  end
  local title, measured = names_of(about).title .. name, {}
  for i, group in ipairs(groups) do measured[i] = group.name end
  return table.concat({ "<!DOCTYPE html>", '<html lang="en" class="no-script">', "<head>",
    '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
      element("title", nil, text(title)),
    element("style", nil, style.css), "</head>", "<body>",
    element("header", nil, { element("h1", nil, text(title)),
      element("p", { class = "soft" },
        text(("%s. %s against the full cache: %s."):format(about.model,
          plural(#series, "policy", "policies"), table.concat(measured, "; ")))),
      about.share and element("p", { class = "unfinished" },
        ("Not finished: %s is measured. The same command goes on.")
        :format(percent(about.share))) or "" }),
    element("main", nil, main), element("footer", nil,
      { element("h2", nil, "About this run"), footer(about) }),
    element("script", nil, style.script), "</body>", "</html>", "" }, "\n")
end

return comparison
