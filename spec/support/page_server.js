// A stand-in for the server's routes, in the page itself: fetch is answered here, as the server
// answers it, at the pace and with the failures that a spec asks for through window.fake.
window.fake = {
  requests: [],                          // bodies of what was asked for
  calls: [],                             // "GET v1/models", …
  answers: ["Well, that is a fine question. Let me think about it for a while."],
  pause: 5,                              // milliseconds between two pieces
  fail: {},                              // path -> { status, message, after, headers }, once
  cut: 0,                                // pieces before the stream breaks off
  key: "",                               // the API key that is wanted
  models: ["tiny"],
  policies: [],
  layers: 12, heads: 2, window: undefined, tiers: false, most: 8192,
  gone: new Set(),                       // completions whose cache is no longer kept
  aborted: 0,
  texts: {},                             // completion -> its tokens so far
};
{
  const f = window.fake;
  const json = (body, status, headers) => new Response(JSON.stringify(body), { status: status || 200,
    headers: { "Content-Type": "application/json", ...headers } });
  const refuse = given => json({ error: { message: given.message, type: "error", param: null,
    code: null } }, given.status, given.headers);
  const pieces = text => text.match(/\s*\S+|\s+$/g) || [];

  // Keeps the ends in every layer, and ever less in between.
  const holds = (entry, layer, at, n) => {
    if (!entry.policy || entry.policy === "full") return f.heads;
    if (at < 4 || at >= n - 8) return f.heads;
    if (f.window && f.window[layer] && n - at > f.window[layer]) return 0;
    const depth = layer / f.layers, draw = (at * 7919 + 13 * (at % 7)) % 101 / 101;
    if (entry.policy === "streaming") return 0;
    return draw > depth * 1.05 ? f.heads : draw > depth * 0.9 ? f.heads >> 1 : 0;
  };

  const memory = (entry, first) => {
    const n = entry.tokens.length, bin = Math.max(1, Math.ceil(n / 256)), shares = [];
    const held = new Array(n).fill(0);
    let rows = 0;
    for (let layer = 0; layer < f.layers; layer++) {
      const row = new Array(Math.ceil(n / bin)).fill(0);
      for (let at = 0; at < n; at++) {
        const lanes = holds(entry, layer, at, n);
        held[at] += lanes;
        rows += lanes;
        row[Math.floor(at / bin)] += lanes;
      }
      shares.push(row.map((sum, i) => Math.round(100 * sum
        / (f.heads * Math.min(bin, n - i * bin)))));
    }
    const all = n * f.layers * f.heads, total = rows * 256, from = first ?? Math.max(0, n - f.most);
    const past = Math.min(n, from + f.most);
    const texts = entry.tokens.slice(from, past);
    return { policy: entry.policy || "full", layers: f.layers, heads: f.heads, tokens: n, rows,
      evicted: all - rows, fraction: rows / all, window: f.window, prompt: entry.prompt,
      bytes: f.tiers ? { total, hot: Math.round(total * 0.6), warm: total - Math.round(total * 0.6) }
        : { total, hot: total },
      map: { bin, shares }, text: { first: from, ids: texts.map((_, i) => 100 + (from + i) % 50),
        texts, held: held.slice(from, past) } };
  };

  const stream = (body, signal) => {
    const id = "chatcmpl-" + f.requests.length, encode = new TextEncoder();
    const entry = { policy: body.pyramid?.policy, tokens: [] };
    for (const m of body.messages) entry.tokens.push("<|im_start|>", ...pieces(m.role + "\n"
      + m.content), "<|im_end|>", "\n");
    entry.prompt = entry.tokens.length;
    f.texts[id] = entry;
    const text = f.answers[Math.min(f.requests.length, f.answers.length) - 1];
    const parts = text === "" ? [] : pieces(text);
    return new ReadableStream({
      async start(out) {
        const put = (delta, finish, extra) => out.enqueue(encode.encode("data: " + JSON.stringify({
          id, object: "chat.completion.chunk", created: 1, model: body.model,
          choices: [{ index: 0, delta, finish_reason: finish || null }], ...extra }) + "\n\n"));
        let over = false;
        signal?.addEventListener("abort", () => {
          over = true;
          f.aborted++;
          out.error(new DOMException("aborted", "AbortError"));
        });
        put({ role: "assistant", content: "" });
        for (let i = 0; i < parts.length; i++) {
          await new Promise(go => setTimeout(go, f.pause));
          if (over) return;
          if (f.cut && i === f.cut) {
            f.cut = 0;
            return f.broken ? out.error(new TypeError("network error")) : out.close();
          }
          entry.tokens.push(parts[i]);
          put({ content: parts[i] });
        }
        put({}, f.finish || "stop");
        const seen = memory(entry);
        out.enqueue(encode.encode("data: " + JSON.stringify({ id, choices: [], usage: {
          prompt_tokens: entry.prompt, completion_tokens: parts.length,
          total_tokens: entry.tokens.length, rows_kept: seen.rows, rows_evicted: seen.evicted,
          cache_bytes: seen.bytes.total } }) + "\n\ndata: [DONE]\n\n"));
        out.close();
      },
    });
  };

  window.fetch = async (path, given) => {
    const url = new URL(path, "http://fake/"), name = url.pathname.slice(1);
    f.calls.push((given?.method || "GET") + " " + path);
    await new Promise(go => setTimeout(go, 1));
    if (f.down) throw new TypeError("Failed to fetch");
    if (f.key && given?.headers?.Authorization !== "Bearer " + f.key) {
      return refuse({ status: 401, message: "no such key" });
    }
    const failure = f.fail[name];
    if (failure) {
      delete f.fail[name];
      return refuse(failure);
    }
    if (name === "v1/models") return json({ object: "list", data: f.models.map(id => ({ id })) });
    if (name === "pyramid/policies") return json({ policies: f.policies });
    if (name === "pyramid/memory") {
      const id = url.searchParams.get("id"), first = url.searchParams.get("first");
      if (!f.texts[id] || f.gone.has(id)) return refuse({ status: 404, message: "no such completion" });
      return json(memory(f.texts[id], first === null ? undefined : Number(first)));
    }
    if (name !== "v1/chat/completions") return refuse({ status: 404, message: "no such route" });
    const body = JSON.parse(given.body);
    f.requests.push(body);
    return new Response(stream(body, given.signal), { headers: { "Content-Type":
      "text/event-stream" } });
  };
}
