// Settings become fields, and fields what a request says about how answers are made. What is empty the model decides.

import { element } from "./dom.js";

// [field of the request, label, least, most, step, what it does]
const NUMBERS = [
  ["temperature", "Temperature", 0, 5, 0.05, "0 takes the likeliest token each time"],
  ["max_tokens", "Longest answer", 1, 1e6, 1, "in tokens"],
  ["top_p", "Top p", 0, 1, 0.01, "among the likeliest that together have this probability"],
  ["top_k", "Top k", 0, 1e6, 1, "among the K likeliest; 0 for all"],
  ["min_p", "Min p", 0, 1, 0.01, "among those at least this fraction as likely as the likeliest"],
  ["repetition_penalty", "Repetition penalty", 0.1, 5, 0.05, "above 1, what was said before becomes less likely"],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "off the scores of what the answer holds"],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, "the same, for each time that it holds it"],
  ["seed", "Seed", 0, 2 ** 53 - 1, 1, "the same seed gives the same answer"],
];

/** What a request says: the fields that are filled in. Throws an Error where the tools are not JSON. */
export function wishes(settings) {
  const told = { ...settings.wishes };
  const { stop, think } = told;
  delete told.stop;
  delete told.think;
  if (stop) told.stop = stop.split("\n").filter(Boolean);
  if (think) told.chat_template_kwargs = { enable_thinking: think === "on" };
  if (settings.tools.trim()) {
    let tools;
    try { tools = JSON.parse(settings.tools); } catch (error) { throw new Error(`The tools in the settings are not JSON: ${error.message}`); }
    told.tools = (Array.isArray(tools) ? tools : [tools]).map((one) => (one.function ? one : { type: "function", function: one }));
  }
  return told;
}

/** Fills the dialog. system: {get(), set(text)}, this conversation's. changed(): settings were. */
export function panel(settings, system, changed) {
  const dialog = document.getElementById("settings"), body = document.getElementById("fields");
  const told = (key, value) => {
    if (value === "" || Number.isNaN(value)) delete settings.wishes[key];
    else settings.wishes[key] = value;
    changed();
  };

  const number = ([key, label, least, most, step, help]) => {
    const field = element("input", { type: "number", id: `w-${key}`, min: least, max: most, step: Number.isInteger(step) ? step : "any", placeholder: "by default", inputmode: "decimal", "aria-describedby": `h-${key}` });
    field.value = settings.wishes[key] ?? "";
    field.addEventListener("input", () => {
      field.setCustomValidity("");
      if (field.checkValidity()) told(key, field.value === "" ? "" : Number(field.value));
    });
    return element("div", { class: "field" }, element("label", { for: field.id }, label), field, element("small", { id: `h-${key}` }, help));
  };

  const area = (id, label, help, value, take, rows) => {
    const field = element("textarea", { id, rows, spellcheck: "false", "aria-describedby": `h-${id}` });
    field.value = value;
    field.addEventListener("input", () => take(field.value));
    return element("div", { class: "field whole" }, element("label", { for: id }, label), field, element("small", { id: `h-${id}` }, help));
  };

  const think = () => {
    const field = element("select", { id: "w-think" }, ...[["", "by default"], ["on", "on"], ["off", "off"]].map(([value, name]) => element("option", { value }, name)));
    field.value = settings.wishes.think || "";
    field.addEventListener("change", () => told("think", field.value));
    return element("div", { class: "field" }, element("label", { for: field.id }, "Thinking"), field, element("small", {}, "for models that can say it or leave it"));
  };

  const clear = () => {
    settings.wishes = {};
    settings.tools = "";
    changed();
    fill();
  };

  const fill = () => body.replaceChildren(
    area("w-system", "System prompt", "What the model is told before anything else, in this conversation and in new ones.", system.get(), system.set, 4),
    ...NUMBERS.map(number), think(),
    area("w-stop", "Stop", "An answer ends where one of these would come; one on each line.", settings.wishes.stop || "", (value) => told("stop", value), 2),
    area("w-tools", "Tools", "Functions that the model may call, as JSON: [{\"name\", \"description\", \"parameters\"}]. You give their results.", settings.tools, (value) => { settings.tools = value; changed(); }, 3),
    element("button", { type: "button", class: "plain", onclick: clear }, "Back to the defaults"));

  document.getElementById("done").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  return { open: () => { fill(); dialog.showModal(); } };
}
