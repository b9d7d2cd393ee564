"""Kill ``m3 index`` with SIGKILL at random moments, run it again, and compare the stored with the given documents.

    python benchmarks/kill_index.py --model models/m3-tiny --kills 20

Each trial begins with an empty store. The script prints one line per trial and exits with 1 if a document is missing,
duplicated or different after the second run.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from m3_connectors import connect

PROGRAM = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
WORDS = (
    "fox",
    "lake",
    "wizard",
    "forest",
    "library",
    "table",
    "city",
    "river",
    "copper",
    "lantern",
    "violin",
)


def write_corpus(path: Path, documents: int, rng: random.Random) -> dict[str, str]:
    """Return a seeded corpus: text by id."""
    texts = {f"doc-{i:05d}": " ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for i in range(documents)}
    path.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in texts.items()))
    return texts


def start(url: str, corpus: Path, model: str) -> subprocess.Popen[bytes]:
    """Start ``m3 index`` as a process."""
    command = [sys.executable, "-c", PROGRAM, "index", url, str(corpus), "--model", model, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"m3 index failed with {process.returncode}: {err.decode()}")
    json.loads(out)


def stored(url: str, ids: list[str]) -> tuple[int, dict[str, str]]:
    """Return the number of documents, and text by id."""
    with connect(url, create=False) as index:
        found = index.get(ids)
        return index.count(), {document.id: document.text for document in found if document}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/m3-tiny")
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        texts = write_corpus(corpus, options.documents, rng)
        data = Path(folder) / "undisturbed"
        began = time.monotonic()
        process = start(f"qdrant:{data}", corpus, options.model)
        while not data.exists() and process.poll() is None:
            time.sleep(0.01)
        opened = time.monotonic()
        finish(process)
        ended = time.monotonic()
        print(
            f"undisturbed: store made after {opened - began:.2f} s, done after {ended - began:.2f} s",
            flush=True,
        )
        for trial in range(options.kills):
            data = Path(folder) / f"trial-{trial}"
            process = start(f"qdrant:{data}", corpus, options.model)
            while not data.exists() and process.poll() is None:
                time.sleep(0.001)
            moment = rng.uniform(0, ended - opened)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed = process.returncode == -signal.SIGKILL
            try:
                between, _ = stored(f"qdrant:{data}", [])
                state = f"{between:,} documents stored"
            except Exception as error:  # noqa: BLE001 (every error of a killed store is reported)
                state = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            finish(start(f"qdrant:{data}", corpus, options.model))
            count, found = stored(f"qdrant:{data}", list(texts))
            right = count == len(texts) and found == texts
            faults += not right
            how = "killed" if killed else "was done before the kill"
            print(
                f"trial {trial + 1:2d}: {how} {moment:.2f} s into the store, {state}; run again: {count:,} stored, "
                f"{'all right' if right else 'WRONG'}",
                flush=True,
            )
    print(f"{options.kills - faults} of {options.kills} right")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
