// The facts of one run, which the page holds as JSON, become tiles, curves, samples and its recipe.
"use strict";

const run = JSON.parse(document.getElementById("run").textContent);
const kept = JSON.parse(sessionStorage.getItem("lathe") || "{}");
const settings = { smooth: kept.smooth ?? 0.01, log: kept.log ?? false };
if (run.status === "running" && Date.now() / 1000 - run.at > 900) run.status = "silent"; // it was killed, or is far in a long step
const main = document.querySelector("main");
const steps = run.series.step || [], last = steps.length - 1;
const points = (name) => (run.series[name] || []).map((y, n) => [steps[n], y]);

function tile(value, words) {
  return value === null ? "" : element("div", { class: "card tile" }, element("b", {}, value), element("span", {}, words));
}

function tiles() {
  const now = (name) => (run.series[name] && last >= 0 ? run.series[name][last] : null);
  const best = run.validation.reduce((a, b) => (a && a[1] <= b[1] ? a : b), null);
  const left = run.status === "running" && run.left ? clock(run.left) : null;
  const measured = (value, format) => (value === null || value === undefined ? null : format(value));
  return element("div", { class: "tiles" },
    tile(measured(now("loss"), (v) => v.toFixed(3)), "training loss"),
    tile(best && best[1].toFixed(3), best ? `best validation loss, step ${best[0].toLocaleString("en")}` : ""),
    tile(measured(now("tokens_per_second"), short), "tokens per second"),
    tile(measured(now("peak"), percent), "of the measured peak FLOP/s"),
    tile(measured(now("memory"), (v) => `${(v / 1e9).toFixed(2)} GB`), "of memory, at most"),
    tile(measured(now("tokens"), short), "tokens learned from"),
    tile(left, "left"));
}

function curves() {
  const one = (title, name, color, options) => chart(title, thick("", color, points(name), settings.smooth), options);
  return element("div", { class: "charts" },
    chart("Loss (nats per token)", [...thick("training", 0, points("loss"), settings.smooth),
      { name: "validation", color: 1, dots: true, points: run.validation }], { log: settings.log }),
    chart("Learning rate", [{ color: 2, points: points("lr") }], { zero: true }),
    one("Gradient norm, before clipping", "gradient_norm", 3, { log: settings.log }),
    one("Tokens per second", "tokens_per_second", 5, { zero: true }),
    ...tasks());
}

function tasks() {
  const names = Object.keys(run.tasks), metric = (name) => name.slice(name.lastIndexOf("/") + 1);
  const line = (name, color) => ({ name: name.slice(0, name.lastIndexOf("/")), color, dots: true, points: run.tasks[name] });
  return [...new Set(names.map(metric))].map((title) => chart(title, names.filter((name) => metric(name) === title).map(line), {}));
}

function samples() {
  if (!run.samples.length) return "";
  const text = element("pre"), which = element("span");
  const slider = element("input", { type: "range", min: 0, max: run.samples.length - 1, "aria-label": "sample" });
  const show = () => {
    const [step, sample] = run.samples[slider.value];
    text.textContent = sample;
    which.textContent = `after step ${step.toLocaleString("en")}`;
  };
  slider.value = run.samples.length - 1;
  slider.addEventListener("input", show);
  show();
  const head = element("div", { class: "bar" }, which, run.samples.length > 1 ? slider : "");
  const title = element("div", { style: "display:flex;align-items:baseline" }, element("h2", {}, "What the model writes"), head);
  return element("section", { class: "card" }, title, text);
}

function table(title, facts) {
  const rows = Object.entries(facts).map(([name, value]) => element("tr", {}, element("td", {}, name), element("td", {}, String(value))));
  return element("div", { class: "card" }, element("h2", {}, title), element("table", {}, ...rows));
}

function draw() {
  const log = element("input", { type: "checkbox", onchange: (e) => { settings.log = e.target.checked; draw(); } });
  log.checked = settings.log;
  const smooth = element("input", { type: "range", min: 0, max: 0.05, step: 0.002, onchange: (e) => { settings.smooth = Number(e.target.value); draw(); } });
  smooth.value = settings.smooth;
  const header = element("header", {}, element("h1", {}, run.title), element("span", { class: `pill ${run.status}` }, run.status),
    element("span", { class: "soft" }, `step ${(steps[last] || 0).toLocaleString("en")}${run.total ? ` of ${run.total.toLocaleString("en")}` : ""} · ${run.written}`),
    element("div", { class: "bar" }, element("label", {}, "smooth", smooth), element("label", {}, log, "logarithmic")));
  const done = element("div");
  done.style.width = `${run.total ? Math.min(100, (100 * (steps[last] || 0)) / run.total) : 0}%`;
  main.replaceChildren(header, element("div", { class: "progress" }, done), tiles(), curves(), samples(),
    element("section", { class: "pair" }, table("Model and machine", run.facts), element("div", { class: "card" }, element("h2", {}, "Recipe"), element("pre", {}, run.recipe))));
  sessionStorage.setItem("lathe", JSON.stringify(settings));
}

draw();
// A file cannot be asked whether it has changed: while the run goes on, it is read again.
if (run.status === "running") setInterval(() => { if (!document.hidden && !document.querySelector(":hover input")) location.reload(); }, 15000);
