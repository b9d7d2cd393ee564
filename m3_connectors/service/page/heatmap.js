// Similarities of query tokens (rows) and document tokens (columns). Only what is in view is drawn, so that a document
// may be of any length; labels stay in view. Arrow keys and the pointer move over cells, which are read out below.

import { el, shown, tokenName } from "./dom.js";

const CELL = 22;
const GAP = 12; // where document tokens are left out
const LABEL_MOST = 110;
const VALUE_WIDTH = 46;
const FONT = '13px "DejaVu Sans", system-ui, sans-serif';

/**
 * Return a heat map.
 * @param {Object} data the similarities of an explanation
 * @param {AbortSignal} signal ends its listeners
 */
export function heatmap(data, signal) {
  return new HeatMap(data, signal).element;
}

/** A label, with one sign for tokens that have no letters. */
const named = (token) => ({ "</s>": "⏎", "▁": "␣" })[token] ?? token;

class HeatMap {
  constructor(data, signal) {
    this.data = data;
    this.best = data.values.map((row) => row.indexOf(Math.max(...row)));
    const values = data.values.flat();
    this.low = values.reduce((a, b) => Math.min(a, b), Infinity);
    this.high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    this.lefts = [];
    data.document_positions.reduce((x, position, j, all) => {
      const left = x + (j && position !== all[j - 1] + 1 ? GAP : 0);
      this.lefts.push(left);
      return left + CELL;
    }, 0);
    this.row = this.best.findIndex((column, row) => data.values[row][column] === this.high);
    this.column = this.best[this.row];
    this.canvas = el("canvas");
    this.space = el("div", {}, this.canvas);
    this.readout = el("p", { class: "readout", "aria-live": "polite" });
    const size = `${data.query_tokens.length} query tokens by ${data.document_tokens.length} document tokens`;
    this.view = el(
      "div",
      { class: "heat", tabindex: 0, role: "group", "aria-label": `Heat map, ${size}. Arrow keys move between cells.` },
      this.space,
    );
    const legend = el("div", { class: "legend", "aria-hidden": true }, shown(this.low), el("span", { class: "scale" }), shown(this.high));
    this.element = el("div", { class: "heatmap" }, this.view, el("div", { class: "under" }, this.readout, legend));
    this.#measure();
    this.#listen(signal);
    this.#read();
  }

