-- Number formats of files: what a format calls them, their block and its bytes. `native` ones can
-- be bound to a model, those of `dtypes.converted` as something else; the others are known well
-- enough to be listed and to be refused by name. Sources: ggml's type table as the `gguf` package
-- states it; the safetensors format's list.

local dtypes = {}

---@class pyramid.Dtype
---@field name string   pyramid's name, or the format's own where pyramid has none
---@field block integer values a block
---@field bytes integer bytes a block
---@field native boolean

local native = { f32 = true, f16 = true, bf16 = true, q8_0 = true, q4_0 = true, q4_k = true,
  q5_k = true, q6_k = true }

local function make(list)
  local out = {}
  for key, entry in pairs(list) do
    out[key] = { name = entry[1], block = entry[2], bytes = entry[3],
      native = native[entry[1]] or false }
  end
  return out
end

--- By the type ids of GGUF.
---@type table<integer, pyramid.Dtype>
dtypes.gguf = make {
  [0] = { "f32", 1, 4 }, [1] = { "f16", 1, 2 }, [2] = { "q4_0", 32, 18 }, [3] = { "q4_1", 32, 20 },
  [6] = { "q5_0", 32, 22 }, [7] = { "q5_1", 32, 24 }, [8] = { "q8_0", 32, 34 },
    [9] = { "q8_1", 32, 40 },
  [10] = { "q2_k", 256, 84 }, [11] = { "q3_k", 256, 110 }, [12] = { "q4_k", 256, 144 },
    [13] = { "q5_k", 256, 176 },
  [14] = { "q6_k", 256, 210 }, [15] = { "q8_k", 256, 292 }, [16] = { "iq2_xxs", 256, 66 },
    [17] = { "iq2_xs", 256, 74 },
  [18] = { "iq3_xxs", 256, 98 }, [19] = { "iq1_s", 256, 50 }, [20] = { "iq4_nl", 32, 18 },
    [21] = { "iq3_s", 256, 110 },
  [22] = { "iq2_s", 256, 82 }, [23] = { "iq4_xs", 256, 136 }, [24] = { "i8", 1, 1 },
    [25] = { "i16", 1, 2 },
  [26] = { "i32", 1, 4 }, [27] = { "i64", 1, 8 }, [28] = { "f64", 1, 8 },
    [29] = { "iq1_m", 256, 56 },
  [30] = { "bf16", 1, 2 }, [34] = { "tq1_0", 256, 54 }, [35] = { "tq2_0", 256, 66 },
    [39] = { "mxfp4", 32, 17 },
  [40] = { "nvfp4", 64, 36 }, [41] = { "q1_0", 128, 18 },
}

--- By the names of safetensors.
---@type table<string, pyramid.Dtype>
dtypes.safetensors = make {
  F64 = { "f64", 1, 8 }, F32 = { "f32", 1, 4 }, F16 = { "f16", 1, 2 }, BF16 = { "bf16", 1, 2 },
  I64 = { "i64", 1, 8 }, I32 = { "i32", 1, 4 }, I16 = { "i16", 1, 2 }, I8 = { "i8", 1, 1 },
  U64 = { "u64", 1, 8 }, U32 = { "u32", 1, 4 }, U16 = { "u16", 1, 2 }, U8 = { "u8", 1, 1 },
    BOOL = { "bool", 1, 1 },
  F8_E4M3 = { "f8_e4m3", 1, 1 }, F8_E5M2 = { "f8_e5m2", 1, 1 }, F8_E8M0 = { "f8_e8m0", 1, 1 },
  C64 = { "c64", 1, 8 },
}

--- What no kernel reads, but models can have: what it is converted to while it is loaded, unless
--- the option `weights` says.
---@type table<string, string>
dtypes.converted = { q4_1 = "q8_0", q5_0 = "q8_0", q5_1 = "q8_0", q2_k = "q8_0", q3_k = "q8_0",
  iq4_nl = "q8_0", iq4_xs = "q8_0", mxfp4 = "q8_0", nvfp4 = "q8_0", f64 = "f32" }

--- Names of all dtypes that a model's weights may be of in its file, sorted.
---@return string[]
function dtypes.loadable()
  local out = {}
  for name in pairs(native) do out[#out + 1] = name end
  for name in pairs(dtypes.converted) do out[#out + 1] = name end
  table.sort(out)
  return out
end

--- Names that a load option may ask for.
dtypes.writable = { "f32", "f16", "bf16", "q8_0", "q4_0" }

--- Bytes of a tensor, or nil and why not: "overflow", or "block" if its rows are no whole blocks.
---@param dtype pyramid.Dtype
---@param shape integer[] row-major
---@return integer? bytes
---@return string? why
function dtypes.bytes(dtype, shape)
  local count = 1
  for _, n in ipairs(shape) do
    if n > 0 and count > math.maxinteger // n then return nil, "overflow" end
    count = count * n
  end
  local row = shape[#shape] or 1
  if row % dtype.block ~= 0 then return nil, "block" end
  local blocks = count // dtype.block
  if blocks > math.maxinteger // dtype.bytes then return nil, "overflow" end
  return blocks * dtype.bytes
end

return dtypes
