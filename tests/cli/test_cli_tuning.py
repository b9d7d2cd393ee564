"""``m3 compare`` and ``m3 tune`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from evaluations import Cells, write_evaluation

from m3_connectors.blocking import connect
from m3_connectors.cli.app import main
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.methods import ALL, DENSE, DENSE_SPARSE, SPARSE, Weights, load_weights
from m3_connectors.testing.checkpoints import TEXTS

METHODS = (DENSE, SPARSE, DENSE_SPARSE, ALL)


class Printed(NamedTuple):
    code: int
    out: str
    err: str


M3 = Callable[..., Printed]


@pytest.fixture
def m3(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> M3:
    """Runs ``m3`` in an empty current directory with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("M3_MODEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> Printed:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Printed(code, *capsys.readouterr())

    return run


def world(truth: tuple[float, float, float], queries: int = 60) -> tuple[Cells, dict[str, dict[str, int]]]:
    """The relevant document is the best one under these weights."""
    rng = np.random.default_rng(0)
    cells, qrels = {}, {}
    for q in range(queries):
        scores = rng.random((25, 3))
        cells[f"q{q}"] = {f"d{d}": tuple(row) for d, row in enumerate(scores.tolist())}
        qrels[f"q{q}"] = {f"d{int((scores @ truth).argmax())}": 1}
    return cells, qrels  # type: ignore[return-value]


class TestCompare:
    def test_two_methods_of_one_evaluation(self, m3: M3) -> None:
        write_evaluation(Path("e"), *world((0.1, 0.6, 0.3)), methods=METHODS, split="q-en")
        run = m3("compare", "e", "--methods", "dense,all")
        assert run.code == 0
        first, header, row, *rest = run.out.splitlines()
        assert first == "  e"
        assert " ".join(header.split()) == "dataset methods nDCG@10 difference 95 % p p, Holm win/tie/loss"
        assert row.split()[:5] == ["toy", "q-en", "dense", "→", "all"]
        assert row.rstrip().endswith("real")
        assert sum(line.startswith("  better ") for line in rest) == 3
        assert any("      after   rank 1     dense 0." in line and " × 0.3 + multi " in line for line in rest)

    def test_two_evaluations_as_json(self, m3: M3) -> None:
        write_evaluation(Path("a"), *world((0.1, 0.6, 0.3)), methods=METHODS)
        write_evaluation(Path("b"), *world((0.1, 0.6, 0.3)), methods=[ALL.weighted(0.1, 0.6, 0.3)])
        run = m3("compare", "a", "b", "--method", "all", "--queries", "1", "--json")
        (found,) = json.loads(run.out)["comparisons"]
        assert found["after"] == {"path": "b", "method": "all", "weights": [0.1, 0.6, 0.3], "mean": 1}
        assert found["difference"] == pytest.approx(1 - found["before"]["mean"])
        assert found["interval"][0] < found["difference"] < found["interval"][1]
        assert found["wins"] + found["ties"] + found["losses"] == found["queries"] == 60
        assert (found["p_value"], found["adjusted_p_value"], found["real"]) == (
            pytest.approx(1 / 10_001),
            pytest.approx(1 / 10_001),
            True,
        )
        assert found["worse"] == []
        (better,) = found["better"]
        (document,) = better["documents"]
        assert document["after"]["rank"] == 1
        assert document["before"]["scores"] == document["after"]["scores"]

    def test_of_several_comparisons_no_queries_unless_asked_for(self, m3: M3) -> None:
        for language in ("de", "en"):
            write_evaluation(Path("t") / language, *world((1, 0, 0)), methods=METHODS, name=language)
        run = m3("compare", "t", "--methods", "sparse,dense")
        assert (run.code, run.out.count("\n")) == (0, 4)
        shown = m3("compare", "t", "--methods", "sparse,dense", "--queries", "1")
        assert "\n  de · sparse → dense\n" in shown.out
        assert "\n  en · sparse → dense\n" in shown.out

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (["e"], 2, "give a second folder"),
            (
                ["e", "--methods", "all,bm25"],
                1,
                "method 'bm25' was not evaluated on toy",
            ),
            (["e", "--methods", "all,all"], 1, "Use two or more different methods"),
            (["e", "nowhere"], 1, "nowhere contains no evaluation"),
            (["e", "other"], 1, "different datasets: toy and other"),
            (["e", "e", "--measure", "nDCG@7"], 1, "has no nDCG@7"),
            (["e", "e", "--queries", "-1"], 2, "give an integer of at least 0"),
        ],
    )
    def test_wrong_usage(self, m3: M3, arguments: list[str], code: int, says: str) -> None:
        write_evaluation(Path("e"), *world((1, 0, 0), 5), methods=METHODS)
        write_evaluation(Path("other"), *world((1, 0, 0), 5), methods=METHODS, name="other")
        run = m3("compare", *arguments)
        assert (run.code, run.out) == (code, "")
        assert says in " ".join(run.err.replace("│", " ").split())


