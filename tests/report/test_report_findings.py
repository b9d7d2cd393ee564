"""The headline of a report: what was found, and no more than the numbers carry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import write_evaluation
from summaries import load_of, summary_of

from m3_connectors.bench.records import Load
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.methods import DENSE, SPARSE
from m3_connectors.report.findings import cost_findings, quality_findings
from m3_connectors.report.page import Section, page
from m3_connectors.report.write import write_report

FIRST, SECOND = (0.9, 0.1, 0.5), (0.1, 0.9, 0.5)
"""Scores of two documents: dense ranks the first one first, sparse the second one."""


def judged(path: Path, right: str, name: str = "mine", methods: Any = (DENSE, SPARSE)) -> EvaluationFolder:
    """An evaluation with a query for each letter: ``d`` is answered by dense, ``s`` by sparse, ``b`` by neither."""
    cells = {f"q{i}": {"a": FIRST, "b": SECOND} for i in range(len(right))}
    qrels = {f"q{i}": {{"d": "a", "s": "b", "b": "c"}[letter]: 1} for i, letter in enumerate(right)}
    return write_evaluation(path, cells, qrels, name=name, methods=methods)


@pytest.mark.parametrize(
    ("right", "found"),
    [
        (
            "d" * 30 + "s" * 2,
            r"mine \(32 queries\): dense has the best nDCG@10, 0\.9\d\d, ahead of sparse.* is real\.",
        ),
        (
            "s" * 30 + "d" * 2,
            r"sparse has the best .* ahead of dense .* 95 % interval \+0\.\d+ to \+0\.\d+\) is real\.",
        ),
        (
            "d" * 9 + "s" * 7,
            r"dense has the best .*may be chance: nothing can be concluded about which is better\.",
        ),
        ("dsds", r"dense and sparse share the best nDCG@10, 0\.815; nothing can be concluded"),
        ("d", r"mine \(1 query\): dense has the best .*; nothing can be concluded from a single query\."),
    ],
)
def test_a_difference_is_called_real_only_where_it_is(right: str, found: str, tmp_path: Path) -> None:
    (sentence,) = quality_findings([judged(tmp_path / "e", right)])
    assert re.search(found, sentence), sentence


def test_one_method_is_compared_with_nothing(tmp_path: Path) -> None:
    (sentence,) = quality_findings([judged(tmp_path / "e", "ddd", methods=[DENSE])])
    assert (
        sentence
        == "mine (3 queries): only dense was evaluated (nDCG@10 1.000), so there is nothing to compare."
    )


def test_each_dataset_of_a_family_counts_once(tmp_path: Path) -> None:
    """Sparse wins on 60 queries of one set and loses on 20 of the other: by queries it would be ahead."""
    folders = [
        judged(tmp_path / "de", "s" * 33 + "d" * 27, "set/de"),
        judged(tmp_path / "fr", "d" * 19 + "s", "set/fr"),
    ]
    (sentence,) = quality_findings(folders)
    assert sentence.startswith("set (2 sets, 80 queries): dense has the best nDCG@10")
    means = [folder.means() for folder in folders]
    by_method = {m: np.mean([mean[m]["nDCG@10"] for mean in means]) for m in ("dense", "sparse")}
    assert f"({by_method['dense'] - by_method['sparse']:+.3f}, " in sentence


def test_many_families_make_a_small_p_value_larger(tmp_path: Path) -> None:
    """9 of 10 queries: p = 0.02 alone; looked for in six families it may well be chance."""
    (alone,) = quality_findings([judged(tmp_path / "alone", "d" * 9 + "s")])
    many = quality_findings([judged(tmp_path / str(i), "d" * 9 + "s", f"set{i}") for i in range(6)])
    assert alone.endswith("is real.")
    assert all("may be chance" in sentence for sentence in many)


def load(store: str, method: str, p50: float, *void: str) -> Load:
    return load_of(store, method, p50, 2 * p50, void=void)


def test_the_fastest_is_named_with_its_quality(tmp_path: Path) -> None:
    evaluation = judged(tmp_path / "e", "d" * 3 + "s")
    loads = [load("edge", "dense", 0.004), load("edge", "sparse", 0.001), load("milvus", "sparse", 0.003)]
    (sentence,) = cost_findings([evaluation], {"stores": summary_of(loads)})
    quality = {method: f"{means['nDCG@10']:.3f}" for method, means in evaluation.means().items()}
    assert sentence == (
        "stores (1,000 documents): sparse on edge is fastest, 1.00 ms at p50; the fastest on another store is sparse "
        f"on milvus, 3.00 ms. sparse reaches nDCG@10 {quality['sparse']} on mine "
        f"(the best is dense, {quality['dense']}, 4.00 ms on edge)."
    )
    (alone,) = cost_findings([], {"stores": summary_of(loads[:1])})
    assert alone.endswith("4.00 ms at p50. No evaluation here measures the quality of dense.")


def test_void_loads_conclude_nothing() -> None:
    (sentence,) = cost_findings(
        [], {"stores": summary_of([load("edge", "dense", 0.001, "a request failed")])}
    )
    assert sentence == "stores: every load is void, so nothing can be concluded about cost."


def test_the_headline_stands_above_all_in_the_page_and_in_the_tables(tmp_path: Path) -> None:
    judged(tmp_path / "e", "d" * 30 + "s", "<b>")
    report = write_report(tmp_path)
    (sentence,) = report.findings
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert html.index("&lt;b&gt; (31 queries): dense has the best") < html.index("<nav")
    assert "<b>" not in html
    assert f"- {sentence}" in (tmp_path / "report" / "tables.md").read_text(encoding="utf-8")
    assert "findings" not in re.sub(r"<style>.*?</style>", "", page("Empty", [Section("S")]), flags=re.S)
