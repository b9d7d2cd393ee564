"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3_connectors.files import allocated_bytes, allocated_bytes_below, replacing


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_its_block_ends(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, fsync = tmp_path / "a.json", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(fsync(handle)))
    path.write_text("old")
    with replacing(path, durable=durable) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert len(synced) == durable
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as fresh:
            fresh.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_remains_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    killed = tmp_path.parent / "killed.py"
    killed.write_text(
        "import os, pathlib\nfrom m3_connectors.files import replacing\n"
        f"with replacing(pathlib.Path({str(path)!r})) as fresh:\n    fresh.write_text('half')\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, str(killed)], check=False).returncode == 9
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(path) as fresh:
        fresh.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_may_replace_a_shared_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "other.py"
    other.write_text(
        f"import pathlib; from m3_connectors.files import replacing\n"
        f"with replacing(pathlib.Path({str(path)!r}), shared=True) as p: p.write_text('theirs')"
    )
    with replacing(path, shared=True) as fresh:
        fresh.write_text("ours")
        subprocess.run([sys.executable, str(other)], check=True)
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert sorted(tmp_path.iterdir()) == [path, other]


def test_the_space_of_a_sparse_file_is_less_than_its_length(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with (tmp_path / "below" / "sparse").open("wb") as file:
        file.truncate(2**30)
    (tmp_path / "full").write_bytes(os.urandom(2**16))
    assert 2**16 <= allocated_bytes_below(tmp_path) < 2**20
    assert allocated_bytes(tmp_path / "deleted") == 0
