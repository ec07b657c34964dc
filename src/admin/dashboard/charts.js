// Small charts, each with its meaning in words.

import { s } from "./dom.js";

const sum = (list) => list.reduce((a, b) => a + b, 0);

// A day of one endpoint: bars of what was good, refused and failed.
export function day(figures) {
  const slots = 48;
  const good = figures?.good ?? [], refused = figures?.refused ?? [], failed = figures?.failed ?? [];
  const words = `Last 24 hours: ${sum(good)} good, ${sum(refused)} refused, ${sum(failed)} failed`;
  const most = Math.max(1, ...good.map((_, i) => good[i] + refused[i] + failed[i]));
  const start = slots - Math.min(slots, good.length);
  const bars = [];
  good.slice(-slots).forEach((_, i) => {
    const at = good.length - Math.min(slots, good.length) + i;
    let y = 40;
    for (const [name, list] of [["good", good], ["refused", refused], ["failed", failed]]) {
      if (!list[at]) continue;
      const height = Math.max(1.5, (list[at] / most) * 38);
      y -= height;
      bars.push(s("rect", { class: name, x: (start + i) * 5, y: Math.max(0, y), width: 4, height }));
    }
  });
  return s("svg", { class: "chart", viewBox: "0 0 240 41", preserveAspectRatio: "none", role: "img", "aria-label": words },
    s("title", {}, words), bars, s("line", { class: "base", x1: 0, x2: 240, y1: 40.5, y2: 40.5 }));
}

// The last hour as one or two lines; gaps where nothing came.
export function lines(words, ...series) {
  const slots = Math.max(12, ...series.map((values) => values.length)), most = Math.max(1e-9, ...series.flat().filter((v) => v !== null));
  const paths = series.map((values, number) => {
    const start = slots - values.length;
    let path = "", under = "", open = null;
    values.forEach((value, i) => {
      if (value === null) { open = null; return; }
      const x = start + i, y = (39 - (value / most) * 37).toFixed(2);
      if (open === null) { path += `M${x} ${y}h.5`; open = x; } else path += `L${x} ${y}`;
      under += `M${x} 40V${y}h1V40z`;
    });
    return [number === 0 && s("path", { class: "under", d: under }),
      s("path", { class: number === 0 ? "line" : "line second", d: path })];
  });
  return s("svg", { class: "chart tall", viewBox: `0 0 ${slots} 41`, preserveAspectRatio: "none", role: "img", "aria-label": words },
    s("title", {}, words), paths, s("line", { class: "base", x1: 0, x2: slots, y1: 40.5, y2: 40.5 }));
}

export const meter = (part) =>
  s("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { width: Math.max(1, part * 100), height: 6, rx: 1 }));
