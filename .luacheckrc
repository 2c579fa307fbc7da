std = "lua54"
max_line_length = 132
files["spec"] = { std = "+busted" }
