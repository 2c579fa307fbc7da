rockspec_format = "3.0"
package = "pyramid"
version = "scm-1" -- from a checkout; what is built says its version: pyramid.version (core/pyramid.h)
source = { url = "." } -- for `luarocks make` in a checkout
description = {
  summary = "Lua-scriptable LLM inference with a pyramid-shaped KV cache",
  detailed = "A C core exposes models, caches and samplers; policies that decide what of the KV cache stays are a few lines of Lua.",
  license = "MIT",
}
dependencies = { "lua >= 5.4, < 5.5" }
external_dependencies = { -- oneDNN (dnnl.h) is used where it is found
  PCRE2 = { header = "pcre2.h" },
}
build = {
  type = "make",
  build_target = "rock", -- the module alone, on all processors
  install_target = "install-module",
  build_variables = { CFLAGS = "$(CFLAGS) -O3" },
  install_variables = { LUA_CMOD = "$(LIBDIR)" },
}
