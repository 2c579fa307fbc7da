// The memory of an answer: asks the server what its cache holds while it is written, and draws it.
// What the server says is described in lua/pyramid/serve/microscope.lua; pictures.js draws.
const POINTS = 400;                      // of bytes over time; more are thinned out
const KEPT = 12;                         // answers whose memory stays with the page

// Lanes that can hold position p: layers with a sliding window of w look back no further anyway.
const couldHold = memory => {
  const all = memory.layers * memory.heads, windows = list(memory.window).filter(w => w > 0);
  if (windows.length === 0) return () => all;
  const without = memory.layers - windows.length;
  return p => memory.heads * Math.max(1, without
    + windows.filter(w => memory.tokens - p <= w).length);
};

const pointOf = (memory, t) => {
  const total = memory.bytes?.total ?? 0;
  return { t, total, hot: memory.bytes?.hot,
    full: memory.fraction > 0 ? total / memory.fraction : total };
};

// Bytes over time; of an answer from before a reload there is only what is left.
const seenOf = (answer, memory) => list(answer.facts.seen).length ? answer.facts.seen
  : [pointOf(memory, 0)];

const lens = {
  of: null,                              // the answer that is shown
  memory: null,                          // what was last said of it
  first: null,                           // where the window of tokens begins, if someone said so
  active: -1,                            // the token that has the cursor

  // `live`: what it holds now is a point of bytes over time.
  async fetch(answer, live) {
    const id = answer.facts.id;
    const window = this.of === answer && this.first !== null ? "&first=" + this.first : "";
    const memory = await askJson("pyramid/memory?id=" + encodeURIComponent(id) + window);
    const seen = answer.facts.seen ||= [];
    if (live) {
      if (seen.length === POINTS) answer.facts.seen = seen.filter((_, i) => i % 2 === 0);
      answer.facts.seen.push(pointOf(memory, (Date.now() - answer.facts.began) / 1000));
    }
    answer.facts.last = memory;
    chat.filter(m => m.facts?.last).slice(0, -KEPT).forEach(m => { delete m.facts.last; });
    if (this.of === answer) this.take(memory);
  },

  // While an answer is written: as often as costs the server little.
  async follow(answer) {
    this.show(answer, true);
    let failures = 0;
    while (running === answer) {
      const began = performance.now();
      try {
        await this.fetch(answer, true);
        failures = 0;
      } catch (error) {
        if (++failures === 3) this.say(error.message);
      }
      const took = performance.now() - began;
      await new Promise(go => setTimeout(go, Math.max(350, 6 * took)));
    }
  },

  async ended(answer) {
    if (!answer.facts.id) return;
    try { await this.fetch(answer, true); }
    catch (error) { if (this.of === answer && !this.memory) this.say(error.message); }
  },

  async show(answer, follows) {
    const before = this.of;
    this.of = answer;
    this.first = null;
    this.active = -1;
    this.memory = null;
    this.say("");
    for (const m of [before, answer]) if (m?.element) paintMeta(m);
    if (answer.facts.last) this.take(answer.facts.last);
    if (follows || answer.facts.last || answer === running) return;
    try { await this.fetch(answer); }
    catch (error) {
      if (this.of !== answer) return;
      if (!this.memory) this.hide(true);
      this.say(error.status === 404 ? "The server no longer keeps the cache of this answer. "
        + "“Again” makes a new one." : error.message);
    }
  },

  say(text) {
    $("lens-said").textContent = text;
    $("lens-said").hidden = text === "";
    if (text !== "") { $("seen").hidden = false; $("lens-empty").hidden = true; }
  },

  // What needs a memory to be drawn.
  hide(on) {
    for (const box of ["tiles", "pair", "tokens-card"]) $(box).hidden = on;
  },

  clear() {
    this.of = this.memory = this.first = null;
    this.active = -1;
    $("tab-share").textContent = "";
    $("seen").hidden = true;
    $("lens-empty").hidden = false;
  },

  take(memory) {
    if (!memory || typeof memory !== "object" || !memory.map || !memory.text) {
      this.say("The server's account of its memory is not what this page understands.");
      return;
    }
    this.memory = memory;
    $("lens-empty").hidden = true;
    $("seen").hidden = false;
    this.hide(false);
    this.paint();
  },

  paint() {
    paintTiles(this.of, this.memory);
    paintMap();
    paintBytes(seenOf(this.of, this.memory));
    if ($("gone").hidden) paintTokens(this.memory);
    else paintGone(this.memory);
    paintPager(this.memory);
  },
};

// ---- numbers ------------------------------------------------------------------------------------

