"""Documents: what is fit to be stored, and by which name the rest is refused."""

from __future__ import annotations

import datetime
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.documents import Document, canonical_metadata, check_documents
from m3_connectors.errors import InvalidInput

GOOD = Document("a", "text")


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("text", r"documents\[1\] is str"),
        ({"id": "a", "text": "b"}, r"documents\[1\] is dict"),
        (Document(7, "text"), r"documents\[1\]\.id is int; ids must be strings"),  # type: ignore[arg-type]
        (Document("", "text"), "id is empty"),
        (Document("é" * 257, "text"), "514 bytes"),
        (Document("\udcff", "text"), "lone surrogate"),
        (
            Document("b-17", None),
            r"documents\[1\]\.text is NoneType \(id 'b-17'\); it must be a string",
        ),  # type: ignore[arg-type]
        (Document("b", b"text"), "text is bytes"),  # type: ignore[arg-type]
        (Document("b", "a\ud800"), "lone surrogate at character 1"),
        (Document("b", "text", []), "must be a JSON object"),  # type: ignore[arg-type]
        (Document("b", "text", {1: 2}), "key 1"),  # type: ignore[dict-item]
        (Document("b", "text", {"a": {"b": float("nan")}}), r"\['a'\]\['b'\] is nan"),
        (Document("b", "text", {"a": float("inf")}), "is inf"),
        (Document("b", "text", {"a": [0, 2**63]}), r"\['a'\]\[1\] is 9223372036854775808"),
        (Document("b", "text", {"a": datetime.date(2024, 1, 1)}), "date, which JSON cannot represent"),
        (Document("b", "text", {"a": np.float32(1)}), "float32, which JSON cannot represent"),
        (Document("b", "text", {"a": {1, 2}}), "set, which JSON cannot represent"),
        (Document("b", "text", {"a": "\ud800"}), "lone surrogate"),
        (Document("b", "text", {"\ud800": "a"}), "lone surrogate"),
        (Document("b", "text", nested(30)), "nested more than 20 levels deep"),
    ],
)
def test_the_first_unfit_document_is_named(document: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_documents([GOOD, document, Document("", "")])


STRINGS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
METADATA = st.dictionaries(STRINGS, JSON, max_size=4)


@given(METADATA)
def test_json_passes_and_stays_equal(metadata: dict[str, Any]) -> None:
    assert check_documents([Document("a", "text", metadata)])[0].metadata == metadata
    assert repr(canonical_metadata(metadata)) == repr(metadata)


def test_canonical_metadata_are_the_stores_own() -> None:
    given_ = {"a": (1, 2), "b": {"c": [1]}}
    kept = canonical_metadata(given_)
    assert kept == {"a": [1, 2], "b": {"c": [1]}}
    given_["b"]["c"].append(2)  # type: ignore[call-overload, index]
    assert kept["b"] == {"c": [1]}


def test_ids_and_texts_at_the_limits_pass() -> None:
    edge = [Document("x" * 512, ""), Document("é" * 256, " "), Document("\x00", "\x00"), Document(" ", "🇰🇪")]
    assert check_documents(iter(edge)) == edge
    assert check_documents([]) == []


def test_any_mapping_is_metadata() -> None:
    document = Document("a", "text", MappingProxyType({"b": MappingProxyType({"c": 1})}))
    assert check_documents([document]) == [document]
    assert canonical_metadata(document.metadata) == {"b": {"c": 1}}
