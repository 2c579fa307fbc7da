-- Measuring: random models, the limits' probes, and `pyramid bench` with its report, also against a
-- made-up peer.
local cjson = require "cjson"
local core = require "pyramid.core"
local probe = require "pyramid.probe"
local products = require "pyramid.tools.bench.products"
local helper = require "spec.helper"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local shell = require "support.shell"

local folder

setup(function() folder = shell.folder() end)
teardown(function() shell.remove(folder) end)

local function in_folder(name) return folder .. "/" .. name end

local ids = {}
for i = 1, 40 do ids[i] = i * 37 % 500 + 3 end

local function logits_of(path)
  local model <close> = assert(pyramid.model(path, { threads = 1 }))
  local cache <close> = assert(model:cache { dtype = "f32" })
  return assert(cache:prefill(ids)):totable()
end

describe("probe.random_rows", function()
  local rt = assert(core.runtime { device = "cpu", threads = 3 })

  it("gives normal numbers of the deviation asked for", function()
    local values = helper.floats(probe.random_rows(rt, "f32", 7, 3, 0, 16, 512, 0.5), 0, 16 * 512)
    local sum, squares, beyond = 0, 0, 0
    for _, x in ipairs(values) do
      sum, squares = sum + x, squares + x * x
      if math.abs(x) > 1 then beyond = beyond + 1 end
    end
    assert.near(0, sum / #values, 0.02)
    assert.near(0.5, math.sqrt(squares / #values), 0.02)
    assert.near(0.0455, beyond / #values, 0.01)          -- beyond two deviations
  end)

  it("depends on seed, stream and place, not on the cut", function()
    local whole = probe.random_rows(rt, "bf16", 1, 2, 0, 8, 64, 1)
    assert.equal(whole, probe.random_rows(rt, "bf16", 1, 2, 0, 3, 64, 1)
      .. probe.random_rows(rt, "bf16", 1, 2, 3, 5, 64, 1))
    local alone <close> = assert(core.runtime { device = "cpu", threads = 1 })
    assert.equal(whole, probe.random_rows(alone, "bf16", 1, 2, 0, 8, 64, 1))
    assert.not_equal(whole, probe.random_rows(rt, "bf16", 2, 2, 0, 8, 64, 1))
    assert.not_equal(whole, probe.random_rows(rt, "bf16", 1, 3, 0, 8, 64, 1))
  end)

  it("refuses what it cannot make", function()
    assert.error_matches(function() probe.random_rows(rt, "q4_k", 1, 1, 0, 1, 256, 1) end,
      "q8_0 or q4_0")
    assert.error_matches(function() probe.random_rows(rt, "q8_0", 1, 1, 0, 1, 48, 1) end, "blocks")
    assert.error_matches(function() probe.random_rows(rt, "f32", 1, 1, 0, 1, 3, 1) end, "even")
    assert.error(function() probe.random_rows(rt, "f32", 1, 1, -1, 1, 2, 1) end)
  end)
end)

describe("probes", function()
  it("time reading and multiplying", function()
    local runtime <close> = assert(core.runtime { threads = 2 })
    assert.is_true(probe.read(runtime, 1 << 20, 2) > 0)
    local version = probe.version()
    local without = version == "none"                          -- make ONEDNN=0
    if without then assert.same({ nil,
      "this build has no oneDNN, whose f32 products are the yardstick", "unsupported" },
        { probe.matmul("f32", 2, 64, 2) })
    else assert.is_true(probe.matmul("f32", 2, 64, 2) > 0) end
    for _, kind in ipairs { "bf16", "int8" } do                -- not on every processor
      local seconds, message, code = probe.matmul(kind, 1, 64)
      assert.is_true(seconds and not without and seconds > 0 or message:find(kind) ~= nil
        and code == "unsupported")
    end
    if not without then assert.matches("^[23]%.%d+%.%d+$", version) end
    assert.error(function() probe.read(runtime, 100) end)
    assert.error(function() probe.matmul("f32", 0, 64) end)
    assert.error(function() probe.matmul("q8_0", 1, 64) end)
  end)

  it("time the backend's own products", function()
    local runtime <close> = assert(core.runtime { threads = 2 })
    for _, dtype in ipairs(products.dtypes()) do
      local seconds, processor = assert(probe.linear(runtime, dtype, 48, 256, 3, 1 << 16, 2))
      assert.is_true(seconds > 0 and processor > 0)
    end
    for message, given in pairs { dtype = { "mxfp4", 16, 32, 1, 0 },
      ["1 to"] = { "q8_0", 0, 32, 1, 0 }, blocks = { "q4_k", 16, 32, 1, 0 },
      GiB = { "q8_0", 16, 32, 1, 1 << 40 } } do
      assert.error_matches(function() probe.linear(runtime, table.unpack(given)) end, message)
    end
    local given = { dtypes = { "q8_0", "q4_k" }, rows = 16, cols = 32, tokens = { 1, 3 },
      turns = 1, bytes = 0 }
    local best = products.measure(runtime, given)
    assert.is_nil(best.q4_k)                                   -- whose blocks are 256 values
    assert.is_true(best.q8_0[1] > 0 and best.q8_0[2] > 0)
    assert.matches("q8_0 +[%d.]+ +[%d.]+$", products.text(best, given))
  end)
end)

describe("random models", function()
  local function write(name, given)
    given.shape = given.shape or "tiny"
    return assert(random_model.write(in_folder(name), given))
  end

  it("are the same for the same seed, byte by byte", function()
    write("a.gguf", { seed = 5 })
    write("b.gguf", { seed = 5 })
    write("c.gguf", { seed = 6 })
    local a = helper.read(in_folder "a.gguf")
    assert.equal(a, helper.read(in_folder "b.gguf"))
    assert.not_equal(a, helper.read(in_folder "c.gguf"))
  end)

  for _, dtype in ipairs { "f32", "f16", "bf16" } do
    it("are equal as GGUF and as safetensors, in " .. dtype, function()
      local gguf, hf = write(dtype .. ".gguf", { dtype = dtype }), write(dtype, { dtype = dtype })
      local x, y = logits_of(gguf), logits_of(hf)
      assert.is_true(helper.distance(x, y) < 1e-4)
      local size = 0
      for _, v in ipairs(x) do size = size + v * v / #x end
      assert.is_true(size > 0.1 and size < 10)
    end)
  end

  it("are near to themselves when quantised", function()
    local plain = logits_of(write("plain.gguf", { dtype = "f32" }))
    assert.is_true(helper.distance(logits_of(write("q8.gguf", { dtype = "q8_0" })), plain) < 0.1)
    assert.is_true(helper.distance(logits_of(write("q4.gguf", { dtype = "q4_0" })), plain) < 0.5)
  end)

  it("have the shape that was asked for, and a vocabulary", function()
    local shape = random_model.shapes.tiny
    local model <close> = assert(pyramid.model(write("v.gguf", {})))
    for _, key in ipairs { "layers", "heads", "kv_heads", "width", "ff", "vocab", "context" } do
      assert.equal(shape[key], model.config[key], key)
    end
    local text = "Any text, even ünusual: 日本."
    assert.equal(text, model:decode(assert(model:encode(text, { special = false }))))
    assert.equal(1, model:encode("x")[1])                        -- begins with <s>
    local folder_model <close> = assert(pyramid.model(write("v", {})))
    assert.is_nil(folder_model.tokenizer)
    assert.equal(random_model.parameters(shape) * 2,
      folder_model:native():bytes() - 2 * 7 * shape.width)
  end)

  it("count their weights", function()
    assert.near(134e6, random_model.parameters(random_model.shapes["134m"]), 1e6)
    assert.near(1.1e9, random_model.parameters(random_model.shapes["1.1b"]), 1e7)
  end)

  it("say what cannot be written", function()
    assert.error_matches(function() random_model.write(in_folder "x",
      { shape = "tiny", dtype = "q8_0" }) end, "GGUF")
    assert.error_matches(function() random_model.write(in_folder "x", { shape = "none" }) end,
      "no shape")
    assert.error_matches(function() random_model.write(in_folder "x.gguf",
      { shape = "tiny", dtype = "q4_k" }) end, "no dtype")
    local ok, message, code = random_model.write(in_folder "none/x.gguf", { shape = "tiny" })
    assert.is_nil(ok)
    assert.is_string(message)
    assert.equal("io", code)
  end)

  it("are written by the script", function()
    local out, err, status = shell.pyramid("random_model", in_folder "s.gguf", "--shape", "tiny",
      "--dtype", "q8_0", "--seed", "3")
    assert.equal("", err)
    assert.equal(0, status)
    assert.matches("1 million weights, q8_0, seed 3", out)
    write("t.gguf", { dtype = "q8_0", seed = 3 })
    assert.equal(helper.read(in_folder "t.gguf"), helper.read(in_folder "s.gguf"))
    for words, message in pairs { [{ "--dtype", "q4_0" }] = "safetensors cannot hold q4_0",
      [{ "--format", "gguf" }] = "does not fit the name" } do
      out, err, status = shell.pyramid("random_model", in_folder "s", "--shape", "tiny",
        table.unpack(words))
      assert.matches(message, err)
      assert.equal("", out)
      assert.equal(1, status)
    end
  end)
end)

-- ---- the bench ----------------------------------------------------------------------------------

local short = { "--quick", "--shape", "tiny", "--threads", "2", "--prefill", "16,80", "--depth",
  "0,80", "--steps", "4", "--batch", "2", "--lengths", "8+3", "--buffer", "4 MiB" }

local function bench(...)
  local words = { "bench" }
  for _, word in ipairs(short) do words[#words + 1] = word end
  for _, word in ipairs { "--folder", in_folder "models", "--json", in_folder "out.json",
    "--markdown", in_folder "out.md", ... } do
    words[#words + 1] = word
  end
  local out, err, status = shell.pyramid(table.unpack(words))
  assert.equal("", err)
  assert.equal(0, status)
  local text = helper.read(in_folder "out.json")
  return cjson.decode(text), out, helper.read(in_folder "out.md"), text
end

local function keys(t)
  local out = {}
  for key in pairs(t) do out[#out + 1] = key end
  table.sort(out)
  return table.concat(out, " ")
end

describe("pyramid bench", function()
  it("reports every field of every case", function()
    local report, out, markdown, text = bench()
    assert.equal("command date device limits load machine models peers seconds settings threads",
      keys(report))
    assert.equal("architecture commit cores_per_socket cpu flags hypervisor kernel l2 l3 lua "
      .. "memory onednn processors pyramid "
      .. "sockets threads_per_core", keys(report.machine))
    assert.equal("bf16 f32 int8 read", keys(report.limits))
    -- twice at either end; on the processor also before and after each of three runs of four
    -- results of decoding
    assert.is_true(report.limits.read.most > 0)
    assert.equal(4 + (helper.device == "cpu" and 24 or 0), #report.limits.read.samples)
    assert.equal(2, report.threads)
    assert.matches("^pyramid bench %-%-quick ", report.command)
    assert.equal(1, #report.models)
    local model = report.models[1]
    assert.equal("bytes description largest left_out limits load_peak_bytes load_seconds name "
      .. "note parameters path peer_load_seconds products "
      .. "results weights", keys(model))
    assert.matches("^f32 by %w+, 2 threads$", model.products)
    assert.equal(cjson.null, model.note)
    assert.same({}, model.left_out)
    assert.matches('"left_out": %[%]', text)
    -- norms aside
    assert.equal(random_model.parameters(random_model.shapes.tiny), model.parameters + 7 * 128)

    local names = {}
    for _, result in ipairs(model.results) do
      assert.equal("against against_first against_quiet cache_dtype case computed engine evicting "
        .. "first_token_seconds flash_attention kept "
        .. "kv_bytes label limit limits median_seconds name of_limit peak_bytes policy profile "
        .. "seconds spread tokens_per_second ways",
        keys(result))
      assert.equal("pyramid", result.engine)
      assert.same({}, result.against)
      assert.equal(cjson.null, result.against_quiet)
      assert.equal(3, #result.limits)
      assert.is_true(result.tokens_per_second > 0 and result.median_seconds > 0
        and result.spread >= 0)
      assert.is_true(#result.seconds == 3 and result.kv_bytes > 0 and result.peak_bytes > 0)
      assert.is_true(result.kept > 0 and result.kept <= 1)
      assert.is_true(#result.profile > 3)
      local spent, total = 0, 0
      for _, entry in ipairs(result.profile) do
        total = total + entry.seconds
        if entry.name == "mass" or entry.name == "select" then spent = spent + entry.seconds end
      end
      assert.is_true(result.evicting >= spent / total and result.evicting < 1)
      if result.label == "full" then assert.is_true(result.evicting < 0.1) end
      assert.equal("bytes calls flops name seconds", keys(result.profile[1]))
      assert.equal(result.case.kind == "batch", type(result.first_token_seconds) == "number")
      -- a prompt's limit is oneDNN's rate, which a build without it does not know
      local limited = result.case.kind == "decode" or result.case.kind == "prefill"
        and probe.version() ~= "none"
      assert.equal(limited, type(result.of_limit) == "number")
      assert.equal(result.case.kind ~= "decode", type(result.computed) == "number")
      names[#names + 1] = result.name .. ", " .. result.label
    end
    assert.same({
      "decode at 0, full", "decode at 0, pyramidinfer preset=45", "prefill 16, full",
        "prefill 16, pyramidinfer preset=45",
      "prefill 80, full", "prefill 80, pyramidinfer preset=45", "decode at 80, full",
        "decode at 80, pyramidinfer preset=45",
      "batch 2 of 8+3, full", "batch 2 of 8+3, pyramidinfer preset=45",
    }, names)
    local full = model.results[5]
    assert.equal(1, full.kept)
    assert.equal(1, full.computed)
    assert.same({ median = 1, least = 1, most = 1, rounds = 3 }, full.against_first)
    assert.same({ kind = "prefill", tokens = 80 }, full.case)
    assert.near(80 / full.median_seconds, full.tokens_per_second, 1e-3 * full.tokens_per_second)
    assert.is_true(model.results[6].kept < 1)

    assert.matches("tiny bf16", out)
    assert.matches("prefill 80 +full", out)
    assert.matches("where time goes", out)
    assert.matches("\n| model | case | policy | tok/s |", markdown, 1, true)
    local lines = 0
    markdown:gsub("\n| tiny bf16 |", function() lines = lines + 1 end)
    assert.equal(10, lines)
  end)

  helper.cpu_only("oneDNN, its yardstick",
    it)("measures several weights, kinds of rows and policies", function()
    if probe.version() == "none" then
      return pending "the limits of products (this build has no oneDNN)"
    end
    local report = bench("--weights", "q8_0,f32", "--cache-dtype", "f32,q8_0", "--policy",
      "streaming", "--depth", "none", "--batch", "none", "--prefill", "16")
    assert.equal(2, #report.models)
    assert.equal("tiny q8_0", report.models[1].name)
    for _, model in ipairs(report.models) do
      assert.equal(2, #model.results)
      assert.equal("f32", model.results[1].cache_dtype)
      assert.equal("q8_0", model.results[2].cache_dtype)
      assert.equal("streaming", model.results[1].policy.name)
    end
    assert.equal("int8", report.models[1].results[1].limit)
    assert.equal("f32", report.models[2].results[1].limit)
    -- before and after each of three runs of two results, besides twice at either end
    assert.equal(4 + 12, #report.models[1].limits.int8.samples)
    assert.equal(4, #report.models[1].limits.f32.samples)
  end)

  it("measures models of the user's, converted too", function()
    assert(random_model.write(in_folder "mine", { shape = "tiny" }))
    local report = bench("--shape", "none", "--model", in_folder "mine", "--weights", "file,q4_0",
      "--depth", "none", "--batch", "none", "--prefill", "16", "--policy", "full")
    assert.equal("mine", report.models[1].name)
    assert.equal("mine as q4_0", report.models[2].name)
    assert.is_true(report.models[2].bytes < report.models[1].bytes / 3)
  end)

  it("says what it leaves out", function()
    local report, out, markdown = bench("--prefill", "16,64,20000", "--depth", "none", "--batch",
      "none", "--limit", "1e-9", "--weights", "bf16,q4_k_m", "--policy", "full")
    local left = report.models[1].left_out
    assert.equal(2, #left)
    assert.matches("would take about", left[1].reason)
    assert.equal("prefill 64", left[1].name)
    assert.matches("context of 16384", left[2].reason)
    assert.same({}, report.models[2].results)
    assert.matches("K%-quants are made by the peer", report.models[2].left_out[1].reason)
    assert.matches("left out: prefill 20000, full, f16 rows: 20000 tokens are more", out)
    assert.matches("left out: the model: K%-quants", out)
    assert.matches("tiny q4_k_m, left out", markdown)

    report = bench("--prefill", "none", "--depth", "none", "--batch", "1,2", "--batch-limit",
      "1e-9", "--policy", "full")
    assert.equal(1, #report.models[1].results)
    assert.equal("batch 2 of 8+3", report.models[1].left_out[1].name)
  end)

  it("refuses what makes no sense", function()
    for words, message in pairs {
      [{ "--prefill", "none", "--depth", "none", "--batch", "none" }] = "nothing to measure",
      [{ "--prefill", "12,x" }] = "'x' is not possible", [{ "--lengths", "512" }] = "512%+256",
        [{ "--shape", "9b" }] = "'9b'",
      [{ "--peer", "llama.cpp", "--python", "/nonexistent/python" }] = "llama%-cpp%-python",
      [{ "--shape", "none", "--model", "/nonexistent", "--prefill",
        "8" }] = "there is no model '/nonexistent'",
      [{ "--shape", "tiny", "--weights", "file", "--prefill", "8" }] = "nothing could be measured",
    } do
      local _, err, status = shell.pyramid("bench", "--quick", "--folder", in_folder "models",
        table.unpack(words))
      assert.matches(message, err)
      assert.equal(1, status)
    end
  end)
end)

describe("the largest batch", function()
  local largest = require "pyramid.tools.bench.largest"

  -- Holds up to `room` sequences.
  local function baseline(room, code)
    return { label = "made up", batch = function(_, count, prompt, generated)
      assert.same({ 5, 3 }, { prompt, generated })
      if count > room then return nil, "no more", code or "memory" end
      return { seconds = count / 2, kv_bytes = 7 * count }
    end }
  end

  local function find(room, guess, tries, code)
    return largest.find(baseline(room, code),
      { memory = 100, guess = guess, tries = tries, prompt = 5, generated = 3 })
  end

  it("is found wherever the search begins", function()
    for room = 1, 40 do
      for _, guess in ipairs { 1, 7, 40, 90 } do
        local found = find(room, guess, 30)
        assert.same({ room, room + 1, 6, 7 * room },
          { found.fits, found.fails, found.rate, found.kv_bytes })
      end
    end
  end)

  it("is bounded by what was tried", function()
    local found = find(40, 16, 3)
    assert.same({ 22, nil, 3 }, { found.fits, found.fails, #found.runs })
    found = find(40, 16, 6)                              -- 16, 18, 22, 30, 46, 38
    assert.same({ 38, 46, 6 }, { found.fits, found.fails, #found.runs })
    found = find(0, 8, 9)
    assert.same({ 0, 1 }, { found.fits, found.fails })
    assert.is_nil(found.rate)
  end)

  it("does not take another failure for want of memory", function()
    assert.same({ nil, "no more" }, { find(3, 9, 5, "device") })
  end)
end)

describe("a busy neighbour", function()
  it("costs what the ratio to the quiet runs says", function()
    local report = bench("--neighbour", "--policy", "full", "--depth", "none", "--batch", "none",
      "--prefill", "80")
    local quiet, busy = table.unpack(report.models[1].results)
    assert.same({ "full", "full, busy neighbour" }, { quiet.label, busy.label })
    local ratios = {}
    for i, seconds in ipairs(busy.seconds) do ratios[i] = quiet.seconds[i] / seconds end
    table.sort(ratios)
    assert.near(ratios[2], busy.against_quiet.median, 1e-3 * ratios[2])
    assert.equal(cjson.null, quiet.against_quiet)
    assert.equal(cjson.null, busy.of_limit)
  end)

  it("is a process that ends when it is told to", function()
    local neighbour = require "pyramid.tools.bench.neighbour"
    local one = assert(neighbour.start())
    local alive = ("kill -0 %d 2>/dev/null"):format(one.pid)
    local function there() return (os.execute(alive)) end
    assert.is_true(there())
    one:close()
    one:close()
    assert.is_nil(there())
  end)
end)

describe("a peer", function()
  -- It speaks as scripts/maker/peers/llamacpp.py does; flash attention makes it twice as fast, it
  -- gets faster from one run to the next, and batches are beyond it.
  local script = [[
    local cjson = require "cjson"
    local contexts, ids = {}, nil
    local function seconds(r)
      local context = contexts[r.name]
      assert(#ids == 32768 and ids[1] >= 3)
      context.runs = (context.runs or 0) + 1
      return { seconds = (context.flash and 0.5 or 1) * (context.runs == 3 and 2 or 1) }
    end
    local ops = {
      ids = function(r) ids = r.ids return {} end,
      open = function(r) return { seconds = 0.25 } end,
      context = function(r) contexts[r.name] = r return {} end,
      drop = function(r) contexts[r.name] = nil return {} end,
      prefill = seconds,
      decode = function(r) return { seconds = contexts[r.name].flash and 0.5 or 1 } end,
      batch = function(r) return { error = "no batches here" } end,
      memory = function(r) return { peak = 1000 } end,
      quantize = function(r)
        local from, to = io.open(r.source, "rb"), io.open(r.target, "wb")
        to:write(from:read "a")
        to:close()
        return {}
      end,
      close = function(r) return { open = next(contexts) ~= nil } end,
    }
    local function reply(value) io.write(cjson.encode(value), "\n") io.flush() end
    reply { name = "llama.cpp", version = "made up 1.0", system = "none", kernels = "ABACUS" }
    for line in io.lines() do
      local request = cjson.decode(line)
      reply(ops[request.op](request))
    end]]

  setup(function()
    os.execute("mkdir -p " .. in_folder "scripts/maker/peers")
    helper.write(in_folder "scripts/maker/peers/llamacpp.py", script)
  end)

  local function with_peer(...)
    local words = { "env", "PYRAMID_PATH=" .. folder, shell.program, "bench" }
    for _, word in ipairs(short) do words[#words + 1] = word end
    for _, word in ipairs { "--folder", in_folder "models", "--json", in_folder "peer.json",
      "--peer", "llama.cpp", "--python", shell.program, "--policy", "full", ... } do
      words[#words + 1] = word
    end
    for i, word in ipairs(words) do words[i] = shell.quote(word) end
    local out, err, status = shell.run(table.concat(words, " ") .. " </dev/null")
    assert.equal("", err)
    assert.equal(0, status)
    return helper.json(in_folder "peer.json"), out
  end

  it("takes turns and is compared with", function()
    local report, out = with_peer()
    assert.same({ { name = "llama.cpp", version = "made up 1.0", system = "none",
      kernels = "ABACUS" } }, report.peers)
    assert.matches("llama.cpp: made up 1.0; kernels: ABACUS", out, 1, true)
    local model = report.models[1]
    assert.same({ ["llama.cpp"] = 0.25 }, model.peer_load_seconds)
    local by_name = {}
    for _, result in ipairs(model.results) do
      by_name[result.name .. ", " .. result.label] = result
    end
    -- the faster way takes the turns, of which the first is a slow one
    local on = by_name["prefill 80, llama.cpp, flash on"]
    assert.same({ 1, 0.5, 0.5 }, on.seconds)
    assert.equal(160, on.tokens_per_second)
    assert.is_nil(by_name["prefill 80, llama.cpp, flash off"])
    assert.same({ { label = "llama.cpp, flash on", seconds = 0.5 },
      { label = "llama.cpp, flash off", seconds = 1 } }, on.ways)
    assert.is_true(on.flash_attention)
    assert.equal(cjson.null, on.peak_bytes)                 -- two contexts in one process
    local ours = by_name["prefill 80, full"]
    local ratios = {}
    for i, seconds in ipairs(ours.seconds) do ratios[i] = on.seconds[i] / seconds end
    table.sort(ratios)
    local against = ours.against["llama.cpp"]
    for i, key in ipairs { "least", "median", "most" } do
      assert.near(ratios[i], against[key], 1e-3 * ratios[i])
    end
    assert.equal(3, against.rounds)
    assert.equal(8, by_name["decode at 80, llama.cpp, flash on"].tokens_per_second)
    assert.equal(2, #model.left_out)
    assert.equal("no batches here", model.left_out[1].reason)
    assert.matches("vs llama.cpp", out, 1, true)
  end)

  it("may have one context only, and makes K-quants", function()
    local report = with_peer("--peer-flash", "on", "--batch", "none", "--depth", "none",
      "--prefill", "8", "--weights", "q4_k_m", "--cache-dtype", "q8_0")
    assert.equal(2, #report.models[1].results)
    assert.equal(1000, report.models[1].results[2].peak_bytes)
    assert.equal("tiny q4_k_m", report.models[1].name)
  end)

  it("has no rows of fp8_e4m3", function()
    local report = with_peer("--peer-flash", "on", "--batch", "none", "--depth", "none",
      "--prefill", "8", "--cache-dtype", "fp8_e4m3")
    assert.equal("has no rows of this dtype", report.models[1].left_out[1].reason)
    assert.equal("fp8_e4m3", report.models[1].results[1].cache_dtype)
    assert.equal(1, #report.models[1].results)
  end)

  it("reads nothing but GGUF files as they are", function()
    assert(random_model.write(in_folder "hf", { shape = "tiny" }))
    local report = with_peer("--shape", "none", "--model", in_folder "hf", "--batch", "none",
      "--depth", "none", "--prefill", "8")
    assert.equal("reads GGUF files only", report.models[1].left_out[1].reason)
    assert.equal(1, #report.models[1].results)
    report = with_peer("--shape", "none", "--model", in_folder "models/random-tiny-bf16-1.gguf",
      "--weights", "q8_0", "--batch", "none", "--depth", "none", "--prefill", "8")
    assert.matches("as they are in the file", report.models[1].left_out[1].reason)
  end)

  it("may be one of several", function()
    helper.write(in_folder "scripts/maker/peers/openvino_genai_cb.py", (script
      :gsub("llama%.cpp", "openvino"):gsub("{ seconds = 0.25 }",
        "{ seconds = 0.5, caches = { \"u8\", \"f16\" } }")
      :gsub("contexts%[r%.name%]%.flash", "contexts[r.name].cache == \"u8\"")
      :gsub("context%.flash", "context.cache == \"u8\"")))
    helper.write(in_folder "scripts/maker/peers/transformers_sdpa.py", (script
      :gsub("llama%.cpp", "transformers"):gsub("{ seconds = 0.25 }",
        "{ seconds = 0.5, dtypes = { \"f32\", \"bf16\" } }")
      :gsub("contexts%[r%.name%]%.flash", "false"):gsub("context%.flash", "false")))
    local report = with_peer("--peer", "openvino", "--peer", "transformers", "--batch", "none",
      "--depth", "8", "--prefill", "8")
    local by_name = {}
    for _, result in ipairs(report.models[1].results) do
      by_name[result.name .. ", " .. result.label] = result
    end
    assert.equal(3, #report.peers)
    local ours = by_name["decode at 8, full"]
    assert.equal("llama.cpp openvino transformers bf16 transformers f32", keys(ours.against))
    assert.near(ours.against.openvino.median, ours.against["transformers bf16"].median / 2,
      1e-3 * ours.against.openvino.median)
    assert.equal("u8", by_name["decode at 8, openvino, u8 rows"].cache_dtype)
    assert.is_nil(by_name["decode at 8, openvino, f16 rows"])
    assert.equal(4, by_name["decode at 8, transformers, sdpa, f32"].tokens_per_second)
  end)

  it("may end at any time", function()
    local ending = script:gsub("decode = function",
      "decode = function() os.exit(0) end, no = function")
    helper.write(in_folder "scripts/maker/peers/llamacpp.py", ending)
    local report = with_peer "--peer-flash=on"
    local reasons = {}
    for _, left in ipairs(report.models[1].left_out) do
      reasons[#reasons + 1] = left.name .. ": " .. left.reason
    end
    assert.equal("decode at 0: it has ended", reasons[1])
    assert.equal(5, #reasons)
    helper.write(in_folder "scripts/maker/peers/llamacpp.py", script)
  end)
end)
