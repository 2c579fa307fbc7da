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

---@class pyramid.Vector: userdata
---@operator add(pyramid.Vector|number): pyramid.Vector
---@operator sub(pyramid.Vector|number): pyramid.Vector
---@operator mul(pyramid.Vector|number): pyramid.Vector
---@operator div(pyramid.Vector|number): pyramid.Vector
---@operator unm: pyramid.Vector
---@operator len: integer
---@field [integer] number|pyramid.Vector
---@field columns fun(self: pyramid.Vector): integer          of a matrix; 0: a vector
---@field exp fun(self: pyramid.Vector): pyramid.Vector
---@field log fun(self: pyramid.Vector): pyramid.Vector
---@field sqrt fun(self: pyramid.Vector): pyramid.Vector
---@field abs fun(self: pyramid.Vector): pyramid.Vector
---@field sum fun(self: pyramid.Vector, of?: "rows"|"columns"): number|pyramid.Vector
---  of a matrix: one for each row or column
---@field mean fun(self: pyramid.Vector, of?: "rows"|"columns"): number|pyramid.Vector
---@field max fun(self: pyramid.Vector, of?: "rows"|"columns"): number|pyramid.Vector
---@field min fun(self: pyramid.Vector, of?: "rows"|"columns"): number|pyramid.Vector
---@field norm fun(self: pyramid.Vector, of?: "rows"|"columns"): number|pyramid.Vector
---  root of the sum of squares
---@field dot fun(self: pyramid.Vector, other: pyramid.Vector): number|pyramid.Vector
---  of a matrix: one for each row
---@field slice fun(self: pyramid.Vector, from: integer, to?: integer): pyramid.Vector
---  numbers or rows, both ends included
---@field pool fun(self: pyramid.Vector, kind: "avg"|"max", width: integer): pyramid.Vector
---  as score:pool
---@field totable fun(self: pyramid.Vector): number[]|number[][]

---@class pyramid.Lane  what a custom score is shown; see score.custom
---@field layer integer
---@field head integer
---@field rows integer
---@field positions pyramid.Vector
---@field keys pyramid.Vector
---@field values pyramid.Vector

---@type fun(numbers: number[]|number[][]): pyramid.Vector
return core.vector
