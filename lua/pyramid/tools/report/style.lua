--- What the reports look like, and the little that moves in them. No font, image or script is
--- loaded from anywhere.
local style = {}

-- Okabe and Ito's colours, which colour-blind people tell apart, made darker on a light page and
-- lighter on a dark one so that lines have a contrast of 3 and letters of 4.5 with what is behind
-- them.
style.tokens = [[
:root { color-scheme: light dark; --page: #f6f6f3; --card: #ffffff; --ink: #1c1f24; --soft: #555c66; --line: #d9dad4;
  --grid: #e9e9e4; --accent: #0060a0; --front: #d5d3c4; --shade: #1c1f2440; --good: #00795a; --warn: #a03a00; --mark: #c04a00;
  --c1: #0068a8; --c2: #b84a00; --c3: #00795a; --c4: #a3407c; --c5: #8a6100; --c6: #5b50b8; --c7: #6b4a2b; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #eceae4; --soft: #a8adb6;
  --line: #363b44; --grid: #2a2e36; --accent: #7cc0f5; --front: #4a4b44; --shade: #000000b0; --good: #4fcfa4; --warn: #ff9a66; --mark: #ff9a4d;
  --c1: #62b6f0; --c2: #ff8f55; --c3: #3fcf9f; --c4: #e79acb; --c5: #eab63a; --c6: #a9a2ff; --c7: #cfa884; } }
]]
style.css = style.tokens .. [[
.s0 { --c: var(--ink); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); } .s4 { --c: var(--c4); }
.s5 { --c: var(--c5); } .s6 { --c: var(--c6); } .s7 { --c: var(--c7); }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  sans-serif; }
main, header, footer { max-width: 1240px; margin: 0 auto; padding: 0 16px; overflow-wrap: break-word; }
header { padding-top: 28px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3em; }
h2 { font-size: 1.25rem; margin: 2.2em 0 .4em; }
h3 { font-size: 1rem; margin: 1.4em 0 .5em; }
p { max-width: 46em; margin: .4em 0 .8em; }
.unfinished { color: var(--warn); font-weight: 600; }
.soft, .note { color: var(--soft); } .note { font-size: .875rem; }
.cards, .kept { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.cards { grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  margin: 0; min-width: 0; }
.card h3 { margin: 0 0 .3em; } .card p { margin: .25em 0; }
.card ul { margin: .3em 0 0; padding-left: 1.1em; } .card li { margin: .15em 0; }
figure { padding: 10px 8px 6px; } figcaption { font-weight: 600; padding: 0 4px 6px; line-height: 1.35; }
figcaption small { display: block; font-weight: 400; color: var(--soft); font-size: .8125rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--soft); }
svg .label { fill: var(--c); } .leader { fill: none; stroke: var(--c); stroke-width: .8; stroke-opacity: .5; }
.series { transition: opacity .15s; } .dim .series:not(.lit) { opacity: .1; } .series.lit .label { font-weight: 600; }
.many .series:not(.lit) .error { display: none; }
.narrow { display: none; } @media (max-width: 820px) { .wide { display: none; } .narrow { display: block; max-width: 600px; } }
svg .axis-name { font-size: 11.5px; fill: var(--ink); }
.grid { stroke: var(--grid); stroke-width: 1; }
.reference { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 2 3; }
.front { fill: none; stroke: var(--front); stroke-width: 9; stroke-linejoin: round; stroke-linecap: round; }
.error { stroke: var(--c); stroke-width: 1; stroke-opacity: .45; }
.curve { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
.mark path { stroke: var(--c); stroke-width: 1.6; } .mark .on { fill: var(--c); } .mark .off { fill: var(--card); }
.mark .hit { fill: transparent; } .mark:hover path, .mark:focus path { stroke-width: 4; } .mark:focus { outline: none; }
.mark { cursor: default; }
.legend { display: flex; flex-wrap: wrap; gap: 4px; margin: .6em 0 1em; padding: 0; list-style: none;
  font-size: .875rem; }
.legend button, .legend .key { display: flex; align-items: center; gap: 5px; font: inherit; color: var(--ink);
  background: none; border: 1px solid transparent; border-radius: 6px; padding: 3px 8px 3px 4px; min-height: 28px; }
.legend button { cursor: pointer; } .legend button:hover { border-color: var(--line); background: var(--card); }
.legend button[aria-pressed=false] { color: var(--soft); text-decoration: line-through; }
.legend button[aria-pressed=false] svg { opacity: .25; } .no-script .legend button { pointer-events: none; }
.legend svg { width: 26px; height: 14px; flex: none; }
.names { padding: 0; list-style: none; overflow-wrap: anywhere; }
.controls.tabs { flex-direction: column; align-items: start; } .tabs .choices { display: flex; }
.tabs span { min-width: 6em; } .charts figure { margin-bottom: 10px; }
.edges { position: relative; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.edges::before, .edges::after { content: ""; position: absolute; z-index: 4; pointer-events: none; opacity: 0;
  transition: opacity .15s; }
.edges::after { right: 0; top: 0; bottom: 0; width: 28px; background: linear-gradient(90deg, transparent, var(--shade)); }
.edges::before { left: 0; right: 0; bottom: 0; height: 28px; background: linear-gradient(transparent, var(--shade)); }
.edges.right::after, .edges.below::before { opacity: 1; }
.edges.left td:first-child, .edges.left th:first-child { box-shadow: 8px 0 8px -8px var(--ink); }
.scroll { overflow: auto; background: var(--card); max-height: 75vh; scrollbar-color: var(--soft) transparent; }
.scroll:focus-visible, .mark:focus-visible path, button:focus-visible,
  select:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); z-index: 1;
  border-right: 1px solid var(--line); padding-left: 24px; }
td.policy::before { content: ""; position: absolute; left: 8px; top: .8em; width: .7em; height: .7em; border-radius: 50%;
  background: var(--c); }
td.word, th.word { text-align: left; }
thead th { position: sticky; top: 0; background: var(--card); z-index: 2; border-bottom: 1px solid var(--line);
  vertical-align: bottom; }
thead th:first-child { z-index: 3; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
th button::after { content: "\2195"; color: var(--soft); font-weight: 400; padding-left: 3px; }
th[aria-sort=ascending] button::after { content: "\2191"; color: var(--accent); }
th[aria-sort=descending] button::after { content: "\2193"; color: var(--accent); }
td.share { background: linear-gradient(color-mix(in srgb, var(--c1) calc(var(--v) * 34%), transparent) 0 0); }
tr.full td { font-weight: 600; }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 9px; padding: 0 7px; font-size: .75rem;
  margin-right: 4px; }
.badge.front-badge { color: var(--good); } .badge.silent { color: var(--warn); }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; background: var(--c); margin-right: .45em; }
.controls { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; margin: .4em 0 .8em; font-size: .9375rem; }
.no-script .controls { display: none; }
select, .controls button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 9px; }
.controls button { cursor: pointer; } .controls button[aria-pressed=true], .controls button[aria-selected=true] { background: var(--accent); color: var(--card); border-color: var(--accent); }
.choices { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.strip { image-rendering: auto; }
.field { fill: var(--grid); } .evidence { fill: var(--mark); } .band { fill: var(--mark); fill-opacity: 0;
  stroke: var(--mark); stroke-width: .9; stroke-opacity: .75; }
.span:hover .band { fill-opacity: .3; }
.marks { font-size: .875rem; padding-left: 1.6em; max-width: 62em; } .marks li { margin: .3em 0; }
.marks q { quotes: none; color: var(--soft); }
.scale { display: inline-flex; align-items: center; gap: 6px; } .scale i { width: 90px; height: 10px;
  border: 1px solid var(--line);
  background: linear-gradient(90deg, transparent, #4a86cc); }
details { margin: .8em 0; } summary { cursor: pointer; font-weight: 600; }
footer { color: var(--soft); font-size: .8125rem; padding-bottom: 40px; }
footer dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 14px; margin: 0; }
footer dt { font-weight: 600; } footer dd { margin: 0; } code { font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: .95em; }
#tip { position: absolute; z-index: 9; max-width: 280px; background: var(--ink); color: var(--page); padding: 6px 9px;
  border-radius: 6px;
  font-size: .8125rem; white-space: pre-line; pointer-events: none; }
[hidden] { display: none !important; }
@media (max-width: 480px) { h1 { font-size: 1.4rem; } footer dl { grid-template-columns: minmax(0, 1fr); }
  footer dd { margin-bottom: 6px; }
  .card, figure { padding-left: 6px; padding-right: 6px; } main, header, footer { padding-left: 10px; padding-right: 10px; }
  th, td { padding: 5px 7px; }
  td:first-child, th:first-child { white-space: normal; min-width: 9em; padding-left: 22px; overflow-wrap: anywhere; }
  .tabs span { width: 100%; } }
@media print { .controls, .edges::before, .edges::after { display: none; } .scroll { max-height: none; } }
]]

