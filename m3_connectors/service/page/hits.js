// A list of hits.

import { bar, parts, range } from "./bar.js";
import { COMPONENTS } from "./fuse.js";
import { NAMES, el, shown } from "./dom.js";

/**
 * Return a list of hits.
 * @param {Array} hits with id, score, scores, text and metadata
 * @param {Object<string, number>} weights of the fused score
 * @param {(hit: Object) => void} onExplain
 */
export function list(hits, weights, onExplain) {
  const bars = hits.map((hit) => parts(hit.scores, weights));
  const scale = range(bars);
  return el("ol", { class: "hits" }, ...hits.map((hit, i) => item(hit, bar(bars[i], scale), onExplain)));
}

function item(hit, drawn, onExplain) {
  const button = el("button", { type: "button", class: "explain", "aria-haspopup": "dialog" }, "Explain");
  button.append(el("span", { class: "unseen" }, ` ${hit.id}`));
  button.addEventListener("click", () => onExplain(hit));
  const three = COMPONENTS.filter((name) => hit.scores[name] !== null && hit.scores[name] !== undefined).map((name) =>
    el("span", { class: name, title: NAMES[name] }, shown(hit.scores[name])),
  );
  const found = el(
    "li",
    { class: "hit", "data-id": hit.id },
    el("div", { class: "head" }, el("bdi", { class: "id" }, hit.id), el("span", { class: "score" }, shown(hit.score))),
    drawn,
    el("p", { class: "text", dir: "auto" }, hit.text ?? "This document was deleted after it was found."),
    el("p", { class: "three" }, ...three),
    el("div", { class: "foot" }, metadata(hit.metadata ?? {}), button),
  );
  for (const [event, is] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]]) {
    found.addEventListener(event, () => mark(hit.id, is));
  }
  return found;
}

function metadata(fields) {
  const names = Object.keys(fields);
  const written = (value) => (typeof value === "object" && value !== null ? JSON.stringify(value) : String(value));
  const items = names.map((name) => el("span", {}, el("bdi", { class: "field" }, name), " ", el("bdi", {}, written(fields[name]))));
  return el("p", { class: "metadata" }, ...items);
}

/** Mark a document in all columns. */
function mark(id, is) {
  for (const other of document.querySelectorAll(".hit")) {
    other.classList.toggle("same", is && other.dataset.id === id);
  }
}
