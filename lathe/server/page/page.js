// Puts the parts together: what is typed becomes a turn, the server's chunks its answers, and all of it is kept.

import { announce, element, icon, paced, toast } from "./dom.js";
import { panel, wishes } from "./panel.js";
import { pickers } from "./picker.js";
import { side } from "./side.js";
import * as store from "./store.js";
import { DONE, FAILED, STOPPED, WRITING, ask, begin, freshTalk, messages, path, plain, said, show, take } from "./talk.js";
import { draw } from "./thread.js";
import { complete } from "./wire.js";

const at = (id) => document.getElementById(id);
const say = at("say"), scroll = at("scroll");
const settings = store.settings();
const running = new Map(); // answers that are being written: {controller, talk}
let talk = freshTalk(settings.system);
let views = new Map();
let follows = true; // whether the page goes down with what is written

// ------------------------------------------------------------ asking

function answer(turn, lane, from = null) {
  const model = settings.models[lane] || picker.first();
  const made = from || begin(talk, turn, lane, model);
  return write(talk, turn, lane, made, from !== null);
}

/** Streams one answer into its place; whatever happens, it ends in a state that can be kept. */
async function write(owner, turn, lane, made, further) {
  const controller = new AbortController(), began = performance.now();
  const before = further && made.usage && made.seconds ? { tokens: made.usage.completion_tokens, seconds: made.seconds } : { tokens: 0, seconds: null };
  let first = 0;
  running.set(made, { controller, talk: owner });
  Object.assign(made, { state: WRITING, error: null, reason: null, reading: null });
  const refresh = paced(() => { views.get(made)?.update(); follow(); });
  try {
    const told = messages(owner, turn, lane);
    if (further) told.push(said(made));
    for await (const chunk of complete(request(made.model, told, further), controller.signal)) {
      if (chunk.prompt_progress) made.reading = chunk.prompt_progress;
      if (take(made, chunk, before.tokens)) {
        first ||= performance.now();
        made.reading = null;
        made.seconds = [before.seconds?.[0] ?? (first - began) / 1000, (before.seconds?.[1] || 0) + (performance.now() - first) / 1000];
      }
      refresh();
    }
    made.state = DONE;
  } catch (error) {
    if (error.status === 401) {
      await picker.unlock();
      return write(owner, turn, lane, made, further);
    }
    made.state = error.name === "AbortError" ? STOPPED : FAILED;
    if (made.state === FAILED) made.error = error.wait ? `${error.message} Try again in ${error.wait} s.` : error.message;
  }
  delete made.reading;
  running.delete(made);
  keep(owner);
  refresh();
  state();
  announce(made.state === DONE ? `${made.model} has answered: ${made.text.slice(0, 300)}` : made.state === STOPPED ? "Stopped" : made.error);
}

/** The body that asks a model for what follows the messages, or for how the last of them goes on. */
function request(model, told, further) {
  const wished = wishes(settings);
  if (picker.plain(model)) {
    delete wished.tools;
    delete wished.chat_template_kwargs;
    return { model, prompt: plain(told, further), max_tokens: 256, ...wished };
  }
  const goes = further ? { continue_final_message: true, add_generation_prompt: false } : {};
  return { model, messages: told, ...wished, ...goes };
}

/** Whether it could be asked. */
function send(text, options) {
  if (!picker.ready()) return false;
  const turn = ask(talk, text, options);
  lanes().forEach((lane) => answer(turn, lane));
  follows = true;
  keep(talk);
  redraw();
  return true;
}

const lanes = () => (settings.beside ? [0, 1] : [0]);

function stop() {
  for (const { controller, talk: owner } of running.values()) if (owner === talk) controller.abort();
}

function keep(one) {
  one.changed = Date.now();
  try { store.keep(one); } catch { toast("The browser has no more room for conversations. Export them, and delete some."); }
  list.draw(talk.id);
}

// ------------------------------------------------------------ showing

function redraw() {
  views = draw(at("thread"), talk, {
    edit: (turn, text) => send(text, { instead: turn }),
    again: (turn, lane) => { answer(turn, lane); redraw(); },
    further: (turn, lane) => { answer(turn, lane, turn.answers[lane][turn.shown[lane]]); redraw(); },
    version: (turn, lane, to) => { turn.shown[lane] = to; keep(talk); redraw(); },
    turn: (turn) => { show(talk, turn); keep(talk); redraw(); },
    results: (turn, results) => send("", { results }),
  });
  at("empty").hidden = views.size > 0;
  at("system").hidden = !talk.system.trim();
  at("system").replaceChildren(element("button", { type: "button", class: "note", onclick: () => tune.open() }, element("b", {}, "System "), talk.system.trim()));
  document.title = talk.title ? `${talk.title} · Lathe` : "Lathe";
  state();
  follow();
}

