// Code becomes a block with its language, a button that copies it, and a little colour; knows no language well.

import { copier, element } from "./dom.js";

const WORDS = new Set(("abstract and as assert async await auto begin bool boolean break case catch char class const continue def default defer del delete do done " +
  "double elif else elseif end enum esac except export extends extern false fi final finally float fn for foreach from func function global go goto if impl implements " +
  "import in include int interface is lambda let local long loop match mod module move mut namespace new nil none None not null nullptr or package pass private protected pub public raise " +
  "readonly ref return self short signed sizeof static string struct super switch template then this throw throws trait true True False try type typedef typeof undefined union " +
  "unless unsigned until use using var virtual void volatile when where while with xor yield " +
  "SELECT FROM WHERE INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE JOIN LEFT RIGHT INNER OUTER ON GROUP BY ORDER HAVING LIMIT AND OR NOT NULL AS DISTINCT PRIMARY KEY").split(" "));
const HASHES = /^(py|python|sh|bash|shell|zsh|console|rb|ruby|r|yaml|yml|toml|make|makefile|dockerfile|perl|pl|julia|jl|elixir|nim|conf|ini|)$/i;
const DASHES = /^(sql|lua|haskell|hs|ada|elm)$/i;
const PLAIN = /^(text|txt|plain|plaintext|markdown|md|output|diff|csv|log)$/i;
const LONGEST = 30000; // characters: what is longer stays plain

const STRING = /"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|`(?:[^`\\]|\\[\s\S])*(?:`|$)|"(?:[^"\\\n]|\\.)*(?:"|$|(?=\n))|'(?:[^'\\\n]|\\.)*'/;
const NUMBER = /\b(?:0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b/;
const NAME = /[A-Za-z_$][\w$]*/;

/** A fenced block's text in an element. */
export function codeBlock(text, language) {
  const body = element("code", {}, ...coloured(text, language));
  const head = element("div", { class: "head" }, element("span", {}, language || "text"), copier(() => text, "Copy code"));
  return element("div", { class: "code" }, head, element("pre", { tabindex: "0", role: "region", "aria-label": `Code${language ? `, ${language}` : ""}` }, body));
}

/** Code becomes text nodes and spans. */
export function coloured(text, language = "") {
  if (PLAIN.test(language) || text.length > LONGEST) return [text];
  const comment = HASHES.test(language) ? /#(?!\{).*/ : DASHES.test(language) ? /--.*/ : /\/\/.*|\/\*[\s\S]*?(?:\*\/|$)|<!--[\s\S]*?(?:-->|$)/;
  const pattern = new RegExp(`(${comment.source})|(${STRING.source})|(${NUMBER.source})|(${NAME.source})`, "g");
  const made = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    const [whole, remark, string, number, name] = match;
    const kind = remark ? "remark" : string ? "string" : number ? "number" : WORDS.has(name) ? "word" : text[match.index + whole.length] === "(" ? "call" : null;
    if (!kind) continue;
    made.push(text.slice(at, match.index), element("span", { class: `t-${kind}` }, whole));
    at = match.index + whole.length;
  }
  made.push(text.slice(at));
  return made.filter((part) => part !== "");
}
