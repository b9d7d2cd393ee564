"""Write ``golden.npz``: the results of FlagEmbedding 1.4.2 in float32 on a seeded random checkpoint.

PYTHONPATH=.:tests python -m golden.make_golden    # where FlagEmbedding==1.4.2 and transformers<5 are installed
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from golden.cases import CONFIG, LONG, SEED, SHORT, kept_rows

from m3_connectors.encoder.loading import load
from m3_connectors.testing.checkpoints import write_checkpoint

GOLDEN = Path(__file__).with_name("golden.npz")


def reference_outputs(directory: Path) -> dict[str, Any]:
    """Return dense ``[n, d]``, sparse dicts, multi-vectors, and the three score matrices of the short texts."""
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(directory), use_fp16=False, devices="cpu")
    parts = [
        model.encode(
            texts,
            batch_size=batch_size,
            max_length=CONFIG.max_length,
            return_dense=True,
            return_sparse=True,
            return_colbert_vecs=True,
        )
        for texts, batch_size in ((SHORT, 8), (LONG, 1))
    ]
    dense = np.concatenate([part["dense_vecs"] for part in parts])
    sparse = [weights for part in parts for weights in part["lexical_weights"]]
    multivectors = [rows for part in parts for rows in part["colbert_vecs"]]
    n = len(SHORT)
    return {
        "dense": dense,
        "sparse": sparse,
        "multivectors": multivectors,
        "s_dense": dense[:n] @ dense[:n].T,
        "s_lex": np.asarray(model.compute_lexical_matching_score(sparse[:n], sparse[:n])),
        "s_mul": np.array(
            [[float(model.colbert_score(q, p)) for p in multivectors[:n]] for q in multivectors[:n]]
        ),
    }


def pack(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of the golden file."""
    sparse, multivectors = outputs["sparse"], outputs["multivectors"]
    kept = [rows[kept_rows(len(rows))] for rows in multivectors]
    cells = [(i, int(token), float(w)) for i, row in enumerate(sparse) for token, w in row.items()]
    rows, ids, weights = zip(*sorted(cells), strict=True)
    return {
        "dense": outputs["dense"].astype(np.float32),
        "sparse_text": np.array(rows, np.int32),
        "sparse_token": np.array(ids, np.int32),
        "sparse_weight": np.array(weights, np.float32),
        "multivector_count": np.array([len(rows) for rows in multivectors], np.int32),
        "multivector_rows": np.concatenate(kept).astype(np.float32),
        **{name: outputs[name].astype(np.float32) for name in ("s_dense", "s_lex", "s_mul")},
    }


def main() -> None:
    """Write the file beside this script."""
    import torch

    if version("FlagEmbedding") != "1.4.2":
        sys.exit(f"FlagEmbedding is {version('FlagEmbedding')}; the golden outputs are 1.4.2's.")
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(directory, config=CONFIG, seed=SEED)
        info = load(directory, revision=None, dtype=torch.float32).info
        arrays = pack(reference_outputs(Path(directory)))
    assert info.weights_fingerprint is not None
    arrays["checkpoint"] = np.array([info.vocabulary_fingerprint, info.weights_fingerprint])
    arrays["made_by"] = np.array(
        [f"{name} {version(name)}" for name in ("FlagEmbedding", "transformers", "torch")]
    )
    np.savez_compressed(GOLDEN, **arrays)  # type: ignore[arg-type]
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes; " + ", ".join(arrays["made_by"]))


if __name__ == "__main__":
    main()
