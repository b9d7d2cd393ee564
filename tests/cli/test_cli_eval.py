"""``m3 eval --out`` killed and interrupted at many moments, and ``m3 report``: the same files, the same numbers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.backends.base import Candidates
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.cli.app import main
from m3_connectors.errors import NotFound, Unavailable
from m3_connectors.evaluation.folder import EvaluationFolder

PROGRAM = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
PAUSED_AFTER_TWO_PARTS = """
import time
from pathlib import Path
from m3_connectors.evaluation.writer import FolderWriter

add_scores = FolderWriter.add_scores

def paused(self, number, scores):
    add_scores(self, number, scores)
    if number == 1:
        Path("paused").touch()
        time.sleep(180)

FolderWriter.add_scores = paused
"""
WORDS = [
    "fox",
    "lake",
    "wizard",
    "forest",
    "library",
    "table",
    "city",
    "book",
    "dog",
    "river",
    "the",
    "quick",
]
DOCUMENTS, QUERIES = 600, 200


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """600 documents and 200 queries in ``tiny``, BEIR's files; the current directory is theirs."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    (tmp_path / "tiny" / "qrels").mkdir(parents=True)

    def write(name: str, count: int, prefix: str, longest: int) -> None:
        rows = (
            json.dumps(
                {"_id": f"{prefix}{i}", "text": " ".join(rng.choices(WORDS, k=rng.randint(2, longest)))}
            )
            for i in range(count)
        )
        (tmp_path / "tiny" / name).write_text("\n".join(rows) + "\n")

    write("corpus.jsonl", DOCUMENTS, "d", 40)
    write("queries.jsonl", QUERIES, "q", 6)
    rows = "".join(
        f"q{i}\td{document}\t{rng.randint(1, 3)}\n"
        for i in range(QUERIES)
        for document in rng.sample(range(DOCUMENTS), 2)
    )
    (tmp_path / "tiny" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return tmp_path / "tiny"


def command(checkpoint: Path, out: str) -> list[str]:
    return [
        *("eval", "tiny", "--to", "qdrant:./store", "-m", str(checkpoint), "--out", out),
        *("--baseline", "bm25", "--methods", "all,dense_sparse,sparse"),
    ]


def start(checkpoint: Path, program: str = PROGRAM) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", program, *command(checkpoint, "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(process: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not moment():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def scored() -> int:
    return len(list(Path("out/scores").glob("*.parquet")))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "environment.json"
    }


def test_killed_at_five_moments(dataset: Path, checkpoint: Path) -> None:
    moments: dict[str, Callable[[], bool]] = {
        "the corpus is being stored": lambda: (
            Path("store/tiny").exists() or any(Path("store").glob("*/m3.json"))
        ),
        "the first queries are scored": lambda: scored() >= 1,
        "half of the queries are scored": lambda: scored() >= 4,
        "all queries are scored": lambda: scored() == 7,
        "the runs are being written": lambda: Path("out/runs/all.trec").exists(),
    }
    kept = 0
    for name, moment in moments.items():
        process = start(checkpoint)
        wait_for(process, moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, name
        assert scored() >= kept, name  # no part is lost
        kept = scored()
        assert not EvaluationFolder(Path("out")).record.complete
    assert main(command(checkpoint, "out")) == 0
    assert main(command(checkpoint, "whole")) == 0
    files = files_of(Path("out"))
    assert len(files) == 4 + 1 + 7 + 4
    assert files == files_of(Path("whole"))
    assert len(EvaluationFolder(Path("out")).environment()) == 6
    assert len(EvaluationFolder(Path("whole")).environment()) == 1


def test_ctrl_c_says_how_to_go_on(
    dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(checkpoint, PAUSED_AFTER_TWO_PARTS + PROGRAM)
    wait_for(process, Path("paused").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.endswith("The results so far are in out. Run the same command to continue.\n")
    assert scored() == 2
    assert main(["report", "out"]) == 0
    captured = capsys.readouterr()
    assert "out is incomplete and not in any table" in captured.err
    assert "nDCG" not in captured.out
    assert main(command(checkpoint, "out")) == 0
    changed = [*command(checkpoint, "out"), "--query-max-length", "16"]
    capsys.readouterr()
    assert main(changed) == 1
    captured = capsys.readouterr()
    assert "out contains another evaluation: query max length: None, not 16." in captured.err
    assert "Use another --out" in captured.err


def test_weights_are_refused_if_no_method_uses_them(
    dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in ("1,2,3", "paper"):
        assert main(["eval", "tiny", "-m", str(checkpoint), "--methods", "dense", "--weights", weights]) == 2
        assert "dense takes no weights" in capsys.readouterr().err


def test_a_refused_evaluation_does_not_advise_to_continue(
    dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(self: EdgeBackend, *arguments: Any) -> Candidates:
        raise NotFound("no such thing", backend="qdrant", operation="search")

    monkeypatch.setattr(EdgeBackend, "lists", gone)
    assert main(command(checkpoint, "out")) == 1
    assert capsys.readouterr().err.endswith("no such thing\n  The results so far are in out.\n")


def test_methods_are_added_to_a_complete_evaluation(dataset: Path, checkpoint: Path) -> None:
    short = ["eval", "tiny", "--to", "qdrant:./store", "-m", str(checkpoint), "--limit-queries", "40"]
    more = [*short, "--methods", "all,sparse", "--baseline", "rrf,bm25"]
    assert main([*more, "--out", "whole"]) == 0
    assert main([*short, "--methods", "sparse", "--baseline", "bm25", "--out", "out"]) == 0
    shutil.rmtree("store")  # neither needed nor made again: all methods rank the scores that are there
    assert main([*more, "--out", "out"]) == 0
    assert not Path("store").exists()
    assert files_of(Path("out")) == files_of(Path("whole"))


@pytest.mark.parametrize(
    "name", ["scores/00001.parquet", "runs/bm25.trec", "qrels.trec", "documents.parquet", "queries.parquet"]
)
def test_a_deleted_file_is_created_again(
    dataset: Path, checkpoint: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [*command(checkpoint, "out"), "--limit-queries", "40"]
    assert main(again) == 0
    files = files_of(Path("out"))
    (Path("out") / name).unlink()
    assert main(["tune" if name.startswith("scores") else "report", "out"]) == 1
    assert "Run the same m3 eval command" in capsys.readouterr().err
    shutil.rmtree("out/report", ignore_errors=True)
    assert main(again) == 0
    assert files_of(Path("out")) == files


def test_a_store_failure_names_what_was_kept(
    dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = EdgeBackend.lists, 100

    async def dying(self: EdgeBackend, *arguments: Any) -> Candidates:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("connection lost", backend="qdrant", operation="search")
        return await real(self, *arguments)

    monkeypatch.setattr(EdgeBackend, "lists", dying)
    assert main(command(checkpoint, "out")) == 1
    error = (
        "Unavailable: qdrant search: connection lost\n"
        "  The results so far are in out. Run the same command to continue.\n"
    )
    assert capsys.readouterr().err.endswith(error)
    left = 100
    assert main(["eval", "tiny", "--to", "qdrant:./store", "-m", str(checkpoint)]) == 1
    assert "The results so far" not in capsys.readouterr().err  # nothing was asked to be kept
    monkeypatch.setattr(EdgeBackend, "lists", real)
    assert main(command(checkpoint, "out")) == 0
    assert EvaluationFolder(Path("out")).record.complete


class TestReport:
    @pytest.fixture
    def tree(self, dataset: Path, checkpoint: Path) -> Path:
        for language in ("en", "de"):
            shutil.copytree(dataset, f"set/{language}")
            _, _, *rest = command(checkpoint, f"tree/{language}")
            assert main(["eval", f"set/{language}", *rest, "--limit-queries", "20"]) == 0
        return Path("tree")

    def test_the_numbers_depend_only_on_the_files(
        self, tree: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for path in (*Path("set").rglob("*.jsonl"), *tree.rglob("metrics.parquet")):
            path.unlink()
        capsys.readouterr()
        assert main(["report", str(tree), "--json"]) == 0
        captured = capsys.readouterr()
        tables = {table["name"]: table for table in json.loads(captured.out)}
        assert json.loads((tree / "report" / "tables.json").read_text()) == list(tables.values())
        assert "wrote tree/report/tables.md" in captured.err
        quality = tables["quality-mrr-10"]
        assert quality["columns"] == ["dataset", "queries", "all", "dense_sparse", "sparse", "bm25"]
        rows = {row[0]: row[1:] for row in quality["rows"]}
        assert list(rows) == ["set, mean", "set/de", "set/en"]
        assert rows["set, mean"][0] == 40
        for column in (1, 2, 3, 4):
            assert rows["set, mean"][column] == (rows["set/de"][column] + rows["set/en"][column]) / 2
        # Recomputed from the raw rows, by the definition.
        folder = tree / "de"
        ranks: dict[str, list[float]] = {}
        relevant = {tuple(line.split()[::2]) for line in (folder / "qrels.trec").read_text().splitlines()}
        for line in (folder / "runs" / "sparse.trec").read_text().splitlines():
            query, _, document, rank, *_ = line.split()
            if (query, document) in relevant and int(rank) <= 10:
                ranks.setdefault(query, []).append(1 / int(rank))
        mean = statistics.fmean([max(ranks.get(f"q{i}", [0])) for i in range(20)])
        assert rows["set/de"][3] == pytest.approx(mean, abs=1e-15)
        warnings = [row[2] for row in tables["warnings"]["rows"]]
        assert warnings.count("only the first 20 queries are used") == 2
        assert [row[:2] for row in tables["evaluations"]["rows"]] == [["set/de", "test"], ["set/en", "test"]]

    def test_a_run_that_was_tampered_with(self, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tree / "de" / "runs" / "all.trec"
        path.write_text(path.read_text().replace("q3 Q0", "q3x Q0", 1))
        assert main(["report", str(tree)]) == 1
        assert "tree/de/runs/all.trec was truncated or changed" in capsys.readouterr().err

    def test_nothing_to_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", str(tmp_path)]) == 1
        assert "contains no evaluation" in capsys.readouterr().err
