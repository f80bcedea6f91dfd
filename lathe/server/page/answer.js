// One answer becomes an article: its reasoning folded, its text, the tools it calls, and what can be done about it.

import { codeBlock } from "./code.js";
import { copier, element, icon, tool } from "./dom.js";
import { show } from "./markdown.js";
import { FAILED, STOPPED, WRITING } from "./talk.js";

/** How much was written and how fast, in one line: "128 tokens · 21.3 tokens/s · first after 0.4 s". */
export function speed(answer) {
  const parts = [];
  const tokens = answer.usage?.completion_tokens || 0;
  const [first, rest] = answer.seconds || [0, 0];
  if (tokens) parts.push(`${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`);
  if (tokens > 1 && rest > 0.1) parts.push(`${rate((tokens - 1) / rest)} tokens/s`);
  if (first) parts.push(`first after ${first < 10 ? first.toFixed(2) : first.toFixed(0)} s`);
  return parts.join(" · ");
}

function rate(value) {
  return value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

/** "‹ 2/3 ›" where there are several versions. turn(step): shows the one before or after. */
export function versions(at, count, what, turn) {
  if (count < 2) return null;
  const step = (by, shape, says) => tool(shape, says, () => turn(at + by), { disabled: at + by < 0 || at + by >= count });
  return element("span", { class: "versions" }, step(-1, "left", `Previous ${what}`), element("span", {}, `${at + 1}/${count}`), step(1, "right", `Next ${what}`));
}

/**
 * A view of an answer: {root, update()}, where `update` shows what has been added since.
 * acts: {again, further, version, results}, each for this answer; results is null where tools cannot be answered.
 */
export function view(answer, at, count, acts, { named }) {
  const text = element("div", { class: "text" });
  const thought = element("div", { class: "text" });
  const summary = element("summary");
  const fold = element("details", { class: "thought", hidden: true, open: answer.open, ontoggle: () => { answer.open = fold.open; } }, summary, thought);
  const calls = element("div", { class: "calls" });
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const stats = element("span", { class: "stats" });
  const tools = element("span", { class: "tools" });
  const root = element("article", { class: "answer", "aria-label": `Answer of ${answer.model}` },
    named && element("header", { class: "who" }, answer.model), fold, text, calls, trouble, element("footer", { class: "foot" }, tools, stats));
  let finished = null, called = "";

  const finish = () => {
    const more = answer.state === STOPPED || answer.reason === "length";
    tools.replaceChildren(...[
      versions(at, count, "answer", acts.version),
      answer.text && copier(() => answer.text, "Copy answer"),
      tool("again", "Answer again", acts.again),
      more && answer.text && !answer.calls.length && tool("further", "Go on from here", acts.further),
    ].filter(Boolean));
  };

  const update = () => {
    const writing = answer.state === WRITING;
    root.setAttribute("aria-busy", writing);
    root.classList.toggle("writing", writing && !answer.text && !answer.reasoning && !answer.calls.length);
    fold.hidden = !answer.reasoning;
    if (answer.reasoning) {
      summary.textContent = writing && !answer.text ? "Thinking …" : "Thoughts";
      show(thought, answer.reasoning);
    }
    show(text, answer.text);
    const now = JSON.stringify(answer.calls);
    if (now !== called) calls.replaceChildren(...answer.calls.map((call) => shown(call)));
    called = now;
    trouble.hidden = answer.state !== FAILED;
    trouble.textContent = answer.error || "";
    const why = { length: "cut off at the limit", [STOPPED]: "stopped" }[answer.state === STOPPED ? STOPPED : answer.reason];
    const reading = writing && answer.reading?.processed < answer.reading?.total;
    const progress = reading && `reading ${answer.reading.processed.toLocaleString("en")} of ${answer.reading.total.toLocaleString("en")} tokens`;
    stats.textContent = [progress || speed(answer), !writing && why].filter(Boolean).join(" · ");
    if (finished === writing) return;
    finished = writing;
    if (writing) tools.replaceChildren();
    else {
      finish();
      if (acts.results && answer.calls.length) calls.append(replying(answer.calls, acts.results));
    }
  };
  update();
  return { root, update };
}

/** A call of a tool: its name, and its arguments set out as far as they are JSON. */
function shown(call) {
  let given = call.arguments;
  try { given = JSON.stringify(JSON.parse(given), null, 2); } catch { /* it is still being written */ }
  return element("details", { class: "call", open: true },
    element("summary", {}, icon("braces"), element("span", {}, "calls"), element("b", {}, call.name)), codeBlock(given, "json"));
}

/** Fields for what the tools gave, which go back to the model. */
function replying(calls, send) {
  const fields = calls.map((call) => element("textarea", { rows: 2, name: call.id, "aria-label": `Result of ${call.name}`, placeholder: `What ${call.name} gives` }));
  const submit = (event) => {
    event.preventDefault();
    send(fields.map((field, at) => ({ id: calls[at].id, content: field.value })));
  };
  return element("form", { class: "replying", onsubmit: submit }, ...fields, element("button", { class: "plain" }, "Send results"));
}
