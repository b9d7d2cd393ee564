"""Dense vectors of a teacher: the targets, the losses by hand, the initial model, refusals, and a stopped run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from training_worlds import TEACHER_WIDTH, taught, texts_of, write_teacher, write_world

from m3_connectors.errors import InvalidInput
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.dense_teacher import TeacherVectors, text_key
from m3_connectors.training.forward import TrainingEncoder
from m3_connectors.training.run import train
from m3_connectors.training.trainer import Trainer

Records = list[dict[str, Any]]
WIDTH = 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_world(tmp_path_factory.mktemp("world") / "training")
    texts = texts_of(root)
    write_teacher(root / "teacher.safetensors", texts)
    write_teacher(root / "half.safetensors", texts[: len(texts) // 2])
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def configure(world: Path, name: str, top: str = "", end: str = "", vectors: str = "teacher") -> Path:
    path = world / f"{name}.toml"
    base = (world / "tiny.toml").read_text().replace("[tune_importance]\nqa = 1.0\n", "")
    path.write_text(f'{top}{base}\n[dense_teacher]\nvectors = "{vectors}.safetensors"\n{end}')
    return path


def trainer(world: Path, folder: Path, **given: str) -> Trainer:
    return Trainer(TrainingConfig.load(configure(world, folder.name, **given)), world / "pairs", folder)


def reduced(vectors: NDArray[np.float32], width: int) -> NDArray[np.float64]:
    """The principal components by a singular value decomposition, unit rows; their signs are arbitrary."""
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    components = centred @ axes[:width].T
    return components / np.linalg.norm(components, axis=1, keepdims=True)


def test_targets_are_the_principal_components_of_the_teacher(world: Path) -> None:
    texts = texts_of(world)
    keys = np.array([text_key(text) for text in [*texts, "no such text"]], np.uint64)
    teacher = TeacherVectors(world / "teacher.safetensors", keys, 8)
    numbers = np.array([5, len(texts), 0, 17])
    known, targets = teacher.targets(numbers)
    assert known.tolist() == [0, 2, 3]
    assert teacher.known == len(texts)
    np.testing.assert_array_equal(teacher.has(numbers), [True, False, True, True])
    expected = reduced(taught(texts), 8)[[5, 0, 17]]
    signs = np.sign((targets.numpy() * expected).sum(0))
    np.testing.assert_allclose(targets.numpy() * signs, expected, atol=1e-6)
    dense = torch.nn.functional.normalize(
        torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    by_hand = [1 - float(dense[place] @ targets[row]) for row, place in enumerate([0, 2, 3])]
    assert teacher.distance(dense, numbers).item() == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert teacher.distance(dense[:1], np.array([len(texts)])).item() == 0


def test_the_axes_do_not_depend_on_the_signs_that_a_processor_finds(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = np.array([text_key(text) for text in texts_of(world)], np.uint64)
    _, here = TeacherVectors(world / "teacher.safetensors", keys, 8).targets(np.arange(20))
    eigh = np.linalg.eigh

    def elsewhere(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values, axes = eigh(matrix)
        return values, -axes

    monkeypatch.setattr(np.linalg, "eigh", elsewhere)
    _, there = TeacherVectors(world / "teacher.safetensors", keys, 8).targets(np.arange(20))
    torch.testing.assert_close(there, here)


@pytest.mark.parametrize("widths", [(), (4, 16)])
def test_the_losses_of_distil_are_those_of_a_computation_by_hand(
    world: Path, tmp_path: Path, widths: tuple[int, ...]
) -> None:
    end = f"temperature = 0.1\n[loss]\nmatryoshka = {list(widths)}\n"
    run = trainer(world, tmp_path / "distil", top='objective = "distil"\n', end=end)
    run.stage._encoder = TrainingEncoder(run.model, torch.float32)  # type: ignore[attr-defined]
    outcome = run.stage.loss(0, 0.0)
    stage: Any = run.stage
    batch = stage.batch(0)
    with torch.no_grad():
        dense, _ = stage._encoder.dense(batch.queries + batch.passages, stage.first_positions(batch, 0))
    students = dense.double().numpy()
    _, found = stage._teacher.targets(batch.text_numbers)
    teachers = found.double().numpy()
    assert len(teachers) == len(students)
    distances, similarities = [], []
    for width in (*widths, WIDTH):
        student, teacher = (
            [row[:width] / math.sqrt(sum(row[:width] ** 2)) for row in rows] for rows in (students, teachers)
        )
        distances.append(np.mean([1 - s @ t for s, t in zip(student, teacher, strict=True)]))
        divergences = []
        for query in range(len(batch)):
            p, q = (
                np.exp([rows[query] @ passage / 0.1 for passage in rows[len(batch) :]])
                for rows in (teacher, student)
            )
            p, q = p / p.sum(), q / q.sum()
            divergences.append(sum(p * np.log(p / q)))
        similarities.append(np.mean(divergences))
    assert outcome.parts["distance"] == pytest.approx(np.mean(distances), abs=1e-5)
    assert outcome.parts["similarity"] == pytest.approx(np.mean(similarities), abs=1e-5)
    assert outcome.loss.item() == pytest.approx(np.mean(distances) + np.mean(similarities), abs=1e-5)


def test_finetune_adds_the_weighted_distance(world: Path, tmp_path: Path) -> None:
    plain = trainer(world, tmp_path / "plain", end="weight = 0.0\n").stage.loss(0, 0.0)
    added = trainer(world, tmp_path / "added", end="weight = 3.0\n").stage.loss(0, 0.0)
    assert added.parts["distance"] > 0
    assert added.loss.item() == pytest.approx(plain.loss.item() + 3 * added.parts["distance"], rel=1e-5)


def test_the_initial_model_is_nearer_to_its_teacher_than_one_without(world: Path, tmp_path: Path) -> None:
    def distance(given: Trainer) -> float:
        stage: Any = given.stage
        teacher = TeacherVectors(world / "teacher.safetensors", given.store.keys, WIDTH)
        batch = stage.batch(0)
        with torch.no_grad():
            dense, _ = stage._encoder.dense(batch.queries + batch.passages)
        return float(teacher.distance(dense, batch.text_numbers))

    near = distance(trainer(world, tmp_path / "near"))
    far = distance(Trainer(TrainingConfig.load(world / "tiny.toml"), world / "pairs", tmp_path / "far"))
    assert near < 0.7 * far


def test_distillation_draws_the_student_nearer_and_the_heads_stay(world: Path, tmp_path: Path) -> None:
    top = 'objective = "distil"\n'
    run = trainer(world, tmp_path / "learn", top=top)
    before = {
        name: value.detach().clone()
        for name, value in run.model.named_parameters()
        if name.startswith(("sparse_linear", "colbert_linear"))
    }
    config = TrainingConfig.load(configure(world, "longer", top=top))
    longer = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=40))
    records: Records = []
    Trainer(longer, world / "pairs", tmp_path / "longer", records.append).run()
    losses = [record["loss"] for record in records if "loss" in record]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    run.run()
    for name, value in before.items():
        assert torch.equal(dict(run.model.named_parameters())[name], value)


STAGES = """
[[stages]]
objective = "distil"
run.steps = 3
[[stages]]
run.steps = 3
"""


def test_a_stopped_run_takes_the_same_steps(world: Path, tmp_path: Path) -> None:
    path = configure(world, "stages", end=STAGES)

    def losses(records: Records) -> list[float]:
        return [record["loss"] for record in records if "loss" in record]

    whole: Records = []
    train(path, output=tmp_path / "a", work=tmp_path / "whole", report=whole.append)
    stopped: Records = []
    for _ in range(10):
        taken = len(losses(stopped))
        try:
            train(
                path,
                output=tmp_path / "b",
                work=tmp_path / "stopped",
                report=stopped.append,
                stop=lambda taken=taken: len(losses(stopped)) > taken,
            )
        except KeyboardInterrupt:
            continue
        break
    assert len(losses(whole)) == 6
    assert losses(stopped) == losses(whole)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("distil", r"of 300 pairs are not used by the stage distil: .*half\.safetensors has no vector"),
        ("finetune", r"of 450 texts have no vector in .*half\.safetensors"),
    ],
)
def test_texts_without_a_vector_are_counted(world: Path, tmp_path: Path, objective: str, said: str) -> None:
    run = trainer(world, tmp_path / objective, top=f'objective = "{objective}"\n', vectors="half")
    assert any(re.search(said, warning) for warning in run.stage.warnings)
    if objective == "distil":
        stage: Any = run.stage
        for step in range(10):
            batch = stage.batch(step)
            assert stage._teacher.has(batch.text_numbers).all()


KEY = np.array([text_key("a"), text_key("b")], np.uint64)
ROWS = np.eye(2, TEACHER_WIDTH, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"keys": KEY}, "cannot be read as teacher vectors: 'vectors'"),
        ({"keys": KEY.astype(np.int64), "vectors": ROWS}, r"keys is int64 \[2\]"),
        ({"keys": KEY, "vectors": ROWS.astype(np.int8)}, r"vectors int8 \[2, 40\]"),
        ({"keys": KEY, "vectors": ROWS[:1]}, r"vectors float32 \[1, 40\]"),
        ({"keys": KEY, "vectors": ROWS[0]}, r"vectors float32 \[40\]"),
        ({"keys": KEY[:0], "vectors": ROWS[:0]}, "has no vector"),
        ({"keys": KEY, "vectors": ROWS * np.nan}, "has vectors with NaN or infinity"),
        ({"keys": KEY, "vectors": ROWS * 0 + 1}, "has vectors that are all equal"),
        ({"keys": KEY, "vectors": ROWS[:, :8].copy()}, "has vectors of 8 numbers, and .* has 32"),
        ({"keys": KEY, "vectors": ROWS}, "has 2 vectors, but none of a text of this run"),
    ],
)
def test_files_that_are_no_teacher_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], said: str
) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file(arrays, path)
    with pytest.raises(InvalidInput, match=said):
        TeacherVectors(path, np.array([text_key("c")], np.uint64), WIDTH)


def test_a_file_that_is_missing_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("teacher")
    for name in ("missing", "text"):
        with pytest.raises(InvalidInput, match="cannot be read as teacher vectors"):
            TeacherVectors(tmp_path / name, KEY, WIDTH)


@pytest.mark.parametrize(
    ("top", "end", "said"),
    [
        ('objective = "distil"\ntrain = ["sparse"]\n', "", "but objective = 'distil' trains dense"),
        ('objective = "retromae"\ntrain = ["multivector"]\n', "", "but objective = 'retromae' trains dense"),
        ('train = ["sparse", "multivector"]\n', "", r"but dense_teacher\.vectors trains dense"),
    ],
)
def test_a_stage_that_would_not_train_its_objective_is_refused(
    world: Path, top: str, end: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        TrainingConfig.load(configure(world, "refused", top=top, end=end))


def test_distil_needs_a_pair_with_both_vectors(world: Path, tmp_path: Path) -> None:
    write_teacher(world / "queries.safetensors", [text for text in texts_of(world) if text.endswith("?")])
    with pytest.raises(InvalidInput, match=r"has vectors of 300 texts, but of no pair both of the query and"):
        trainer(world, tmp_path / "queries", top='objective = "distil"\n', vectors="queries")


def test_distil_without_vectors_is_refused(world: Path, tmp_path: Path) -> None:
    path = world / "without.toml"
    path.write_text('objective = "distil"\n' + (world / "tiny.toml").read_text())
    with pytest.raises(InvalidInput, match=r"the objective distil needs a file of vectors"):
        Trainer(TrainingConfig.load(path), world / "pairs", tmp_path / "work")