-- Sorting by a column, filtering by group, choosing a chart and a budget's pictures, a legend that
-- dims and hides, and tooltips where nothing hovers.
style.script = [[
document.documentElement.classList.remove("no-script");
const all = (s, r) => [...(r || document).querySelectorAll(s)];
all("th button").forEach(b => b.addEventListener("click", () => {
  const th = b.closest("th"), body = th.closest("table").tBodies[0], at = th.cellIndex;
  const up = th.getAttribute("aria-sort") ? th.getAttribute("aria-sort") !== "ascending" : !th.dataset.down;
  all("th", th.parentNode).forEach(o => o.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const of = r => r.cells[at].dataset.v ?? r.cells[at].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const x = of(a), y = of(b), n = x - y;
    if (x === "" || y === "") return (x === "") - (y === "");
    return (isNaN(n) ? x.localeCompare(y) : n) * (up ? 1 : -1);
  });
  body.append(...rows);
}));
const group = document.getElementById("group"), only = document.getElementById("only");
const filter = () => all("tr[data-g]").forEach(r => r.hidden =
  (group.value && r.dataset.g !== group.value) || (only.checked && !r.dataset.front));
if (group) { group.addEventListener("change", filter); only.addEventListener("change", filter); }
all("[data-picks]").forEach(box => {
  const pick = value => {
    all("button", box).forEach(b => b.setAttribute("aria-pressed", b.value === value));
    all("[data-budget]", box.parentNode).forEach(f => f.hidden = f.dataset.budget !== value);
  };
  all("button", box).forEach(b => b.addEventListener("click", () => pick(b.value)));
  pick(box.dataset.picks);
});
const tabs = all("[role=tab]"), panel = t => document.getElementById(t.getAttribute("aria-controls"));
const show = t => tabs.forEach(o => {
  o.setAttribute("aria-selected", o === t); o.tabIndex = o === t ? 0 : -1; panel(o).hidden = o !== t;
});
const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
tabs.forEach((t, i) => {
  t.addEventListener("click", () => show(t));
  t.addEventListener("keydown", e => {
    const to = e.key === "Home" ? tabs[0] : e.key === "End" ? tabs.at(-1)
      : step[e.key] && tabs[(i + step[e.key] + tabs.length) % tabs.length];
    if (to) { e.preventDefault(); show(to); to.focus(); }
  });
});
if (tabs[0]) show(tabs[0]);
// A legend's button shows or hides its series; what is pointed at or has the focus dims the others.
const keys = all(".legend button"), of = s => all(`.series[data-s="${s}"]`);
const press = (b, on) => {
  b.setAttribute("aria-pressed", on); of(b.dataset.s).forEach(g => g.toggleAttribute("hidden", !on));
};
keys.forEach(b => b.addEventListener("click", e => { press(b, b.getAttribute("aria-pressed") !== "true"); light(e); }));
all("[data-all]").forEach(b => b.addEventListener("click", () => keys.forEach(k => press(k, b.dataset.all === "true"))));
const light = e => {
  const at = e.type !== "pointerout" && e.type !== "focusout" && e.target.closest("[data-s]");
  const lit = at && !at.matches("[aria-pressed=false]") ? at.dataset.s : "";
  all(".chart").forEach(c => c.classList.toggle("dim", !!lit));
  all(".series").forEach(g => g.classList.toggle("lit", !!lit && g.dataset.s === lit));
};
all(".charts").forEach(c => ["pointerover", "pointerout", "focusin", "focusout"].forEach(n =>
  c.addEventListener(n, light)));
// Arrows go from point to point, up and down from curve to curve.
all(".chart").forEach(c => c.addEventListener("keydown", e => {
  const at = e.target.closest(".mark");
  if (!at || !step[e.key]) return;
  e.preventDefault();
  const up = e.key === "ArrowUp" || e.key === "ArrowDown", g = at.parentNode;
  const list = up ? all(".series[data-s]:not([hidden])", c) : all(".mark", g), d = step[e.key];
  const next = list[(list.indexOf(up ? g : at) + d + list.length) % list.length];
  const to = up && next ? next.querySelector(".mark") : next;
  if (!to) return;
  at.setAttribute("tabindex", -1); to.setAttribute("tabindex", 0); to.focus();
}));
// The shade at a table's edges says that there is more.
all(".scroll").forEach(s => {
  const mark = () => {
    const c = s.parentNode.classList;
    c.toggle("left", s.scrollLeft > 1);
    c.toggle("right", s.scrollLeft + s.clientWidth < s.scrollWidth - 1);
    c.toggle("below", s.scrollTop + s.clientHeight < s.scrollHeight - 1);
  };
  s.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(s); new ResizeObserver(mark).observe(s.firstElementChild);
});
const tip = document.createElement("div");
tip.id = "tip"; tip.hidden = true; tip.setAttribute("aria-hidden", "true"); document.body.append(tip);
const tell = e => {
  const g = (e.type === "focusin" ? e.target.matches(":focus-visible") : e.pointerType !== "mouse")
    && e.target.closest(".mark, .span");
  tip.hidden = !g || !g.querySelector("title");
  if (tip.hidden) return;
  tip.textContent = g.querySelector("title").textContent;
  const r = g.getBoundingClientRect(), w = document.documentElement.clientWidth;
  tip.style.left = Math.max(8, Math.min(r.left, w - tip.offsetWidth - 8)) + "px";
  tip.style.top = (scrollY + r.bottom + 8) + "px";
};
document.addEventListener("pointerup", tell);
document.addEventListener("focusin", tell);
]]

return style