/** What the page says about what is going on: which button there is, how full the context is. */
function state() {
  const busy = [...running.values()].some((one) => one.talk === talk);
  at("send").hidden = busy;
  at("stop").hidden = !busy;
  at("send").disabled = !say.value.trim();
  const last = path(talk).at(-1), used = last?.answers.flatMap((versions, lane) => versions[last.shown[lane]]?.usage || []).map((usage) => usage.prompt_tokens + usage.completion_tokens);
  picker.meter(used?.length ? Math.max(...used) : 0);
}

function follow() {
  if (follows) scroll.scrollTop = scroll.scrollHeight;
  at("end").hidden = follows || scroll.scrollHeight - scroll.clientHeight < 80;
}

function open(id) {
  const [known] = [...running.values()].filter((one) => one.talk.id === id);
  talk = known?.talk || store.talk(id) || freshTalk(settings.system);
  location.replace(`#${talk.id}`);
  follows = true;
  aside(false);
  redraw();
  list.draw(talk.id);
  if (matchMedia("(pointer: fine)").matches) say.focus();
}

function grow() {
  say.style.height = "auto";
  say.style.height = `${Math.min(say.scrollHeight, innerHeight * 0.4)}px`;
  state();
}

/** On a phone the list lies over the page; elsewhere it stands beside it. */
function aside(shown) {
  const over = matchMedia("(max-width: 900px)").matches;
  document.body.classList.toggle("over", over && shown);
  if (!over) document.body.classList.toggle("alone", !shown && document.body.classList.contains("alone"));
}

// ------------------------------------------------------------ parts and what they do

const list = side({
  open,
  fresh: () => open(""),
  changed: (id) => { if (id === talk.id && ![...running.values()].some((one) => one.talk === talk)) { talk = store.talk(id) || freshTalk(settings.system); redraw(); } },
  running: (id) => [...running.values()].some((one) => one.talk.id === id),
});
const picker = pickers(settings, () => { store.keepSettings(settings); redraw(); });
const system = { get: () => talk.system, set: (text) => { talk.system = settings.system = text; store.keepSettings(settings); if (talk.title) keep(talk); redraw(); } };
const tune = panel(settings, system, () => store.keepSettings(settings));

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await begun; // what is sent before the server has named its models is asked when it has
  if (!say.value.trim() || at("send").hidden || !send(say.value)) return;
  say.value = "";
  grow();
});
say.addEventListener("input", grow);
say.addEventListener("keydown", (event) => {
  if (event.key === "ArrowUp" && !say.value) at("thread").querySelector(".turn:last-child .question [data-edit]")?.click();
  // Where there is no other way to a new line than Enter, Enter is one.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  at("form").requestSubmit();
});
addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) document.body.classList.contains("over") ? aside(false) : stop();
  if (command && event.key.toLowerCase() === "k") { event.preventDefault(); document.body.classList.remove("alone"); aside(true); at("search").select(); }
  if (command && event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); open(""); }
});
at("stop").addEventListener("click", stop);
at("end").addEventListener("click", () => { follows = true; follow(); });
scroll.addEventListener("scroll", () => { follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60; at("end").hidden = follows; });
scroll.addEventListener("wheel", (event) => { if (event.deltaY < 0) follows = false; }, { passive: true });
at("tune").addEventListener("click", () => tune.open());
at("unfold").addEventListener("click", () => { document.body.classList.remove("alone"); aside(true); });
at("fold").addEventListener("click", () => { matchMedia("(max-width: 900px)").matches ? aside(false) : document.body.classList.add("alone"); });
at("veil").addEventListener("click", () => aside(false));
at("theme").addEventListener("click", () => { settings.theme = { auto: "light", light: "dark", dark: "auto" }[settings.theme]; store.keepSettings(settings); theme(); });
addEventListener("pagehide", () => { for (const { talk: owner } of running.values()) keep(owner); });

function theme() {
  document.documentElement.dataset.theme = settings.theme;
  at("theme").replaceChildren(icon(settings.theme));
  const says = { auto: "Look: as the system has it", light: "Look: light", dark: "Look: dark" }[settings.theme];
  at("theme").title = says;
  at("theme").setAttribute("aria-label", says);
}

for (const [id, shape] of [["fresh", "plus"], ["fold", "menu"], ["unfold", "menu"], ["beside", "columns"], ["tune", "tune"], ["end", "down"], ["send", "send"], ["stop", "stop"], ["done", "close"]])
  at(id).append(icon(shape));
theme();
const begun = picker.load().then(() => open(location.hash.slice(1)));