  #measure() {
    const pen = this.canvas.getContext("2d");
    pen.font = FONT;
    const widest = (names) => Math.ceil(names.reduce((most, name) => Math.max(most, pen.measureText(named(name)).width), 0));
    this.left = Math.min(LABEL_MOST, widest(this.data.query_tokens)) + VALUE_WIDTH + 12;
    this.top = Math.min(LABEL_MOST, widest(this.data.document_tokens)) + 12;
    this.width = this.left + this.lefts.at(-1) + CELL + 2;
    this.height = this.top + this.data.values.length * CELL + 2;
    this.space.style.width = `${this.width}px`;
    this.space.style.height = `${this.height}px`;
  }

  #listen(signal) {
    const again = () => requestAnimationFrame(() => this.draw());
    const sizes = new ResizeObserver(again);
    sizes.observe(this.view);
    signal.addEventListener("abort", () => sizes.disconnect());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again, { signal });
    this.view.addEventListener("scroll", again, { signal, passive: true });
    this.view.addEventListener("keydown", (event) => this.#key(event), { signal });
    this.view.addEventListener("pointermove", (event) => this.#point(event), { signal });
    this.view.addEventListener("pointerdown", (event) => this.#point(event), { signal });
  }

  #key(event) {
    const last = this.lefts.length - 1;
    const [row, column] = {
      ArrowLeft: [this.row, this.column - 1],
      ArrowRight: [this.row, this.column + 1],
      ArrowUp: [this.row - 1, this.column],
      ArrowDown: [this.row + 1, this.column],
      Home: [this.row, 0],
      End: [this.row, last],
    }[event.key] ?? [null, null];
    if (row === null || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#move(Math.min(Math.max(row, 0), this.best.length - 1), Math.min(Math.max(column, 0), last));
    const x = this.left + this.lefts[this.column];
    const y = this.top + this.row * CELL;
    const { view } = this;
    view.scrollLeft = Math.min(Math.max(view.scrollLeft, x + CELL + 2 - view.clientWidth), x - this.left);
    view.scrollTop = Math.min(Math.max(view.scrollTop, y + CELL + 2 - view.clientHeight), y - this.top);
  }

  #point(event) {
    const box = this.view.getBoundingClientRect();
    const x = event.clientX - box.left - this.view.clientLeft;
    const y = event.clientY - box.top - this.view.clientTop;
    if (x < this.left || y < this.top) return;
    const column = this.lefts.findLastIndex((left) => left <= x - this.left + this.view.scrollLeft);
    const row = Math.floor((y - this.top + this.view.scrollTop) / CELL);
    if (row < this.best.length && column >= 0) this.#move(row, column);
  }

  #move(row, column) {
    if (row === this.row && column === this.column) return;
    this.row = row;
    this.column = column;
    this.#read();
    this.draw();
  }

  #read() {
    const { data, row, column } = this;
    this.readout.replaceChildren(
      el("bdi", { class: "token" }, tokenName(data.query_tokens[row])),
      " × ",
      el("bdi", { class: "token" }, tokenName(data.document_tokens[column])),
      ` (token ${data.document_positions[column] + 1} of ${data.document_rows}): `,
      el("strong", {}, shown(data.values[row][column])),
      column === this.best[row] ? ", the best of this row" : "",
    );
  }

  /** Draw what is in view. */
  draw() {
    const { view, canvas, data, lefts } = this;
    const width = Math.min(view.clientWidth, this.width);
    const height = Math.min(view.clientHeight, this.height);
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(view);
    const colour = (name) => style.getPropertyValue(name).trim();
    const ramp = ["--heat-0", "--heat-1", "--heat-2"].map((name) => rgb(colour(name)));
    const x = (j) => this.left + lefts[j] - view.scrollLeft;
    const y = (i) => this.top + i * CELL - view.scrollTop;
    const columns = lefts.map((_, j) => j).filter((j) => x(j) + CELL > this.left && x(j) < width);
    const rows = data.values.map((_, i) => i).filter((i) => y(i) + CELL > this.top && y(i) < height);
    for (const i of rows) {
      for (const j of columns) {
        pen.fillStyle = between(ramp, (data.values[i][j] - this.low) / (this.high - this.low || 1));
        pen.fillRect(x(j), y(i), CELL - 1, CELL - 1);
      }
    }
    pen.lineWidth = 2;
    for (const i of rows) {
      pen.strokeStyle = colour("--heat-best");
      pen.strokeRect(x(this.best[i]) + 1, y(i) + 1, CELL - 3, CELL - 3);
    }
    pen.strokeStyle = colour("--ink");
    pen.strokeRect(x(this.column) - 1, y(this.row) - 1, CELL + 1, CELL + 1);
    this.#labels(pen, rows, columns, { x, y, width, height, ground: colour("--ground"), ink: colour("--ink"), soft: colour("--soft") });
  }

  #labels(pen, rows, columns, { x, y, width, height, ground, ink, soft }) {
    const { data } = this;
    pen.font = FONT;
    pen.textBaseline = "middle";
    pen.fillStyle = ground;
    pen.fillRect(0, 0, width, this.top - 1);
    for (const j of columns) {
      pen.save();
      pen.translate(x(j) + CELL / 2, this.top - 6);
      pen.rotate(-Math.PI / 2);
      pen.fillStyle = j === this.column ? ink : soft;
      pen.fillText(fitted(pen, named(data.document_tokens[j])), 0, 0);
      pen.restore();
    }
    pen.fillStyle = ground;
    pen.fillRect(0, 0, this.left - 1, height);
    for (const i of rows) {
      const at = y(i) + CELL / 2;
      pen.fillStyle = i === this.row ? ink : soft;
      pen.textAlign = "left";
      pen.fillText(fitted(pen, named(data.query_tokens[i])), 2, at);
      pen.textAlign = "right";
      pen.fillText(data.values[i][this.best[i]].toFixed(2), this.left - 8, at);
    }
    pen.fillStyle = ground;
    pen.fillRect(0, 0, this.left - 1, this.top - 1);
  }
}

/** Return the beginning of a label that fits. */
function fitted(pen, label) {
  if (pen.measureText(label).width <= LABEL_MOST) return label;
  const letters = Array.from(label);
  while (letters.length && pen.measureText(`${letters.join("")}…`).width > LABEL_MOST) letters.pop();
  return `${letters.join("")}…`;
}

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** Return the colour at a part from 0 to 1 of a ramp of three. */
function between(ramp, part) {
  const [from, to, by] = part < 0.5 ? [ramp[0], ramp[1], 2 * part] : [ramp[1], ramp[2], 2 * part - 1];
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * by)).join(" ")})`;
}
