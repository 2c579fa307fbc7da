// The conversation. A message is { role, content, facts }; an answer's facts are what was asked
// (`how`), the completion's id, usage, times, why it ended, and `seen`: what its memory was, moment
// by moment (lens.js). Every answer is asked for with all that was said before it.
const chat = list(kept.get("sessionStorage", "chat", [])).filter(m => m
  && (m.role === "user" || m.role === "assistant" && (m.content || m.facts?.trouble))
  && typeof m.content === "string");
let system = kept.get("sessionStorage", "system", "");
let running = null;                      // the answer that is being written
let models = [];

const remember = () => {
  kept.set("sessionStorage", "chat", chat.map(({ role, content, facts }) => ({ role, content,
    facts: facts && { ...facts, seen: undefined, last: undefined } })));
  kept.set("sessionStorage", "system", system);
};

const say = text => { $("status").textContent = text; };

const ENDS = { length: "cut at the longest answer", context: "the context is full",
  budget: "the budget is full", content_filter: "filtered", cancelled: "stopped",
  tool_calls: "asks for a tool", error: "ended by an error" };

const LONG = 700;                        // characters of a message that are shown at first

// ---- one message --------------------------------------------------------------------------------

const factsOf = m => {
  const f = m.facts || {}, u = f.usage || {}, said = [];
  if (f.how) said.push(f.how);
  if (u.completion_tokens) {
    said.push(`${count(u.completion_tokens)} tokens`);
    const took = f.ended - f.first;
    if (u.completion_tokens > 1 && took > 0) {
      said.push(`${((u.completion_tokens - 1) / took * 1000).toFixed(1)} a second`);
    }
  }
  if (u.rows_kept > 0) {
    said.push(`${percent(u.rows_kept / (u.rows_kept + (u.rows_evicted || 0)))} of the rows`);
  }
  if (u.cache_bytes > 0) said.push(bytes(u.cache_bytes));
  if (f.finish && f.finish !== "stop") said.push(ENDS[f.finish] || f.finish);
  return said.join(" · ");
};

const small = (text, f, given) => make("button", { type: "button", onclick: f, ...given }, text);

// The buttons under a message; those of an answer only once it is whole.
const metaOf = m => {
  const at = chat.indexOf(m), last = at === chat.length - 1, meta = make("div", { class: "meta" });
  if (m.role === "user") {
    if (m.content.length > LONG) {
      const open = small(m.open ? "Show less" : "Show all", () => {
        m.open = !m.open;
        paintMeta(m);
        m.element.querySelector(".meta button").focus();
      }, { "aria-expanded": String(!!m.open), "aria-label": `Show all of message ${at + 1}` });
      meta.append(open);
    }
    meta.append(small("Edit", () => edit(m), { "aria-label": `Edit message ${at + 1}` }));
    return meta;
  }
  const facts = factsOf(m);
  if (facts) meta.append(make("span", { class: "facts" }, facts));
  if (m === running) return meta;
  if (m.facts?.id) {
    meta.append(small("Memory", () => { lens.show(m); showTab("lens"); },
      { "aria-pressed": String(lens.of === m), "aria-label": `Memory of answer ${at + 1}` }));
  }
  if (m.content) {
    meta.append(small("Copy", e => copy(m, e.currentTarget),
      { "aria-label": `Copy answer ${at + 1}` }));
  }
  if (last && !m.facts?.trouble) {
    meta.append(small("Again", () => again(), { "aria-label": "Answer again" }));
  }
  return meta;
};

const paint = m => {
  if (!m.element) {
    m.words = make("div", { class: "words" });
    m.element = make("article", { class: "said " + m.role,
      "aria-label": m.role === "user" ? "You" : "Answer" }, m.words);
  }
  m.words.replaceChildren();
  if (m.role === "user") m.words.textContent = m.content;
  else words(m.content, m.words);
  paintMeta(m);
  return m.element;
};

const paintMeta = m => {
  m.element.querySelectorAll(":scope > .meta, :scope > .trouble").forEach(e => e.remove());
  const trouble = m.facts?.trouble;
  if (trouble) {
    m.element.append(make("div", { class: "trouble", role: "alert" }, make("b", null, trouble.what),
      trouble.help || "", trouble.help ? make("br") : null,
      small("Try again", () => again(), { "aria-label": "Try again" })));
  }
  m.element.append(metaOf(m));
  m.element.classList.toggle("waiting", m === running);
  m.element.classList.toggle("shown", lens.of === m);
  m.element.classList.toggle("long", m.role === "user" && m.content.length > LONG && !m.open);
};