const paintTiles = (answer, m) => {
  const tiers = ["hot", "warm", "cold"].filter(t => m.bytes[t] > 0);
  $("tile-share").textContent = percent(m.fraction);
  $("tab-share").textContent = " · " + percent(m.fraction);
  $("tile-rows").textContent = `${count(m.rows)} rows, ${count(m.evicted)} evicted`;
  $("tile-bytes").textContent = bytes(m.bytes.total);
  $("tile-full").textContent = tiers.length > 1 ? tiers.map(t => `${t} ${bytes(m.bytes[t])}`)
    .join(", ") : m.fraction > 0 && m.fraction < 1
    ? `about ${bytes(m.bytes.total / m.fraction)} for all` : "all that there is";
  $("tile-tokens").textContent = count(m.tokens);
  const prompt = m.prompt ?? answer.facts.usage?.prompt_tokens;
  $("tile-parts").textContent = prompt === undefined ? ""
    : `${count(Math.min(prompt, m.tokens))} asked, `
      + `${count(Math.max(0, m.tokens - prompt))} answered`;
  $("tile-policy").textContent = m.policy || "none";
  $("tile-dtype").textContent = `${m.layers} layers of ${m.heads} ${m.heads === 1 ? "head"
    : "heads"}`;
};

// ---- tokens -------------------------------------------------------------------------------------

let spans = [], painted = { ids: [], first: 0, held: [], of: null };

const shown = text => text === "" ? "·" : text.replace(/\r?\n/g, "↵\n");

const tokenSpan = (i, text) => make("span", { id: "token-" + i, role: "option",
  class: /^<[^<>\s]{1,40}>$/.test(text) ? "special" : "" }, shown(text));

const paintTokens = m => {
  const { first } = m.text, ids = list(m.text.ids), texts = list(m.text.texts);
  const held = list(m.text.held), could = couldHold(m), box = $("tokens");
  const same = painted.of === lens.of && painted.first === first
    && painted.ids.length <= held.length && painted.ids.every((id, i) => id === ids[i]);
  if (!same) {
    spans = [];
    painted = { ids: [], first, held: [], of: lens.of };
    box.replaceChildren();
  }
  const added = [], prompt = m.prompt ?? lens.of.facts.usage?.prompt_tokens ?? Infinity;
  for (let i = 0; i < held.length; i++) {
    if (i >= spans.length) {
      spans.push(tokenSpan(first + i, texts[i] ?? ""));
      added.push(spans[i]);
    } else if (i >= painted.ids.length - 1 && texts[i] !== undefined) {
      spans[i].textContent = shown(texts[i]);      // what was cut in the middle of a character
    }
    const span = spans[i], share = Math.min(1, held[i] / could(first + i));
    const v = held[i] === 0 ? 0 : Math.max(5, Math.round(share * 20) * 5);
    if (painted.held[i] !== v) {
      span.style.setProperty("--v", v);
      span.classList.toggle("gone", held[i] === 0);
      painted.held[i] = v;
    }
    span.classList.toggle("answer", first + i >= prompt);
  }
  painted.ids = ids.slice(0, held.length);
  const end = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.append(...added);
  if (added.length && end && same && running === lens.of) box.scrollTop = box.scrollHeight;
  if (lens.active >= 0) sayToken(lens.active);
};

const sayToken = i => {
  const m = lens.memory, at = i - m.text.first, held = list(m.text.held)[at];
  if (held === undefined) return;
  const layers = held / m.heads, could = couldHold(m)(i) / m.heads;
  $("token-said").textContent = `Token ${count(i)} ${JSON.stringify(list(m.text.texts)[at] ?? "")}`
    + (list(m.text.ids)[at] !== undefined ? `, id ${list(m.text.ids)[at]}` : "") + ": "
    + (held === 0 ? "forgotten by every layer"
      : `held in ${+layers.toFixed(1)} of ${m.layers} layers`)
    + (could < m.layers ? ` (${m.layers - could} look back less far)` : "") + ".";
};

const setActive = (i, scroll) => {
  const m = lens.memory, first = m.text.first, last = first + spans.length - 1;
  if (spans.length === 0) return;
  spans[lens.active - first]?.classList.remove("at");
  spans[lens.active - first]?.removeAttribute("aria-selected");
  lens.active = Math.max(first, Math.min(last, i));
  const span = spans[lens.active - first], box = $("tokens");
  span.classList.add("at");
  span.setAttribute("aria-selected", "true");
  box.setAttribute("aria-activedescendant", span.id);
  if (scroll) {
    const top = span.offsetTop - box.offsetTop, low = top + span.offsetHeight;
    if (top < box.scrollTop + 8) box.scrollTop = top - 8;
    else if (low > box.scrollTop + box.clientHeight - 8) {
      box.scrollTop = low - box.clientHeight + 8;
    }
  }
  sayToken(lens.active);
};

