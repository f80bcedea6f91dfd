// Conversations and settings, kept in this browser and nowhere else; and as a file that can be taken elsewhere.
// Each conversation has an entry of its own, so that two tabs do not write over one another.

import { DONE, FAILED, STOPPED, WRITING, identifier } from "./talk.js";

const TALK = "lathe.talk.", SETTINGS = "lathe.settings", KEY = "lathe.key";
const FORMAT = "lathe-conversations";
const STATES = [DONE, STOPPED, FAILED, WRITING];

/** Every conversation that can be read, latest first. */
export function talks() {
  const found = [];
  for (let at = 0; at < localStorage.length; at++) {
    const name = localStorage.key(at);
    if (!name.startsWith(TALK)) continue;
    try { found.push(checked(JSON.parse(localStorage.getItem(name)))); } catch { /* what is not ours is left alone */ }
  }
  return found.sort((a, b) => b.changed - a.changed);
}

export function talk(id) {
  try { return checked(JSON.parse(localStorage.getItem(TALK + id))); } catch { return null; }
}

/** Throws where the browser's room for this page is used up. */
export function keep(one) {
  localStorage.setItem(TALK + one.id, JSON.stringify(one));
}

export function drop(id) {
  localStorage.removeItem(TALK + id);
}

/** Calls `heard` with the id of a conversation that another tab has changed. */
export function watch(heard) {
  addEventListener("storage", ({ key }) => key?.startsWith(TALK) && heard(key.slice(TALK.length)));
}

/** Conversations in which all the words occur, with what stands around the first of them: [[talk, [before, word, after]]]. */
export function search(all, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return all.map((one) => [one, null]);
  const found = [];
  for (const one of all) {
    const texts = [one.title, ...Object.values(one.turns).flatMap((turn) => [turn.text, ...turn.answers.flat().map((answer) => answer.text)])];
    const whole = texts.join("\n"), low = whole.toLowerCase();
    if (!wanted.every((word) => low.includes(word))) continue;
    const at = low.indexOf(wanted[0], one.title.length), end = at + wanted[0].length;
    const line = (from, to) => whole.slice(from, to).replace(/\s+/g, " ");
    found.push([one, at < 0 ? null : [`${at > 12 ? "…" : ""}${line(Math.max(0, at - 12), at)}`, line(at, end), line(end, end + 80)]]);
  }
  return found;
}

export function packed(all) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 1);
}

/** The conversations of a file that `packed` wrote, with new ids. Throws an Error that says what is wrong with it. */
export function unpacked(text) {
  let read;
  try { read = JSON.parse(text); } catch { throw new Error("This file is not JSON."); }
  if (read?.format !== FORMAT || !Array.isArray(read.conversations)) throw new Error("This file was not exported from this page.");
  return read.conversations.map((one) => ({ ...checked(one), id: identifier() }));
}

/** What was stored, or came in a file, with nothing in it but what a conversation has. Throws where it is not one. */
function checked(raw) {
  const text = (value, most = Infinity) => { if (typeof value !== "string" || value.length > most) throw new Error("A conversation in it is damaged."); return value; };
  const number = (value) => { if (!Number.isFinite(value)) throw new Error("A conversation in it is damaged."); return value; };
  const pair = (value) => [number(value[0]), number(value[1])];
  const turns = Object.create(null); // a file may call a turn "__proto__"
  for (const turn of Object.values(raw.turns)) {
    turns[text(turn.id, 80)] = {
      id: turn.id, made: number(turn.made), parent: turn.parent === null ? null : text(turn.parent, 80), from: pair(turn.from), text: text(turn.text), shown: pair(turn.shown),
      results: turn.results && turn.results.map(({ id, content }) => ({ id: text(id), content: text(content) })),
      answers: [0, 1].map((lane) => turn.answers[lane].map((answer) => ({
        model: text(answer.model), text: text(answer.text), reasoning: text(answer.reasoning), reason: answer.reason && text(answer.reason),
        calls: answer.calls.map((call) => ({ id: text(call.id), name: text(call.name), arguments: text(call.arguments) })),
        // What was being written when the page went away will not go on.
        state: !STATES.includes(answer.state) || answer.state === WRITING ? STOPPED : answer.state,
        error: answer.error && text(answer.error), seconds: answer.seconds && pair(answer.seconds),
        usage: answer.usage && { prompt_tokens: number(answer.usage.prompt_tokens), completion_tokens: number(answer.usage.completion_tokens) },
      }))),
    };
  }
  const chosen = Object.fromEntries(Object.entries(raw.chosen).map(([place, id]) => [place, text(id, 80)]));
  return { id: text(raw.id, 80), title: text(raw.title), made: number(raw.made), changed: number(raw.changed), system: text(raw.system), turns, chosen };
}

// ------------------------------------------------------------ settings

export const DEFAULTS = { models: ["", ""], beside: false, system: "", wishes: {}, tools: "", theme: "auto" };

export function settings() {
  try { return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS)) }; } catch { return { ...DEFAULTS }; }
}

export function keepSettings(all) {
  localStorage.setItem(SETTINGS, JSON.stringify(all));
}

/** The server's API key is forgotten when the tab is closed. */
export function apiKey() {
  return sessionStorage.getItem(KEY) || "";
}

export function keepApiKey(key) {
  sessionStorage.setItem(KEY, key);
}
