// Two pictures: layers x positions on a canvas, and bytes over time.
//
//        positions →                     held
//   1   ██████████████████████████████   ██████     a row for each layer, the first on top; a cell
//   2   ██████ █████░░██████ ░░███████   █████      is the share of heads that hold its positions.
//   …                                               The bars beside it are the layers' sums.
//   30  ███ ░░ ██ ░  ░██ ░   ░ ████░██   ███
const GUTTER = 24, BARS = 46, BELOW = 17;
let cursor = null;                       // { layer, column } from 0

const styleOf = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const mapPlace = () => {
  const canvas = $("map"), m = lens.memory, columns = list(m?.map.shares[0]).length;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  return { canvas, m, columns, width, height, left: GUTTER, right: width - BARS - 8,
    bottom: height - BELOW };
};

const paintMap = () => {
  const { canvas, m, columns, width, height, left, right, bottom } = mapPlace();
  if (!m || width === 0) return;
  const ratio = window.devicePixelRatio || 1, g = canvas.getContext("2d");
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  g.scale(ratio, ratio);
  const heat = styleOf("--heat"), soft = styleOf("--soft"), mark = styleOf("--mark");
  const rows = m.map.shares, tall = bottom / m.layers, wide = (right - left) / Math.max(1, columns);
  g.fillStyle = styleOf("--page");
  g.fillRect(left, 0, right - left, bottom);
  g.fillRect(right + 8, 0, BARS, bottom);
  g.fillStyle = heat;
  // Cells end where the next begin, in whole pixels of the screen: no seams.
  const snap = x => Math.round(x * ratio) / ratio, gap = tall >= 5 ? 1 : 0;
  rows.forEach((row, layer) => {
    const top = snap(layer * tall), low = snap((layer + 1) * tall) - gap;
    let sum = 0;
    list(row).forEach((share, column) => {
      sum += share;
      if (share <= 0) return;
      const x = snap(left + column * wide), past = snap(left + (column + 1) * wide);
      g.globalAlpha = 0.12 + 0.88 * share / 100;
      g.fillRect(x, top, Math.max(past - x, 1 / ratio), low - top);
    });
    g.globalAlpha = 0.75;
    g.fillRect(right + 8, top, BARS * sum / 100 / Math.max(1, columns), low - top);
  });
  g.globalAlpha = 1;
  g.fillStyle = soft;
  g.font = "11px system-ui, 'Liberation Sans', sans-serif";
  g.textBaseline = "top";
  g.textAlign = "right";
  g.fillText("1", left - 5, 0);
  g.textBaseline = "bottom";
  if (m.layers > 1) g.fillText(String(m.layers), left - 5, bottom);
  g.textAlign = "left";
  g.fillText("0", left, height);
  g.fillText("held", right + 8, height);
  g.textAlign = "right";
  g.fillText(count(Math.max(0, m.tokens - 1)), right, height);
  // where the answer begins
  const prompt = m.prompt ?? lens.of?.facts.usage?.prompt_tokens;
  if (prompt > 0 && prompt < m.tokens) {
    const x = left + prompt / m.map.bin * wide, label = "answer";
    g.fillStyle = mark;
    g.fillRect(snap(x) - 1, 0, 2, bottom + 3);
    const room = g.measureText(count(m.tokens)).width + 10, half = g.measureText(label).width / 2;
    if (x - half > left + 16 && x + half < right - room) {
      g.textAlign = "center";
      g.fillText(label, x, height);
    }
  }
  if (cursor && document.activeElement === canvas || cursor?.pointed) {
    for (const [colour, thick] of [[styleOf("--card"), 5], [mark, 2]]) {
      g.strokeStyle = colour;
      g.lineWidth = thick;
      g.strokeRect(left + cursor.column * wide - 1, cursor.layer * tall - 1,
        Math.max(wide, 3) + 2, tall + 2 - gap);
    }
  }
  const held = rows.map(r => list(r).reduce((a, b) => a + b, 0) / Math.max(1, columns));
  canvas.setAttribute("aria-label", `What ${m.layers} layers hold of ${count(m.tokens)} tokens: `
    + `the first ${Math.round(held[0] ?? 0)} %, the last ${Math.round(held.at(-1) ?? 0)} %. `
    + "Arrow keys read it cell by cell, Enter goes to the tokens.");
  sayCell();
};

const sayCell = () => {
  const { m, columns } = mapPlace();
  if (!cursor) {
    $("map-said").textContent = "Layer 1 is on top; the bars are what each layer holds.";
    return;
  }
  cursor.layer = Math.min(cursor.layer, m.layers - 1);
  cursor.column = Math.max(0, Math.min(cursor.column, columns - 1));
  const from = cursor.column * m.map.bin, to = Math.min(m.tokens, from + m.map.bin) - 1;
  const share = list(m.map.shares[cursor.layer])[cursor.column] ?? 0, at = from - m.text.first;
  const past = at + Math.min(8, to - from + 1);
  const text = list(m.text.texts).slice(Math.max(0, at), Math.max(0, past)).join("").trim();
  const window = list(m.window)[cursor.layer];
  $("map-said").textContent = `Layer ${cursor.layer + 1}, ` + (from === to ? `token ${count(from)}`
    : `tokens ${count(from)} to ${count(to)}`) + `: ${share} % of the rows`
    + (window > 0 ? `; it looks back ${count(window)} tokens` : "") + (text ? `. “${text}”` : ".");
};

