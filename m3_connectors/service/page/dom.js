// Elements. Texts become text nodes and nothing else, so that a document cannot bring markup or scripts into the page.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object<string, string|number|boolean|null>} attributes true sets an empty one; false and null set none
 * @param {...(Node|string|null)} children strings become text nodes
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Show a message with its lines, or hide the place of messages. */
export function say(place, message) {
  place.hidden = !message;
  place.textContent = message ?? "";
}

/** A score as it is shown. */
export const shown = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

/** A token as it is shown; some have no letters. */
export const tokenName = (token) => ({ "</s>": "end of text", "▁": "space" })[token] ?? token;

/** Names of components for readers. */
export const NAMES = { dense: "dense", sparse: "sparse", multivector: "multi-vector" };
