--- Folders whose `policies/` and `scripts/` come before the bundled ones, in order.
---
--- None in a library; the `pyramid` program preloads its own list instead, and so may a host:
--- `package.preload["pyramid.paths"] = function() return { "/my/app" } end`.
---@type string[]
return {}