const cellAt = e => {
  const { canvas, m, columns, left, right, bottom } = mapPlace();
  const box = canvas.getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top;
  if (!m || x < left || x >= right || y < 0 || y >= bottom) return null;
  return { layer: Math.floor(y / bottom * m.layers),
    column: Math.floor((x - left) / (right - left) * columns), pointed: true };
};

const goToTokens = focus => {
  if (!cursor) return;
  if (!$("gone").hidden) $("forgot").click();
  const m = lens.memory, at = cursor.column * m.map.bin;
  if (at < m.text.first || at >= m.text.first + spans.length) return;
  if (focus) $("tokens").focus();
  setActive(at, true);
};

// ---- bytes over time ----------------------------------------------------------------------------

const paintBytes = seen => {
  const box = $("bytes"), width = box.clientWidth;
  if (width === 0) return;
  const height = parseFloat(getComputedStyle($("map")).height) || 200;
  const left = 1, right = width - 5, top = 18, bottom = height - BELOW;
  const most = Math.max(1, ...seen.map(s => Math.max(s.total, s.full)));
  const last = seen.at(-1), span = Math.max(0.5, last?.t ?? 0);
  const x = s => left + s.t / span * (right - left), y = n => bottom - n / most * (bottom - top);
  const path = of => seen.map((s, i) =>
    `${i ? "L" : "M"}${x(s).toFixed(1)} ${y(of(s)).toFixed(1)}`).join("");
  const line = (of, name) => draw("path", { class: name, d: path(of) });
  const label = (text, at, low, anchor) => {
    const e = draw("text", { x: at, y: low, "text-anchor": anchor });
    e.textContent = text;
    return e;
  };
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const n of [0, most]) {
    svg.append(draw("path", { class: "axis", d: `M${left} ${y(n)}H${right}` }));
  }
  svg.append(label(bytes(most), left, top - 6, "start"), label("0 s", left, height - 4, "start"),
    label(seconds(span), right, height - 4, "end"));
  const tiered = seen.some(s => s.hot !== undefined && s.hot < s.total);
  const less = seen.some(s => s.full > s.total * 1.01);
  if (seen.length > 1) {
    svg.append(draw("path", { class: "under", d: path(s => s.total)
      + `L${x(last).toFixed(1)} ${bottom}L${x(seen[0]).toFixed(1)} ${bottom}Z` }));
    if (less) svg.append(line(s => s.full, "full"));
    if (tiered) svg.append(line(s => s.hot ?? s.total, "lower"));
    svg.append(line(s => s.total, "held"));
  }
  if (last) svg.append(draw("circle", { cx: x(last), cy: y(last.total), r: 3.5 }));
  box.replaceChildren(svg);
  const key = (name, text) => make("span", null, make("i", { class: name }), text);
  $("bytes-legend").replaceChildren(key("held", "held"),
    ...(tiered ? [key("lower", "hot tier")] : []), ...(less ? [key("full", "all, about")] : []));
  box.setAttribute("aria-label", last ? `Bytes over time: ${bytes(seen[0].total)} at first, `
    + `${bytes(last.total)} after ${seconds(last.t)}` : "Bytes over time: none yet");
};

const startPictures = () => {
  const canvas = $("map");
  canvas.addEventListener("pointermove", e => { cursor = cellAt(e); if (lens.memory) paintMap(); });
  canvas.addEventListener("pointerleave", () => {
    if (cursor?.pointed) cursor = null;
    if (lens.memory) paintMap();
  });
  canvas.addEventListener("click", e => { cursor = cellAt(e); goToTokens(false); });
  canvas.addEventListener("focus", () => { if (lens.memory) paintMap(); });
  canvas.addEventListener("blur", () => { if (lens.memory) paintMap(); });
  canvas.addEventListener("keydown", e => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0],
      ArrowDown: [1, 0] }[e.key];
    if (!lens.memory) return;
    if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      goToTokens(true);
    } else if (step && !e.ctrlKey && !e.metaKey && !e.altKey) {
      e.preventDefault();
      const { m, columns } = mapPlace();
      cursor = cursor ? { layer: Math.max(0, Math.min(m.layers - 1, cursor.layer + step[0])),
        column: Math.max(0, Math.min(columns - 1, cursor.column + step[1])) }
        : { layer: 0, column: 0 };
      paintMap();
    }
  });
  const redraw = () => {
    if (!lens.memory) return;
    paintMap();
    paintBytes(seenOf(lens.of, lens.memory));
  };
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
};
