"""What ``m3 train`` refuses or names: settings, pairs and numbers that would train nothing, or nothing good."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from training_worlds import CONFIG, write_world

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import Diverged, InvalidInput, ModelFormat
from m3_connectors.methods import Weights, save_weights
from m3_connectors.testing.checkpoints import small_tokenizer, write_checkpoint
from m3_connectors.training.checkpoint import export_model, save_state
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.run import train
from m3_connectors.training.stages import finetune as finetune_module
from m3_connectors.training.trainer import Trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "training")


def configured(world: Path, *changes: tuple[str, str], name: str = "changed.toml") -> Path:
    """The world's configuration with other lines."""
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = world / name
    path.write_text(text, encoding="utf-8")
    return path


def warnings_of(records: list[dict[str, object]]) -> list[str]:
    return [str(record["message"]) for record in records if record.get("event") == "warning"]


# Settings

LOSS, OPTIMIZER, RUN = (f"[{table}]\n" for table in ("loss", "optimizer", "run"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (RUN, "[loss]\ntemperature = 0.0\n[run]\n", "loss.temperature is 0.0"),
        (RUN, "[loss]\ntemperature = -0.02\n[run]\n", "loss.temperature is -0.02"),
        (RUN, "[loss]\ntemperature = 1e30\n[run]\n", "loss.temperature is 1e+30"),
        (RUN, f"[run]\nseed = {2**63}\n", f"run.seed is {2**63}"),
        (RUN, "[loss]\ntemperature = true\n[run]\n", "loss.temperature is True"),
        (OPTIMIZER, OPTIMIZER + "clip = nan\n", "optimizer.clip is nan"),
        (OPTIMIZER, OPTIMIZER + "betas = [0.9]\n", "optimizer.betas"),
        (RUN, "[loss]\nlambdas = [1, nan, 1]\n[run]\n", "loss.lambdas[1] is nan"),
        ("[tune_importance]\nqa = 1.0", "[tune_importance]\nqa = inf", "tune_importance.qa is inf"),
        (RUN, "[loss]\ntemperature = nan\n[run]\n", "loss.temperature is nan"),
        (RUN, "[loss]\ninter_weights = [0, 0, 0]\n[run]\n", "loss: inter_weights is [0.0, 0.0, 0.0]"),
        (RUN, "[loss]\nlambdas = [1, -1, 1]\n[run]\n", "loss.lambdas[1] is -1"),
        (OPTIMIZER, OPTIMIZER + "learning_rate = 0\n", "optimizer.learning_rate is 0"),
        (OPTIMIZER, OPTIMIZER + "learning_rate = -1e-3\n", "optimizer.learning_rate is -0.001"),
        (OPTIMIZER, OPTIMIZER + "learning_rate = inf\n", "optimizer.learning_rate is inf"),
        ("table_learning_rate = 1e-2", "table_learning_rate = 0", "optimizer.table_learning_rate is 0"),
        (OPTIMIZER, OPTIMIZER + "betas = [0.9, 1.0]\n", "optimizer.betas[1] is 1.0"),
        (OPTIMIZER, OPTIMIZER + "warm_up = 1.5\n", "optimizer.warm_up is 1.5"),
        (OPTIMIZER, OPTIMIZER + "clip = 0\n", "optimizer.clip is 0"),
        ("steps = 6", "steps = 0", "run.steps is 0"),
        ("steps = 6", "steps = -3", "run.steps is -3"),
        ("save_every = 100", "save_every = 0", "run.save_every is 0"),
        (RUN, RUN + "seconds = nan\n", "run.seconds is nan"),
        (RUN, RUN + "seed = -1\n", "run.seed is -1"),
        (RUN, RUN + 'dtype = "float16"\n', "run.dtype is 'float16'"),
        ("batch = 8", "batch = 1", "data.groups[0]: batch is 1"),
        ("longest = 32", "longest = 2", "data.groups[0].longest is 2"),
        ("[{ longest = 32, batch = 8 }]", "[]", "data: groups have the lengths []"),
        (
            "{ longest = 32, batch = 8 }",
            "{ longest = 32, batch = 8 }, { longest = 16, batch = 8 }",
            "data: groups have the lengths [32, 16]",
        ),
        ("longest = 32", "longest = 65", "groups allows 65 tokens, but the model has 64 positions"),
        ("query_longest = 16", "query_longest = 80", "query_longest allows 80 tokens"),
        ("held_out_share = 0.2", "held_out_share = 1.0", "data.held_out_share is 1.0"),
        ("shifted_share = 0.5", "shifted_share = 1.1", "data.shifted_share is 1.1"),
        ("qa = 1.0\n[tok", "qa = 0.0\n[tok", "data: source_weights is [0.0]"),
        ("qa = 1.0\n[tok", "qa = nan\n[tok", "data.source_weights.qa is nan"),
        ("heads = 2", "heads = 3", "model: hidden_size is 32 and heads is 3"),
        ("layers = 1", "layers = 0", "model.layers is 0"),
        ("vocabulary_size = 300", "vocabulary_size = 5", "tokenizer.vocabulary_size is 5"),
        ("[tune_importance]\nqa = 1.0", "[tune_importance]\nqa = 0.0", "tune_importance.qa is 0.0"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_before_anything_is_read(
    world: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    config = configured(world, (old, new))
    with pytest.raises(InvalidInput, match=r"changed\.toml") as caught:
        train(config, data=tmp_path / "no-such-folder", work=tmp_path / "work")
    assert said in str(caught.value)
    assert str(caught.value).splitlines()[1].startswith("  ")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("", '    output = "my-model"'),
        ('output = "m"', "    [data]\n    folder"),
        ('output = "m"\ndata = "pairs"', "    [data]\n    folder"),
        ('output = "m"\n[data]\nsource_weights = { qa = 1.0 }', 'such as folder = "pairs"'),
        ('output = "m"\n[data]\nfolder = "pairs"\nsource_weights = 1', "    source_weights = {"),
        ('output = "m"\n[data]\nquery_longest = 64', 'such as folder = "pairs"'),
        (
            'output = "m"\n[data]\nfolder = "p"\nsource_weights = { qa = 1.0 }\ngroups = [{ batch = 8 }]',
            "    groups = [{ longest = 64",
        ),
    ],
)
def test_a_missing_key_is_shown_by_an_example_that_is_valid(tmp_path: Path, text: str, example: str) -> None:
    import tomllib

    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"wrong\.toml") as caught:
        TrainingConfig.load(path)
    said = str(caught.value)
    assert example in said
    shown = "\n".join(line.strip() for line in said.splitlines() if line.startswith("    "))
    assert tomllib.loads(shown or example.removeprefix("such as "))


def test_a_configuration_may_begin_with_a_byte_order_mark(world: Path) -> None:
    path = world / "bom.toml"
    path.write_text(CONFIG, encoding="utf-8-sig")
    assert TrainingConfig.load(path).run.steps == 6


def test_an_invalid_output_is_reported_before_the_first_step(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is not a folder"):
        train(world / "tiny.toml", output=tmp_path / "file" / "model", work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_model_is_trained_again_by_the_configuration_beside_it(world: Path, tmp_path: Path) -> None:
    kept = tmp_path / "model" / "training.toml"
    kept.parent.mkdir()
    kept.write_text(CONFIG.replace("steps = 6", "steps = 1"), encoding="utf-8")
    train(kept, data=world / "pairs", output=tmp_path / "model", work=tmp_path / "work")
    assert (tmp_path / "model" / "model.safetensors").exists()


# Numbers that are not finite


def diverging(world: Path, at: int, monkeypatch: pytest.MonkeyPatch, value: float = torch.nan) -> None:
    """Let the loss of a step be no number."""
    real, calls = finetune_module.objective, iter(range(100))

    def objective(*arguments: object, **options: object) -> tuple[torch.Tensor, dict[str, float]]:
        loss, parts = real(*arguments, **options)  # type: ignore[arg-type]
        return (loss * value if next(calls) == at else loss), parts

    monkeypatch.setattr(finetune_module, "objective", objective)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_saves_the_batch_but_no_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    diverging(world, 2, monkeypatch, value)
    config = configured(world, ("save_every = 100", "save_every = 1"))
    records: list[dict[str, object]] = []
    with pytest.raises(Diverged, match=r"step 2 \(qa\): the loss is (nan|inf)") as caught:
        train(config, output=tmp_path / "model", work=tmp_path / "work", report=records.append)
    path = re.search(r"saved in (\S+diverged-step-2\.json)", str(caught.value))
    assert path
    batch = json.loads(Path(path[1]).read_text(encoding="utf-8"))
    assert batch["step"] == 2
    assert len(batch["targets"]) == len(batch["queries"]) >= len(batch["passages"]) >= 2
    assert batch["queries"][0]["tokens"][0] == "<s>"
    assert len(batch["queries"][0]["ids"]) == len(batch["queries"][0]["tokens"])
    assert not (tmp_path / "model").exists()
    assert [record["step"] for record in records if "step" in record] == [0, 1]

    monkeypatch.undo()  # what was saved before is whole, and the run goes on from it
    train(config, output=tmp_path / "model", work=tmp_path / "work")
    assert (tmp_path / "model" / "weights.json").exists()


def test_a_gradient_that_is_not_finite_changes_no_weight(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(TrainingConfig.load(world / "tiny.toml"), world / "pairs", tmp_path)
    trainer.run(steps=1)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    real = finetune_module.objective

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return gradients[0] * torch.nan

    def objective(*arguments: object, **options: object) -> tuple[torch.Tensor, dict[str, float]]:
        loss, parts = real(*arguments, **options)  # type: ignore[arg-type]
        return Root.apply(loss), parts  # type: ignore[no-untyped-call]

    monkeypatch.setattr(finetune_module, "objective", objective)
    with pytest.raises(Diverged, match="the gradient is nan"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    assert trainer.progress.step == 1


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "float16"), (7e4, "float16")])
def test_a_model_that_is_not_finite_is_never_written(tmp_path: Path, value: float, kind: str) -> None:
    model = M3Model(ModelConfig(1200, 32, 1, 2, 48, 66))
    with torch.no_grad():
        model.sparse_linear.weight[0, 3] = value
    with pytest.raises(
        Diverged, match=rf"1 of the 32 values of sparse_linear\.weight .* too large for {kind}"
    ):
        export_model(model, small_tokenizer(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_state_that_is_not_finite_does_not_replace_the_one_before(world: Path, tmp_path: Path) -> None:
    trainer = Trainer(TrainingConfig.load(world / "tiny.toml"), world / "pairs", tmp_path)
    trainer.run(steps=2)
    with torch.no_grad():
        trainer.model.colbert_linear.bias[0] = torch.nan
    with pytest.raises(Diverged, match=r"colbert_linear\.bias"):
        save_state(tmp_path, trainer._trained, trainer.optimizer, trainer.progress)
    assert Trainer(TrainingConfig.load(world / "tiny.toml"), world / "pairs", tmp_path).progress.step == 2


# Pairs that teach nothing


def write_pairs(folder: Path, pairs: list[tuple[str, str]], name: str = "qa.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"query": q, "positive": p, "lang_q": "en", "lang_p": "en"} for q, p in pairs)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


WORDS = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "lu") for b in ("ran", "sil", "tor", "mek")]


def sentence(number: int, length: int = 6) -> str:
    return " ".join(np.random.default_rng(number).choice(WORDS, length))


UNTUNED = ("[tune_importance]\nqa = 1.0", "")


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([("one question", sentence(i)) for i in range(60)], "all its passages share queries"),
        ([(sentence(i, 3), "one passage for all") for i in range(60)], "there is only one passage"),
        ([(sentence(1, 3), sentence(2))], "there is only one passage"),
    ],
    ids=["one question", "one passage", "one pair"],
)
def test_pairs_without_negatives_are_refused_before_the_first_step(
    world: Path, tmp_path: Path, pairs: list[tuple[str, str]], reason: str
) -> None:
    config = configured(world, UNTUNED, ("held_out_share = 0.2", "held_out_share = 0.0"))
    with pytest.raises(InvalidInput, match="no batch can be made from the pairs") as caught:
        train(config, data=write_pairs(tmp_path / "pairs", pairs), work=tmp_path / "work")
    assert reason in str(caught.value)
    assert "negative" in str(caught.value)


def test_a_source_without_negatives_is_named_and_left_out(world: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", [(sentence(i, 3), sentence(i + 500)) for i in range(60)])
    write_pairs(data, [("one question", sentence(i + 900)) for i in range(20)], "qa_one.jsonl")
    write_pairs(data, [(sentence(7, 3), sentence(8))], "other.jsonl")
    records: list[dict[str, object]] = []
    config = configured(world, UNTUNED, ("qa = 1.0\n[tok", "qa = 1.0\nmissing = 1.0\n[tok"))
    Trainer(TrainingConfig.load(config), data, tmp_path / "work", records.append).run(steps=3)
    (said,) = (
        message
        for message in warnings_of(records)
        if message.startswith("these pairs are not used for training")
    )
    assert "qa_one, passages in 'en' of up to 32 tokens (all its passages share queries)" in said
    assert "other (source_weights do not include it)" in said
    assert "source_weights: 'missing' (there is no source of this name)" in said
    assert {record["source"] for record in records if "step" in record} == {"qa"}
    assert all(record["passages"] > 1 for record in records if "step" in record)  # type: ignore[operator]


def test_pairs_of_one_text_twice_are_named(world: Path, tmp_path: Path) -> None:
    pairs = [(sentence(i, 3), sentence(i + 500)) for i in range(60)]
    data = write_pairs(tmp_path / "pairs", [*pairs, *[(sentence(i), sentence(i)) for i in range(900, 903)]])
    records: list[dict[str, object]] = []
    Trainer(TrainingConfig.load(configured(world, UNTUNED)), data, tmp_path / "work", records.append)
    assert "3 of 63 pairs have the same text as query and as passage." in warnings_of(records)


# Weights of the fused methods


@pytest.mark.parametrize("name", ["qa/de", "other", "other/en"])
def test_tuning_that_matches_nothing_is_refused_before_the_first_step(
    world: Path, tmp_path: Path, name: str
) -> None:
    config = configured(world, ("[tune_importance]\nqa = 1.0", f'[tune_importance]\n"{name}" = 1.0'))
    records: list[dict[str, object]] = []
    with pytest.raises(InvalidInput, match=rf"tune_importance has '{name}'; the tasks .*: qa/en") as caught:
        train(config, output=tmp_path / "model", work=tmp_path / "work", report=records.append)
    assert "held_out_share" in str(caught.value)
    assert not any("step" in record for record in records)
    assert not (tmp_path / "model").exists()


def test_tuning_on_nothing_held_out_is_refused(world: Path, tmp_path: Path) -> None:
    config = configured(world, ("held_out_share = 0.2", "held_out_share = 0.0"))
    with pytest.raises(InvalidInput, match=r"the tasks of held-out pairs are: none"):
        train(config, output=tmp_path / "model", work=tmp_path / "work")


def test_a_part_of_tune_importance_that_matches_nothing_is_named(world: Path, tmp_path: Path) -> None:
    config = configured(world, ("[tune_importance]\nqa = 1.0", "[tune_importance]\nqa = 1.0\nqx = 1.0"))
    records: list[dict[str, object]] = []
    Trainer(TrainingConfig.load(config), world / "pairs", tmp_path, records.append)
    assert any("'qx' matches no task" in message for message in warnings_of(records))


@pytest.mark.parametrize("tuned", [False, True])
def test_continued_training_keeps_the_weights_of_the_start_unless_they_are_tuned(
    world: Path, tmp_path: Path, tuned: bool
) -> None:
    start = write_checkpoint(tmp_path / "start")
    save_weights(start / "weights.json", {"all": Weights(0.2, 2, 1), "dense_sparse": Weights(1, 3)})
    changes = [("output", f"start_from = {json.dumps(str(start))}\noutput"), ("steps = 6", "steps = 1")]
    config = configured(world, *changes, *([] if tuned else [UNTUNED]))
    weights = train(config, output=tmp_path / "model", work=tmp_path / "work")
    written = json.loads((tmp_path / "model" / "weights.json").read_text())
    assert {method: tuple(values) for method, values in written.items()} == weights
    kept = {"all": (0.2, 2.0, 1.0), "dense_sparse": (1.0, 3.0, 0.0)}
    assert (weights == kept) is not tuned


def test_a_model_from_scratch_without_tuning_has_the_papers_weights(world: Path, tmp_path: Path) -> None:
    config = configured(world, UNTUNED, ("steps = 6", "steps = 1"))
    weights = train(config, output=tmp_path / "model", work=tmp_path / "work")
    assert weights == {"dense_sparse": (1.0, 0.3, 0.0), "all": (1.0, 0.3, 1.0)}


# Where a run starts


def test_a_start_beside_the_configuration_comes_before_a_hub_name(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(world / "BAAI" / "bge-m3")
    config = configured(world, ("output", 'start_from = "BAAI/bge-m3"\noutput'))
    trainer = Trainer(TrainingConfig.load(config), world / "pairs", tmp_path / "work")
    assert trainer.model.config.vocab_size == 1200


def test_a_start_by_hub_name_is_fetched_as_every_model_is(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_checkpoint(tmp_path / "models--org--m3" / "snapshots" / "a1b2c3d")
    asked: list[str] = []

    def download(name: str, **_: object) -> str:
        asked.append(name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    records: list[dict[str, object]] = []
    config = configured(world, ("output", 'start_from = "org/m3"\noutput'))
    Trainer(TrainingConfig.load(config), world / "pairs", tmp_path / "work", records.append).run(steps=1)
    assert asked == ["org/m3"]
    assert records[0] == {"event": "start_from", "model": "org/m3", "revision": "a1b2c3d"}


def test_a_start_that_is_on_no_hub_names_what_was_tried(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    from m3_connectors.errors import Unavailable

    def unreachable(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("Got: ConnectError: name not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    config = configured(world, ("output", 'start_from = "org/m3"\noutput'))
    with pytest.raises(
        Unavailable, match="there is no directory 'org/m3', and the hub cannot be reached"
    ) as caught:
        train(config, work=tmp_path / "work")
    first, remedy = str(caught.value).splitlines()
    assert first.endswith("name not known")
    assert "Set start_from to a directory" in remedy
    assert "BAAI/bge-m3" in remedy


@pytest.mark.parametrize("start", ["./no-such", "nowhere"])
def test_a_start_that_is_neither_directory_nor_hub_name_is_named(
    world: Path, tmp_path: Path, start: str
) -> None:
    config = configured(world, ("output", f'start_from = "{start}"\noutput'))
    with pytest.raises(ModelFormat, match=f"{start} is neither a directory nor a hub name"):
        train(config, work=tmp_path / "work")


def test_a_start_with_fewer_positions_than_the_batches_is_refused(world: Path, tmp_path: Path) -> None:
    start = write_checkpoint(tmp_path / "start", config=ModelConfig(1200, 32, 1, 2, 48, 26))
    config = configured(world, ("output", f"start_from = {json.dumps(str(start))}\noutput"))
    with pytest.raises(InvalidInput, match="groups allows 32 tokens, but the model has 24 positions"):
        train(config, work=tmp_path / "work")


def test_a_start_keeps_its_tokenizer_exactly(world: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    start = write_checkpoint(tmp_path / "start")
    config = TrainingConfig.load(configured(world, UNTUNED))
    trainer = Trainer(dataclasses.replace(config, start_from=str(start)), world / "pairs", tmp_path / "work")
    export_model(trainer.model, trainer.tokenizer, tmp_path / "model")
    before, after = (
        Tokenizer.from_file(str(path / "tokenizer.json")) for path in (start, tmp_path / "model")
    )
    assert json.loads(after.to_str())["model"] == json.loads(before.to_str())["model"]


# Texts and files of the pairs


def test_texts_longer_than_a_short_model_are_cut_everywhere(tmp_path: Path) -> None:
    world = write_world(tmp_path / "training")
    pairs = world / "pairs" / "qa.jsonl"
    long = [json.loads(line) for line in pairs.read_text().splitlines()]
    for pair in long:
        pair["query"], pair["positive"] = pair["query"] * 20, pair["positive"] * 20
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in long))
    assert train(configured(world, ("max_length = 64", "max_length = 32")), work=tmp_path / "work")


def test_a_vocabulary_without_room_for_the_characters_is_refused(world: Path, tmp_path: Path) -> None:
    config = configured(world, ("vocabulary_size = 300", "vocabulary_size = 9"))
    with pytest.raises(InvalidInput, match="vocabulary_size is 9, but the texts have 21 frequent characters"):
        train(config, work=tmp_path / "work")


def test_unused_files_keys_and_pairs_are_named(tmp_path: Path) -> None:
    world = write_world(tmp_path / "training")
    pairs = world / "pairs"
    lines = [json.loads(line) for line in (pairs / "qa.jsonl").read_text().splitlines()]
    (pairs / "qa.jsonl").unlink()
    content = [{**line, "negative": "other", "score": 0.5, "note": None} for line in lines + lines[:7]]
    (pairs / "QA.JSONL").write_text("".join(json.dumps(line) + "\n" for line in content))
    (pairs / "more.csv").write_text("query,positive\n")
    (pairs / "older").mkdir()
    records: list[dict[str, object]] = []
    config = configured(
        world,
        ("qa = 1.0\n[tokenizer]", "QA = 1.0\n[tokenizer]"),
        ("[tune_importance]\nqa", "[tune_importance]\nQA"),
    )
    train(config, work=tmp_path / "work", report=records.append)
    assert warnings_of(records) == [
        f"{pairs}: only .jsonl and .jsonl.gz files are read, not more.csv, older.",
        f"negative in {len(content)} lines of the training pairs is not used.",
        f"score in {len(content)} lines of the training pairs is not used.",
        f"7 of {len(content)} pairs repeat another pair.",
    ]
