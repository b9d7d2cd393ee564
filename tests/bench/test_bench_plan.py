"""The calculator: bytes that follow from the layout, nodes that hold them, and how near it comes to a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.backends.blobs import pack_multivector
from m3_connectors.backends.planning import Plan, Shape, formula_of
from m3_connectors.backends.precision import PRECISIONS, precision_of
from m3_connectors.backends.stores import stores_with
from m3_connectors.bench.run import run
from m3_connectors.bench.scenario import CorpusSettings, Rows, read_scenario
from m3_connectors.bench.synthetic import Corpus
from m3_connectors.cli.app import main
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import InvalidInput

SHAPES = st.builds(
    Shape.of_tokens,
    st.floats(1, 1e9),
    st.floats(1, 8191),
    st.sampled_from([8, 256, 1024, 4096]),
    st.sampled_from(list(PRECISIONS)),
    st.floats(1, 8),
)

STORES = tuple(stores_with("plan"))


def plan(store: str, shape: Shape) -> Plan:
    formula = formula_of(store)
    assert formula is not None
    return formula.plan(shape)


def part(one: Plan, name: str) -> float:
    return sum(part.disk_bytes for part in one.parts if part.name == name)


@given(SHAPES, st.sampled_from(STORES), st.floats(1e9, 1e13), st.integers(0, 3))
def test_nodes_hold_what_they_must_and_not_one_too_many(
    shape: Shape, store: Any, memory_bytes: float, replicas: int
) -> None:
    one = plan(store, shape)
    nodes = one.nodes(memory_bytes, replicas)
    needed = (1 + replicas) * one.memory_bytes
    assert nodes * one.usable * memory_bytes >= needed * (1 - 1e-9)
    assert nodes == 1 + replicas or (nodes - 1) * one.usable * memory_bytes < needed
    assert one.disk_bytes > shape.documents * 4 * shape.dimension


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_packed_rows_are_counted_as_they_are_packed(dtype: Any) -> None:
    _, embeddings = Corpus(CorpusSettings(dimension=32, rows=Rows(mean=9, spread=0)), 1, 0).batch(0, 1)
    assert embeddings.multivectors is not None
    blob = pack_multivector(embeddings.multivectors.rows, precision_of(dtype))
    shape = Shape.of_tokens(1, 8, 32, dtype)
    assert shape.blob_bytes == len(blob)
    assert part(plan("elasticsearch", shape), "multivector") == len(blob)
    assert part(plan("milvus", shape), "multivector") == pytest.approx(len(blob) * 4 / 3)
    if shape.is_compact:
        assert part(plan("qdrant", shape), "multivector") == len(blob)


def test_a_qdrant_server_carries_three_bytes_in_four() -> None:
    formula = formula_of("qdrant")
    assert formula is not None
    shape = Shape.of_tokens(1e6, 299, 1024, "int2")
    embedded, server = formula.plans(shape)
    # A header, a centre and 300 rows, in vectors of 192 bytes; a document of 8,192 rows needs one multi-vector, too.
    size = 4 * 64 * ((16 + 1028 + 300 * 260) // 192 + 1)
    assert part(server, "multivector") == pytest.approx(size, rel=0.001)
    assert part(server, "multivector") == pytest.approx(part(embedded, "multivector") * 4 / 3, rel=0.01)
    assert server.cost.wire_bytes == 200 * size
    same = Shape.of_tokens(1e6, 299, 1024, "float16")
    assert len(formula.plans(same)) == 1


@pytest.mark.parametrize("store", STORES)
def test_a_component_that_is_left_out_takes_nothing(store: str) -> None:
    whole, two, one = (
        plan(store, Shape.of_tokens(1e6, 300, components=components))
        for components in (COMPONENTS, ("dense", "sparse"), ("dense",))
    )
    assert two.disk_bytes == pytest.approx(whole.disk_bytes - 1e6 * part(whole, "multivector"))
    assert one.disk_bytes == pytest.approx(two.disk_bytes - 1e6 * part(whole, "sparse"))
    assert two.cost.read_bytes == two.cost.wire_bytes == two.cost.products == 0


def test_a_hundred_million_passages_fit_in_5_tb_on_each_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", "--docs", "100e6", "--tokens", "300", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    forms = [*((store, "") for store in STORES), ("qdrant", "server")]
    assert {(one["store"], one["form"]) for one in plans} == set(forms)
    for store in STORES:
        kinds = {
            (one["shape"]["dtype"], one["shape"]["pool_factor"])
            for one in plans
            if (one["store"], one["form"]) == (store, "") and "multivector" in one["shape"]["components"]
        }
        assert kinds == {(dtype, factor) for dtype in PRECISIONS for factor in (1, 2, 3)}
        assert any(
            one["shape"]["components"] == ["dense", "sparse"] for one in plans if one["store"] == store
        )
    for form in forms:
        small = {
            one["shape"]["dtype"]
            for one in plans
            if (one["store"], one["form"]) == form
            and one["disk_bytes"] <= 5e12
            and "multivector" in one["shape"]["components"]
        }
        assert {"int2", "int1"} <= small


def test_qdrant_keeps_a_row_for_each_vector_that_a_document_lacks() -> None:
    """8,192 rows of 1,024 need nine vectors of 1,023 rows; eight of them are empty in short documents."""
    shape = Shape.of_tokens(1e6, 300)
    assert part(plan("qdrant", shape), "multivector") == pytest.approx(301 * 2048 + 8 * 2048, rel=0.001)


def test_qdrant_keeps_no_further_vectors_where_long_documents_are_refused() -> None:
    refused = Shape.of_tokens(1e6, 300, long_documents="error")
    assert part(plan("qdrant", refused), "multivector") == pytest.approx(301 * 2048, rel=0.001)
    for store in ("milvus", "elasticsearch"):
        assert plan(store, refused).disk_bytes == plan(store, Shape.of_tokens(1e6, 300)).disk_bytes


def test_storage_choices_change_what_they_should_and_nothing_else() -> None:
    half, full, pooled = (
        plan("qdrant", Shape.of_tokens(1e6, 299, 1024, dtype, factor))
        for dtype, factor in (("float16", 1), ("float32", 1), ("float16", 2))
    )
    assert part(full, "multivector") == pytest.approx(2 * part(half, "multivector"), rel=0.001)
    assert full.memory_bytes == half.memory_bytes == pooled.memory_bytes
    assert half.cost.read_bytes == 200 * 300 * 2048
    assert pooled.cost.read_bytes == half.cost.read_bytes / 2
    assert half.cost.wire_bytes < 1e5 < plan("milvus", half.shape).cost.wire_bytes


def test_a_store_without_a_formula_has_none() -> None:
    assert formula_of("memory") is None
    assert formula_of("oracle") is None


@pytest.mark.parametrize(
    "arguments", [(0, 10), (10, 0), (float("nan"), 10), (10, float("inf")), (10, 10, 0), (10, 10, 8, "int3")]
)
def test_a_shape_that_cannot_be_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidInput):
        Shape.of_tokens(*arguments)


@pytest.mark.parametrize(
    "storage",
    [
        {"multivector_dtype": "float16"},
        {"multivector_dtype": "int2", "long_documents": "pool", "pool_factor": 2, "pool_from_rows": 1},
    ],
    ids=["float16", "int2, all pooled by 2"],
)
def test_the_calculator_agrees_with_the_engine_here(tmp_path: Path, storage: dict[str, Any]) -> None:
    raw = {
        "name": "s",
        "stores": [{"name": "edge", "url": f"qdrant:{tmp_path / 'data'}"}],
        "corpus": {
            "documents": 2000,
            "dimension": 128,
            "rows": {"mean": 12},
            "vocabulary": 20_000,
            "storage": storage,
        },
        "recall": {"queries": 0},
        "loads": [{"warm_up_seconds": 0, "requests": 1}],
    }
    (fill,) = anyio.run(run, read_scenario(raw, "s"), tmp_path / "out").summary().fills
    measured, planned = fill.component_bytes_per_document, fill.planned_bytes_per_document
    without_log = sum(measured.values()) - measured["log"]
    assert sum(planned.values()) == pytest.approx(without_log, rel=0.15)
    for name in ("dense", "multivector"):
        assert planned[name] == pytest.approx(measured[name], rel=0.05), name


def test_the_command_calculates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", "--docs", "100e6", "--tokens", "300"]) == 0
    printed = capsys.readouterr().out
    assert "100,000,000 documents of 300 tokens" in printed
    assert all(store in printed for store in STORES)
    assert "error" in printed
    chosen = [
        "--store",
        "milvus",
        "--dtype",
        "float16",
        "--nodes-memory",
        "128 GB",
        "--replicas",
        "1",
        "--json",
    ]
    assert main(["bench", "plan", "--docs", "1e6", "--tokens", "100", *chosen]) == 0
    document = json.loads(capsys.readouterr().out)
    (only,) = document["plans"]
    assert (only["store"], only["shape"]["dtype"], only["nodes"]) == ("milvus", "float16", 2)
    assert set(document["checked"]) == set(STORES)


def test_the_command_takes_the_choice_for_long_documents(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for choice in ("split", "error"):
        arguments = ["--docs", "1e6", "--tokens", "100", "--store", "qdrant", "--dtype", "float16", "--json"]
        assert main(["bench", "plan", *arguments, "--long-documents", choice]) == 0
        sizes[choice] = json.loads(capsys.readouterr().out)["plans"][0]["disk_bytes"]
    assert sizes["split"] - sizes["error"] == pytest.approx(1e6 * 8 * 2048, rel=0.01)
    assert main(["bench", "plan", *arguments, "--components", "dense,sparse"]) == 0
    (without,) = json.loads(capsys.readouterr().out)["plans"]
    assert without["disk_bytes"] < sizes["error"] / 10
    both = ["--long-documents", "error", "--pool-factor", "2"]
    assert main(["bench", "plan", "--docs", "1e6", "--tokens", "100", *both]) == 2
    assert "pooling is not valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--docs", "many"),
        ("--docs", "0"),
        ("--tokens", "-3"),
        ("--nodes-memory", "64 sheep"),
        ("--store", "oracle"),
        ("--dtype", "int3"),
        ("--pool-factor", "0"),
        ("--components", "sparse"),
        ("--long-documents", "pool"),
    ],
)
def test_the_command_names_a_wrong_value(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {"--docs": "1e6", "--tokens": "100"} | {option: value}
    assert main(["bench", "plan", *(word for pair in wanted.items() for word in pair)]) == 2
    assert value.strip("-") in capsys.readouterr().err
