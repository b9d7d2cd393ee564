"""Seeded random collections: documents, vectors, queries and filters that a store must handle correctly.

The module needs no test framework, so that examples and benchmarks can use it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from m3_connectors.backends.base import Schema, Storage
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component, Float32, M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.filters import matches, parse_filter

TEXTS = (
    "Water boils at a lower temperature on a mountain.",
    "Wie funktioniert eine Wärmepumpe im Winter?",
    "¿Dónde está la biblioteca más antigua del país?",
    "Каждый охотник желает знать, где сидит фазан.",
    "光合作用把光能变成化学能。",
    "東京の夏はとても蒸し暑い。",
    "물은 섭씨 백 도에서 끓는다.",
    "كيف تعمل اللوحات الشمسية؟",
    "מה ההבדל בין מזג אוויר לאקלים?",
    "सौर ऊर्जा कैसे काम करती है?",
    "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรค",
    "Η θάλασσα είναι ήρεμη σήμερα.",
    "Combining a\u0301 and e\u0308, a flag 🇰🇪, a family 👩‍👩‍👧, a tab\tand a line\nbreak.",
    "Quotes \"double\", 'single', a back\\slash, <tags> & {braces}.",
    " ",
    "",
)
"""Texts in many scripts, one of only a space, and an empty one."""

NASTY_IDS = (
    "a", "A", " a", "a ", "0", "00", "1", "-1", "1.0", "null", "None", "true", "*", "%", "_", "?", "#",
    "a'b", 'a"b', "a\\b", "a/b", "../a", "a.b", "a,b", "a:b", "a;b", "$a", "[a]", "{a}", "id in ['a']",
    "' OR 1=1 --", "a\nb", "a\tb", "a\x00b", "é", "e\u0301", "ß", "ss", "Ａ", "文档", "مستند", "🇰🇪", "\u200b", "\ufeff",
    "x" * 512, "é" * 256, "🙂" * 128,
)  # fmt: skip
"""Ids that a careless adapter confuses, truncates, quotes incorrectly or refuses."""


@dataclasses.dataclass(frozen=True)
class World:
    """A collection to store, with queries and filters for it.

    Attributes:
        schema: The schema of the collection.
        documents: Documents with distinct ids.
        embeddings: The embeddings; row i belongs to document i.
        queries: Queries of one text each.
        filters: Filters; each passes some of the documents and not others.
    """

    schema: Schema
    documents: list[Document]
    embeddings: M3Embeddings
    queries: list[M3Embeddings]
    filters: list[Mapping[str, Any]]

    def passing(self, raw: Mapping[str, Any] | None) -> list[str]:
        """Return the ids of the documents that pass a filter, by the definition of filters."""
        filter = parse_filter(raw)
        return [document.id for document in self.documents if matches(filter, document.metadata)]


def make_world(
    seed: int,
    *,
    documents: int = 40,
    queries: int = 4,
    dimension: int = 24,
    vocabulary: int = 300,
    most_rows: int = 20,
    storage: Storage | None = None,
    components: tuple[Component, ...] = COMPONENTS,
) -> World:
    """Return a random collection, which is the same for the same arguments.

    Args:
        seed: The seed of all random values.
        documents: The number of documents.
        queries: The number of queries; the last but one shares no token with a document, the last has one
        row.
        dimension: The width of dense vectors and rows.
        vocabulary: The number of token ids.
        most_rows: The maximum number of multi-vector rows of a document.
        storage: The storage of the schema; None for the default.
        components: The components of the schema, the documents and the queries.
    """
    rng = np.random.default_rng(seed)
    # No document uses the first token ids; they are for the query that shares no token.
    topics = rng.normal(size=(5, dimension))
    model = ModelInfo("worlds/random", None, dimension, vocabulary, f"{vocabulary} tokens")
    made = [_text(rng, topics, vocabulary, int(rng.integers(1, most_rows + 1))) for _ in range(documents)]
    asked = [_text(rng, topics, vocabulary, int(rng.integers(2, 9))) for _ in range(queries)]
    asked[-2:-1] = [(*part[:1], {0: 0.5, 1: 0.25}, *part[2:]) for part in asked[-2:-1]]
    asked[-1:] = [(*part[:2], part[2][:1]) for part in asked[-1:]]
    ids = [*NASTY_IDS[:documents], *(f"document-{i}" for i in range(len(NASTY_IDS), documents))]
    stored = [
        Document(ids[i], f"{TEXTS[i % len(TEXTS)]} {i}" if i >= len(TEXTS) else TEXTS[i], _metadata(rng, i))
        for i in rng.permutation(documents).tolist()
    ]
    everything = join(made + asked, model, components)
    schema = Schema(model, dataclasses.replace(storage or Storage(), components=components))
    world = World(
        schema,
        stored,
        everything[:documents],
        list(everything[documents:]),
        [],
    )
    filters = [raw for raw in _FILTERS if 0 < len(world.passing(raw)) < documents]
    return dataclasses.replace(world, filters=filters)


def join(
    texts: Sequence[tuple[Float32, Mapping[int, float], Float32]],
    model: ModelInfo,
    components: tuple[Component, ...] = COMPONENTS,
) -> M3Embeddings:
    """Return the embeddings of texts that are given one by one.

    Args:
        texts: For each text the dense vector ``[d]``, weights by token id, and multi-vector rows ``[t, d]``.
        model: The model to record.
        components: The components to keep.
    """
    indices = [sorted(weights) for _, weights, _ in texts]
    values = [
        weights[token] for (_, weights, _), tokens in zip(texts, indices, strict=True) for token in tokens
    ]
    sparse = sp.csr_array(
        (
            np.array(values, dtype=np.float32),
            np.array([token for tokens in indices for token in tokens], dtype=np.int64),
            np.cumsum([0, *map(len, indices)]),
        ),
        shape=(len(texts), model.vocabulary_size),
    )
    return M3Embeddings(
        np.array([dense for dense, _, _ in texts], dtype=np.float32).reshape(len(texts), model.dimension),
        sparse if "sparse" in components else None,
        MultiVectors.from_list([rows for _, _, rows in texts], model.dimension)
        if "multivector" in components
        else None,
        model=model,
    )


def unit_rows(matrix: Any) -> Float32:
    """Return the rows as float32, normalised to length 1."""
    rows = np.asarray(matrix, dtype=np.float64)
    unit: Float32 = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def _text(
    rng: np.random.Generator, topics: np.ndarray[Any, Any], vocabulary: int, rows: int
) -> tuple[Float32, dict[int, float], Float32]:
    """Return one text about a topic: dense vector, Zipf-distributed token weights and multi-vector rows."""
    width = topics.shape[1]
    about = topics[rng.integers(len(topics))] + rng.normal(scale=0.7, size=width)
    tokens = 2 + rng.zipf(1.4, size=rng.integers(0, 12)) % (vocabulary - 2)
    weights = {
        int(token): float(np.float32(weight))
        for token, weight in zip(tokens, rng.gamma(2.0, 0.1, len(tokens)) + 1e-3, strict=True)
    }
    return unit_rows(about), weights, unit_rows(about + rng.normal(size=(rows, width)))


def _metadata(rng: np.random.Generator, i: int) -> dict[str, Any]:
    """Return fields of every JSON type, sometimes missing, null, empty, nested, or of another type."""
    fields: dict[str, Any] = {
        "lang": ["en", "de", "sw", "日本", "", None, ["en", "de"], 7][rng.integers(8)],
        "year": [2019, 2020, 2021.0, 2022.5, "2020", None, [2018, 2023], True][rng.integers(8)],
        "open": [True, False, 1, 0, "true", [True, False]][rng.integers(6)],
        "when": [
            "2024-01-31", "2024-02-29T23:59:59Z", "2024-03-01 00:00:00+02:00", "2024-1-1", "soon", 20240131,
            "2023-12-31T23:59:60Z", ["2020-01-01", "2025-01-01"],
        ][rng.integers(8)],
        "author": [{"name": "Ada", "born": 1815}, {"name": "Grace"}, {"name": None}, "Ada", [{"name": "Ada"}], {}][
            rng.integers(6)
        ],
        "tags": [[], ["x"], ["x", "y"], [None], [["x"]], None][rng.integers(6)],
        "a key-with_odd:sïgns $": int(rng.integers(4)),
        "id": f"not-{i}",
        "text": int(rng.integers(3)),
        "score": float(rng.normal()),
        "large": int(rng.choice([2**53, 2**53 + 1, 2**62, -(2**63)])),
    }  # fmt: skip
    return {name: value for name, value in fields.items() if rng.random() > 0.15}


_FILTERS: tuple[Mapping[str, Any], ...] = (
    {"lang": "en"},
    {"lang": {"$in": ["de", "日本"]}},
    {"lang": {"$nin": ["de", "en"]}},
    {"lang": {"$exists": True}},
    {"lang": None},
    {"lang": ""},
    {"year": 2021},
    {"year": {"$gte": 2020, "$lt": 2022.5}},
    {"year": {"$gt": 2022, "$lte": 2022}},
    {"year": "2020"},
    {"open": True},
    {"open": {"$ne": False}},
    {"open": 1},
    {"when": {"$gte": "2024-01-01", "$lt": "2024-03-01"}},
    {"when": {"$lt": "2024-01-01"}},
    {"when": "2024-01-31"},
    {"author.name": "Ada"},
    {"author.born": {"$gt": 1800}},
    {"author.name": {"$exists": False}},
    {"author": {"$exists": True}},
    {"tags": "x"},
    {"tags": {"$exists": True}},
    {"a key-with_odd:sïgns $": {"$in": [0, 3]}},
    {"text": 1},
    {"score": {"$gt": 0}},
    {"large": {"$gt": 2**53 - 1}},
    {"$or": [{"lang": "en"}, {"year": {"$lt": 2020}}]},
    {"$and": [{"open": True}, {"$not": {"lang": "en"}}]},
    {"$not": {"$or": [{"text": 0}, {"text": 1}]}},
    {"lang": {"$ne": "en"}, "year": {"$exists": True}, "score": {"$lt": 1}},
)
