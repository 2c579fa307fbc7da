// What the other files stand on: elements, numbers as people read them, and the server's answers.
// All that comes from outside becomes text nodes: nothing here, or elsewhere, takes HTML.
const $ = id => document.getElementById(id);
const list = x => Array.isArray(x) ? x : [];

// An element: make("b", { class: "x", onclick: f }, "text", other)
const make = (name, given, ...inside) => {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(given || {})) {
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else if (key === "class") e.className = value;
    else if (value === true) e.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) e.setAttribute(key, value);
  }
  e.append(...inside.filter(x => x !== null && x !== undefined));
  return e;
};
const SVG = "http://www.w3.org/2000/svg";
const draw = (name, given) => {
  const e = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(given || {})) e.setAttribute(key, value);
  return e;
};

const count = n => Number(n).toLocaleString("en");
const bytes = n => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at++; }
  return (at === 0 || n >= 99.95 ? Math.round(n) : n.toFixed(n >= 9.995 ? 1 : 2)) + " " + units[at];
};
// Only all is 100 %, and only none is 0 %.
const percent = share => {
  if (share >= 1) return "100 %";
  if (share <= 0) return "0 %";
  const p = share * 100;
  return (p < 1 ? "< 1" : p > 99 ? "> 99" : Math.round(p)) + " %";
};
const seconds = s => s < 10 ? s.toFixed(1) + " s" : s < 120 ? Math.round(s) + " s"
  : Math.floor(s / 60) + " min " + Math.round(s % 60) + " s";

// ---- what outlives a reload ---------------------------------------------------------------------
// A browser may forbid it: then nothing does.
const kept = {
  get(store, key, otherwise) {
    try { return JSON.parse(window[store].getItem("pyramid." + key)) ?? otherwise; }
    catch { return otherwise; }
  },
  set(store, key, value) {
    try { window[store].setItem("pyramid." + key, JSON.stringify(value)); } catch { /* full */ }
  },
};

// ---- the server ---------------------------------------------------------------------------------
let apiKey = kept.get("sessionStorage", "key", "");

// A failure in words: what happened, and what helps.
class Failure extends Error {
  constructor(what, help, given) {
    super(what);
    this.help = help || "";
    Object.assign(this, given);
  }
}

const failed = async response => {
  let text = "", said = "";
  try { text = await response.text(); } catch { /* the status says enough */ }
  try {
    const body = JSON.parse(text);
    said = body.error?.message ?? (typeof body.error === "string" ? body.error : "");
  } catch { said = text.slice(0, 300); }
  const status = response.status;
  if (status === 401) {
    return new Failure(apiKey ? "The server does not take this API key."
      : "The server asks for an API key.", "Write it into the field above the message.",
    { status });
  }
  if (status === 429 || status === 503) {
    const wait = Number(response.headers.get("Retry-After"));
    return new Failure("The server has as much to do as it takes.", (wait > 0
      ? `Try again in ${wait} s.` : "Try again in a moment.") + (said ? ` (${said})` : ""),
    { status });
  }
  if (status === 413) {
    return new Failure("The message is larger than the server takes.", said, { status });
  }
  if (status >= 500) {
    return new Failure("Something went wrong in the server.", said || `Status ${status}.`,
      { status });
  }
  return new Failure(said ? said[0].toUpperCase() + said.slice(1)
    : `The server refused this (status ${status}).`, "", { status });
};

const ask = async (path, given) => {
  const headers = { ...(given?.headers || {}) };
  if (apiKey) headers.Authorization = "Bearer " + apiKey;
  let response;
  try { response = await fetch(path, { ...given, headers, cache: "no-store" }); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer.", "Is `pyramid serve` still running?");
  }
  if (!response.ok) throw await failed(response);
  return response;
};

const askJson = async (path, given) => {
  const response = await ask(path, given);
  try { return await response.json(); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server's answer is not what this page understands.", path);
  }
};

// Server-sent events: each `data:` as what its JSON says, up to [DONE].
async function* events(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "", data = [];
  const take = line => {
    if (line.startsWith("data:")) { data.push(line.slice(5).replace(/^ /, "")); return null; }
    if (line !== "" || data.length === 0) return null;
    const whole = data.join("\n");
    data = [];
    return whole;
  };
  try {
    for (;;) {
      let piece;
      try { piece = await reader.read(); }
      catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Failure("The answer broke off.", "The connection to the server was lost.");
      }
      rest += piece.done ? decoder.decode() + "\n\n"
        : decoder.decode(piece.value, { stream: true });
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        const whole = take(line);
        if (whole === "[DONE]") return;
        if (whole === null) continue;
        let event;
        try { event = JSON.parse(whole); }
        catch { throw new Failure("The answer broke off.", "The server sent what is no JSON."); }
        if (event.error) {
          throw new Failure(event.error.message ?? String(event.error), "",
            { code: event.error.code });
        }
        yield event;
      }
      if (piece.done) throw new Failure("The answer broke off.", "The server ended it early.");
    }
  } finally { reader.cancel().catch(() => {}); }
}
