// Markdown becomes elements: blocks first, then what is inside a line. Nothing in it is ever read as HTML.
// Made for text that is still being written: what stood before stays the same element while more comes.

import { codeBlock } from "./code.js";
import { element } from "./dom.js";
import { formula } from "./formula.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+|$)/;
const QUOTE = /^ {0,3}> ?/;
const TABLE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12; // lists and quotes within one another: what is deeper stays text

/** Makes `place` show the text; blocks that have not changed since the last call are left alone. */
export function show(place, text) {
  const found = blocks(text.replace(/\r\n?/g, "\n").split("\n"));
  const before = place.blocks || [];
  let same = 0;
  while (same < found.length && same < before.length && found[same].source === before[same]) same++;
  while (place.children.length > same) place.lastElementChild.remove();
  place.append(...found.slice(same).map((block) => build(block, 0)));
  place.blocks = found.map((block) => block.source);
}

/** Lines become [{kind, source, ...}], in order. */
function blocks(lines) {
  const found = [];
  let at = 0;
  const until = (end, kind, more) => {
    found.push({ kind, source: `${kind}\n${lines.slice(at, end).join("\n")}`, lines: lines.slice(at, end), ...more });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) at++;
    else if ((match = line.match(FENCE))) until(...fenced(lines, at, match));
    else if ((match = line.match(HEADING))) until(at + 1, "heading", { level: match[1].length, text: match[2] || "" });
    else if (RULE.test(line)) until(at + 1, "rule");
    else if (QUOTE.test(line)) until(quoted(lines, at), "quote");
    else if (ITEM.test(line)) until(listed(lines, at), "list");
    else if (line.includes("|") && TABLE.test(lines[at + 1] || "") && cells(line).length === cells(lines[at + 1]).length)
      until(after(lines, at + 2, (next) => next.trim() && next.includes("|")), "table");
    else until(after(lines, at + 1, (next) => next.trim() && !interrupts(next)), "paragraph");
  }
  return found;
}

function after(lines, from, belongs) {
  let end = from;
  while (end < lines.length && belongs(lines[end])) end++;
  return end;
}

function interrupts(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || /^ {0,3}([-*+]|1[.)])\s+\S/.test(line);
}

/** A fence ends with one at least as long, or, while it is being written, with the text. */
function fenced(lines, at, [opening, mark, language]) {
  const indent = opening.match(/^ */)[0].length;
  const closing = new RegExp(`^ {0,3}\\${mark[0]}{${mark.length},}\\s*$`);
  const close = after(lines, at + 1, (line) => !closing.test(line));
  const body = lines.slice(at + 1, close).map((line) => line.replace(new RegExp(`^ {0,${indent}}`), ""));
  return [Math.min(close + 1, lines.length), "code", { language: language.trim().split(/\s+/)[0], text: body.join("\n") }];
}

/** Lines that go on a quote's paragraph without a ">" belong to it. */
function quoted(lines, at) {
  return after(lines, at, (line) => QUOTE.test(line) || (line.trim() && !interrupts(line)));
}

function listed(lines, at) {
  const margin = lines[at].match(/^\s*/)[0].length;
  const ordered = /\d/.test(lines[at].match(ITEM)[2]);
  let end = at;
  while (end < lines.length) {
    const line = lines[end], item = line.match(ITEM), indent = line.match(/^\s*/)[0].length;
    if (!line.trim()) {
      // A blank line belongs to the list if the list goes on after it.
      const next = lines.slice(end).find((one) => one.trim());
      const goes = next && (next.match(/^\s*/)[0].length > margin || sameList(next, margin, ordered));
      if (!goes) return end;
    } else if (indent <= margin && !sameList(line, margin, ordered)) {
      if (item || interrupts(line) || !lines[end - 1].trim()) return end;
    }
    end++;
  }
  return end;
}

function sameList(line, margin, ordered) {
  const item = line.match(ITEM);
  return Boolean(item) && !RULE.test(line) && item[1].length <= margin + 1 && /\d/.test(item[2]) === ordered;
}

function build(block, depth) {
  if (block.kind === "code") return codeBlock(block.text, block.language);
  if (block.kind === "heading") return element(`h${Math.min(6, block.level + 2)}`, { class: `h${block.level}` }, ...inline(block.text));
  if (block.kind === "rule") return element("hr");
  if (block.kind === "table") return table(block.lines);
  if (block.kind === "paragraph" || depth > DEEPEST) return element("p", {}, ...inline(block.lines.map((line) => line.trimStart()).join("\n")));
  if (block.kind === "quote") {
    const inner = blocks(block.lines.map((line) => line.replace(QUOTE, "")));
    return element("blockquote", {}, ...inner.map((one) => build(one, depth + 1)));
  }
  return list(block.lines, depth);
}

