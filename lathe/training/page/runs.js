// Runs below a folder, asked for again and again, become curves side by side.
"use strict";

const main = document.querySelector("main");
const kept = JSON.parse(localStorage.getItem("lathe-runs") || "{}");
const settings = { across: kept.across ?? "step", smooth: kept.smooth ?? 0.01, log: kept.log ?? false, hidden: kept.hidden ?? [] };
const runs = new Map(); // by id: {made, offset, tail, lines, color, bytes}
const ACROSS = { step: "steps", tokens: "tokens", seconds: "time" };
const MOST = 1500; // points of a curve
let folder = "", drawn_at = "";

async function ask() {
  const told = await (await fetch("api/runs")).json();
  folder = told.folder;
  for (const id of runs.keys()) if (!told.runs.some((one) => one.id === id)) runs.delete(id);
  for (const one of told.runs) {
    let run = runs.get(one.id);
    if (!run || run.made !== one.made || run.offset > one.bytes) {
      const used = new Set([...runs.values()].map((other) => other.color));
      const color = run ? run.color : [0, 1, 2, 3, 4, 5, 6, 7].find((n) => !used.has(n)) ?? runs.size % 8;
      run = { made: one.made, offset: 0, lines: [], held: [], color };
      runs.set(one.id, run);
    }
    Object.assign(run, { age: one.age, report: one.report, finished: one.finished });
    while (run.offset < one.bytes) {
      const answer = await fetch(`api/metrics?run=${encodeURIComponent(one.id)}&from=${run.offset}`);
      const text = await answer.text();
      const next = Number(answer.headers.get("X-Next"));
      for (const line of text.split("\n")) take(run, line);
      if (!answer.ok || next <= run.offset) break; // a line that is not whole yet
      run.offset = next;
    }
  }
}

function take(run, text) {
  let line;
  try { line = JSON.parse(text); } catch { return; }
  if (typeof line.loss === "number") run.lines.push(line);
  else if (typeof line.validation_loss === "number") run.held.push(line);
}

function thinned(points) {
  const each = Math.ceil(points.length / MOST);
  if (each <= 1) return points;
  const found = [];
  for (let at = 0; at < points.length; at += each) {
    const some = points.slice(at, at + each);
    found.push([some.at(-1)[0], some.reduce((sum, [, y]) => sum + y, 0) / some.length]);
  }
  return found;
}

function place(run, line) {
  if (settings.across === "step" || settings.across in line) return line[settings.across];
  const near = run.lines.findLast((other) => other.step <= line.step);
  return near ? near[settings.across] : NaN;
}

function shown() { return [...runs].filter(([id, run]) => !settings.hidden.includes(id) && run.lines.length); }

function compare(title, name, options = {}) {
  const jumps = name !== "lr";
  const series = shown().flatMap(([, run]) => {
    const points = thinned(run.lines.map((line) => [line[settings.across], line[name]]).filter(([, y]) => typeof y === "number"));
    return jumps ? thick("", run.color, points, settings.smooth) : [{ color: run.color, points }];
  });
  return chart(title, series, { across: settings.across, ...options });
}

function held() {
  const series = shown().map(([, run]) => ({ color: run.color, dots: true, points: run.held.map((line) => [place(run, line), line.validation_loss]) }));
  return chart("Validation loss", series, { across: settings.across, log: settings.log });
}

function status(run) {
  if (run.finished) return "finished";
  return run.age < 60 ? "running" : `silent for ${clock(run.age)}`;
}

function row(id, run) {
  const box = element("input", { type: "checkbox", onchange: () => {
    settings.hidden = settings.hidden.includes(id) ? settings.hidden.filter((other) => other !== id) : [...settings.hidden, id];
    draw();
  } });
  box.checked = !settings.hidden.includes(id);
  box.style.accentColor = `var(--c${run.color})`;
  const last = run.lines.at(-1), best = run.held.reduce((a, b) => Math.min(a, b.validation_loss), Infinity);
  const facts = last ? [`step ${last.step.toLocaleString("en")}`, `loss ${last.loss.toFixed(3)}`] : ["nothing measured yet"];
  if (best < Infinity) facts.push(`best validation ${best.toFixed(3)}`);
  if (last) facts.push(`${short(last.tokens_per_second)} tokens/s`);
  const state = element("span", { class: "small" }, status(run));
  if (run.report) state.append(" · ", element("a", { href: `report?run=${encodeURIComponent(id)}`, target: "_blank" }, "report"));
  return element("label", {}, box, element("span", { class: "name" }, id), element("span", { class: "small" }, facts.join(" · ")), state);
}

function draw() {
  localStorage.setItem("lathe-runs", JSON.stringify(settings));
  const change = (name, value) => { settings[name] = value; draw(); };
  const across = element("select", { onchange: (event) => change("across", event.target.value) });
  for (const [value, words] of Object.entries(ACROSS)) across.append(element("option", { value }, words));
  across.value = settings.across;
  const smooth = element("input", { type: "range", min: 0, max: 0.05, step: 0.002, onchange: (event) => change("smooth", Number(event.target.value)) });
  smooth.value = settings.smooth;
  const log = element("input", { type: "checkbox", onchange: (event) => change("log", event.target.checked) });
  log.checked = settings.log;
  const bar = element("div", { class: "bar" }, element("label", {}, "over", across), element("label", {}, "smooth", smooth), element("label", {}, log, "logarithmic"));
  const header = element("header", {}, element("h1", {}, "Runs"), element("span", { class: "soft" }, folder), bar);
  const list = element("div", { class: "card runs" }, ...[...runs].map(([id, run]) => row(id, run)));
  const curves = element("div", { class: "charts" }, compare("Training loss (nats per token)", "loss", { log: settings.log }), held(),
    compare("Learning rate", "lr", { zero: true }), compare("Gradient norm, before clipping", "gradient_norm", { log: settings.log }),
    compare("Tokens per second", "tokens_per_second", { zero: true }), compare("Part of the measured peak", "peak", { zero: true, format: percent }));
  const body = runs.size ? element("div", { class: "shelf" }, list, curves) : element("div", { class: "card empty" }, `No run below ${folder} yet. This page looks again every few seconds.`);
  main.replaceChildren(header, body);
}

async function watch() {
  try {
    await ask();
    const now = JSON.stringify([...runs].map(([id, run]) => [id, run.made, run.offset, status(run)]));
    if (now !== drawn_at && !document.querySelector("select:focus, svg:hover")) { drawn_at = now; draw(); }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // the server is gone: what was read stays
  } finally {
    setTimeout(watch, 3000);
  }
}

watch();
