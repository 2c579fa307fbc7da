--- A page with one table of layers and columns, each cell as dark as its value is high: what
--- `pyramid study` found.
local core = require "pyramid.core"
local html = require "pyramid.tools.report.html"
local style = require "pyramid.tools.report.style"

local grid = {}

local element, text = html.element, html.text

---@class pyramid.Grid
---@field title string
---@field what string          the cells' values, in words
---@field command string
---@field model string
---@field cells pyramid.StudyCell[]
---@field layers integer[]
---@field columns number[]
---@field name fun(column: number): string
---@field show fun(value: number): string
---@field trend fun(column: number): number

---@param given pyramid.Grid
---@return string
function grid.render(given)
  local _ <close> = core.plain_locale()
  local by, highest = {}, 1e-12
  for _, cell in ipairs(given.cells) do
    by[cell.layer] = by[cell.layer] or {}
    by[cell.layer][cell.at] = cell
    highest = math.max(highest, cell.mean)
  end
  local head, body, last = { element("th", { scope = "col" }, "Layer") }, {},
    { element("td", nil, "with depth") }
  for _, column in ipairs(given.columns) do
    head[#head + 1] = element("th", { scope = "col" }, text(given.name(column)))
    last[#last + 1] = element("td", nil, ("%+.2f"):format(given.trend(column)))
  end
  for i, layer in ipairs(given.layers) do
    local row = { element("td", nil, ("%d"):format(layer)) }
    for _, column in ipairs(given.columns) do
      local cell = by[layer][column]
      local half = cell.half < math.huge and (" ± %s"):format(given.show(cell.half)) or ""
      row[#row + 1] = element("td", { class = "share", title = given.show(cell.mean) .. half,
        style = ("--v:%.3f"):format(math.max(0, cell.mean / highest)) },
        text(given.show(cell.mean)))
    end
    body[i] = element("tr", nil, row)
  end
  body[#body + 1] = element("tr", { class = "full" }, last)
  return table.concat({ "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    element("title", nil, text(given.title)), element("style", nil, style.css), "</head>", "<body>",
    element("header", nil, { element("h1", nil, text(given.title)),
      element("p", { class = "soft" }, text(given.model)) }),
    element("main", nil, { element("p", nil, text(given.what) .. "."),
      element("div", { class = "scroll", tabindex = "0", role = "region",
        ["aria-label"] = text(given.what) }, element("table", nil, {
          element("thead", nil, element("tr", nil, head)), element("tbody", nil, body) })),
      element("p", { class = "note" }, "Last row: the rank correlation of the column with the "
        .. "layer’s number, from −1 (falls with depth) to 1 (rises).") }),
    element("footer", nil, element("p", nil, element("code", nil, text(given.command)))),
    "</body>", "</html>", "" }, "\n")
end

return grid