class TestTune:
    def test_significant_weights_are_written_and_used(self, m3: M3, encoder: M3Encoder) -> None:
        write_evaluation(Path("e"), *world((0.1, 0.6, 0.3)), methods=METHODS)
        run = m3("tune", "e", "--out", "weights.json")
        assert run.code == 0
        assert run.out.startswith("  toy · split test · toy · 60 queries · 5 folds\n\n  all  w = 0.")
        assert "nDCG on held-out folds [" in run.out
        written = load_weights("weights.json")
        assert tuple(written["all"]) == pytest.approx((0.1, 0.6, 0.3), abs=0.06)
        assert set(written) == {"all", "dense_sparse"}
        assert written["dense_sparse"].multivector == 0
        with connect("memory:", encoder=encoder, weights="weights.json") as index:
            assert index.methods["all"].weights == written["all"]

    def test_noise_keeps_the_current_weights_and_says_so(self, m3: M3) -> None:
        in_use = ALL.weighted(0.2, 0.3, 0.5)
        write_evaluation(Path("e"), *world((0.2, 0.3, 0.5)), methods=[in_use])
        run = m3("tune", "e", "--methods", "all", "--out", "w.json")
        assert "\n  all  keep 0.2 0.3 0.5 (as evaluated) · tuned to " in run.out
        assert "w.json contains the recommended weights (for all, not the tuned ones)" in run.out
        assert load_weights("w.json") == {"all": Weights(0.2, 0.3, 0.5)}
        document = json.loads(m3("tune", "e", "--method", "all", "--json").out)
        (found,) = document["methods"]
        assert (found["recommended"], found["advised"]) == (False, [0.2, 0.3, 0.5])
        assert [gain["baseline"] for gain in found["gains"]] == [
            "as evaluated",
            "paper, MIRACL",
            "paper, long documents",
            "equal",
        ]
        assert sum(fold["queries"] for fold in found["folds"]) == document["queries"] == 60
        assert document["weights_file"] is None

    def test_a_dataset_is_evaluated_into_the_cache_once(
        self, m3: M3, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = beir(tmp_path / "data")
        arguments = ("tune", data, "--to", "qdrant:./store", "--model", checkpoint, "--folds", 3, "--json")
        first = m3(*arguments)
        assert first.code == 0, first.err
        kept = Path(json.loads(first.out)["evaluation"])
        assert kept.is_relative_to(tmp_path / "cache")
        before = (kept / "environment.json").read_bytes()
        again = m3(*arguments, "--seed", 1)
        assert json.loads(again.out)["evaluation"] == str(kept)
        assert (kept / "environment.json").read_bytes() == before  # no second session
        cut = m3(*arguments, "--query-max-length", 5)
        assert json.loads(cut.out)["evaluation"] != str(kept)
        monkeypatch.setattr(M3Encoder, "precision", "int3")  # as on another device
        other = m3(*arguments)
        assert other.code == 0, other.err
        assert json.loads(other.out)["evaluation"] != str(kept)

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (["e", "--methods", "dense"], 2, "'dense' is not valid; choose from dense_sparse, all"),
            (["e", "--folds", "1"], 2, "give an integer of at least 2"),
            (["unfinished"], 1, "unfinished is incomplete"),
            (["."], 2, ". contains 2 evaluations; choose one, such as e."),
            (["nowhere"], 1, "nowhere"),
            (["e", "--to", "mysql:"], 0, ""),
            (["nowhere", "--to", "mysql:"], 2, "--to"),
        ],
    )
    def test_wrong_usage(self, m3: M3, arguments: list[str], code: int, says: str) -> None:
        write_evaluation(Path("e"), *world((1, 0, 0), 5), methods=METHODS)
        write_evaluation(Path("unfinished"), *world((1, 0, 0), 5), methods=METHODS, complete=False)
        run = m3("tune", *arguments)
        assert run.code == code
        assert says in " ".join(run.err.replace("│", " ").split())


def beir(root: Path) -> Path:
    """A folder with a question for each text."""
    texts = list(TEXTS.values())
    files: dict[str, list[Any]] = {
        "corpus.jsonl": [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)],
        "queries.jsonl": [
            {"_id": f"q{i}", "text": " ".join(text.split()[:3])} for i, text in enumerate(texts)
        ],
    }
    (root / "qrels").mkdir(parents=True)
    for name, rows in files.items():
        (root / name).write_text("\n".join(map(json.dumps, rows)))
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(len(texts)))
    (root / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return root
