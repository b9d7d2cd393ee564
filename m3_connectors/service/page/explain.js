// The explanation of a hit: its scores as a bar, the tokens that both texts contain, and every token against every other.

import { ask, route } from "./api.js";
import { bar, parts, range } from "./bar.js";
import { NAMES, byId, el, shown, tokenName } from "./dom.js";
import { named } from "./fuse.js";
import { heatmap } from "./heatmap.js";

const dialog = byId("explanation");

/** What ends with the dialog: requests and listeners. */
let open = null;

dialog.addEventListener("close", () => {
  open?.abort();
  dialog.replaceChildren();
});

/**
 * Explain a hit.
 * @param {{id: string, text: string}} hit
 * @param {{collection: string, query: string, method: string, weights: number[]}} asked
 */
export async function explain(hit, { collection, query, method, weights }) {
  open?.abort();
  open = new AbortController();
  const { signal } = open;
  const close = el("button", { type: "button", class: "quiet" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const body = el("div", { class: "body", "aria-live": "polite", "aria-busy": true }, el("p", { class: "note" }, "Explaining …"));
  dialog.replaceChildren(
    el("header", {}, el("h2", { id: "explained" }, el("bdi", {}, hit.id), el("span", {}, ` scored by ${method}`)), close),
    el("dl", { class: "texts" }, el("dt", {}, "Query"), el("dd", { dir: "auto" }, query), el("dt", {}, "Document"), el("dd", { dir: "auto" }, hit.text ?? "")),
    body,
  );
  if (!dialog.open) dialog.showModal();
  try {
    const answer = await ask(route(collection, "/explain"), { body: { query, id: hit.id, method, weights }, signal });
    body.replaceChildren(score(answer), ...tokens(answer), ...pairs(answer, signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    body.replaceChildren(el("div", { class: "error", role: "alert" }, error.message));
  }
  body.setAttribute("aria-busy", "false");
  body.removeAttribute("aria-live");
}

const table = (caption, heads, rows) =>
  el(
    "table",
    {},
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))),
  );

const token = (name) => el("bdi", { class: "token" }, tokenName(name));

function score(answer) {
  const of = parts(answer.scores, named(answer.weights));
  const rows = of.map((part) => [
    el("span", { class: `name ${part.name}` }, NAMES[part.name]),
    shown(part.score),
    `× ${part.weight}`,
    shown(part.value),
  ]);
  const made = el("section", { class: "score" }, el("h3", {}, "Score"));
  made.append(el("p", { class: "total" }, shown(answer.score)), bar(of, range([of])));
  made.append(table("The weighted scores", ["Score", "Value", "Weight", "Part"], rows));
  const others = Object.keys(NAMES).filter((name) => !of.some((part) => part.name === name) && answer.scores[name] !== null);
  if (others.length) {
    const values = others.map((name) => `${NAMES[name]} ${shown(answer.scores[name])}`).join(", ");
    made.append(el("p", { class: "note" }, `Not in this score, because the weight is 0: ${values}.`));
  }
  return made;
}

function tokens(answer) {
  if (answer.scores.sparse === null) return [];
  const heading = el("h3", {}, "Tokens of both texts", el("span", { class: "part" }, `sparse ${shown(answer.scores.sparse)}`));
  if (!answer.tokens.length) {
    return [el("section", {}, heading, el("p", { class: "note" }, "The texts share no token that has a weight in both."))];
  }
  const product = (match) => match.query_weight * match.document_weight;
  const top = Math.max(...answer.tokens.map(product));
  const rows = answer.tokens.map((match) => {
    const meter = el("span", { class: "meter sparse" });
    meter.style.width = `${(100 * product(match)) / top}%`;
    return [token(match.token), shown(match.query_weight), shown(match.document_weight), el("span", { class: "measured" }, el("span", {}, shown(product(match))), meter)];
  });
  return [
    el(
      "section",
      {},
      heading,
      table("Tokens of both texts with their weights", ["Token", "In the query", "In the document", "Product"], rows),
    ),
  ];
}

function pairs(answer, signal) {
  const all = answer.similarities;
  if (!all) return [];
  const rows = answer.pairs.map((pair) => [token(pair.query_token), token(pair.document_token), shown(pair.similarity)]);
  const heading = el("h3", {}, "Token by token", el("span", { class: "part" }, `multi-vector ${shown(answer.scores.multivector)}`));
  const cut = [];
  if (all.query_tokens.length < all.query_rows) cut.push(`the first ${all.query_tokens.length} of ${all.query_rows} query tokens`);
  if (all.document_tokens.length < all.document_rows) {
    cut.push(`${all.document_tokens.length} of ${all.document_rows} document tokens: the first ones, and the best matches`);
  }
  return [
    el(
      "section",
      {},
      heading,
      el("p", { class: "note" }, "A row for each token of the query. The multi-vector score is the mean of the best of each row, which is outlined."),
      cut.length ? el("p", { class: "note cut" }, `Shown: ${cut.join("; ")}.`) : null,
      heatmap(all, signal),
      el("details", {}, el("summary", {}, "The best match of each query token"), table("Best matches", ["Query token", "Document token", "Similarity"], rows)),
    ),
  ];
}
