"""``m3 export``, ``m3 import`` and saved embeddings from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3_connectors import Document, connect
from m3_connectors.cli.app import main
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.shards import EmbeddingsFolder, ShardWriter

ONE, OTHER = "qdrant:one", "qdrant:other"
Call = Callable[..., Any]


@pytest.fixture
def m3(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run ``m3`` in an empty current directory; return its JSON, or what it printed if it fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("M3_MODEL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*arguments: object, fails: int = 0) -> Any:
        capsys.readouterr()
        code = main([*map(str, arguments), "--json"])
        said = capsys.readouterr()
        assert code == fails, said.err
        return " ".join(said.err.replace("│", " ").split()) if fails else json.loads(said.out)

    return run


@pytest.fixture
def docs(m3: Call, tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.md").write_text(
            f"# Page {i}\n\nthe quick brown fox {i}\n\n" + "in the library " * i * 9
        )
    return folder


def held(url: str) -> dict[str, tuple[Document, bytes]]:
    with connect(url, create=False) as index:
        return {
            document.id: (document, vectors[i].multivectors.rows.tobytes())
            for documents, vectors in index.scan_embeddings()
            for i, document in enumerate(documents)
        }


def test_a_backup_is_one_command_and_so_is_its_way_back(m3: Call, docs: Path, checkpoint: Path) -> None:
    m3("index", ONE, docs, "-m", checkpoint, "--multivector-dtype", "int4")
    written = m3("export", ONE, "backup")
    assert (written["documents"], written["files"]) == (6, 1)
    stored = m3("import", "backup", OTHER)
    assert (stored["documents"], stored["count"], stored["changes"]) == (6, 6, [])
    assert held(OTHER) == held(ONE)
    other = m3("import", "backup", OTHER, "-c", "rounded", "--multivector-dtype", "float16")
    assert "no more exact than int4" in other["changes"][0]
    assert "was created with" in m3("import", "backup", OTHER, "--multivector-dtype", "float16", fails=1)
    found = m3("search", OTHER, "quick fox", "-m", checkpoint)
    assert found["hits"] == m3("search", ONE, "quick fox", "-m", checkpoint)["hits"]


def test_what_cannot_be_exported_or_imported_is_named(m3: Call, docs: Path, checkpoint: Path) -> None:
    assert "m3 index" in m3("export", ONE, "backup", fails=1)
    assert "no folder of embeddings" in m3("import", docs, ONE, fails=1)
    assert "discarded" in m3("import", docs, "memory:", fails=2)
    m3("index", ONE, docs, "-m", checkpoint)
    assert "has files" in m3("export", ONE, docs, fails=1)
    m3("export", ONE, "backup")
    shard = next(Path("backup").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert str(shard) in m3("import", "backup", OTHER, fails=1)
    assert not Path("other").exists()


def test_saved_embeddings_are_stored_elsewhere_without_the_model(
    m3: Call, docs: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = ("ingest", docs, "--to", ONE, "-m", checkpoint, "--chunk", "headings:64")
    first = m3(*ingest, "--save-embeddings", "kept")
    assert first["saved"] == {
        "folder": "kept", "documents": first["chunks"], "written": first["chunks"], "read": 0, "removed": 0,
    }  # fmt: skip
    with monkeypatch.context() as without:
        without.setattr(M3Encoder, "__init__", _refuse)
        put = m3("ingest", "kept", "--to", OTHER)
        assert (put["documents"], put["unchanged"]) == (first["chunks"], 0)
        assert held(OTHER) == held(ONE)
        assert m3("ingest", "kept", "--to", OTHER)["unchanged"] == first["chunks"]
        m3("import", "kept", "qdrant:third")
        assert held("qdrant:third") == held(ONE)
    (docs / "5.md").unlink()
    (docs / "4.md").write_text("changed")
    second = m3(*ingest, "--sync", "--save-embeddings", "kept")
    assert second["saved"]["written"] == 1
    assert second["saved"]["removed"] > 1
    put = m3("ingest", "kept", "--to", OTHER, "--sync")
    assert (put["documents"], put["removed"]) == (1, second["saved"]["removed"])
    assert held(OTHER) == held(ONE)


def test_a_folder_that_is_incomplete_is_stored_with_a_warning(
    m3: Call, docs: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    m3("ingest", docs, "--to", ONE, "-m", checkpoint, "--save-embeddings", "kept")
    listed = Path("kept/embeddings.json")
    listed.write_text(listed.read_text().replace('"finished": true', '"finished": false'))
    assert "incomplete" in m3("import", "kept", OTHER, fails=1)
    assert main(["ingest", "kept", "--to", OTHER]) == 0
    assert "incomplete" in capsys.readouterr().err
    folder = EmbeddingsFolder(Path("kept"))
    assert not folder.is_finished
    with ShardWriter(folder.path, folder.schema) as writer:
        writer.remove(["0.md"])
    # What it lacks may not have been written yet.
    put = m3("ingest", "kept", "--to", OTHER, "--sync")
    assert (put["removed"], put["kept"]) == (0, ["0.md"])
    with ShardWriter(folder.path, folder.schema) as writer:
        writer.finish()
    put = m3("ingest", "kept", "--to", OTHER, "--sync")
    assert (put["removed"], put["kept"]) == (1, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kept", "docs"], "cannot be mixed with other sources"),
        (["kept", "--chunk", "tokens:64"], "--chunk"),
        (["kept", "--model", "x"], "--model"),
        (["kept", "--encoding", "latin1"], "--encoding"),
        (["kept", "--save-embeddings", "again"], "--save-embeddings"),
    ],
)
def test_options_that_have_no_effect_on_saved_embeddings_are_refused(
    m3: Call, docs: Path, checkpoint: Path, arguments: list[str], said: str
) -> None:
    m3("ingest", docs, "--to", ONE, "-m", checkpoint, "--save-embeddings", "kept")
    assert said in m3("ingest", *arguments, "--to", OTHER, fails=2)
    assert not Path("other").exists()


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")
