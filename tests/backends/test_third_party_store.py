"""A store of another distribution: pip installs it from ``third_party_store``, and its URL works everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "third_party_store"
M3 = "from m3_connectors.cli.app import main; raise SystemExit(main())"
CONFORMANCE = """
from m3_connectors.backends.registry import backend_for
from m3_connectors.testing.conformance import BackendConformance

class TestToy(BackendConformance):
    worlds = 1
    def make_backend(self, directory, collection):
        return backend_for("toy:", collection)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("third_party")
    shutil.copytree(SOURCE, directory / "source")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(directory / "target")]
    subprocess.run([*command, str(directory / "source")], check=True, capture_output=True, timeout=300)
    return directory / "target"


def run(installed: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("M3_")}
    paths = [str(installed), *filter(None, [environment.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_doctor_describes_it(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "-c", M3, "doctor", "toy:", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    values = [(finding["what"], finding["value"]) for finding in report["findings"]]
    assert ("m3-toy-store", "0.1, the store toy:") in values
    assert ("store", "toy") in values
    assert report["capabilities"]["EXACT"]


def test_an_evaluation_uses_it(installed: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "qrels").mkdir(parents=True)
    texts = {"d1": "the quick fox", "d2": "a lake in the forest"}
    rows = [json.dumps({"_id": id, "text": text}) for id, text in texts.items()]
    (tmp_path / "tiny" / "corpus.jsonl").write_text("\n".join(rows))
    (tmp_path / "tiny" / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "quick fox"}))
    (tmp_path / "tiny" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    arguments = ["eval", "tiny", "--to", "toy:", "-m", str(checkpoint), "--methods", "all", "--json"]
    done = run(installed, tmp_path, "-c", M3, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_the_calculator_uses_its_formula(installed: Path, tmp_path: Path) -> None:
    arguments = ["bench", "plan", "--docs", "1000", "--tokens", "10", "--dtype", "float16"]
    done = run(installed, tmp_path, "-c", M3, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    plans = {plan["store"]: plan for plan in json.loads(done.stdout)["plans"]}
    assert list(plans) == ["qdrant", "milvus", "elasticsearch", "toy"]
    assert plans["toy"]["disk_bytes"] == 1000 * 4 * 1024
    done = run(installed, tmp_path, "-c", M3, *arguments, "--store", "toy")
    assert "toy: not checked against measurements" in done.stdout
    done = run(installed, tmp_path, "-c", M3, *arguments, "--store", "memory")
    said = " ".join(done.stderr.replace("│", " ").split())  # the terminal draws a box around the sentence
    assert "'memory' is not valid" in said
    assert "qdrant, milvus, elasticsearch, toy" in said


def test_a_benchmark_measures_its_disk_use(installed: Path, tmp_path: Path) -> None:
    corpus = {"documents": 50, "dimension": 16, "vocabulary": 100, "topics": 2}
    (tmp_path / "s.toml").write_text(
        'name = "s"\nrecall = { queries = 0 }\nloads = [{ warm_up_seconds = 0, requests = 1 }]\n'
        'stores = [{ name = "theirs", url = "toy:" }, { name = "silent", url = "memory:" }]\n'
        f"corpus = {{ {', '.join(f'{name} = {value}' for name, value in corpus.items())} }}\n"
    )
    done = run(installed, tmp_path, "-c", M3, "bench", "s.toml", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "not reported by the store" in " ".join(done.stdout.split())
    fills = json.loads((tmp_path / "out" / "summary.json").read_text())["fills"]
    assert [fill["component_bytes_per_document"] for fill in fills] == [{"dense": 64.0}, None]
    assert [fill["planned_bytes_per_document"] for fill in fills] == [{"dense": 64.0}, None]


def test_it_conforms(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_toy.py").write_text(CONFORMANCE)
    done = run(installed, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_toy.py")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_descriptor_does_not_import_the_adapter(installed: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from m3_connectors.backends.registry import store_for; store_for('toy:')\n"
        "print([name for name in sys.modules if name in ('m3_toy_store.backend', 'qdrant_client', 'pymilvus', "
        "'elasticsearch', 'qdrant_edge')])"
    )
    assert run(installed, tmp_path, "-c", program).stdout == "[]\n"
