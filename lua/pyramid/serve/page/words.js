// An answer's text as nodes: paragraphs, headings, lists, code, bold. It knows the little of
// Markdown that models write most; all else stays as it came. Text becomes text nodes, whatever it
// looks like.

// `code` and **bold** within a line, of 600 characters at most: what looks for an end that never
// comes must not look far.
const inline = (text, into) => {
  const parts = new RegExp("(`{1,3})([^`\\n](?:[^\\n]{0,600}?[^`\\n])?)\\1(?!`)"
    + "|\\*\\*([^\\s*](?:[^\\n]{0,600}?[^\\s*])?)\\*\\*", "g");
  let at = 0;
  for (const found of text.matchAll(parts)) {
    into.append(text.slice(at, found.index));
    into.append(found[2] !== undefined ? make("code", null, found[2]) : make("b", null, found[3]));
    at = found.index + found[0].length;
  }
  into.append(text.slice(at));
  return into;
};

const ITEM = /^\s{0,3}(?:([-*•+])|(\d{1,4})[.)])\s+(.*)$/;

// The blocks of a text. What is not finished yet (a fence that is still open) is shown as far as
// it goes.
const words = (text, into) => {
  const lines = text.split("\n");
  let paragraph = [], items = null;
  const flush = () => {
    if (paragraph.length) into.append(inline(paragraph.join("\n"), make("p")));
    paragraph = [];
    if (items) into.append(items);
    items = null;
  };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i], fence = line.match(/^\s*(```+|~~~+)/);
    if (fence) {
      flush();
      const code = [];
      while (++i < lines.length && !lines[i].trim().startsWith(fence[1])) code.push(lines[i]);
      into.append(make("pre", { tabindex: "0", role: "group", "aria-label": "Code" },
        make("code", null, code.join("\n"))));
      continue;
    }
    const head = line.match(/^#{1,6}\s+(.+)$/), item = line.match(ITEM);
    if (head) {
      flush();
      into.append(inline(head[1], make("p", { class: "head" })));
    } else if (item) {
      const kind = item[2] ? "OL" : "UL";
      if (items?.tagName !== kind) {
        flush();
        items = make(kind.toLowerCase(), kind === "OL" ? { start: item[2] } : null);
      }
      items.append(inline(item[3], make("li")));
    } else if (line.trim() === "") {
      // a list goes on after an empty line if another item follows
      const next = lines.slice(i + 1).find(l => l.trim() !== "");
      if (!(items && next !== undefined && ITEM.test(next))) flush();
    } else if (items && /^\s{2,}/.test(line)) {
      items.lastChild.append("\n");
      inline(line.trim(), items.lastChild);
    } else {
      if (items) flush();
      paragraph.push(line);
    }
  }
  flush();
  return into;
};
