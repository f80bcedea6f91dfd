// The models that the server names become the two pickers, the key field where it asks for one, and the context's meter.

import { element, toast } from "./dom.js";
import { apiKey, keepApiKey } from "./store.js";
import { models } from "./wire.js";

const at = (id) => document.getElementById(id);

/** settings.models: the names that were chosen. changed(): others were. */
export function pickers(settings, changed) {
  let known = [];
  const fields = [at("model-0"), at("model-1")];

  const load = async () => {
    for (let pause = 500; ; pause = Math.min(pause * 1.5, 4000)) {
      try {
        known = await models();
        break;
      } catch (error) {
        if (error.status === 401) await unlock();
        else {
          // It is starting, or away for a moment.
          at("empty").replaceChildren(element("h1", {}, "One moment"), element("p", { class: "soft" }, error.message));
          await new Promise((resolve) => setTimeout(resolve, pause));
        }
      }
    }
    if (!known.some((one) => one.id === settings.models[0])) settings.models[0] = known[0]?.id || "";
    if (!known.some((one) => one.id === settings.models[1])) settings.models[1] = other(settings.models[0]);
    greet();
    draw();
  };

  /** What stands well beside a model: its finetune, or what it was finetuned from, or any other. */
  const other = (id) => {
    const own = known.find((one) => one.id === id);
    const near = known.find((one) => one.parent === id) || known.find((one) => one.id === own?.parent) || known.find((one) => one.id !== id);
    return (near || own)?.id || "";
  };

  const options = (chosen) => {
    const option = (one) => element("option", { value: one.id, selected: one.id === chosen }, one.id);
    const bases = known.filter((one) => !one.parent);
    return bases.flatMap((base) => {
      const tuned = known.filter((one) => one.parent === base.id);
      return [option(base), ...(tuned.length ? [element("optgroup", { label: `Finetunes of ${base.id}` }, ...tuned.map(option))] : [])];
    });
  };

  const draw = () => {
    fields.forEach((field, lane) => { field.replaceChildren(...options(settings.models[lane])); });
    fields[1].hidden = !settings.beside;
    fields[0].setAttribute("aria-label", settings.beside ? "Model on the left" : "Model");
    at("beside").setAttribute("aria-pressed", settings.beside);
    document.body.classList.toggle("beside", settings.beside);
  };

  const greet = () => {
    const names = settings.beside ? settings.models.join(" and ") : settings.models[0];
    const key = (name) => element("kbd", {}, name);
    const bare = plain(settings.models[0]);
    at("say").placeholder = bare ? "Begin a text" : "Ask anything";
    at("empty").replaceChildren(...[element("h1", {}, bare ? "Write with " : "Talk with ", element("span", {}, names)),
      bare && element("p", { class: "soft" }, "It has no chat template: it goes on with your text as it is."),
      element("p", { class: "soft keys" }, key("Enter"), " sends ", key("Shift Enter"), " new line ", key("Esc"), " stops ", key("Ctrl K"), " finds")].filter(Boolean));
  };

  let asking = null;
  /** Asks for the key, once however many want it. */
  const unlock = () => {
    asking ??= new Promise((resolve) => {
      at("wrong").hidden = !apiKey(); // one was given, then, and was wrong
      at("key").value = "";
      at("unlock").onsubmit = () => { keepApiKey(at("key").value.trim()); asking = null; resolve(); };
      at("locked").oncancel = (event) => event.preventDefault();
      at("locked").showModal();
    });
    return asking;
  };

  const meter = (used) => {
    const contexts = known.filter((one) => settings.models.slice(0, settings.beside ? 2 : 1).includes(one.id)).map((one) => one.context).filter(Boolean);
    const room = contexts.length ? Math.min(...contexts) : 0;
    if (!used) { at("meter").replaceChildren(room ? `${room.toLocaleString("en")} tokens of context` : ""); return; }
    const bar = element("progress", { max: room || used, value: used, "aria-label": "Context used" });
    at("meter").replaceChildren(room ? bar : "", ` ${used.toLocaleString("en")}${room ? ` of ${room.toLocaleString("en")}` : ""} tokens`);
  };

  fields.forEach((field, lane) => field.addEventListener("change", () => { settings.models[lane] = field.value; greet(); changed(); }));
  at("beside").addEventListener("click", () => {
    settings.beside = !settings.beside;
    if (settings.beside && settings.models[1] === settings.models[0]) settings.models[1] = other(settings.models[0]);
    greet();
    draw();
    changed();
  });

  const plain = (id) => known.some((one) => one.id === id && one.plain);

  const ready = () => {
    if (!known.length) toast("The server names no model.");
    return known.length > 0;
  };
  return { load, unlock, meter, plain, ready, first: () => known[0].id };
}
