-- Local memory that kernels may use, in bytes, by name; see registers.lua. All others may use none.
return {
}
