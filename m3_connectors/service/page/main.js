// The page: what is asked, and of which methods.

import { Problem, ask, checkedObject, key, route } from "./api.js";
import { Column } from "./columns.js";
import { byId, el, say } from "./dom.js";
import { explain } from "./explain.js";

const places = Object.fromEntries(
  ["about", "collection", "columns", "count", "exact", "filter", "key", "key-form", "methods", "problem", "query", "search", "status"].map((id) => [id, byId(id)]),
);

/** The columns of the chosen collection, by method. */
let columns = new Map();
let searching = null;

/** The last search; a method that is switched on later takes part in it. */
let current = null;

async function listCollections() {
  const chosen = places.collection.value;
  const { collections } = await ask("/v1/collections");
  places.collection.replaceChildren(...collections.map((name) => el("option", { value: name, selected: name === chosen }, name)));
  if (!collections.length) {
    places.about.textContent = "";
    throw new Problem(0, "the service has no collection yet.\n  Create one: m3 index URL FOLDER, or PUT /v1/collections/NAME. Then reload this page.");
  }
  await choose();
}

async function choose() {
  searching?.abort();
  current = null;
  const name = places.collection.value;
  const about = await ask(route(name));
  if (places.collection.value !== name) return; // another one was chosen meanwhile
  const count = about.count.toLocaleString("en");
  places.about.textContent = `${count} ${about.count === 1 ? "document" : "documents"} in ${about.store}, ${about.model.name}`;
  const on = new Map([...columns.keys()].map((name) => [name, byId(`method-${name}`).checked]));
  columns = new Map();
  const boxes = Object.entries(about.methods).map(([name, method]) => {
    const lacks = method.missing.length ? `needs ${method.missing.join(", ")}` : null;
    const box = el("input", { type: "checkbox", id: `method-${name}`, checked: !lacks && (on.get(name) ?? true), disabled: Boolean(lacks) });
    if (!lacks) columns.set(name, new Column(name, method, onExplain));
    box.addEventListener("change", () => toggle(name, box.checked));
    return el("label", { class: "chip" }, box, name, lacks ? el("small", {}, ` ${lacks}`) : null);
  });
  places.methods.replaceChildren(places.methods.firstElementChild, ...boxes);
  places.columns.replaceChildren(
    el("p", { class: "hint" }, "Hits appear here, method by method. Move a weight to rank again, and explain a hit to see where its score comes from."),
  );
  places.status.textContent = "";
}

const isOn = (name) => byId(`method-${name}`).checked;

function onExplain(hit, column) {
  const { collection, query } = column.request;
  explain(hit, { collection, query, method: column.method, weights: column.listedWeights });
}

function toggle(name, on) {
  if (!current) return;
  const column = columns.get(name);
  if (on && column.request !== current) column.search(current).catch((error) => column.fail(error));
  place();
}

/** Put the columns of the chosen methods onto the page; those that stay are not touched. */
function place() {
  const chosen = [...columns].filter(([name]) => isOn(name)).map(([, column]) => column.element);
  for (const element of [...places.columns.children]) if (!chosen.includes(element)) element.remove();
  chosen.forEach((element, i) => {
    if (places.columns.children[i] !== element) places.columns.insertBefore(element, places.columns.children[i] ?? null);
  });
}

function asked() {
  const filter = places.filter.value.trim();
  return {
    collection: places.collection.value,
    query: places.query.value,
    k: Number(places.count.value),
    exact: places.exact.checked,
    raw: filter ? { filter: checkedObject(filter, "filter") } : {},
  };
}

async function search() {
  searching?.abort();
  searching = new AbortController();
  const { signal } = searching;
  current = { ...asked(), signal };
  const chosen = [...columns].filter(([name]) => isOn(name)).map(([, column]) => column);
  if (!chosen.length) throw new Problem(0, "no method is chosen.\n  Tick at least one.");
  places.columns.setAttribute("aria-busy", "true");
  places.status.textContent = "Searching …";
  const begun = performance.now();
  const done = await Promise.allSettled(chosen.map((column) => column.search(current)));
  if (signal.aborted) return;
  places.columns.setAttribute("aria-busy", "false");
  const failures = done.map((one) => one.reason).filter(Boolean);
  // A filter that is wrong is wrong for all methods.
  if (failures.length === done.length && failures.every((error) => error.message === failures[0].message)) throw failures[0];
  done.forEach((one, i) => one.reason && chosen[i].fail(one.reason));
  place();
  const milliseconds = Math.round(performance.now() - begun);
  const answered = chosen.length - failures.length;
  const methods = failures.length ? `${answered} of ${chosen.length} methods` : answered === 1 ? "1 method" : `${answered} methods`;
  places.status.textContent = `${methods} answered in ${milliseconds} ms.`;
}

/** Do something, and show what fails. */
async function attempt(what) {
  say(places.problem, null);
  try {
    await what();
  } catch (error) {
    if (error.name === "AbortError") return;
    for (const column of columns.values()) column.clear();
    places.columns.replaceChildren();
    places.columns.setAttribute("aria-busy", "false");
    places.status.textContent = "";
    say(places.problem, error.message);
    if (error.status === 401) places.key.focus();
  }
}

places.search.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(columns.size ? search : async () => {
    await listCollections();
    await search();
  });
});
places.collection.addEventListener("change", () =>
  attempt(async () => {
    await choose();
    if (places.query.value) await search();
  }),
);
places["key-form"].addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(places.key.value.trim());
  attempt(async () => {
    await listCollections();
    places.query.focus();
  });
});

places.key.value = key.get();
attempt(listCollections);
