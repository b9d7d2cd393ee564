"""``m3 train`` on a working folder with a damaged file: named with what to do, or made again; never begun anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from training_worlds import write_world

from m3_connectors.errors import InvalidInput
from m3_connectors.training.run import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = write_world(tmp_path_factory.mktemp("world") / "training")
    train(world / "tiny.toml", work=world / "work")
    return world


@pytest.fixture
def world(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "training"))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = pytest.mark.parametrize("damage", [halve, empty, Path.unlink])
STATE = ("model.safetensors", "optimizer.safetensors", "progress.json")


@DAMAGE
@pytest.mark.parametrize("name", STATE)
def test_a_damaged_state_is_named_and_the_run_does_not_restart(
    world: Path, name: str, damage: Callable[[Path], None]
) -> None:
    work = world / "work"
    damage(work / "state" / name)
    kept = {path.name: path.read_bytes() for path in (work / "state").iterdir()}
    with pytest.raises(InvalidInput, match=r"work/state is damaged: .*\.\n  Restore the folder from a copy"):
        train(world / "tiny.toml", work=work)
    assert {path.name: path.read_bytes() for path in (work / "state").iterdir()} == kept


@DAMAGE
def test_a_state_without_its_identity_is_not_resumed(world: Path, damage: Callable[[Path], None]) -> None:
    damage(world / "work" / "identity.json")
    with pytest.raises(InvalidInput, match=r"identity\.json is missing or damaged.*\n  Restore the file"):
        train(world / "tiny.toml", work=world / "work")


@pytest.mark.parametrize("damage", [halve, empty])
@pytest.mark.parametrize("name", ["tokenizer.json", "start.pt"])
def test_a_file_that_can_be_recreated_says_so(world: Path, name: str, damage: Callable[[Path], None]) -> None:
    path = world / "work" / name
    damage(path)
    with pytest.raises(InvalidInput, match=rf"{name} is damaged: .*\n  Remove the file"):
        train(world / "tiny.toml", work=world / "work")
    path.unlink()
    train(world / "tiny.toml", work=world / "work")


@DAMAGE
@pytest.mark.parametrize("name", ["index.json", "tokens.npy", "held_out.npy"])
def test_a_damaged_token_cache_is_rebuilt(world: Path, name: str, damage: Callable[[Path], None]) -> None:
    cache = world / "work" / "tokens"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    damage(cache / name)
    train(world / "tiny.toml", work=world / "work")
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
