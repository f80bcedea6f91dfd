// A conversation becomes its turns down the page: questions with their edits, answers alone or side by side.

import { versions, view } from "./answer.js";
import { copier, element, tool } from "./dom.js";
import { path, siblings } from "./talk.js";

/**
 * Shows the path through a talk. Returns the views of its answers: Map(answer -> view).
 * acts: {edit(turn, text), again(turn, lane), further(turn, lane), version(turn, lane, at), turn(turn), results(turn, results)}.
 */
export function draw(place, talk, acts) {
  const views = new Map(), turns = path(talk);
  const last = turns.at(-1);
  place.replaceChildren(...turns.map((turn) => {
    const asked = [0, 1].filter((lane) => turn.answers[lane].length);
    const lanes = asked.map((lane) => {
      const answer = turn.answers[lane][turn.shown[lane]];
      const own = {
        again: () => acts.again(turn, lane),
        further: () => acts.further(turn, lane),
        version: (at) => acts.version(turn, lane, at),
        results: turn === last && asked.length === 1 ? (results) => acts.results(turn, results) : null,
      };
      const made = view(answer, turn.shown[lane], turn.answers[lane].length, own, { named: asked.length > 1 || changes(talk) });
      views.set(answer, made);
      return made.root;
    });
    return element("section", { class: "turn" }, question(talk, turn, acts), element("div", { class: `lanes${asked.length > 1 ? " two" : ""}` }, ...lanes));
  }));
  return views;
}

/** Whether several models have answered, so that each answer needs a name. */
function changes(talk) {
  const names = new Set(Object.values(talk.turns).flatMap((turn) => turn.answers.flat().map((answer) => answer.model)));
  return names.size > 1;
}

function question(talk, turn, acts) {
  if (turn.results) {
    const rows = turn.results.map(({ content }) => element("pre", {}, content));
    return element("div", { class: "question" }, element("details", { class: "call" }, element("summary", {}, "Results of tools"), ...rows));
  }
  const all = siblings(talk, turn), at = all.indexOf(turn);
  const bubble = element("div", { class: "bubble" }, turn.text);
  const foot = element("div", { class: "foot" },
    versions(at, all.length, "wording", (to) => acts.turn(all[to])),
    copier(() => turn.text, "Copy question"),
    tool("edit", "Edit and ask again", () => edit(root, turn, acts), { "data-edit": true }));
  const root = element("div", { class: "question" }, bubble, foot);
  return root;
}

/** Puts a field in the place of a question. */
function edit(root, turn, acts) {
  const kept = [...root.childNodes];
  const field = element("textarea", { "aria-label": "Edit question", rows: Math.min(12, turn.text.split("\n").length + 1) });
  const close = () => { root.classList.remove("editing"); root.replaceChildren(...kept); };
  const send = (event) => {
    event.preventDefault();
    if (field.value.trim()) acts.edit(turn, field.value);
  };
  const form = element("form", { class: "editor", onsubmit: send }, field, element("div", { class: "row" },
    element("button", { type: "button", class: "plain", onclick: close }, "Cancel"), element("button", { class: "plain strong" }, "Ask again")));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); close(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && matchMedia("(pointer: fine)").matches) send(event);
  });
  field.value = turn.text;
  root.classList.add("editing");
  root.replaceChildren(form);
  field.focus();
}