// The end stays in view as long as it was.
const following = () => {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
};
const toEnd = () => { $("log").scrollTop = $("log").scrollHeight; };

const STARTS = [
  ["A question", "Why is the sky blue, and the evening red?",
    "Why is the sky blue, and the evening red?"],
  ["A short story", "A lighthouse keeper finds a letter",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle."],
  ["A needle in a haystack", "A long text with one fact in it: see what a policy forgets", null],
];

const haystack = () => {
  const towns = ["Aldermoor", "Brinkley", "Caster Hill", "Dunwich", "Eastry", "Fernhollow",
    "Glenmark", "Harrowby", "Ilsham", "Kestrel Bay", "Langport", "Marrowdale"];
  const facts = ["has a market on the first Monday of the month", "is known for its stone bridge",
    "lies an hour from the coast by train", "keeps a small museum of clocks",
    "has two schools and a library", "grows apples and a little barley"];
  const said = [];
  for (let i = 0; i < 48; i++) {
    said.push(`${towns[i * 5 % towns.length]} ${facts[i * 7 % facts.length]}.`);
    if (i === 17) said.push("The ferryman of Ilsham keeps the key 7413 under a blue boat.");
  }
  return said.join(" ") + "\n\nWhich key does the ferryman of Ilsham keep, and where?";
};

const paintStart = () => {
  const mark = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
  mark.append(draw("path", { d: "M6.5 2h3v3h-3zM4 6.5h8v3H4zM1 11h14v3H1z" }));
  return make("div", { class: "start" }, mark, make("h2", null, "Ask, and watch what is kept"),
    make("p", null, "A policy decides which rows of the cache stay. The memory shows what the "
      + "model still knows of your text, layer by layer."),
    make("ul", null, ...STARTS.map(([title, what, text]) => make("li", null,
      make("button", { type: "button", onclick: () => {
        $("message").value = text ?? haystack();
        grow();
        $("message").focus();
      } }, make("b", null, title), make("span", null, what))))));
};

const paintChat = () => {
  $("log").replaceChildren(...(chat.length ? chat.map(paint) : [paintStart()]));
  $("new").disabled = chat.length === 0 && !system;
  toEnd();
};

// ---- asking -------------------------------------------------------------------------------------

const setRunning = answer => {
  running = answer;
  $("send").hidden = !!answer;
  $("stop").hidden = !answer;
  $("log").setAttribute("aria-busy", String(!!answer));
};

const model = () => $("model-many").hidden ? models[0] : $("model").value;

const request = () => {
  const said = [];
  for (const { role, content } of chat.filter(m => m !== running && m.content !== "")) {
    // what was never answered is asked again with what came after it: templates want turns
    if (said.at(-1)?.role === role) said.at(-1).content += "\n\n" + content;
    else said.push({ role, content });
  }
  if (system.trim()) said.unshift({ role: "system", content: system });
  return { ...asked(), model: model(), messages: said, stream: true,
    stream_options: { include_usage: true } };
};

// Reads the stream into the answer; `fresh` is called once a frame at most.
const read = async (answer, response, fresh) => {
  const f = answer.facts;
  for await (const event of events(response)) {
    if (event.id && !f.id) {
      f.id = event.id;
      lens.follow(answer);
    }
    if (event.usage) f.usage = event.usage;
    const choice = list(event.choices)[0];
    const text = choice?.delta?.content;
    if (typeof text === "string" && text !== "") {
      f.first ??= Date.now();
      f.pieces = (f.pieces || 0) + 1;
      answer.content += text;
      fresh();
    }
    if (choice?.finish_reason) f.finish = choice.finish_reason;
  }
};

const answer = async () => {
  const m = { role: "assistant", content: "",
    facts: { how: askedShort(), began: Date.now(), seen: [] } };
  const f = m.facts, stopper = new AbortController();
  f.stop = () => stopper.abort();
  setRunning(m);
  const body = JSON.stringify(request());
  chat.push(m);
  $("log").append(paint(m));
  chat.slice(-3, -1).forEach(paintMeta);   // whose answer is the last no more
  toEnd();
  remember();
  say("Reading what was said …");
  const clock = setInterval(() => {
    if (m === running && !f.first) {
      say(`Reading what was said … ${seconds((Date.now() - f.began) / 1000)}`);
    }
  }, 1000);
  let asking = 0;
  const fresh = () => {
    asking ||= requestAnimationFrame(() => {
      const follow = following();
      asking = 0;
      m.words.replaceChildren();
      words(m.content, m.words);
      const per = f.pieces > 4 ? `, ${(f.pieces / (Date.now() - f.first + 1) * 1000).toFixed(1)} `
        + "pieces a second" : "";
      if (m === running) say(`Writing${per} …`);
      if (follow) toEnd();
    });
  };
  try {
    const response = await ask("v1/chat/completions", { method: "POST", body,
      signal: stopper.signal, headers: { "Content-Type": "application/json" } });
    await read(m, response, fresh);
    if (m.content === "" && (f.finish || "stop") === "stop") {
      f.trouble = { what: "The model answered nothing.",
        help: "It ended its answer at once. Another question, or sampling, may help." };
    }
  } catch (error) {
    if (error.name === "AbortError") f.finish = "cancelled";
    else {
      if (!(error instanceof Failure)) console.error(error);
      f.trouble = { what: error.message, help: error.help };
      if (error.status === 401) askKey();
    }
  }
  clearInterval(clock);
  cancelAnimationFrame(asking);
  asking = -1;
  f.ended = Date.now();
  delete f.stop;
  const follow = following();
  if (running === m) setRunning(null);
  if (!chat.includes(m)) return;           // a new chat has begun in between
  paint(m);
  if (follow) toEnd();
  remember();
  lens.ended(m);
  say(f.trouble ? f.trouble.what : f.finish === "cancelled" ? "Stopped."
    : `Done in ${seconds((f.ended - f.began) / 1000)}.`);
};

const stop = () => { if (running) running.facts.stop?.(); };

const send = () => {
  const text = $("message").value;
  if (running || text.trim() === "") return;
  const last = chat.at(-1);
  // an answer that never came is no part of the conversation
  if (last?.role === "assistant" && last.content === "") { chat.pop(); last.element?.remove(); }
  if (chat.length === 0) $("log").replaceChildren();
  const m = { role: "user", content: text };
  chat.push(m);
  $("log").append(paint(m));
  $("message").value = "";
  grow();
  $("new").disabled = false;
  answer();
};

// The last answer anew: with what is set now.
const again = () => {
  if (running) return;
  if (chat.at(-1)?.role === "assistant") chat.pop().element?.remove();
  if (chat.length) answer();
  $("message").focus();
};

const edit = m => {
  if (running) stop();
  const at = chat.indexOf(m);
  if (at < 0) return;
  $("message").value = m.content;
  chat.splice(at).forEach(gone => gone.element?.remove());
  remember();
  paintChat();
  grow();
  $("message").focus();
};

const copy = async (m, button) => {
  let done = true;
  try { await navigator.clipboard.writeText(m.content); }
  catch {                                // without TLS there is only the old way
    const box = make("textarea", { class: "unseen" });
    box.value = m.content;
    document.body.append(box);
    box.select();
    done = document.execCommand("copy");
    box.remove();
    button.focus();
  }
  button.textContent = done ? "Copied" : "Not allowed";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
};

const newChat = () => {
  stop();
  setRunning(null);
  chat.length = 0;
  lens.clear();
  remember();
  paintChat();
  say("");
  $("settings-said").textContent = "";
  $("message").focus();
};

const askKey = () => {
  $("key-box").hidden = false;
  $("key").focus();
};

// ---- the message box ----------------------------------------------------------------------------

const grow = () => {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + 2 + "px";
};

const showSystem = () => {
  const text = system.trim().replace(/\s+/g, " ");
  $("system-short").textContent = text ? "· " + text : "";
  $("new").disabled = chat.length === 0;
};

const startChat = () => {
  $("composer").addEventListener("submit", e => { e.preventDefault(); send(); });
  $("message").addEventListener("input", grow);
  $("message").addEventListener("keydown", e => {
    if (e.key !== "Enter" || e.shiftKey || e.isComposing) return;
    e.preventDefault();
    send();
  });
  $("stop").addEventListener("click", () => { stop(); $("message").focus(); });
  $("new").addEventListener("click", newChat);
  $("system").value = system;
  $("system").addEventListener("input", () => {
    system = $("system").value;
    showSystem();
    remember();
  });
  $("key-box").addEventListener("submit", e => {
    e.preventDefault();
    apiKey = $("key").value.trim();
    kept.set("sessionStorage", "key", apiKey);
    $("key-box").hidden = true;
    $("message").focus();
    learn();
    if (chat.at(-1)?.facts?.trouble) again();
  });
  let wasAtEnd = true;
  $("log").addEventListener("scroll", () => { wasAtEnd = following(); }, { passive: true });
  new ResizeObserver(() => { if (wasAtEnd) toEnd(); }).observe($("log"));
  showSystem();
  paintChat();
};
