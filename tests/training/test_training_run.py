"""A tiny run from texts to a model: the same steps after a resume, falling loss, a loadable result."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_worlds import CONFIG, write_world

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput, ModelFormat
from m3_connectors.methods import load_weights
from m3_connectors.testing.checkpoints import write_checkpoint
from m3_connectors.training.checkpoint import (
    Progress,
    TrainedParts,
    export_model,
    import_model,
    load_state,
    save_state,
)
from m3_connectors.training.config import TrainingConfig, load_stages
from m3_connectors.training.forward import POSITIONS, WORDS, TrainingEncoder
from m3_connectors.training.optimizer import OptimizerSettings, RowAdamW
from m3_connectors.training.run import RunLog, train
from m3_connectors.training.trainer import Trainer
from m3_connectors.training.validate import make_tasks, ndcg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "training")


def with_run(config: TrainingConfig, **changes: object) -> TrainingConfig:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))  # type: ignore[arg-type]


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def test_a_resumed_run_takes_the_same_steps_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig.load(folder / "tiny.toml")
    whole = Trainer(config, folder / "pairs", tmp_path / "whole")
    whole.run()
    assert whole.progress.step == 6

    Trainer(config, folder / "pairs", tmp_path / "halves").run(steps=3)
    second = Trainer(config, folder / "pairs", tmp_path / "halves")
    assert second.progress.step == 3
    second.run()

    start = Trainer(config, folder / "pairs", tmp_path / "start")
    ends, others, starts = parameters(whole), parameters(second), parameters(start)
    assert all(torch.equal(ends[name], others[name]) for name in ends)
    assert not any(torch.equal(ends[name], starts[name]) for name in ends)


def test_a_state_of_other_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig.load(folder / "tiny.toml")
    Trainer(config, folder / "pairs", tmp_path).run(steps=1)
    with pytest.raises(InvalidInput, match="other settings"):
        Trainer(with_run(config, seed=1), folder / "pairs", tmp_path)
    assert Trainer(with_run(config, save_every=7), folder / "pairs", tmp_path).progress.step == 1


def test_a_state_of_other_pairs_is_refused_and_one_of_moved_pairs_is_not(
    folder: Path, tmp_path: Path
) -> None:
    config = TrainingConfig.load(folder / "tiny.toml")
    Trainer(config, folder / "pairs", tmp_path / "work").run(steps=1)
    moved = Path(shutil.copytree(folder / "pairs", tmp_path / "moved"))
    assert Trainer(config, moved, tmp_path / "work").progress.step == 1
    edited = (moved / "qa.jsonl").read_text(encoding="utf-8").replace('."', '!"', 1)
    (moved / "qa.jsonl").write_text(edited, encoding="utf-8")
    with pytest.raises(InvalidInput, match="other pairs"):
        Trainer(config, moved, tmp_path / "work")


def test_a_run_without_steps_restarts_with_other_settings(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig.load(folder / "tiny.toml")
    Trainer(config, folder / "pairs", tmp_path / "work")
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=48))
    mended = Trainer(wider, folder / "pairs", tmp_path / "work")
    fresh = Trainer(wider, folder / "pairs", tmp_path / "fresh")
    for name, value in parameters(mended).items():
        assert torch.equal(value, parameters(fresh)[name])


FILES = ("model.safetensors", "optimizer.safetensors", "progress.json")


@pytest.mark.parametrize("order", list(itertools.permutations(FILES)))
@pytest.mark.parametrize("removed", range(4))
def test_a_kill_while_saving_leaves_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...], removed: int
) -> None:
    model = M3Model(ModelConfig(40, 32, 1, 2, 48, 66))
    optimizer = RowAdamW(dict(model.named_parameters()), OptimizerSettings())
    save_state(tmp_path, TrainedParts(model, None), optimizer, Progress(1))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    real = shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.name != "state":
            return real(path, ignore_errors=ignore_errors)
        for name in order[:removed]:
            (path / name).unlink()
        raise KeyboardInterrupt

    with torch.no_grad():
        model.sparse_linear.weight.add_(1)
    second = {name: value.clone() for name, value in model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_state(tmp_path, TrainedParts(model, None), optimizer, Progress(2))
    model = M3Model(ModelConfig(40, 32, 1, 2, 48, 66))
    progress = load_state(
        tmp_path, TrainedParts(model, None), RowAdamW(dict(model.named_parameters()), OptimizerSettings())
    )
    assert progress.step == (1 if removed == 0 else 2)
    expected = first if progress.step == 1 else second
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    save_state(tmp_path, TrainedParts(model, None), optimizer, Progress(3))
    assert load_state(tmp_path, TrainedParts(model, None), optimizer).step == 3


@pytest.mark.parametrize("name", ["tokenizer.json", "start.pt"])
def test_a_kill_while_writing_the_start_is_recovered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def killed(*arguments: object, **_: object) -> None:
        path = next(one for one in arguments if isinstance(one, Path))
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    config = TrainingConfig.load(folder / "tiny.toml")
    where = {"tokenizer.json": "m3_connectors.training.trainer.save_tokenizer", "start.pt": "torch.save"}
    with monkeypatch.context() as patch:
        patch.setattr(where[name], killed)
        with pytest.raises(KeyboardInterrupt):
            Trainer(config, folder / "pairs", tmp_path)
    assert not (tmp_path / name).exists()
    Trainer(config, folder / "pairs", tmp_path).run(steps=1)


def test_the_loss_falls_and_held_out_ranking_improves(folder: Path, tmp_path: Path) -> None:
    config = with_run(TrainingConfig.load(folder / "tiny.toml"), steps=60)
    records: list[dict[str, object]] = []
    trainer = Trainer(config, folder / "pairs", tmp_path, records.append)
    weights = (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)
    (before,) = trainer.validation().methods(*weights).values()
    trainer.run()
    (after,) = trainer.validation().methods(*weights).values()
    losses = [record["loss"] for record in records if "step" in record]
    assert len(losses) == 60
    assert np.mean(losses[18:24]) < 0.7 * np.mean(losses[:6])  # before distillation changes the loss
    assert after["dense"] > before["dense"] + 0.05


def test_one_call_trains_writes_and_loads(folder: Path, tmp_path: Path) -> None:
    from m3_connectors import M3Encoder

    weights = train(folder / "tiny.toml", output=tmp_path / "model", work=tmp_path / "work")
    assert set(weights) == {"dense_sparse", "all"}
    log = [json.loads(line) for line in (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log if "step" in record] == [0]  # every tenth
    assert log[-1]["event"] == "validation"
    assert (tmp_path / "model" / "training.toml").read_text() == CONFIG

    encoder = M3Encoder(str(tmp_path / "model"), precision="float32")
    assert dict(encoder.recommended_weights) == weights
    encoded = encoder.encode(["baba dedo?", "gogi"])
    assert encoded.dense is not None
    assert encoded.dense.shape == (2, 32)
    assert load_weights(tmp_path / "model" / "weights.json").keys() == weights.keys()
    checkpoint = import_model(tmp_path / "model")
    ids = np.array(checkpoint.tokenizer.encode("baba dedo?").ids)
    shown, _ = TrainingEncoder(checkpoint.model, torch.float32)([ids])
    np.testing.assert_allclose(shown.dense[0].detach().numpy(), encoded.dense[0], atol=1e-5)
    assert encoded.multivectors is not None
    np.testing.assert_allclose(shown.rows.detach().numpy(), encoded.multivectors[0], atol=1e-5)


def test_a_time_budget_ends_the_run(folder: Path, tmp_path: Path) -> None:
    config = with_run(TrainingConfig.load(folder / "tiny.toml"), steps=10_000, seconds=0.5)
    trainer = Trainer(config, folder / "pairs", tmp_path)
    trainer.run()
    assert 1 <= trainer.progress.step < 1000
    assert trainer.progress.seconds >= 0.5


def test_a_run_starts_from_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig.load(folder / "tiny.toml")
    first = Trainer(config, folder / "pairs", tmp_path / "first")
    first.run(steps=2)
    export_model(first.model, first.tokenizer, tmp_path / "model")
    config = dataclasses.replace(config, start_from=str(tmp_path / "model"))
    second = Trainer(config, folder / "pairs", tmp_path / "second")
    for name, value in parameters(second).items():
        torch.testing.assert_close(value, parameters(first)[name].half().float())
    second.run(steps=1)
    (tmp_path / "model").rename(tmp_path / "moved")
    config = dataclasses.replace(config, start_from=str(tmp_path / "moved"))
    assert Trainer(config, folder / "pairs", tmp_path / "second").progress.step == 1


def test_a_run_starts_from_pickled_weights(folder: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", weights="pytorch_model.bin")
    config = dataclasses.replace(TrainingConfig.load(folder / "tiny.toml"), start_from=str(path))
    trainer = Trainer(config, folder / "pairs", tmp_path / "work")
    before = parameters(trainer)
    trainer.run(steps=3)
    after = parameters(trainer)
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    ModelConfig(40, 32, 1, 2, 48, 66).save(tmp_path / "config.json")
    with pytest.raises(ModelFormat, match=str(tmp_path)):
        import_model(tmp_path)


def test_rows_that_a_step_does_not_touch_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = M3Model(ModelConfig(40, 32, 1, 2, 48, 66))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = RowAdamW(dict(model.named_parameters()), OptimizerSettings())
    shown, tables = TrainingEncoder(model, torch.float32)(
        [np.array([0, 7, 9, 2]), np.array([0, 7, 2])], [0, 20]
    )
    (shown.dense[0] @ shown.dense[1] + shown.rows.sum()).backward()
    optimizer.step(tables, 1.0)
    changed = (model.embeddings.word_embeddings.weight != before[WORDS]).any(1)
    assert changed.nonzero().ravel().tolist() == [0, 2, 7, 9]
    changed = (model.embeddings.position_embeddings.weight != before[POSITIONS]).any(1)
    assert changed.nonzero().ravel().tolist() == [2, 3, 4, 5, 22, 23, 24]


def test_touched_rows_get_the_gradient_of_the_whole_table() -> None:
    torch.manual_seed(0)
    model = M3Model(ModelConfig(40, 32, 2, 2, 48, 66))
    texts = [np.array([0, 7, 9, 9, 2]), np.array([0, 12, 2]), np.array([0, 7, 2])]
    shown, tables = TrainingEncoder(model, torch.float32)(texts)
    (shown.dense.prod(0).sum() + shown.token_weights.sum() + shown.rows.pow(3).sum()).backward()
    layers = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    hidden = model(torch.from_numpy(np.concatenate(texts)), [5, 3, 3])
    dense = torch.nn.functional.normalize(hidden[[0, 5, 8]], dim=1)
    tails = hidden[[1, 2, 3, 4, 6, 7, 9, 10]]
    weights = torch.relu(model.sparse_linear(hidden[[1, 2, 3, 6, 9]]))
    rows = torch.nn.functional.normalize(model.colbert_linear(tails), dim=1)
    (dense.prod(0).sum() + weights.sum() + rows.pow(3).sum()).backward()
    for name, value in model.named_parameters():
        if name in tables:
            assert value.grad is not None
            assert tables[name].values.grad is not None
            torch.testing.assert_close(tables[name].values.grad, value.grad[tables[name].numbers])
        elif value.grad is not None:
            torch.testing.assert_close(layers[name], value.grad)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("[run]", "[runn]"), "unknown key runn"),
        (
            ("heads = 2", "head = 2"),
            "unknown key model.head.\n  Did you mean heads? The settings of this table are hidden_size, layers,",
        ),
        (("heads = 2", 'heads = "two"'), "'two'"),
        (('folder = "pairs"', ""), "data: folder is ''"),
        (("batch = 8", "batch = 8.5"), "8.5"),
        (("[run]", "[run"), "is not valid TOML"),
    ],
)
def test_a_wrong_configuration_says_where(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(CONFIG.replace(*change), encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"wrong\.toml") as caught:
        TrainingConfig.load(path)
    assert reason in str(caught.value)


def test_the_shipped_recipe_is_valid() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "m3-tiny.toml"
    for config in load_stages(recipe):
        assert config.model.max_length == 8192
        assert abs(config.optimizer.rate_factor(1.0) - config.optimizer.final_share) < 1e-9


def test_a_log_drops_the_steps_that_will_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write({"event": "start"})
        for step in range(30):
            log.write({"step": step})
    path.write_text(path.read_text() + '{"step": 30, "lo', encoding="utf-8")  # killed while writing
    with RunLog(path) as log:
        log.rewind(20)
        log.write({"step": 20})
        log.save_thinned(tmp_path / "thin.jsonl")
    steps = [json.loads(line).get("step") for line in path.read_text().splitlines()]
    assert steps == [None, *range(21)]
    thin = [json.loads(line).get("step") for line in (tmp_path / "thin.jsonl").read_text().splitlines()]
    assert thin == [None, 0, 10, 20]


def test_ndcg_counts_ranks_and_leaves_out_what_was_not_retrieved() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.1, 0.2, -np.inf]], np.float32)
    assert ndcg(scores, [{1}, {2}]) == pytest.approx((1 / np.log2(3) + 0) / 2)
    assert ndcg(scores, [{0, 1}, {1}]) == pytest.approx(1.0)


def test_tasks_hold_only_held_out_queries(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(TrainingConfig.load(folder / "tiny.toml"), folder / "pairs", tmp_path)
    (task,) = make_tasks(trainer.store, ["qa"], corpus_size=60)
    held = set(trainer.store.query[trainer.store.held_out].tolist())
    assert len(task.queries) >= 8
    assert set(task.queries.tolist()) <= held
    assert len(task.corpus) == 60
    assert len(set(task.corpus.tolist())) == 60
    for query, relevant in zip(task.queries, task.relevant, strict=True):
        own = set(trainer.store.passage[trainer.store.query == query].tolist())
        assert {int(task.corpus[position]) for position in relevant} <= own


def test_the_command_prints_the_weights_as_one_json_document(folder: Path, tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from m3_connectors.cli.train import train as command

    app = typer.Typer()
    app.command()(command)
    options = ["--output", str(tmp_path / "model"), "--work", str(tmp_path / "work"), "--json"]
    result = CliRunner().invoke(app, [str(folder / "tiny.toml"), *options])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["weights"]["all"] == json.loads((tmp_path / "model" / "weights.json").read_text())["all"]
    assert "step      0" in result.stderr
