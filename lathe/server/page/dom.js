// Names and attributes become elements, and words a toast or a line for screen readers. Text is always a text node.

const SVG = "http://www.w3.org/2000/svg";

// Drawn on 20 x 20 with a stroke of 1.6.
const SHAPES = {
  menu: "M3 5.5h14M3 10h14M3 14.5h14",
  plus: "M10 4v12M4 10h12",
  search: "M9 15A6 6 0 1 0 9 3a6 6 0 0 0 0 12ZM13.4 13.4 17 17",
  tune: "M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4",
  columns: "M4.5 3.5h11a1 1 0 0 1 1 1v11a1 1 0 0 1-1 1h-11a1 1 0 0 1-1-1v-11a1 1 0 0 1 1-1ZM10 3.5v13",
  light: "M10 13.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7ZM10 1.8v1.7M10 16.5v1.7M1.8 10h1.7M16.5 10h1.7M4.2 4.2l1.2 1.2M14.6 14.6l1.2 1.2M15.8 4.2l-1.2 1.2M5.4 14.6l-1.2 1.2",
  dark: "M16.5 11.8A7 7 0 0 1 8.2 3.5a7 7 0 1 0 8.3 8.3Z",
  auto: "M10 17a7 7 0 1 0 0-14 7 7 0 0 0 0 14ZM10 3v14M10 6.5h4.8M10 10h7M10 13.5h4.8",
  send: "M10 16V4.5M5 9.3l5-5 5 5",
  stop: "M6 6h8v8H6Z",
  copy: "M7 7V4.5a1 1 0 0 1 1-1h7.5a1 1 0 0 1 1 1V12a1 1 0 0 1-1 1H13M4.5 7H12a1 1 0 0 1 1 1v7.5a1 1 0 0 1-1 1H4.5a1 1 0 0 1-1-1V8a1 1 0 0 1 1-1Z",
  check: "M4 10.5l4 4 8-9",
  edit: "M4 16l.8-3.4L13.2 4.2a1.4 1.4 0 0 1 2 0l.6.6a1.4 1.4 0 0 1 0 2L7.4 15.2 4 16Z",
  again: "M16 9.5A6.2 6.2 0 1 0 14.6 14M16.3 4.5v5h-5",
  further: "M4 5l6 5-6 5ZM11 5l6 5-6 5Z",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  bin: "M4 6h12M8 6V4h4v2M5.5 6l.7 10h7.6l.7-10",
  out: "M10 3v9M6.5 8.8l3.5 3.4 3.5-3.4M4 16.5h12",
  braces: "M8 3.5C5.5 3.5 6.5 9 4 10c2.5 1 1.5 6.5 4 6.5M12 3.5C14.5 3.5 13.5 9 16 10c-2.5 1-1.5 6.5-4 6.5",
  close: "M5 5l10 10M15 5 5 15",
};

/** An element. Attributes that begin with "on" are listeners; those that are false, null or undefined are left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  const look = { viewBox: "0 0 20 20", class: "icon", "aria-hidden": "true" };
  for (const [key, value] of Object.entries(look)) drawing.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", SHAPES[name]);
  drawing.append(path);
  return drawing;
}

/** A button that is only a drawing, and says what it does to those who point at it or cannot see it. */
export function tool(shape, says, onclick, attributes = {}) {
  return element("button", { type: "button", class: "tool", title: says, "aria-label": says, onclick, ...attributes }, icon(shape));
}

/** A button that copies what `text()` gives, and shows for a moment that it did. */
export function copier(text, says = "Copy") {
  return tool("copy", says, async (event) => {
    const button = event.currentTarget;
    await copy(text());
    button.replaceChildren(icon("check"));
    announce("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1400);
  });
}

async function copy(text) {
  try { return await navigator.clipboard.writeText(text); } catch { /* there is none over plain HTTP from another machine, or it may not be used */ }
  const field = element("textarea", { class: "unseen" });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Says something to those who listen instead of looking. */
export function announce(words) {
  document.getElementById("status").textContent = words;
}

/** Shows words at the foot of the page for a while, with one thing that can be done about them. */
export function toast(words, action = null, act = null) {
  const old = document.querySelector(".toast");
  if (old) old.remove();
  const shown = element("div", { class: "toast", role: "status" }, element("span", {}, words));
  if (action) shown.append(element("button", { type: "button", onclick: () => { act(); shown.remove(); } }, action));
  document.body.append(shown);
  setTimeout(() => shown.remove(), action ? 9000 : 5000);
}

/** Calls `work` once per drawn frame at most, however often it is asked to. */
export function paced(work) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; work(); });
  };
}
