--- Bytes as base64 (RFC 4648), with padding.
local alphabet <const> = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

---@param bytes string
---@return string
return function(bytes)
  local out = {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local word, text = a << 16 | (b or 0) << 8 | (c or 0), ""
    for shift = 18, 0, -6 do
      local at = (word >> shift & 63) + 1
      text = text .. alphabet:sub(at, at)
    end
    out[#out + 1] = c and text or b and text:sub(1, 3) .. "=" or text:sub(1, 2) .. "=="
  end
  return table.concat(out)
end
