std = "lua54"
max_line_length = false   -- spec/support/style.lua looks at it
files["spec"] = { std = "+busted" }
