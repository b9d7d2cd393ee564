"""Fine-tuning in one command, and what of the model is trained."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_worlds import CONFIG, write_world

from m3_connectors import M3Encoder
from m3_connectors.cli.app import main
from m3_connectors.embeddings import Component
from m3_connectors.errors import InvalidInput
from m3_connectors.testing.checkpoints import write_checkpoint
from m3_connectors.training.checkpoint import import_model
from m3_connectors.training.config import TrainingConfig, load_stages
from m3_connectors.training.fine_tuning import FineTuning
from m3_connectors.training.pairs import read_pairs
from m3_connectors.training.run import fine_tune, plan_fine_tune, train

WEIGHTS = ("model.safetensors", "sparse_linear.pt", "colbert_linear.pt")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs in both formats, and a start model whose weights are float16, as exported."""
    torch.set_num_threads(1)
    root = write_world(tmp_path_factory.mktemp("world") / "training")
    pairs = [json.loads(line) for line in (root / "pairs" / "qa.jsonl").read_text().splitlines()]
    with (root / "flag.jsonl").open("w", encoding="utf-8") as file:
        for pair in pairs:
            line = {
                "query": pair["query"],
                "pos": [pair["positive"]],
                "neg": [pairs[0]["positive"]],
                "prompt": "",
            }
            file.write(json.dumps(line) + "\n")
    configured(root, 'start_from = ""', name="scratch.toml", steps=1)
    train(root / "scratch.toml", output=root / "start", work=root / "work-start")
    return root


def configured(
    world: Path, lines: str, *, name: str = "changed.toml", steps: int = 3, tables: str = ""
) -> Path:
    text = CONFIG.replace("[tune_importance]\nqa = 1.0\n", tables).replace("steps = 6", f"steps = {steps}")
    path = world / name
    path.write_text(f"{lines}\n{text}", encoding="utf-8")
    return path


def trained(world: Path, tmp_path: Path, lines: str, **options: Any) -> Path:
    config = configured(world, f'start_from = "start"\n{lines}', **options)
    train(config, output=tmp_path / "model", work=tmp_path / "work")
    return tmp_path / "model"


def weights(model: Path) -> dict[str, torch.Tensor]:
    return import_model(model).model.state_dict()


def changed(world: Path, model: Path) -> set[str]:
    before, after = weights(world / "start"), weights(model)
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


# One command


