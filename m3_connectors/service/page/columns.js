// One method's hits, and its weights: fused again in this browser from the scores of all candidates.

import { ask, route } from "./api.js";
import { COMPONENTS, fuse, named, rank } from "./fuse.js";
import { NAMES, el, say } from "./dom.js";
import { list } from "./hits.js";

const CONFIRM_AFTER_MS = 250;

const listed = (weights) => COMPONENTS.map((name) => weights[name]);

/** A weight, without the digits that no slider sets. */
const brief = (weight) => String(Number(weight.toFixed(4)));

export class Column {
  /**
   * @param {string} method its name
   * @param {{weights: number[], fuses: string[]}} about the weights of a search by name, and the scores that it fuses
   * @param {(hit: Object, column: Column) => void} onExplain
   */
  constructor(method, about, onExplain) {
    this.method = method;
    this.usual = named(about.weights);
    this.weights = { ...this.usual };
    this.isOwn = false;
    this.request = null;
    this.turn = 0;
    this.onExplain = onExplain;
    this.sliders = {};
    const fused = about.fuses.length > 1 ? this.#controls(about.fuses) : el("p", { class: "formula" }, `${NAMES[about.fuses[0]]} score`);
    this.problem = el("div", { class: "error", role: "alert", hidden: true });
    this.hits = el("div", { class: "list" });
    this.note = el("p", { class: "note", "aria-live": "polite" });
    this.element = el(
      "section",
      { class: "column", "aria-label": `Method ${method}`, "data-method": method },
      el("header", {}, el("h2", {}, method), fused),
      el("div", {}, this.problem, this.hits, this.note),
    );
  }

  #controls(fuses) {
    const rows = fuses.map((name) => {
      const weight = this.usual[name];
      const top = Math.max(1, 2 * Math.max(...Object.values(this.usual)));
      const slider = el("input", { type: "range", min: 0, max: top, step: 0.01, value: weight, class: name });
      const value = el("output", {}, brief(weight));
      slider.addEventListener("input", () => this.#set({ ...this.weights, [name]: slider.valueAsNumber }));
      this.sliders[name] = { slider, value };
      return el("label", { class: "weight" }, el("span", {}, NAMES[name]), slider, value);
    });
    this.reset = el("button", { type: "button", class: "quiet", disabled: true }, "Reset weights");
    this.reset.addEventListener("click", () => this.#set({ ...this.usual }));
    return el("div", { class: "weights", role: "group", "aria-label": `Weights of ${this.method}` }, ...rows, this.reset);
  }

  #set(weights) {
    this.weights = weights;
    this.isOwn = COMPONENTS.some((name) => weights[name] !== this.usual[name]);
    for (const [name, { slider, value }] of Object.entries(this.sliders)) {
      slider.value = weights[name];
      value.textContent = brief(weights[name]);
    }
    if (!this.isOwn && document.activeElement === this.reset) Object.values(this.sliders)[0].slider.focus();
    this.reset.disabled = !this.isOwn;
    if (this.request) this.#fuseAgain();
  }

  /** Search by this method. The request has collection, query, k, exact, raw (the filter) and signal. */
  async search(request) {
    this.request = request;
    this.known = new Map();
    this.pool = null;
    await this.#fromServer(++this.turn);
  }

  /** Forget the last search. */
  clear() {
    this.turn++;
    clearTimeout(this.later);
    this.request = null;
    this.hits.replaceChildren();
    this.note.textContent = "";
    say(this.problem, null);
  }

  async #fromServer(turn) {
    clearTimeout(this.later);
    const { collection, query, k, exact, raw, signal } = this.request;
    const body = { query, k, exact, method: this.method, ...(this.isOwn ? { weights: listed(this.weights) } : {}) };
    const answer = await ask(route(collection, "/search"), { body, raw, signal });
    if (turn !== this.turn) return;
    for (const hit of answer.hits) this.known.set(hit.id, hit);
    if (!this.isOwn) this.weights = named(answer.weights);
    const cut = answer.query_truncated ? "The query is longer than the model reads: its end was ignored." : "";
    this.#show(answer.hits, "server", cut);
  }

  async #fuseAgain() {
    const turn = ++this.turn;
    clearTimeout(this.later);
    try {
      // The service says what is wrong with weights that are all 0.
      if (!COMPONENTS.some((name) => this.weights[name])) return await this.#fromServer(turn);
      const pool = await this.#candidates();
      if (turn !== this.turn) return;
      const fused = fuse(pool.scores, this.weights, pool.ids.length);
      const best = rank(pool.ids, fused, this.request.k);
      const documents = await this.#documents(best.map((i) => pool.ids[i]));
      if (turn !== this.turn) return;
      const hits = best.map((i, place) => {
        const scores = Object.fromEntries(Object.entries(pool.scores).map(([name, values]) => [name, values[i]]));
        const { text, metadata, scores: others } = documents[place];
        return { id: pool.ids[i], score: fused[i], scores: { ...others, ...scores }, text, metadata };
      });
      const count = pool.ids.length.toLocaleString("en");
      if (pool.complete) {
        this.#show(hits, "browser", `Fused in this browser from ${count} candidates.`);
      } else {
        this.#show(hits, "browser", `Fused from the best ${count} candidates; asking the server about the others …`);
        this.later = setTimeout(() => this.#fromServer(turn).catch((error) => this.fail(error)), CONFIRM_AFTER_MS);
      }
    } catch (error) {
      if (turn === this.turn) this.fail(error);
    }
  }

  /** All candidates with their scores, which are asked for once for each search. */
  #candidates() {
    const { collection, query, exact, raw, signal } = this.request;
    this.pool ??= ask(route(collection, "/candidates"), { body: { query, exact, method: this.method }, raw, signal });
    const asked = this.pool;
    asked.catch(() => {
      if (this.pool === asked) this.pool = null;
    });
    return asked;
  }

  async #documents(ids) {
    const { collection, signal } = this.request;
    const known = this.known;
    const missing = ids.filter((id) => !known.has(id));
    if (missing.length) {
      const answer = await ask(route(collection, "/documents/get"), { body: { ids: missing }, signal });
      missing.forEach((id, i) => known.set(id, answer.documents[i] ?? { id, text: null, metadata: {} }));
    }
    return ids.map((id) => known.get(id));
  }

  #show(hits, source, note) {
    say(this.problem, null);
    this.element.dataset.source = source;
    this.hits.replaceChildren(
      hits.length
        ? list(hits, this.weights, (hit) => this.onExplain(hit, this))
        : el("p", { class: "none" }, "No document matches."),
    );
    this.note.textContent = note;
  }

  /** Show a failure instead of hits. */
  fail(error) {
    if (error.name === "AbortError") return;
    this.hits.replaceChildren();
    this.note.textContent = "";
    say(this.problem, error.message);
  }

  /** The weights of the hits, as a request has them. */
  get listedWeights() {
    return listed(this.weights);
  }
}
