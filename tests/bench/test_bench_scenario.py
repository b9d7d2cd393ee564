"""Scenario files: what they may say, and how a mistake in one is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.bench.scenario import load_scenario, read_scenario
from m3_connectors.errors import InvalidInput

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").glob("*.toml"))
SMALLEST: dict[str, Any] = {"name": "s", "stores": [{"name": "m", "url": "memory:"}], "loads": [{}]}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
def test_the_scenarios_of_the_repository_can_be_read(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert scenario.levels()


def test_there_are_the_scenarios_that_the_docs_name() -> None:
    assert {"edge.toml", "three-stores.toml", "acceptance.toml"} <= {path.name for path in SCENARIOS}


def test_a_load_is_repeated_for_each_concurrency_and_rate() -> None:
    loads = [
        {"concurrency": [1, 8]},
        {"kind": "open", "requests_per_second": [5, 20.5], "concurrency": 16},
    ]
    names = [level.name for level in read_scenario(SMALLEST | {"loads": loads}, "s").levels()]
    assert names == ["closed-1", "closed-8", "open-5-at-16", "open-20.5-at-16"]


def test_an_open_loop_may_have_many_requests_under_way_unless_it_says_otherwise() -> None:
    raw = SMALLEST | {"loads": [{}, {"kind": "open", "requests_per_second": 1}]}
    assert [level.concurrency for level in read_scenario(raw, "s").levels()] == [1, 64]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("name", "", "name is ''"),
        ("format", 2, "has format 2, not 1"),
        ("seed", -1, "seed is -1"),
        ("seed", "1", "seed is '1'"),
        ("colour", 1, "unknown key colour"),
        ("stores", [], "stores"),
        ("stores", [{"name": "a"}], "stores[0]"),
        ("stores", [{"name": "a", "url": "memory:", "start": "milvus"}], "stores[0]"),
        ("stores", [{"name": "a", "start": "oracle"}], "stores[0].start is 'oracle'"),
        ("stores", [{"url": "memory:"}], "lacks the key stores[0].name"),
        ("stores", [{"name": "a", "url": "memory:"}] * 2, "'a'"),
        ("loads", [{"concurrency": 65}], "loads[0].concurrency[0] is 65"),
        ("loads", [{"concurrency": [1, 0]}], "loads[0].concurrency[1] is 0"),
        ("loads", [{"concurency": 1}], "unknown key loads[0].concurency"),
        ("loads", [{"kind": "open"}], "requests_per_second"),
        ("loads", [{"requests_per_second": 5}], "requests_per_second"),
        ("loads", [{"seconds": 0}], "loads[0].seconds is 0"),
        ("loads", [{}, {}], "'closed-1'"),
        ("corpus", {"documents": 2_000_000}, "corpus.documents[0] is 2000000"),
        ("corpus", {"documents": [10, 10]}, "'10'"),
        ("corpus", {"rows": {"mean": 0}}, "corpus.rows.mean is 0"),
        ("corpus", {"storage": {"multivector_dtype": "int3"}}, "corpus.storage.multivector_dtype is 'int3'"),
        ("corpus", {"storage": {"pool": 2}}, "unknown key corpus.storage.pool"),
        ("corpus", {"storage": {"pool_factor": 3}}, "pool_factor is 3"),
        ("corpus", {"vocabulary": 2**31}, "corpus.vocabulary is 2147483648"),
        (
            "queries",
            {"count": 100_000},
            "queries.count: 100,000 queries of 16 rows of 1,024 dimensions take 7.0 GB",
        ),
        ("stores", {"name": "a", "url": "memory:"}, "[stores] is a single table"),
        ("loads", {}, "[loads] is a single table"),
        ("queries", {"methods": {"best": 1}}, "'best'"),
        ("queries", {"methods": {}}, "queries.methods"),
        ("queries", {"filters": [{"share": 0.6, "selectivity": 0.1}] * 2}, "more than 1"),
        ("queries", {"filters": [{"share": 0.5, "selectivity": 0}]}, "queries.filters[0].selectivity is 0"),
    ],
)
def test_a_mistake_is_named_by_file_key_and_value(
    key: str, value: object, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "mistaken.toml"
    path.write_text(_toml(copy.deepcopy(SMALLEST) | {key: value}))
    with pytest.raises(InvalidInput) as raised:
        load_scenario(path)
    first, second = str(raised.value).splitlines()
    assert "mistaken.toml" in first
    assert named in first
    assert second.startswith("  ")


def test_a_file_that_is_none_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        load_scenario(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(InvalidInput, match=r"broken\.toml is not valid TOML"):
        load_scenario(tmp_path / "broken.toml")


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ({}, {"options": {"shards": 2}}, True),
        ({"options": {"shards": 2}}, {"optimize": False, "options": {"shards": 2}}, True),
        ({}, {"url": "qdrant:./data/", "options": {"shards": 2}}, True),
        ({}, {"collection": "other", "options": {"shards": 2}}, False),
        ({}, {}, False),
        ({}, {"url": "qdrant:./other", "options": {"shards": 2}}, False),
    ],
)
def test_one_collection_has_one_configuration(
    first: dict[str, Any], second: dict[str, Any], refused: bool
) -> None:
    stores = [{"name": name, "url": "qdrant:./data"} | keys for name, keys in (("a", first), ("b", second))]
    if not refused:
        read_scenario(SMALLEST | {"stores": stores}, "s")
        return
    with pytest.raises(InvalidInput, match="'a' and 'b' share a collection but not their settings"):
        read_scenario(SMALLEST | {"stores": stores}, "s")


def test_a_record_of_a_scenario_holds_no_secret() -> None:
    store = {
        "name": "a",
        "url": "elasticsearch+https://user:hunter2@host:9200",
        "options": {"api_key": "hunter3", "shards": 2},
    }
    record = read_scenario(SMALLEST | {"stores": [store]}, "s").record()
    assert "hunter" not in str(record)
    assert record["stores"][0]["url"] == "elasticsearch+https://host:9200"
    assert record["stores"][0]["options"] == {"api_key": "***", "shards": 2}


def _toml(raw: dict[str, Any]) -> str:
    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key} = {value(one)}" for key, one in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return f'"{item}"' if isinstance(item, str) else str(item)

    return "\n".join(f"{key} = {value(item)}" for key, item in raw.items())
