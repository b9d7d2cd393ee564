"""Shared code of both hand-written Qdrant clients: two batches of requests per search, and the sum of the scores."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from handwritten import WEIGHTS, Found
from m3_connectors.embeddings import M3Embeddings


class Ask(NamedTuple):
    """One search: the best ``limit`` points by a named vector, among ``ids`` only if these are given."""

    using: str
    vector: Any
    limit: int
    ids: Sequence[Any] | None = None


_USING = {"dense": "dense", "sparse": "sparse", "multivector": "multi_0"}


class Qdrant(abc.ABC):
    """``search``, implemented with the batch requests of an engine or a server."""

    @abc.abstractmethod
    def _ask(self, asks: list[Ask]) -> list[list[tuple[Any, float]]]:
        """Return points and scores of each search."""

    @abc.abstractmethod
    def _payloads(self, ids: list[Any]) -> dict[Any, dict[str, Any]]:
        """Return the payload of each point."""

    @abc.abstractmethod
    def _vectors(self, query: M3Embeddings) -> dict[str, Any]:
        """Return the query's vectors by component, in the form that the engine accepts."""

    def search(self, query: M3Embeddings, method: str, k: int) -> list[Found]:
        asked = self._vectors(query)
        self._rows = len(query.multivectors.rows) if "multivector" in query.components else 1
        if method in ("dense", "sparse"):
            (found,) = self._ask([Ask(method, asked[method], k)])
            scores = {method: dict(found)}
            best = found
        elif method == "multi_vec":
            (found,) = self._ask([Ask("dense", asked["dense"], 200)])
            scores = {"dense": dict(found)}
            scores |= self._among(asked, ["multivector"], {"multivector": list(scores["dense"])})
            best = sorted(scores["multivector"].items(), key=lambda pair: -pair[1])[:k]
        else:
            if method == "all":
                (found,) = self._ask([Ask("dense", asked["dense"], 200)])
                scores = {"dense": dict(found)}
                ids = list(scores["dense"])
                scores |= self._among(asked, ["sparse", "multivector"], dict.fromkeys(asked, ids))
            else:
                lists = self._ask([Ask(name, asked[name], 1000) for name in ("dense", "sparse")])
                scores = {name: dict(found) for name, found in zip(("dense", "sparse"), lists, strict=True)}
                ids = list(scores["dense"] | scores["sparse"])
                missing = {name: [id for id in ids if id not in scores[name]] for name in scores}
                for name, found in self._among(asked, list(scores), missing).items():
                    scores[name] |= found
            names = ("dense", "sparse", "multivector")
            fused = sum(
                weight * np.array([scores[name].get(id, 0.0) for id in ids])
                for name, weight in zip(names, WEIGHTS[method], strict=True)
                if weight
            )
            best = [(ids[i], fused[i]) for i in np.argsort(-fused, kind="stable")[:k]]
        winners = [id for id, _ in best]
        missing = {name: [id for id in winners if id not in scores.get(name, {})] for name in asked}
        more = self._among(asked, list(asked), missing)
        scores = {name: scores.get(name, {}) | more.get(name, {}) for name in asked}
        payloads = self._payloads(winners)
        return [
            Found(
                payloads[id]["id"],
                payloads[id]["text"],
                payloads[id]["metadata"],
                score,
                {name: values.get(id, 0.0) for name, values in scores.items()},
            )
            for id, score in best
        ]

    def _among(
        self, asked: dict[str, Any], names: list[str], ids: dict[str, list[Any]]
    ) -> dict[str, dict[Any, float]]:
        names = [name for name in names if ids[name]]
        asks = [Ask(_USING[name], asked[name], len(ids[name]), ids[name]) for name in names]
        answers = self._ask(asks) if asks else []
        return {
            name: {id: score / (self._rows if name == "multivector" else 1) for id, score in answer}
            for name, answer in zip(names, answers, strict=True)
        }