function list(lines, depth) {
  const margin = lines[0].match(/^\s*/)[0].length, number = lines[0].match(/^\s*(\d+)/);
  const items = [];
  for (const line of lines) {
    const item = line.match(ITEM), begins = item && item[1].length <= margin + 1;
    if (begins) items.push({ width: item[0].length, lines: [line.slice(item[0].length)] });
    else items.at(-1).lines.push(line.replace(new RegExp(`^\\s{0,${items.at(-1).width}}`), ""));
  }
  const loose = items.some((item) => item.lines.slice(0, -1).some((line, at) => !line.trim() && item.lines.slice(at).some((next) => next.trim())));
  const made = items.map((item) => {
    const box = item.lines[0].match(/^\[([ xX])\]\s+/);
    if (box) item.lines[0] = item.lines[0].slice(box[0].length);
    const inner = blocks(item.lines).map((block) => build(block, depth + 1));
    const plain = loose ? inner : inner.flatMap((one) => (one.tagName === "P" ? [...one.childNodes] : [one]));
    const tick = box && element("input", { type: "checkbox", disabled: true, checked: box[1] !== " ", "aria-label": box[1] === " " ? "to do" : "done" });
    return element("li", { class: box && "task" }, tick, ...plain);
  });
  return element(number ? "ol" : "ul", { start: number && number[1] !== "1" ? number[1] : null }, ...made);
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table([head, marks, ...rows]) {
  const sides = cells(marks).map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "middle" : "end") : null));
  const row = (line, name) => {
    const told = cells(line);
    return element("tr", {}, ...sides.map((side, at) => element(name, { class: side }, ...inline(told[at] || ""))));
  };
  const body = element("tbody", {}, ...rows.map((line) => row(line, "td")));
  // A wide table scrolls by itself, so that the page does not.
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" }, element("table", {}, element("thead", {}, row(head, "th")), body));
}

// ------------------------------------------------------------ inside a line

const MARKS = [
  [/^(?:\\\((.+?)\\\)|\\\[([\s\S]+?)\\\]|\$\$([\s\S]+?)\$\$)/, ([whole, line, block, dollars]) => set(whole, line ?? block ?? dollars, line === undefined)],
  // A single dollar is a price, unless what follows it looks like a formula.
  [/^\$(?=[^\s$])((?:[^$\n\\]|\\.)*[^\s$\\])\$(?![\w$])/, ([whole, text]) => (/[\\^_={}]|^[A-Za-z]$/.test(text) ? set(whole, text, false) : whole)],
  [/^\\([!-/:-@[-`{-~])/, (match) => match[1]],
  [/^(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/, (match) => element("code", {}, match[2].replaceAll("\n", " ").replace(/^ (.*\S.*) $/, "$1"))],
  [/^!?\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+["'(][^"')]*["')])?\s*\)/, (match) => link(match[2], inline(match[1] || match[2]), match[0])],
  [/^<((?:https?:\/\/|mailto:)[^\s<>]+)>/, (match) => link(match[1], [match[1]], match[0])],
  [/^https?:\/\/[^\s<>"'`*]*[^\s<>"'`*.,:;!?)\]}]/, (match) => link(match[0], [match[0]], match[0])],
  [/^\*\*\*(?=\S)([\s\S]*?\S)\*\*\*/, (match) => element("strong", {}, element("em", {}, ...inline(match[1])))],
  [/^\*\*(?=\S)([\s\S]*?\S)\*\*(?!\*)/, (match) => element("strong", {}, ...inline(match[1]))],
  [/^\*(?=[^\s*])((?:[^*]|\*\*[^*]*\*\*)*?[^\s*])\*(?!\*)/, (match) => element("em", {}, ...inline(match[1]))],
  [/^~~(?=\S)([\s\S]*?\S)~~/, (match) => element("del", {}, ...inline(match[1]))],
];
// An underscore inside a word is part of a name.
const LOW = [
  [/^__(?=\S)([\s\S]*?\S)__(?![\w_]|\.\w)/, (match) => element("strong", {}, ...inline(match[1]))],
  [/^_(?=[^\s_])([^_]*[^\s_])_(?![\w_])/, (match) => element("em", {}, ...inline(match[1]))],
];
const LONGEST = 4000; // characters that a mark may span, so that no text makes this slow

/** A text becomes text nodes and elements. */
export function inline(text) {
  const made = [];
  let plain = "";
  const flush = () => { if (plain) made.push(plain); plain = ""; };
  for (let at = 0; at < text.length; ) {
    const here = text[at];
    if (here === "\n") {
      flush();
      made.push(element("br"));
      plain = "";
      at++;
      continue;
    }
    const marks = here === "_" ? (/\w/.test(text[at - 1] || "") ? [] : LOW) : "\\`[!<*~h$".includes(here) && !(here === "h" && /\w/.test(text[at - 1] || "")) ? MARKS : [];
    const rest = marks.length ? text.slice(at, at + LONGEST) : "";
    let found = null;
    for (const [pattern, make] of marks) {
      const match = rest.match(pattern);
      if (match) { found = [match[0].length, make(match)]; break; }
    }
    if (found) {
      flush();
      made.push(...[found[1]].flat());
      at += found[0];
    } else plain += text[at++];
  }
  flush();
  return made;
}

function set(source, text, display) {
  return formula(text.trim(), display) || element("span", { class: "formula" }, source);
}

/** A link, if it leads where a click may lead; an image is one, too, for nothing is fetched from elsewhere. */
function link(target, children, source) {
  let url;
  try { url = new URL(target); } catch { return [source]; }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return [source];
  return element("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}
