// Conversations become the list beside the page: found by words, opened, renamed, deleted, taken out and in.

import { element, toast, tool } from "./dom.js";
import * as store from "./store.js";
import { markdown } from "./talk.js";

const DAY = 86400000;

/** acts: {open(id), fresh(), changed(id), running(id)}. Returns {draw(current)}. */
export function side(acts) {
  const field = document.getElementById("search"), list = document.getElementById("talks");
  let current = null;

  const draw = (id = current) => {
    current = id;
    const found = store.search(store.talks(), field.value);
    let group = "";
    const rows = [];
    for (const [talk, excerpt] of found) {
      const when = age(talk.changed);
      if (when !== group && !field.value) rows.push(element("h2", {}, when));
      group = when;
      rows.push(row(talk, excerpt));
    }
    if (!found.length) rows.push(element("p", { class: "soft" }, field.value ? "Nothing found." : "Conversations stay in this browser. They will be listed here."));
    list.replaceChildren(...rows);
  };

  const row = (talk, excerpt) => {
    const open = element("button", { type: "button", class: "name", "aria-current": talk.id === current && "page", onclick: () => acts.open(talk.id) },
      element("span", {}, talk.title || "New conversation"), excerpt && element("small", {}, excerpt[0], element("mark", {}, excerpt[1]), excerpt[2]));
    return element("div", { class: `talk${acts.running(talk.id) ? " running" : ""}` }, open, element("span", { class: "tools" },
      tool("edit", "Rename", () => rename(talk, open)),
      tool("out", "Save as Markdown", () => download(`${fileName(talk.title)}.md`, markdown(talk), "text/markdown")),
      tool("bin", "Delete", () => remove(talk))));
  };

  const rename = (talk, open) => {
    const name = element("input", { class: "name", "aria-label": "Name of the conversation", maxlength: 200 });
    let done = false;
    const end = (take) => {
      if (done) return;
      done = true;
      if (take && name.value.trim()) {
        talk.title = name.value.trim();
        store.keep(talk);
        acts.changed(talk.id);
      }
      draw();
    };
    name.value = talk.title;
    name.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") { event.stopPropagation(); end(false); }
    });
    name.addEventListener("blur", () => end(true));
    open.replaceWith(name);
    name.select();
  };

  const remove = (talk) => {
    store.drop(talk.id);
    acts.changed(talk.id);
    draw();
    toast(`Deleted “${talk.title.slice(0, 40) || "New conversation"}”.`, "Undo", () => { store.keep(talk); draw(); });
  };

  field.addEventListener("input", () => draw());
  document.getElementById("fresh").addEventListener("click", acts.fresh);
  document.getElementById("export").addEventListener("click", () => download(`lathe-conversations-${new Date().toISOString().slice(0, 10)}.json`, store.packed(store.talks()), "application/json"));
  document.getElementById("import").addEventListener("click", () => document.getElementById("file").click());
  document.getElementById("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    try {
      const read = store.unpacked(await file.text());
      read.forEach(store.keep);
      toast(`${read.length} conversation${read.length === 1 ? "" : "s"} imported.`);
    } catch (error) { toast(error.message); }
    event.target.value = "";
    draw();
  });
  store.watch((id) => { acts.changed(id); draw(); });
  return { draw };
}

function age(time) {
  const days = Math.floor((new Date().setHours(24, 0, 0, 0) - time) / DAY);
  if (days < 1) return "Today";
  if (days < 2) return "Yesterday";
  if (days < 7) return "This week";
  return new Date(time).toLocaleDateString(undefined, { month: "long", year: "numeric" });
}

function fileName(title) {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "conversation";
}

function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
