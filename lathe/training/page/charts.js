// Series of points become a chart in SVG that says what it shows under the pointer. Knows no run and no file.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 560, HEIGHT = 230, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 24;

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [unit, word] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit) return String(parseFloat((value / unit).toPrecision(3))) + word;
  if (size < 0.001) return value.toExponential(1).replace("e-", "e−");
  return String(parseFloat(value.toPrecision(size < 1 ? 3 : 4)));
}

function clock(seconds) {
  const s = Math.round(seconds), parts = [Math.floor(s / 3600), Math.floor((s % 3600) / 60), s % 60];
  if (parts[0]) return `${parts[0]} h ${parts[1]} min`;
  return parts[1] ? `${parts[1]} min ${parts[2]} s` : `${parts[2]} s`;
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step)
    found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

function smoothed(points, part) {
  // Each averaged with its neighbours, `part` of the curve on either side; at the start, where it is steep, with fewer.
  const reach = Math.round(part * points.length), sums = [0];
  for (const [, y] of points) sums.push(sums.at(-1) + (y ?? 0));
  return points.map(([x], n) => {
    const before = Math.min(reach, n), end = n + 1 + Math.min(before, points.length - 1 - n);
    return [x, (sums[end] - sums[n - before]) / (end - n + before)];
  });
}

function thick(name, color, points, part) {
  // A curve that jumps: as it is, faint, and its means over it.
  const plain = { name, color, points };
  return points.length > 12 && part ? [{ ...plain, faint: true }, { ...plain, points: smoothed(points, part) }] : [plain];
}

function quantile(values, part) {
  return values[Math.min(values.length - 1, Math.max(0, Math.round(part * (values.length - 1))))];
}

// series: [{name, color, points: [[x, y], ...], dots, faint}]. across: what x is. Returns an element.
function chart(title, series, { across = "step", log = false, format = short, zero = false } = {}) {
  const kept = series
    .map((one) => ({ ...one, points: one.points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y) && (!log || y > 0)) }))
    .filter((one) => one.points.length);
  const read = element("div", { class: "read" });
  const card = element("div", { class: "card chart" }, element("div", { class: "head" }, element("h2", {}, title), read));
  if (!kept.length) {
    card.append(element("div", { class: "empty" }, "nothing measured yet"));
    return card;
  }
  const scale = log ? Math.log10 : (y) => y;
  const xs = kept.flatMap((one) => [one.points[0][0], one.points.at(-1)[0]]);
  const ys = kept.flatMap((one) => one.points.map(([, y]) => scale(y))).sort((a, b) => a - b);
  // A few spikes shall not flatten everything else: they are cut off.
  const inner = quantile(ys, 0.995) - quantile(ys, 0.005);
  let low = zero ? 0 : Math.max(ys[0], quantile(ys, 0.005) - inner);
  let high = Math.min(ys.at(-1), quantile(ys, 0.995) + inner);
  if (high <= low) { const pad = Math.abs(high) * 0.1 || 1; low -= pad; high += pad; }
  else { const pad = (high - low) * 0.06; low -= zero ? 0 : pad; high += pad; }
  const first = Math.min(...xs), last = Math.max(...xs) > first ? Math.max(...xs) : first + 1;
  const px = (x) => LEFT + ((x - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => TOP + (1 - (Math.min(high, Math.max(low, scale(y))) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);

  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const at of ticks(low, high, 4)) {
    const y = py(log ? 10 ** at : at);
    svg.append(drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, stroke: "var(--grid)" }));
    const label = drawn("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" });
    label.textContent = format(log ? 10 ** at : at);
    svg.append(label);
  }
  for (const at of ticks(first, last, 5)) {
    const label = drawn("text", { x: px(at), y: HEIGHT - 6, "text-anchor": px(at) > WIDTH - 40 ? "end" : "middle" });
    label.textContent = across === "seconds" ? clock(at) : short(at);
    svg.append(label);
  }
  for (const one of kept) {
    const color = `var(--c${one.color})`;
    if (one.points.length > 1) {
      const d = one.points.map(([x, y], n) => `${n ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
      const look = { d, fill: "none", stroke: color, "stroke-linejoin": "round", "stroke-linecap": "round" };
      svg.append(drawn("path", { ...look, "stroke-width": one.faint ? 1 : 1.9, opacity: one.faint ? 0.28 : 1 }));
    }
    if (one.dots || one.points.length === 1)
      for (const [x, y] of one.points)
        svg.append(drawn("circle", { cx: px(x), cy: py(y), r: 3, fill: color, stroke: "var(--card)", "stroke-width": 1 }));
  }

  const hair = drawn("line", { y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--soft)", "stroke-width": 0.7, visibility: "hidden" });
  svg.append(hair);
  const named = kept.filter((one) => !one.faint);
  const nearest = (points, x) => {
    let a = 0, b = points.length - 1;
    while (b - a > 1) { const mid = (a + b) >> 1; if (points[mid][0] <= x) a = mid; else b = mid; }
    return Math.abs(points[a][0] - x) <= Math.abs(points[b][0] - x) ? points[a] : points[b];
  };
  const show = (x) => {
    read.replaceChildren();
    named.forEach((one) => {
      const [, y] = x === null ? one.points.at(-1) : nearest(one.points, x);
      const mark = element("i");
      mark.style.background = `var(--c${one.color})`;
      read.append(element("span", {}, mark, `${named.length > 1 && one.name ? one.name + " " : ""}${format(y)}`), " ");
    });
    if (x !== null) {
      const at = nearest(named[0].points, x)[0];
      read.append(`· ${across === "seconds" ? clock(at) : `${across} ${across === "step" ? Math.round(at).toLocaleString("en") : short(at)}`}`);
      hair.setAttribute("x1", px(at)); hair.setAttribute("x2", px(at));
    }
    hair.setAttribute("visibility", x === null ? "hidden" : "visible");
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const part = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    show(first + Math.min(1, Math.max(0, part)) * (last - first));
  });
  svg.addEventListener("pointerleave", () => show(null));
  show(null);
  card.append(svg);
  return card;
}

function percent(part) { return `${(100 * part).toFixed(part < 0.1 ? 1 : 0)} %`; }
