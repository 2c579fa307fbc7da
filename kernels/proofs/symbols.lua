-- symbols.lua: kernels' names out of their symbols, as the sources have them.
local symbols = {}

-- What stands between I and E in a symbol: "4bf16Lb0ELi64EE…" -> "bf16,0,64", what follows; nil:
-- something else. A value of an enum is its number: "L9rows_come1E" -> "1".
local function arguments(after)
  local args = {}
  while after:sub(1, 1) ~= "E" do
    local value, beyond = after:match "^L%a(%d+)E(.*)$"
    local letters, typed = after:match "^L(%d+)(.*)$"
    if letters then value, beyond = typed:sub(letters + 1):match "^(%d+)E(.*)$" end
    local size, kind = after:match "^(%d+)(.*)$"
    if not value and not size then return nil end
    args[#args + 1] = value or kind:sub(1, size)
    after = beyond or kind:sub(size + 1)
    if after:sub(1, 1) == "I" then
      local inner
      inner, after = arguments(after:sub(2))
      if not inner then return nil end
      args[#args] = ("%s<%s>"):format(args[#args], inner)
    end
  end
  return table.concat(args, ","), after:sub(2)
end

-- _Z10few_kernelILi0EEv11linear_call -> few_kernel<0>; _Z6kernelI4bf16Lb0ELi64EEv… ->
-- kernel<bf16,0,64>
function symbols.plain(symbol)
  local length, rest = symbol:match "^_ZN?L?(%d+)(.*)$"
  if not length then return symbol end
  local name, after = rest:sub(1, length), rest:sub(length + 1)
  if after:sub(1, 1) ~= "I" then return name end
  return ("%s<%s>"):format(name, arguments(after:sub(2)) or "…")
end

return symbols
