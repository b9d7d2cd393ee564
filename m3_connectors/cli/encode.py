"""``m3 encode``: encode texts without a store."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from m3_connectors.cli.console import duration, err, out, plural, print_json, warn
from m3_connectors.cli.opening import DEFAULT_MODEL, check_length, load_encoder
from m3_connectors.cli.options import Debug, Json, Model, at_least, names_of
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, Vocabulary
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import DeadLetter, Fields, Source, is_records, read_documents
from m3_connectors.readers.encodings import marked_encoding, written
from m3_connectors.readers.inputs import Input

_CUT_NAMED = 10
"""The number of truncated texts that are listed on stderr, one per line."""


def encode(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to encode, one per argument.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="File of records (as m3 index reads them) or, of another format, with one text per line.",
        ),
    ] = None,
    text: Annotated[
        str, typer.Option("--text", metavar="FIELD", help="Field or column that contains the text.")
    ] = "text",
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", "-o", metavar="FILE", help="Write a safetensors file, to be read with M3Embeddings.load."
        ),
    ] = None,
    components: Annotated[
        str,
        typer.Option(
            "--components",
            metavar="C1,C2,…",
            callback=names_of(COMPONENTS),
            help=f"Components to compute: {', '.join(COMPONENTS)}.",
        ),
    ] = ",".join(COMPONENTS),
    model: Model = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="TOKENS",
            parser=at_least(3),
            help="Truncate texts to this number of tokens.",
            show_default="the model's limit",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Encode texts into one safetensors file (--to) or JSON (--json)."""
    if bool(texts) == bool(file):
        raise typer.BadParameter("give either texts or --file.")
    if not (to or json):
        raise typer.BadParameter("no output was given; use --to FILE or --json.")
    if to:
        _check_writable(to)
    wanted = _read(file, text) if file else texts or []
    encoder = load_encoder(model or DEFAULT_MODEL)
    check_length(max_length, encoder, "--max-length")
    chosen: tuple[Component, ...] = tuple(name for name in COMPONENTS if name in components.split(","))
    started = time.monotonic()
    embeddings = encoder.encode(
        wanted, components=chosen, max_length=max_length, progress=bool(err.is_terminal)
    )
    seconds = time.monotonic() - started
    if to:
        embeddings.save(to)
    _warn_of_cut_texts(embeddings)
    if json:
        print_json(_document(embeddings, wanted, encoder))
        return
    parts = [plural(len(wanted), "text"), ", ".join(chosen)]
    if embeddings.truncated_count:
        parts.append(f"{embeddings.truncated_count:,} truncated to the maximum length (see above)")
    parts += [duration(seconds), f"written to {to}"]
    out.print("  " + " · ".join(parts), markup=False, soft_wrap=True)


def _check_writable(path: Path) -> None:
    """Check the output path before the texts are encoded, which may take an hour."""
    if path.is_dir():
        raise InvalidInput(
            f"--to {path} is a folder.\n  Give a file, such as {path / 'vectors.safetensors'}."
        )
    if not path.parent.is_dir():
        raise InvalidInput(
            f"--to {path}: the folder {path.parent} does not exist.\n  Create it, or choose another one."
        )


def _read(path: Path, field: str) -> list[str]:
    """Return the texts of a file, one per row of the result. Nothing is skipped, so that rows match lines."""
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"{path} is not a file.\n  Give a file of texts.")
    if not is_records(path):
        with Input(path, path, path.name, ".txt").open() as file:
            raw = file.read()
        try:
            content = raw.decode(marked_encoding(raw) or "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{path} is not {written(error.encoding)} at byte {error.start}.\n"
                f"  Convert it, for example with: iconv -f ISO-8859-1 -t UTF-8 {path} > utf8.txt"
            ) from None
        # Not splitlines(), which also splits at a form feed or U+2028 inside a text.
        return [line.removesuffix("\n") for line in io.StringIO(content, newline=None)]

    def refuse(_: Source, letter: DeadLetter) -> None:
        raise InvalidInput(f"{letter}\n  Fix the record or remove it.")

    documents = read_documents([path], fields=Fields(field), on_dead_letter=refuse)
    return [document.text for document in documents]


def _warn_of_cut_texts(embeddings: M3Embeddings) -> None:
    """List the first truncated texts on stderr; the token counts of the result show all of them."""
    counts, kept = embeddings.token_counts, embeddings.kept_token_counts
    assert counts is not None and kept is not None  # the encoder always sets them
    cut = np.flatnonzero(embeddings.truncated).tolist()
    for i in cut[:_CUT_NAMED]:
        lost = int(counts[i] - kept[i])
        warn(
            f"text {i + 1:,} has {counts[i]:,} tokens and was truncated to {kept[i]:,}: "
            f"{lost:,} tokens ({lost / counts[i]:.0%}) are lost"
        )
    if len(cut) > _CUT_NAMED:
        warn(
            f"{len(cut) - _CUT_NAMED:,} more texts were truncated: "
            "compare token_counts and kept_token_counts of the result"
        )


def _document(embeddings: M3Embeddings, texts: list[str], vocabulary: Vocabulary) -> dict[str, object]:
    rows = []
    for i, (text, row) in enumerate(zip(texts, embeddings, strict=True)):
        entry: dict[str, object] = {"text": text, "truncated": bool(row.truncated_count)}
        if row.token_counts is not None and row.kept_token_counts is not None:
            entry |= {"tokens": int(row.token_counts[0]), "kept": int(row.kept_token_counts[0])}
        if "dense" in row.components:
            entry["dense"] = row.dense[0].tolist()
        if "sparse" in row.components:
            entry["sparse"] = embeddings.lexical_weights(i, vocabulary)
        if "multivector" in row.components:
            entry["multivectors"] = row.multivectors[0].tolist()
        rows.append(entry)
    model = None if embeddings.model is None else embeddings.model.name
    return {"model": model, "embeddings": rows}
