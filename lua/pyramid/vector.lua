--- Vectors and matrices of f32, native and immutable: what a custom score sees of a lane and
--- computes its ranking from (score.custom), what cache:scores returns, what score.table takes. The
--- class is lua/lvector.c.
---
---   local anchor = (lane.keys / lane.keys:norm()):mean "columns"        -- KeyDiff, spelt out
---   return -(lane.keys:dot(anchor) / (lane.keys:norm() * anchor:norm()))
---
--- v[i] is a number and m[i] a row, both from 1 and nil beyond the end; #v counts numbers, #m rows.
--- Arithmetic is value by value, between equals in shape, with a number, or of a matrix with a
--- vector that has a number for each row.
local core = require "pyramid.core"

---@class pyramid.vector: userdata
---@operator add(pyramid.vector|number): pyramid.vector
---@operator sub(pyramid.vector|number): pyramid.vector
---@operator mul(pyramid.vector|number): pyramid.vector
---@operator div(pyramid.vector|number): pyramid.vector
---@operator unm: pyramid.vector
---@operator len: integer
---@field [integer] number|pyramid.vector
---@field columns fun(self: pyramid.vector): integer          of a matrix; 0: a vector
---@field exp fun(self: pyramid.vector): pyramid.vector
---@field log fun(self: pyramid.vector): pyramid.vector
---@field sqrt fun(self: pyramid.vector): pyramid.vector
---@field abs fun(self: pyramid.vector): pyramid.vector
---@field sum fun(self: pyramid.vector, of?: "rows"|"columns"): number|pyramid.vector
---  of a matrix: one for each row or column
---@field mean fun(self: pyramid.vector, of?: "rows"|"columns"): number|pyramid.vector
---@field max fun(self: pyramid.vector, of?: "rows"|"columns"): number|pyramid.vector
---@field min fun(self: pyramid.vector, of?: "rows"|"columns"): number|pyramid.vector
---@field norm fun(self: pyramid.vector, of?: "rows"|"columns"): number|pyramid.vector
---  root of the sum of squares
---@field dot fun(self: pyramid.vector, other: pyramid.vector): number|pyramid.vector
---  of a matrix: one for each row
---@field slice fun(self: pyramid.vector, from: integer, to?: integer): pyramid.vector
---  numbers or rows, both ends included
---@field pool fun(self: pyramid.vector, kind: "avg"|"max", width: integer): pyramid.vector
---  as score:pool
---@field totable fun(self: pyramid.vector): number[]|number[][]

---@class pyramid.Lane  what a custom score is shown; see score.custom
---@field layer integer
---@field head integer
---@field rows integer
---@field positions pyramid.vector
---@field keys pyramid.vector
---@field values pyramid.vector

---@type fun(numbers: number[]|number[][]): pyramid.vector
return core.vector
