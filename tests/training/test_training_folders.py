"""The working folder of a run: what it was made from is known, and nothing of another run is used."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from training_worlds import write_world

from m3_connectors.errors import InvalidInput
from m3_connectors.training.checkpoint import claim_folder
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.dense_teacher import text_key
from m3_connectors.training.draws import Draws
from m3_connectors.training.run import train
from m3_connectors.training.trainer import Trainer

EVALUATION = '\n[evaluation]\nevery = 1\nfolder = "beir"\nmost_queries = 10\nmost_documents = 20\n'


@pytest.fixture
def world(tmp_path: Path) -> Path:
    root = write_world(tmp_path / "world")
    rows = [json.loads(line) for line in (root / "pairs" / "qa.jsonl").read_text().splitlines()][:40]
    keys = np.array([text_key(row[side]) for row in rows for side in ("query", "positive")], np.uint64)
    vectors = np.random.default_rng(0).standard_normal((len(keys), 40)).astype(np.float32)
    save_file({"keys": keys, "vectors": vectors}, root / "teacher.safetensors")
    (root / "beir" / "qrels").mkdir(parents=True)
    for name, side, key in (("corpus", "positive", "d"), ("queries", "query", "q")):
        lines = [json.dumps({"_id": f"{key}{n}", "text": row[side]}) for n, row in enumerate(rows) if n % 2]
        (root / "beir" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(len(rows)) if n % 2)
    (root / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return root


def configure(world: Path, name: str, text: str) -> Path:
    path = world / name
    path.write_text((world / "tiny.toml").read_text().replace("[tune_importance]\nqa = 1.0\n", "") + text)
    return path


def change_teacher(world: Path) -> None:
    path = world / "teacher.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


def change_evaluation(world: Path) -> None:
    path = world / "beir" / "corpus.jsonl"
    path.write_text(path.read_text().replace("a", "e", 1))


@pytest.mark.parametrize(
    ("text", "change", "named"),
    [
        ('\n[dense_teacher]\nvectors = "teacher.safetensors"\n', change_teacher, "teacher vectors"),
        (EVALUATION, change_evaluation, "evaluation data"),
    ],
)
def test_other_contents_of_a_file_are_another_run_and_another_place_is_not(
    world: Path, tmp_path: Path, text: str, change: Any, named: str
) -> None:
    config = TrainingConfig.load(configure(world, "run.toml", text))
    Trainer(config, world / "pairs", tmp_path / "work").run(steps=1)
    moved = shutil.copytree(world, tmp_path / "moved")
    elsewhere = TrainingConfig.load(moved / "run.toml")
    assert Trainer(elsewhere, moved / "pairs", tmp_path / "work").progress.step == 1
    change(world)
    with pytest.raises(InvalidInput, match=f"belongs to a run with other {named}"):
        Trainer(config, world / "pairs", tmp_path / "work")


def test_a_reused_folder_keeps_no_result_of_the_run_before(world: Path, tmp_path: Path) -> None:
    path = configure(world, "run.toml", EVALUATION)
    config = TrainingConfig.load(path)
    work = tmp_path / "work"
    first = Trainer(config, world / "pairs", work)
    first.step()
    first.evaluate()  # the process is killed here, before the first state is saved
    (work / "mined").mkdir()
    (work / "mined" / "step-2.jsonl").write_text("")
    assert (work / "best" / "best.json").exists()
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1))
    Trainer(other, world / "pairs", work)
    assert not (work / "best").exists()
    assert not (work / "mined").exists()
    Trainer(other, world / "pairs", work).evaluate()
    Trainer(other, world / "pairs", work)
    assert (work / "best").exists()  # of the same run


def saved(folder: Path, identity: object) -> Path:
    """A working folder with a state, and with what an earlier call or another version recorded."""
    (folder / "state").mkdir()
    for name in ("model.safetensors", "optimizer.safetensors", "progress.json"):
        (folder / "state" / name).touch()
    (folder / "identity.json").write_text(json.dumps(identity))
    return folder


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        (
            {"settings": "3b0c44298fc1c149", "pairs": "a"},
            "belongs to a run of an earlier version, which recorded only a fingerprint of the settings, so they "
            "cannot be compared.\n  Use that version to continue, or another working folder",
        ),
        (
            {"settings": {"run.steps": 2, "run.gone": None}, "pairs": "a"},
            "belongs to a run with other settings: run.steps (2, now 3), run.new (not there, now 5).\n  Use the ",
        ),
        (
            {"settings": {"run.steps": list(range(500)), "run.new": 5}, "pairs": "b"},
            "belongs to a run with other settings: run.steps ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, "
            "16, 1 …, now 3) and pairs.\n",
        ),
        ([], "identity.json is missing or damaged"),
        ("settings", "identity.json is missing or damaged"),
        (None, "identity.json is missing or damaged"),
    ],
)
def test_what_another_version_recorded_is_not_taken_for_other_settings(
    recorded: object, said: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, recorded)
    with pytest.raises(InvalidInput) as caught:
        claim_folder(folder, {"settings": {"run.steps": 3, "run.new": 5}, "pairs": "a"}, made=())
    assert said in str(caught.value)
    assert str(caught.value).endswith("another working folder (--work DIR) to start a new run.")
    assert json.loads((folder / "identity.json").read_text()) == recorded


STAGES = """
[[stages]]
objective = "unsupervised"
run.steps = 2
[[stages]]
run.steps = 2
"""


@pytest.mark.parametrize("changed", ["settings: run.steps (2, now 3).", "pairs."])
def test_a_finished_stage_of_other_settings_or_pairs_is_not_used(
    world: Path, tmp_path: Path, changed: str
) -> None:
    path = configure(world, "stages.toml", STAGES)
    records: list[dict[str, Any]] = []

    def run() -> None:
        train(
            path,
            output=tmp_path / "out",
            work=tmp_path / "work",
            report=records.append,
            stop=lambda: any(record.get("number") == 2 for record in records),
        )

    for _ in range(2):  # the second call finds the first stage finished
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (tmp_path / "work" / "1-unsupervised" / "finished").is_dir()
    assert sum("loss" in record for record in records) == 2
    if changed.startswith("settings"):
        path.write_text(path.read_text().replace("run.steps = 2\n[[", "run.steps = 3\n[["))
    else:
        pairs = world / "pairs" / "qa.jsonl"
        pairs.write_text(pairs.read_text().replace("a", "e", 1))
    with pytest.raises(
        InvalidInput, match=re.escape(f"1-unsupervised belongs to a run with other {changed}")
    ):
        train(path, output=tmp_path / "out", work=tmp_path / "work")


def test_only_the_first_stage_fits_the_sparse_head_to_its_start(world: Path, tmp_path: Path) -> None:
    start = configure(world, "start.toml", "")
    train(start, output=tmp_path / "start", work=tmp_path / "work-start")
    text = "\n[start]\nfit_sparse_head = true\n" + STAGES
    path = configure(world, "fitted.toml", text)
    path.write_text(f'start_from = "{tmp_path / "start"}"\n' + path.read_text())
    fits: list[Path] = []
    from m3_connectors.training import trainer

    with pytest.MonkeyPatch.context() as patch:
        fit = trainer.fit_sparse_head
        patch.setattr(trainer, "fit_sparse_head", lambda *given: (fits.append(tmp_path), fit(*given)))
        train(path, output=tmp_path / "out", work=tmp_path / "work")
    assert len(fits) == 1


RETROMAE_KEEPS = """
[[stages]]
objective = "retromae"
run.steps = 3
[[stages]]
run.steps = 1
"""


def test_pre_training_is_kept_whole_whatever_the_ranking_says(world: Path, tmp_path: Path) -> None:
    path = configure(world, "kept.toml", EVALUATION + RETROMAE_KEEPS)
    records: list[dict[str, Any]] = []
    train(path, output=tmp_path / "out", work=tmp_path / "work", report=records.append)
    first = records[: next(i for i, record in enumerate(records) if record.get("number") == 2)]
    assert sum(record.get("event") == "evaluation" for record in first) == 3
    assert not any(record.get("is_best") for record in first)
    assert not any(record.get("event") == "best" for record in first)


def test_a_stage_of_the_dense_vector_alone_keeps_its_best_dense_vector(world: Path, tmp_path: Path) -> None:
    path = configure(world, "dense.toml", EVALUATION)
    path.write_text('objective = "unsupervised"\n' + path.read_text())
    records: list[dict[str, Any]] = []
    train(path, output=tmp_path / "out", work=tmp_path / "work", report=records.append)
    values = [r["ndcg_at_10"]["dense"] for r in records if r.get("event") == "evaluation"]
    best = next(record for record in records if record.get("event") == "best")
    assert (best["method"], best["value"]) == ("dense", max(values))


def test_prefixes_are_named_only_by_a_stage_that_trains_them(world: Path, tmp_path: Path) -> None:
    for objective, named in (("retromae", False), ("unsupervised", True)):
        path = configure(world, f"{objective}.toml", "\n[loss]\nmatryoshka = [8]\n")
        path.write_text(f'objective = "{objective}"\n' + path.read_text().replace("steps = 6", "steps = 1"))
        train(path, output=tmp_path / objective, work=tmp_path / f"work-{objective}")
        assert ("matryoshka_dims" in json.loads((tmp_path / objective / "config.json").read_text())) == named


@pytest.mark.parametrize(
    ("top", "end", "said"),
    [
        ('start_from = "x"\nobjective = "retromae"\n', "\n[lora]\nrank = 2\n", r"but \[lora\] freezes them"),
        (
            'train = ["sparse"]\n',
            "\n[loss]\nlambdas = [1.0, 0.0, 1.0]\ninter_weights = [1.0, 0.0, 1.0]\n",
            r"train is \['sparse'\], but lambdas .* leave these heads without a loss",
        ),
    ],
)
def test_what_trains_nothing_is_refused(world: Path, tmp_path: Path, top: str, end: str, said: str) -> None:
    path = configure(world, "nothing.toml", end)
    path.write_text(top + path.read_text())
    with pytest.raises(InvalidInput, match=said):
        Trainer(TrainingConfig.load(path), world / "pairs", tmp_path / "work")


def test_each_epoch_is_made_once_however_many_there_are() -> None:
    made: list[tuple[int, int]] = []

    def epoch(bucket: int, number: int) -> list[tuple[int, int, int]]:
        made.append((bucket, number))
        return [(bucket, number, batch) for batch in range(1 + number % 3)]

    draws = Draws([1.0, 2.0], epoch, seed=0)
    drawn = [draws(step) for step in range(2000)]
    for bucket in (0, 1):
        here = [batch for found, batch in drawn if found == bucket]
        plain = [(bucket, number, batch) for number in range(2000) for batch in range(1 + number % 3)]
        assert here == plain[: len(here)]
    assert len(made) == len(set(made)) > 512  # more than are kept
    assert draws(7) == drawn[7]
    assert Draws([1.0, 2.0], epoch, seed=0)(1999) == drawn[1999]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\0" * 20)])
def test_a_damaged_best_model_is_named_and_the_last_one_can_be_written(
    world: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    config = TrainingConfig.load(configure(world, "best.toml", EVALUATION))
    run = Trainer(config, world / "pairs", tmp_path / "work")
    run.run()
    (weights,) = (tmp_path / "work" / "best").glob("best-*.safetensors")
    damage(weights)
    with pytest.raises(InvalidInput, match=rf"{weights.name}, the best model of the run, is damaged: "):
        run.finish(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "work" / "best")
    run.finish(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_later_stage_of_a_new_model_may_extend_its_positions(world: Path, tmp_path: Path) -> None:
    stages = (
        '[[stages]]\nobjective = "unsupervised"\nrun.steps = 1\n'
        "[[stages]]\nextend_positions = 200\nrun.steps = 1\ndata.groups = [{ longest = 150, batch = 8 }]\n"
    )
    train(configure(world, "longer.toml", stages), output=tmp_path / "out", work=tmp_path / "work")
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 202


def test_a_step_that_is_evaluated_again_after_a_kill_is_still_the_best(world: Path, tmp_path: Path) -> None:
    config = TrainingConfig.load(configure(world, "again.toml", EVALUATION))
    for _ in range(2):  # the first process is killed before the step is saved
        records: list[dict[str, Any]] = []
        run = Trainer(config, world / "pairs", tmp_path / "work", records.append)
        run.step()
        run.evaluate()
        assert records[-1]["is_best"]
