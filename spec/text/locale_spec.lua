-- The process's locale changes nothing, whenever it is set: neither what is read, nor what is
-- written, nor any order. Under a locale of its own making, with a decimal comma and another order
-- of letters; by a stock Lua 5.4, by the program, and by a C host.
local core = require "pyramid.core"
local helper = require "spec.helper"
local shell = require "support.shell"
local quote = shell.quote

local folder, locales
local build = io.popen("realpath " .. quote(shell.build)):read "l"

local function has(command) return os.execute("command -v " .. command .. " >/dev/null 2>&1") end

describe("a locale with a decimal comma", function()
  setup(function()
    folder = shell.folder()
    if not has "localedef" then return end
    -- de_DE in UTF-8 and, where bytes beyond ASCII are letters of their own, in ISO-8859-1
    for name, charset in pairs { ["de_DE.UTF-8"] = "UTF-8", ["de_DE"] = "ISO-8859-1" } do
      os.execute(("localedef -c -i de_DE -f %s %s/%s >/dev/null 2>&1"):format(charset, folder,
        name))
    end
    locales = {}
    for _, name in ipairs { "de_DE.UTF-8", "de_DE" } do
      local tried = ("LOCPATH=%s %s -e 'os.exit(os.setlocale \"%s\" ~= nil)' 2>/dev/null"):format(
        quote(folder), quote(shell.program), name)
      -- where there are no sources, nothing useful is made
      if os.execute(tried) then locales[#locales + 1] = name end
    end
  end)
  teardown(function() shell.remove(folder) end)

  -- What a script prints: loads a model, builds and names policies and scores, reads and writes
  -- JSON, renders a chart and a chat, formats a policy that calibrate found, lists by name. `set`
  -- is when the locale is set.
  local script = [[
    local set, name = ...
    local function comma() assert(("%.1f"):format(0.5) == "0,5") end
    local function change() assert(os.setlocale(name)) if set ~= "program" then comma() end end
    if set == "before" then change() end
    local pyramid = require "pyramid"
    if set == "after" or set == "program" then change() end
    local policy, score, json = require "pyramid.policy", require "pyramid.score", require "pyramid.json"
    local model = assert(pyramid.model("models/tiny", { threads = 1 }))
    local out = {}
    local function say(...) out[#out + 1] = table.concat({ ... }, "\t") end
    say(model.description)
    say(tostring(assert(pyramid.policy("pyramidinfer", { ratio = 0.75, ramp = 1.25 }))))
    local given = assert(policy.parse_options("pyramidinfer", { "ratio=0.75", "recent=0.125" }))
    say(json.encode(given), tostring(assert(pyramid.policy("pyramidinfer", given))))
    say(select(2, pyramid.policy("pyramidinfer", { ratio = 1.5 })))
    say(tostring(score.attention { queries = 4, ramp = 1.2 } + score.const(0.5)), tostring(score.history { decay = 0.95 }))
    local value = assert(json.decode '{"b":1.5,"B":-2.25e-3,"a":[0.1,1e3],"\195\164":2}')
    say(json.encode(value), tostring(value.b + value.B == 1.49775))
    local chart = require "pyramid.tools.report.chart"
    say(chart.render { title = "t", describe = "d", x = chart.scale({ 0.5, 1 }, {}), y = chart.scale({ 1.25, 2.5 }, {}),
      x_label = "x", y_label = "y", x_format = chart.number, y_format = chart.number,
      curves = { { name = "a", short = "a", index = 1,
      points = { { x = 0.5, y = 1.25, title = "p" }, { x = 1, y = 2.5, title = "q" } } } } })
    say(require "pyramid.tools.report.html".element("p", { width = 1.5 }, "x"))
    say(require "pyramid.tools.report.chart".number(0.25))
    say(require "pyramid.chat".render(
      "{{ 1.5 }} {{ messages[0].content | upper }} {{ 0.25 | tojson }} {{ ['b','B','a']|sort|join }}",
      { { role = "user", content = "strasse" } }))
    say(require "pyramid.tools.calibrate".write({ 0.5, 0.25, 0.125, 1 }, { name = "found", about = "made up" }))
    local cache = assert(model:cache { policy = { name = "x", prefill = function(_, l) return { keep = math.ceil(l.rows * 0.5),
      score = score.attention { queries = 2, ramp = 1.5 } } end } })
    local logits = assert(cache:prefill(assert(model:encode "Once there was a baker.")))
    say((logits:argmax()))
    say(select(2, pyramid.model(arg_broken)))
    if set ~= "none" and set ~= "program" then comma() end       -- and it is still the host's
    io.write(table.concat(out, "\n"), "\n")]]

  local function run(how, set, name)
    local broken = folder .. "/broken"
    os.execute(("mkdir -p %s && cp -rL models/tiny/. %s"):format(broken, broken))
    local config = helper.read "models/tiny/config.json"
    helper.write(broken .. "/config.json", (config:gsub('("rms_norm_eps"%s*:%s*)[%d.e-]+',
      "%10.625")))
    helper.write(folder .. "/script.lua", "local arg_broken = " .. ("%q"):format(broken) .. "\n"
      .. script)
    local env = ("LOCPATH=%s LUA_CPATH=%s"):format(quote(folder), quote(build .. "/?.so;;"))
    local command = how == "lua" and "lua5.4" or quote(shell.program)
    local out, err, status = shell.run(("env %s %s %s/script.lua %s %s </dev/null"):format(env,
      command, folder, set, name or "C"))
    assert.equal(0, status, err)
    return out
  end

  it("changes nothing for a stock Lua, set before or after, nor for the program", function()
    if not locales or #locales == 0 then
      return pending "localedef (package locales) makes the locale of this spec"
    end
    local wanted = run("program", "none")
    assert.matches("ratio=0%.75", wanted)
    assert.matches("0%.625, outside", wanted)
    for _, name in ipairs(locales) do
      assert.equal(wanted, run("program", "program", name))
      if has "lua5.4" and not (os.getenv "PYRAMID_CFLAGS" or ""):find "sanitize" then
        assert.equal(wanted, run("lua", "none"))
        assert.equal(wanted, run("lua", "before", name))
        assert.equal(wanted, run("lua", "after", name))
      end
    end
  end)

  it("changes nothing for a C host, whose own numbers stay as it likes them", function()
    if not locales or #locales == 0 then
      return pending "localedef (package locales) makes the locale of this spec"
    end
    helper.write(folder .. "/host.c", [[
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <pyramid.h>
static int pieces, comma;
static int on_piece(void *ud, const char *piece, size_t length) {
  char text[16];
  (void)ud, (void)piece, (void)length;
  snprintf(text, sizeof text, "%.1f", 0.5);
  pieces++;
  comma += strcmp(text, "0,5") == 0;
  return 0;
}
int main(int argc, char **argv) {
  pyr_host *host, *bad;
  pyr_host_options options = { .threads = 1, .policy = "pyramidinfer", .policy_options = "ratio=0.75 recent=0.125" };
  pyr_host_options wrong = { .threads = 1, .policy = "pyramidinfer", .policy_options = "ratio=1.5" };
  pyr_generate_options how = { .max_tokens = 8, .on_piece = on_piece };
  if (argc > 2 && !setlocale(LC_ALL, argv[2])) return 2;
  int failed = pyr_host_open(argv[1], &options, &host) != PYR_OK;
  if (argc > 3 && !setlocale(LC_ALL, argv[3])) return 2;
  failed = failed || pyr_host_generate(host, "Once there was a baker", &how) != PYR_OK;
  if (failed) return fprintf(stderr, "%s\n", pyr_host_error(host)), 1;
  if (pyr_host_open(argv[1], &wrong, &bad) == PYR_OK) return 1;
  pyr_host_stats stats;
  pyr_host_get_stats(host, &stats);
  printf("%d %d %d %s\n", pieces > 0, pieces == comma, (int)(stats.cache_fraction * 1000), pyr_host_error(bad));
  pyr_host_close(bad);
  pyr_host_close(host);
  return 0;
}
]])
    local cflags = os.getenv "PYRAMID_CFLAGS" or "-g"
    local core_folder = io.popen("realpath core"):read "l"
    local out, err, status = shell.run((
      "cd %s && ${CC:-cc} %s -I%s host.c -o host -L%s -lpyramid -Wl,-rpath,%s")
      :format(folder, cflags, core_folder, build, build))
    assert.equal(0, status, out .. err)
    local function host(...)
      return shell.run(("LOCPATH=%s %s/host models/tiny %s"):format(quote(folder), folder,
        table.concat({ ... }, " ")))
    end
    local plain = host()
    assert.matches("^1 0 %d+ policy pyramidinfer: option 'ratio' is 1%.5", plain)
    for _, name in ipairs(locales) do
      local wanted = plain:gsub("^1 0", "1 1")
      assert.equal(wanted, (host(name)))
      assert.equal(wanted, (host("C", name)))
    end
  end)
end)

it("a block in the C locale nests, and ends where it should", function()
  local outer = core.plain_locale()
  assert.is_nil(outer)                        -- the program is in it for good
end)