// The token above or below: the nearest of the next line.
const lineStep = (i, way) => {
  const first = lens.memory.text.first, from = spans[i - first];
  let at = i - first + way, line = null, best = i;
  for (; spans[at]; at += way) {
    const top = spans[at].offsetTop;
    if (Math.abs(top - from.offsetTop) < 6) continue;
    line ??= top;
    if (Math.abs(top - line) >= 6) break;
    if (best === i || Math.abs(spans[at].offsetLeft - from.offsetLeft)
      < Math.abs(spans[best - first].offsetLeft - from.offsetLeft)) best = at + first;
  }
  return best;
};

// ---- what was forgotten -------------------------------------------------------------------------

const RUNS = 200, AROUND = 7;

// Runs [from, past) of tokens that no more than the share `limit` of those hold that could.
const forgotten = (m, limit) => {
  const held = list(m.text.held), could = couldHold(m), runs = [];
  held.forEach((n, i) => {
    const gone = limit > 0 ? n / could(m.text.first + i) <= limit : n === 0;
    if (!gone) return;
    if (runs.length && runs.at(-1)[1] === i) runs.at(-1)[1] = i + 1;
    else runs.push([i, i + 1]);
  });
  return runs;
};

const paintGone = m => {
  const limit = Number($("forgot-limit").value), runs = forgotten(m, limit);
  const texts = list(m.text.texts), first = m.text.first, total = list(m.text.held).length;
  const join = (from, past) => texts.slice(Math.max(0, from), past).join("");
  const lost = runs.reduce((sum, [from, past]) => sum + past - from, 0);
  const by = ["no layer", "a quarter of the layers at most", "half of the layers at most"][
    $("forgot-limit").selectedIndex];
  const items = runs.slice(0, RUNS).map(([from, past]) => make("li", null,
    make("b", null, past - from === 1 ? `token ${count(first + from)}`
      : `tokens ${count(first + from)} to ${count(first + past - 1)}`),
    make("q", null, (from > AROUND ? "… " : "") + join(from - AROUND, from),
      make("mark", null, join(from, past) || "·"), join(past, past + AROUND)
        + (past + AROUND < total ? " …" : ""))));
  const summary = runs.length === 0
    ? limit === 0 ? "Nothing: every token is still held by at least one layer."
      : `Nothing: every token is held by more than ${limit === 0.25 ? "a quarter" : "half"} of `
        + "the layers."
    : `${count(lost)} of ${count(total)} tokens are held by ${by}, in `
      + `${count(runs.length)} ${runs.length === 1 ? "place" : "places"}.`;
  if (runs.length > RUNS) {
    items.push(make("li", null, `and ${count(runs.length - RUNS)} more places`));
  }
  const top = $("gone").scrollTop;
  $("gone").replaceChildren(...items);
  $("gone").scrollTop = top;
  $("gone").hidden = false;
  $("gone").classList.toggle("none", items.length === 0);
  $("token-said").textContent = summary;
};

// Long contexts: the tokens are shown in windows.
const paintPager = m => {
  const many = list(m.text.held).length, { first } = m.text;
  $("pager").hidden = many >= m.tokens;
  $("pager-said").textContent = `${count(first)}–${count(first + many - 1)} of ${count(m.tokens)}`;
  $("earlier").disabled = first <= 0;
  $("later").disabled = first + many >= m.tokens;
};

const page = async way => {
  const m = lens.memory, many = list(m.text.held).length || 1;
  lens.first = Math.max(0, Math.min(m.tokens - many, m.text.first + way * many));
  lens.active = -1;
  try { await lens.fetch(lens.of); } catch (error) { lens.say(error.message); }
};

const startLens = () => {
  const box = $("tokens");
  box.addEventListener("pointerover", e => {
    const span = e.target.closest("[role=option]");
    if (span && document.activeElement !== box) sayToken(Number(span.id.slice(6)));
  });
  box.addEventListener("click", e => {
    const span = e.target.closest("[role=option]");
    if (span) setActive(Number(span.id.slice(6)), false);
  });
  box.addEventListener("focus", () => { if (lens.memory) setActive(Math.max(lens.active,
    lens.memory.text.first), false); });
  box.addEventListener("keydown", e => {
    const first = lens.memory.text.first, at = lens.active;
    const to = { ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => first,
      End: () => first + spans.length - 1, ArrowDown: () => lineStep(at, 1),
      ArrowUp: () => lineStep(at, -1), PageDown: () => at + 100, PageUp: () => at - 100 }[e.key];
    if (!to || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    setActive(to(), true);
  });
  $("forgot").addEventListener("click", () => {
    const on = $("forgot").getAttribute("aria-pressed") !== "true";
    $("forgot").setAttribute("aria-pressed", String(on));
    $("forgot-box").hidden = !on;
    $("scale").hidden = on;
    $("gone").hidden = !on;
    $("tokens").hidden = on;
    $("token-said").textContent = "";
    if (lens.memory) lens.paint();
  });
  $("forgot-limit").addEventListener("change", () => paintGone(lens.memory));
  $("earlier").addEventListener("click", () => page(-1));
  $("later").addEventListener("click", () => page(1));
  startPictures();
};
