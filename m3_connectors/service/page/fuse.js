// Fusion as the library computes it: float64 sums in the order of the components, equal scores by id.

export const COMPONENTS = ["dense", "sparse", "multivector"];

/** A weight for each component, from the list of an answer. */
export const named = (weights) => Object.fromEntries(COMPONENTS.map((name, i) => [name, weights[i]]));

/**
 * Return the fused score of each candidate.
 * @param {Object<string, number[]>} scores of each component
 * @param {Object<string, number>} weights a component with weight 0 needs no scores
 * @param {number} count of candidates
 */
export function fuse(scores, weights, count) {
  const parts = COMPONENTS.filter((name) => weights[name] !== 0);
  return Array.from({ length: count }, (_, i) => parts.reduce((sum, name) => sum + weights[name] * scores[name][i], 0));
}

/** Return the positions of the k best, best first. */
export function rank(ids, fused, k) {
  return ids
    .map((_, i) => i)
    .sort((a, b) => fused[b] - fused[a] || compareIds(ids[a], ids[b]))
    .slice(0, k);
}

/** Order by code points, as Python does; JavaScript itself would order by UTF-16 units. */
export function compareIds(a, b) {
  const end = Math.min(a.length, b.length);
  for (let i = 0; i < end; i++) {
    const left = a.charCodeAt(i);
    const right = b.charCodeAt(i);
    if (left !== right) return place(left) - place(right);
  }
  return a.length - b.length;
}

// Surrogates stand for code points beyond all others.
const place = (unit) => (unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit);
