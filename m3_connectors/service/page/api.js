// The service's routes. A failure is a Problem with the library's own message.

const KEY = "m3-api-key";

/** A request that failed. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The API key: kept in this tab's session only. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A whole number that JavaScript would round; shown as it was written. */
class Whole {
  constructor(source) {
    this.source = source;
  }

  toString() {
    return this.source;
  }

  toJSON() {
    return JSON.rawJSON ? JSON.rawJSON(this.source) : this.source;
  }
}

function exact(_, value, context) {
  const rounded = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return rounded && context?.source ? new Whole(context.source) : value;
}

/**
 * Return the text of a JSON object for a request, with its numbers as they were written.
 * @throws {Problem} the text is not a JSON object
 */
export function checkedObject(text, name) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Problem(0, `the ${name} is not JSON: ${error.message}.\n  Write it like {"year": {"$gte": 2020}}.`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new Problem(0, `the ${name} is not a JSON object.\n  Write it like {"year": {"$gte": 2020}}.`);
  }
  return text;
}

/** Send a request and return its answer. `raw` are further fields, whose values are JSON texts. */
export async function ask(path, { body, raw = {}, signal } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const options = { headers, signal, cache: "no-store", credentials: "omit", redirect: "error" };
  if (body !== undefined) {
    const fields = [...Object.entries(body).map(([name, value]) => [name, JSON.stringify(value)]), ...Object.entries(raw)];
    options.method = "POST";
    options.body = `{${fields.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, `the server does not answer (${error.message}).\n  Check that m3 serve is running, and try again.`);
  }
  const text = await response.text();
  if (response.ok) return JSON.parse(text, exact);
  throw new Problem(response.status, detailOf(text) ?? `the server answered ${response.status} ${response.statusText}.`);
}

function detailOf(text) {
  try {
    const detail = JSON.parse(text).detail;
    return typeof detail === "string" ? detail : null;
  } catch {
    return null; // something between this page and the service answered
  }
}

/** The route of a collection. */
export const route = (collection, what = "") => `/v1/collections/${encodeURIComponent(collection)}${what}`;