@pytest.mark.parametrize("data", [["flag.jsonl"], ["pairs"], ["pairs/qa.jsonl", "flag.jsonl"]])
def test_a_model_and_pairs_are_enough(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [part for file in data for part in ("--data", str(world / file))]
    options = ["--steps", "3", "--max-length", "64", "--seed", "1"]
    assert main(["train", "--from", str(world / "start"), *files, "--out", "mine/my-m3", *options]) == 0
    model = tmp_path / "mine" / "my-m3"
    assert M3Encoder(model, device="cpu").encode(["ba"]).dense.shape == (1, 32)
    settings = tomllib.loads((model / "training.toml").read_text())
    assert settings["run"]["steps"] == 3
    assert settings["run"]["seed"] == 1
    assert settings["tune_importance"]  # 300 pairs are enough to hold some out

    first = {name: (model / name).read_bytes() for name in (*WEIGHTS, "weights.json")}
    assert main(["train", str(model / "training.toml"), "--out", "again"]) == 0
    assert {name: (tmp_path / "again" / name).read_bytes() for name in first} == first


def test_the_steps_follow_from_the_epochs_and_the_pairs(world: Path, tmp_path: Path) -> None:
    def steps(**wanted: Any) -> int:
        options = FineTuning(max_length=64, **wanted)
        return plan_fine_tune(str(world / "start"), (world / "pairs",), tmp_path / "model", wanted=options)[
            0
        ].steps

    # A fifth of the 150 passages is held out; 16 passages a step.
    assert 7 <= steps(epochs=1) <= 8
    assert 22 <= steps(epochs=3) <= 24
    assert steps(steps=5) == 5
    assert steps(epochs=1, batch=64) == 2
    assert not (tmp_path / "model").exists()


def test_a_stopped_fine_tune_goes_on_with_the_same_command(world: Path, tmp_path: Path) -> None:
    wanted = FineTuning(steps=4, max_length=64)

    def run(name: str, stop_after: int | None = None) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        taken = lambda: sum("tokens" in record for record in records)  # noqa: E731
        fine_tune(
            str(world / "start"),
            (world / "pairs",),
            tmp_path / name,
            wanted=wanted,
            work=tmp_path / f"work-{name}",
            report=records.append,
            stop=lambda: stop_after is not None and taken() >= stop_after,
        )
        return records

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop_after=2)
    second = run("stopped")
    run("whole")
    assert [record["step"] for record in second if "tokens" in record] == [2, 3]
    for name in (*WEIGHTS, "weights.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "m3-tiny"], "--data, --out are missing, and no configuration is given"),
        ([], "--from, --data, --out are missing"),
        (["c.toml", "--from", "m3-tiny"], "c.toml and --from m3-tiny are both given"),
        (["c.toml", "--epochs", "2", "--lora"], "c.toml and --epochs, --lora are both given"),
        (["--from", "m3-tiny", "--data", "pairs"], "--out is missing"),
        (["--from", "m3-tiny", "--steps", "2", "--epochs", "3"], "--steps 2 and --epochs 3 are both given"),
        (["--from", "m3-tiny", "--data", "pairs", "--out", "m", "--max-length", "1"], "from 3 to"),
        (["--from", "m3-tiny", "--data", "none.jsonl", "--out", "m"], "none.jsonl does not exist"),
        (["--from", "m3-tiny", "--data", "pairs", "--out", "m", "--max-length", "9000"], "9,000 tokens"),
        (["--from", "m3-tiny", "--data", "pairs", "--out", "m", "--epochs", "0"], "epochs is 0"),
        (["--from", "m3-tiny", "--data", "pairs", "--out", "m", "--train", "dense,sparce"], "sparce"),
    ],
)
def test_arguments_that_do_not_belong_together_are_refused(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(world)
    assert main(["train", *arguments]) != 0
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (world / "m").exists()


def test_a_dry_run_names_the_stage_that_another_one_starts_from(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    tables = '[[stages]]\nobjective = "unsupervised"\n[[stages]]\nobjective = "finetune"\n'
    configured(world, 'start_from = "start"', name="c.toml", steps=1, tables=tables)
    assert main(["train", "c.toml", "--dry-run"]) == 0
    assert "stage 2 of 2: finetune, from the model of stage 1" in capsys.readouterr().out


def test_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "qa.jsonl").write_text('{"query": "q", "pos": ["p"]}\n')
    with pytest.raises(InvalidInput, match="have the same name"):
        list(read_pairs((tmp_path / "a", tmp_path / "b" / "qa.jsonl")))
    assert len(list(read_pairs((tmp_path / "a", tmp_path / "a" / "qa.jsonl")))) == 1


def test_a_dry_run_shows_the_run_and_writes_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--max-length", "64", "--dry-run", "--out", "model"]
    assert main(["train", "--from", str(world / "start"), "--data", str(world / "pairs"), *common]) == 0
    shown = capsys.readouterr().out
    for part in (
        "for training",
        "held out",
        "tokens/s",
        "moments",
        "would write model",
        "nothing was written",
    ):
        assert part in shown
    assert main(["train", str(configured(world, "", name="plan.toml")), "--dry-run", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["pairs"]["qa"] + stage["held_out"] == 300
    assert stage["steps"] == 3
    assert list(tmp_path.iterdir()) == []


# What is trained


@pytest.mark.parametrize(
    ("heads", "moved"),
    [
        (["sparse"], {"sparse_linear"}),
        (["multivector"], {"colbert_linear"}),
        (["sparse", "multivector"], {"sparse_linear", "colbert_linear"}),
    ],
)
def test_heads_alone_are_trained_and_the_rest_does_not_change_by_a_bit(
    world: Path, tmp_path: Path, heads: list[Component], moved: set[str]
) -> None:
    model = trained(world, tmp_path, f"train = {json.dumps(heads)}")
    assert {name.split(".")[0] for name in changed(world, model)} == moved
    kept = "model.safetensors"
    assert (model / kept).read_bytes() == (world / "start" / kept).read_bytes()
    state = (tmp_path / "work" / "state" / "optimizer.safetensors").stat().st_size
    assert state < 20_000  # no moments of the backbone


def test_without_the_sparse_head_all_others_are_trained(world: Path, tmp_path: Path) -> None:
    names = changed(world, trained(world, tmp_path, 'train = ["dense", "multivector"]'))
    assert "sparse_linear.weight" not in names
    assert {"colbert_linear.weight", "embeddings.word_embeddings.weight"} <= names
    assert "encoder.layer.0.attention.self.query.weight" in names


def test_low_rank_changes_are_merged_and_resume(world: Path, tmp_path: Path) -> None:
    config = configured(world, 'start_from = "start"', tables="[lora]\nrank = 4\nalpha = 8\n", steps=4)
    model = tmp_path / "model"
    records: list[dict[str, Any]] = []
    stop = lambda: any(record.get("step") == 1 for record in records)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        train(config, output=model, work=tmp_path / "work", report=records.append, stop=stop)
    train(config, output=model, work=tmp_path / "work")
    train(config, output=tmp_path / "whole", work=tmp_path / "work-whole")
    for name in WEIGHTS:
        assert (model / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    names = changed(world, model)
    assert not [name for name in names if name.startswith("embeddings.") or "LayerNorm" in name]
    assert {"sparse_linear.weight", "encoder.layer.0.output.dense.weight"} <= names
    before, after = weights(world / "start"), weights(model)
    change = after["encoder.layer.0.output.dense.weight"] - before["encoder.layer.0.output.dense.weight"]
    values = torch.linalg.svdvals(change)
    assert values[3] > 20 * values[4]  # of rank 4, but for the rounding to float16


def test_merged_layers_compute_what_was_trained(world: Path) -> None:
    from m3_connectors.encoder.model import M3Model
    from m3_connectors.training.lora import LoraSettings, add_lora, merged_state

    start = import_model(world / "start").model
    add_lora(start, LoraSettings(rank=4), seed=0)
    with torch.no_grad():
        for name, value in start.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    plain = M3Model(start.config)
    plain.load_state_dict(merged_state(start))
    ids = torch.arange(5, 25)
    difference = (start(ids, [20]) - plain(ids, [20])).abs().max()
    assert difference < 1e-5
    assert (plain(ids, [20]) - import_model(world / "start").model(ids, [20])).abs().max() > 0.01


@pytest.mark.parametrize(
    ("lines", "tables", "said"),
    [
        ("train = []", "", r"train is \[\]"),
        ('train = ["sparse", "sparse"]', "", "train is"),
        ('train = ["sparse"]\nobjective = "unsupervised"', "", "trains dense"),
        ('train = ["sparse"]', "[lora]\n", r"\[lora\] trains dense"),
        ('train = ["sparse"]', "[loss]\nmatryoshka = [8]\n", "loss.matryoshka trains dense"),
        ('train = ["sparse"]\ncolbert_dim = 8', "", "colbert_dim trains multivector"),
        ("colbert_dim = 1", "", "colbert_dim is 1"),
        ("colbert_dim = 33", "", "colbert_dim is 33, but the vectors of the model have 32"),
        ("", "[loss]\nmatryoshka = [64]\n", "loss.matryoshka is 64"),
        ("", "[loss]\nmatryoshka = [16, 8]\n", "increasing"),
        ("", '[lora]\ntargets = ["quary"]\n', "'quary', which no linear layer"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    world: Path, tmp_path: Path, lines: str, tables: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        trained(world, tmp_path, lines, tables=tables)
    assert not (tmp_path / "model").exists()


def test_lora_needs_a_trained_model(world: Path, tmp_path: Path) -> None:
    config = configured(world, "", tables="[lora]\n")
    with pytest.raises(InvalidInput, match=r"start_from is ''"):
        train(config, output=tmp_path / "model", work=tmp_path / "work")


# A narrower multi-vector head, and prefixes of the dense vector


def test_a_narrow_head_has_flagembeddings_layout_and_our_scores(world: Path, tmp_path: Path) -> None:
    model = trained(world, tmp_path, "colbert_dim = 8")
    head = torch.load(model / "colbert_linear.pt", weights_only=True)
    assert head["weight"].shape == (8, 32)
    assert head["bias"].shape == (8,)
    encoder = M3Encoder(model, device="cpu", precision="float32")
    rows = encoder.encode(["banana disco"]).multivectors[0]
    np.testing.assert_allclose(np.linalg.norm(rows[:, :8], axis=1), 1, atol=1e-5)
    # The narrow head is kept by a run that starts from it.
    assert import_model(model).model.colbert_linear.out_features == 8
    config = configured(world, f"start_from = {json.dumps(str(model))}", steps=1)
    train(config, output=tmp_path / "next", work=tmp_path / "work-next")
    assert torch.load(tmp_path / "next" / "colbert_linear.pt", weights_only=True)["weight"].shape == (8, 32)


def test_a_narrow_head_starts_with_most_of_the_scores(tmp_path: Path) -> None:
    from m3_connectors.training.data import open_pairs
    from m3_connectors.training.heads import narrow_head
    from m3_connectors.training.validate import encode

    torch.manual_seed(0)
    start = import_model("m3-tiny")
    (tmp_path / "qa.jsonl").write_text(
        "".join(json.dumps({"query": f"What is {text}?", "pos": [text]}) + "\n" for text in PASSAGES)
    )
    store = open_pairs(tmp_path, start.tokenizer, tmp_path / "tokens", longest=64, held_out_share=0.0)
    texts = [start.tokenizer.encode(text).ids for text in PASSAGES]
    shown = [np.array(ids) for ids in texts]

    def similarities() -> np.ndarray[Any, Any]:
        rows = encode(start.model, shown, dtype=torch.float32).multivectors.rows
        return rows @ rows.T

    wide = similarities()
    narrow_head(start.model, store, 64, seed=0)
    narrow = similarities()
    start.model.colbert_linear = torch.nn.Linear(256, 64)
    random = similarities()
    assert np.abs(narrow - wide).mean() < 0.05
    assert np.abs(random - wide).mean() > 2 * np.abs(narrow - wide).mean()


PASSAGES = [
    "The heart pumps blood through the arteries.",
    "A compiler translates source code into machine code.",
    "Bees collect nectar and pollinate flowers.",
    "The treaty was signed in the year 1648.",
    "Lava is molten rock that flows from a volcano.",
    "A violin has four strings and is played with a bow.",
]


def test_prefixes_of_the_dense_vector_are_trained(world: Path, tmp_path: Path) -> None:
    from m3_connectors.training.losses import LossSettings, Scores, contrastive, objective, prefix_scores

    torch.manual_seed(0)
    queries, passages = (torch.nn.functional.normalize(torch.randn(4, 16), dim=1) for _ in range(2))
    (by_hand,) = prefix_scores(queries, passages, (4,))
    q, p = queries[:, :4].double(), passages[:, :4].double()
    expected = (q / q.norm(dim=1, keepdim=True)) @ (p / p.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(by_hand.double(), expected, atol=1e-6, rtol=0)
    targets, other = torch.arange(4), torch.rand(4, 4)
    scores = Scores(queries @ passages.T, other, other, (by_hand,))
    _, parts = objective(
        scores,
        targets,
        LossSettings(matryoshka=(4,)),
        cross_lingual=torch.zeros(4, dtype=torch.bool),
        self_distillation=False,
    )
    both = [contrastive(score, targets, 0.02).item() for score in (scores.dense, by_hand)]
    assert parts["dense"] == pytest.approx(sum(both) / 2, rel=1e-5)
    for objective_name in ("unsupervised", "finetune"):
        lines = f'start_from = "start"\nobjective = "{objective_name}"'
        config = configured(world, lines, tables="[loss]\nmatryoshka = [8]\n", name=f"{objective_name}.toml")
        records: list[dict[str, Any]] = []
        folders = {"output": tmp_path / objective_name, "work": tmp_path / f"work-{objective_name}"}
        train(config, report=records.append, **folders)
        assert json.loads((folders["output"] / "config.json").read_text())["matryoshka_dims"] == [8, 32]


# Keys


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps = 6", "stepps = 6", "unknown key run.stepps.\n  Did you mean steps?"),
        ("longest = 32", "longst = 32", "unknown key data.groups[0].longst.\n  Did you mean longest?"),
        ("[model]", "[modell]", "unknown key modell.\n  Did you mean model?"),
        (
            'output = "model"',
            'output = "model"\nlearning_rate = 1',
            "Move it: learning_rate is a setting of [optimizer]",
        ),
        (
            'output = "model"',
            'output = "model"\nlerning_rate = 1',
            "Did you mean learning_rate, a setting of [opt",
        ),
        ("[run]\n", "[run]\nzzz = 1\n", "Remove it; the settings of this table are steps"),
        ("[run]\n", "[lora]\nrnk = 1\n[run]\n", "unknown key lora.rnk.\n  Did you mean rank?"),
        (
            "[tune_importance]\nqa = 1.0",
            "[[stages]]\nrun.step = 1",
            "stage 1 has an unknown key run.step.\n  Did you",
        ),
        (
            "[tune_importance]\nqa = 1.0",
            "[[stage]]\nrun.steps = 1",
            "unknown key stage.\n  Did you mean stages?",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(CONFIG.replace(old, new), encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        load_stages(path)
    assert said in str(caught.value)


# The model card


def test_the_card_says_what_was_trained_and_keeps_what_a_person_wrote(world: Path, tmp_path: Path) -> None:
    warnings: list[str] = []

    def run(steps: int) -> None:
        fine_tune(
            str(world / "start"),
            (world / "pairs",),
            tmp_path / "my-m3",
            wanted=FineTuning(steps=steps, max_length=64),
            work=tmp_path / f"work-{steps}",
            report=lambda record: warnings.append(str(record["message"])) if "message" in record else None,
        )

    run(2)
    path = tmp_path / "my-m3" / "README.md"
    text = path.read_text()
    for part in (
        "# my-m3",
        "fine-tuned from start",
        "| qa | en |",
        "**Licence**: to be filled in",
        "chosen on these same pairs, so that both are measured too high",
        "2 steps",
        " → ",
    ):
        assert part in text
    for private in (str(tmp_path), str(world), str(Path.home())):
        assert private not in text
    run(3)
    assert "3 steps" in path.read_text()
    path.write_text(path.read_text().replace("to be filled in", "MIT"))
    run(4)
    assert "MIT" in path.read_text()
    assert "4 steps" in (tmp_path / "my-m3" / "README.new.md").read_text()
    assert any("README.new.md" in warning for warning in warnings)


# Other libraries


def test_an_exported_model_has_the_numbers_of_the_other_libraries(world: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = trained(world, tmp_path, "colbert_dim = 8", tables="[lora]\nrank = 2\n")
    texts = ["banana disco", "fila gamo ban", "ba"]
    ours = M3Encoder(model, device="cpu", precision="float32").encode(texts)
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    network = AutoModel.from_pretrained(str(model), dtype=torch.float32, add_pooling_layer=False).eval()
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = network(**batch).last_hidden_state
    heads = {
        name: torch.load(model / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")
    }

    def applied(name: str, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(states, heads[name]["weight"].float(), heads[name]["bias"].float())

    for number in range(len(texts)):
        states = hidden[number][batch["attention_mask"][number].bool()]
        ids = batch["input_ids"][number][batch["attention_mask"][number].bool()].tolist()
        dense = torch.nn.functional.normalize(states[0], dim=0)
        np.testing.assert_allclose(ours.dense[number], dense, atol=2e-5)
        # FlagEmbedding's formulas.
        rows = torch.nn.functional.normalize(applied("colbert", states[1:]), dim=1)
        np.testing.assert_allclose(ours.multivectors[number][:, :8], rows, atol=2e-5)
        expected: dict[int, float] = {}
        for token, weight in zip(ids, torch.relu(applied("sparse", states))[:, 0].tolist(), strict=True):
            if token > 3 and weight > 0:
                expected[token] = max(expected.get(token, 0.0), weight)
        found = ours.sparse[[number]]
        assert dict(zip(found.indices.tolist(), found.data.tolist(), strict=True)) == pytest.approx(
            expected, abs=2e-5
        )


def test_a_start_by_checkpoint_has_its_own_defaults(tmp_path: Path, world: Path) -> None:
    start = write_checkpoint(tmp_path / "start")
    plan = plan_fine_tune(str(start), (world / "pairs",), tmp_path / "out", wanted=FineTuning(steps=1))
    assert plan[0].groups[-1][0] == 8192
    assert isinstance(TrainingConfig.load(configured(world, "", name="x.toml")), TrainingConfig)
