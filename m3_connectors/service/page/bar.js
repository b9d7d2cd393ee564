// The weighted scores of a document as one bar.

import { COMPONENTS } from "./fuse.js";
import { NAMES, el, shown } from "./dom.js";

/** Return each component's part of a fused score. */
export function parts(scores, weights) {
  return COMPONENTS.filter((name) => weights[name] !== 0 && scores[name] !== null && scores[name] !== undefined).map(
    (name) => ({ name, score: scores[name], weight: weights[name], value: scores[name] * weights[name] }),
  );
}

/** Return the range that holds all of some bars: their negative parts reach to the left of 0. */
export function range(bars) {
  const sum = (bar, sign) => bar.reduce((total, part) => total + Math.max(0, sign * part.value), 0);
  return { low: -Math.max(0, ...bars.map((bar) => sum(bar, -1))), high: Math.max(1e-9, ...bars.map((bar) => sum(bar, 1))) };
}

/** Return the bar of some parts within a range. */
export function bar(of, { low, high }) {
  const width = high - low;
  const label = of.map((part) => `${NAMES[part.name]} ${shown(part.value)}`).join(", ");
  const made = el("div", { class: "bar", role: "img", "aria-label": label || "no score" });
  let right = -low;
  let left = -low;
  for (const part of of) {
    const size = Math.abs(part.value);
    const piece = el("span", { class: part.name, title: `${NAMES[part.name]}: ${shown(part.score)} × ${part.weight}` });
    if (part.value < 0) {
      left -= size;
      piece.classList.add("negative");
    }
    piece.style.left = `${(100 * (part.value < 0 ? left : right)) / width}%`;
    piece.style.width = `${(100 * size) / width}%`;
    if (part.value >= 0) right += size;
    made.append(piece);
  }
  return made;
}
