"""The encoder's float32 numbers are those of FlagEmbedding 1.4.2: golden outputs, and side by side if installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from golden.cases import CONFIG, SEED, SHORT, TEXTS_OF_GOLDEN, kept_rows

from m3_connectors import scoring
from m3_connectors.embeddings import COMPONENTS, M3Embeddings
from m3_connectors.encoder import M3Encoder, TruncationWarning
from m3_connectors.testing.checkpoints import write_checkpoint

TOLERANCE = 1e-5
GOLDEN = Path(__file__).parents[1] / "golden" / "golden.npz"
Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("golden"), config=CONFIG, seed=SEED)


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> M3Encoder:
    return M3Encoder(str(checkpoint), device="cpu", precision="float32")


@pytest.fixture(scope="module")
def ours(encoder: M3Encoder) -> M3Embeddings:
    with pytest.warns(TruncationWarning):
        return encoder.encode(TEXTS_OF_GOLDEN)


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(GOLDEN) as file:
        return dict(file)


def test_the_golden_checkpoint_is_this_one(encoder: M3Encoder, golden: Arrays) -> None:
    info = encoder.info
    assert [info.vocabulary_fingerprint, info.weights_fingerprint] == golden["checkpoint"].tolist(), (
        "write_checkpoint makes another checkpoint than the golden outputs came from: run make_golden again"
    )


def test_the_cases_reach_the_models_maximum(ours: M3Embeddings, golden: Arrays) -> None:
    counts = golden["multivector_count"]
    assert counts.min() == 1
    assert counts.max() == CONFIG.max_length - 1
    assert ours.truncated is not None
    assert ours.truncated.tolist() == [False] * (len(ours) - 1) + [True]
    assert ours.multivectors is not None
    assert ours.multivectors.counts[-2] == CONFIG.max_length - 1


def test_dense(ours: M3Embeddings, golden: Arrays) -> None:
    np.testing.assert_allclose(ours.dense, golden["dense"], atol=TOLERANCE, rtol=0)


def test_sparse(ours: M3Embeddings, golden: Arrays) -> None:
    assert ours.sparse is not None
    cells = ours.sparse.tocoo()
    ours_by_cell = {(int(i), int(j)): float(w) for i, j, w in zip(*cells.coords, cells.data, strict=True)}
    columns = (golden[f"sparse_{name}"].tolist() for name in ("text", "token", "weight"))
    theirs = {(i, j): w for i, j, w in zip(*columns, strict=True)}
    for cell in ours_by_cell.keys() | theirs.keys():
        assert ours_by_cell.get(cell, 0) == pytest.approx(theirs.get(cell, 0), abs=TOLERANCE), cell


def test_multivectors(ours: M3Embeddings, golden: Arrays) -> None:
    assert ours.multivectors is not None
    assert ours.multivectors.counts.tolist() == golden["multivector_count"].tolist()
    kept = np.concatenate([rows[kept_rows(len(rows))] for rows in ours.multivectors])
    np.testing.assert_allclose(kept, golden["multivector_rows"], atol=TOLERANCE, rtol=0)


def test_scores(ours: M3Embeddings, golden: Arrays) -> None:
    short = ours[: len(SHORT)]
    for name, component in zip(("s_dense", "s_lex", "s_mul"), COMPONENTS, strict=True):
        matrix = np.stack([scoring.score(component, query, short) for query in short])
        np.testing.assert_allclose(matrix, golden[name], atol=TOLERANCE, rtol=0, err_msg=name)


@pytest.mark.parity
def test_side_by_side_with_flagembedding(tmp_path: Path) -> None:
    """Another checkpoint than the golden one, in a process of its own (FlagEmbedding warns a lot)."""
    if importlib.util.find_spec("FlagEmbedding") is None:
        pytest.skip('FlagEmbedding is not installed: pip install "FlagEmbedding==1.4.2" "transformers<5"')
    write_checkpoint(tmp_path, config=CONFIG, seed=SEED + 1)
    script = (
        "import sys, numpy as np; from pathlib import Path; from golden.make_golden import *;"
        "np.savez(sys.argv[1] + '/out.npz', **pack(reference_outputs(Path(sys.argv[1]))))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    with warnings.catch_warnings(category=TruncationWarning, action="ignore"):
        ours = M3Encoder(str(tmp_path), device="cpu", precision="float32").encode(TEXTS_OF_GOLDEN)
    with np.load(tmp_path / "out.npz") as theirs:
        test_dense(ours, theirs)
        test_sparse(ours, theirs)
        test_multivectors(ours, theirs)
        test_scores(ours, theirs)
