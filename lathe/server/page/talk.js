// A conversation as data: a tree of turns, each a question and the answers to it. Knows no page, no storage, no server.
//
// talk   {id, title, made, changed, system, turns: {id: turn}, chosen: {place: id}}
// turn   {id, parent, from: [a, b], text, results, answers: [[answer], [answer]], shown: [a, b]}
// answer {model, text, reasoning, calls, state, error, usage, seconds, reason}
//
// Two lanes may answer side by side. A turn follows one version of each lane's answer to its parent (`from`; -1 for none),
// so to edit a question or to ask for another answer opens a branch, and to show the old version shows what followed it.

export const WRITING = "writing", DONE = "done", STOPPED = "stopped", FAILED = "failed";

export function identifier() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");
}

export function freshTalk(system = "") {
  return { id: identifier(), title: "", made: Date.now(), changed: Date.now(), system, turns: {}, chosen: {} };
}

function place(parent, from) {
  return parent ? `${parent} ${from.join(" ")}` : "start";
}

/** The turns that hold the same place: a question and what it was edited to, oldest first. */
export function siblings(talk, turn) {
  const here = place(turn.parent, turn.from);
  return Object.values(talk.turns).filter((other) => place(other.parent, other.from) === here).sort((a, b) => a.made - b.made);
}

/** The turns that are shown, first to last. */
export function path(talk) {
  const found = [];
  for (let here = "start"; talk.turns[talk.chosen[here]] && found.length < 10000; ) {
    const turn = talk.turns[talk.chosen[here]];
    found.push(turn);
    here = place(turn.id, turn.shown);
  }
  return found;
}

/** Adds a question after the last turn shown, or in the place of `instead`. results: of tools, in place of a text. */
export function ask(talk, text, { instead = null, results = null } = {}) {
  const last = path(talk).at(-1);
  const parent = instead ? instead.parent : last ? last.id : null;
  const from = instead ? instead.from : last ? [...last.shown] : [-1, -1];
  const turn = { id: identifier(), made: Date.now(), parent, from, text, results, answers: [[], []], shown: [-1, -1] };
  talk.turns[turn.id] = turn;
  show(talk, turn);
  if (!talk.title) talk.title = text.trim().split("\n")[0].slice(0, 80);
  return turn;
}

/** Makes a turn the one that is shown in its place. */
export function show(talk, turn) {
  talk.chosen[place(turn.parent, turn.from)] = turn.id;
  talk.changed = Date.now();
}

/** Opens a new version of a lane's answer. */
export function begin(talk, turn, lane, model) {
  const answer = { model, text: "", reasoning: "", calls: [], state: WRITING, error: null, usage: null, seconds: null, reason: null };
  turn.answers[lane].push(answer);
  turn.shown[lane] = turn.answers[lane].length - 1;
  talk.changed = Date.now();
  return answer;
}

/** A lane's answer to a turn, in one version; what was asked of one model alone stands in both lanes. */
function answerOf(turn, from, lane) {
  return turn.answers[lane][from[lane]] || turn.answers[0][from[0]] || null;
}

/** The messages that a lane's answer to `turn` is asked with. */
export function messages(talk, turn, lane) {
  const chain = [];
  for (let at = turn, from = null; at; from = at.from, at = talk.turns[at.parent]) chain.unshift([at, from]);
  const told = talk.system.trim() ? [{ role: "system", content: talk.system }] : [];
  for (const [one, from] of chain) {
    const question = one.results
      ? one.results.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content }))
      : [{ role: "user", content: one.text }];
    if (!from) told.push(...question);
    else {
      // A question that came to no answer is left out: templates want the two to alternate.
      const answer = answerOf(one, from, lane);
      if (answer && (answer.text || answer.calls.length)) told.push(...question, said(answer));
    }
  }
  return told;
}

/** Messages as one text for a model without a chat template to go on with: answers follow what they answer. */
export function plain(told, further) {
  return told.map(({ role, content }, at) => content + (role === "user" || (further && at === told.length - 1) ? "" : "\n")).join("");
}

/** An answer as a message. Reasoning is sent back only where the tools that it called for have yet to be heard. */
export function said(answer) {
  const message = { role: "assistant", content: answer.text };
  if (!answer.calls.length) return message;
  message.tool_calls = answer.calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
  if (answer.reasoning) message.reasoning_content = answer.reasoning;
  return message;
}

/** Folds one chunk of a streamed chat completion into an answer. before: tokens of it that were made before. Returns whether anything was said. */
export function take(answer, chunk, before = 0) {
  if (chunk.usage) answer.usage = { prompt_tokens: chunk.usage.prompt_tokens - before, completion_tokens: chunk.usage.completion_tokens + before };
  const [choice] = chunk.choices || [];
  if (!choice) return false;
  if (choice.finish_reason) answer.reason = choice.finish_reason;
  const delta = choice.delta || { content: choice.text };
  answer.text += delta.content || "";
  answer.reasoning += delta.reasoning_content || delta.reasoning || "";
  for (const piece of delta.tool_calls || []) {
    const call = (answer.calls[piece.index] ??= { id: "", name: "", arguments: "" });
    if (piece.id) call.id = piece.id;
    if (piece.function?.name) call.name = piece.function.name;
    call.arguments += piece.function?.arguments || "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.reasoning || delta.tool_calls?.length);
}

/** A conversation as Markdown, as it is shown. */
export function markdown(talk) {
  const parts = [`# ${talk.title || "Conversation"}`];
  if (talk.system.trim()) parts.push("## System", talk.system);
  for (const turn of path(talk)) {
    parts.push(turn.results ? "## Results of tools" : "## Question", turn.results ? JSON.stringify(turn.results, null, 1) : turn.text);
    for (const lane of [0, 1]) {
      const answer = turn.answers[lane][turn.shown[lane]];
      if (answer) parts.push(`## ${answer.model}`, answer.text || JSON.stringify(answer.calls, null, 1));
    }
  }
  return `${parts.join("\n\n")}\n`;
}
