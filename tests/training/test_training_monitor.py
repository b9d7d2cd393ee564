"""Evaluation during a run, the best model, mining during a run, and event files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_worlds import CONFIG, write_world

from m3_connectors.errors import InvalidInput
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.run import train
from m3_connectors.training.trainer import Trainer

Records = list[dict[str, Any]]


def write_dataset(world: Path) -> None:
    """The first pairs of the world in BEIR's layout."""
    rows = [json.loads(line) for line in (world / "pairs" / "qa.jsonl").read_text().splitlines()][:80]
    folder = world / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = {row["positive"]: f"d{number}" for number, row in enumerate(rows)}
    with (folder / "corpus.jsonl").open("w") as file:
        for text, id in documents.items():
            file.write(json.dumps({"_id": id, "title": "", "text": text}) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({"_id": f"q{number}", "text": row["query"]}) + "\n")
    judged = "".join(f"q{number}\t{documents[row['positive']]}\t1\n" for number, row in enumerate(rows))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_world(tmp_path_factory.mktemp("world") / "training")
    write_dataset(root)
    return root


def config(world: Path, name: str, text: str, **changes: str) -> Path:
    content = CONFIG.replace("[tune_importance]\nqa = 1.0", "") + text
    for table, line in changes.items():
        content = content.replace(f"[{table}]", f"[{table}]\n{line}")
    path = world / f"{name}.toml"
    path.write_text(content)
    return path


def events(records: Records, kind: str) -> Records:
    return [record for record in records if record.get("event") == kind]


EVALUATION = """
[evaluation]
every = 2
folder = "beir"
most_queries = 30
most_documents = 35
"""


def test_five_methods_are_measured_on_a_folder_and_the_best_model_is_exported(
    world: Path, tmp_path: Path
) -> None:
    records: Records = []
    path = config(world, "best", EVALUATION)
    train(path, output=tmp_path / "model", work=tmp_path / "work", report=records.append)
    found = events(records, "evaluation")
    assert [record["after"] for record in found] == [2, 4, 6]
    for record in found:
        assert set(record["ndcg_at_10"]) == {"dense", "sparse", "multi_vec", "dense_sparse", "all"}
        assert all(0 < value <= 1 for value in record["ndcg_at_10"].values())
    (used,) = events(records, "evaluated_on")
    assert used["used"] == "30 of 80 queries and 35 of 40 documents"
    values = [record["ndcg_at_10"]["all"] for record in found]
    assert [record["is_best"] for record in found] == [
        value > max(values[:number], default=-1) for number, value in enumerate(values)
    ]
    (best,) = events(records, "best")
    assert best["value"] == max(values)
    assert best["after"] == found[int(np.argmax(values))]["after"]


def test_the_model_of_the_best_step_is_the_one_that_is_written(world: Path, tmp_path: Path) -> None:
    """A learning rate that destroys the model after the first evaluation: the earlier model is exported."""
    path = config(world, "destroyed", EVALUATION)
    trainer = Trainer(TrainingConfig.load(path), world / "pairs", tmp_path / "work")
    trainer.run(steps=2)
    at_best = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for parameter in trainer.model.parameters():
        parameter.data.normal_()
    trainer.run()
    trainer.finish(tmp_path / "model")
    for name, value in trainer.model.state_dict().items():
        assert value.equal(at_best[name]), name


def test_without_a_folder_held_out_pairs_are_measured(world: Path, tmp_path: Path) -> None:
    records: Records = []
    path = config(world, "held", "[evaluation]\nevery = 5\nkeep_best = 'none'\n")
    train(path, output=tmp_path / "model", work=tmp_path / "work", report=records.append)
    assert [record["after"] for record in events(records, "evaluation")] == [5, 6]
    assert not events(records, "best")
    assert not list((tmp_path / "work").glob("best*"))


def test_a_folder_that_is_not_a_dataset_is_refused_before_the_first_step(world: Path, tmp_path: Path) -> None:
    path = config(world, "wrong", "[evaluation]\nevery = 5\nfolder = 'pairs'\n")
    with pytest.raises(InvalidInput, match="is not a dataset"):
        Trainer(TrainingConfig.load(path), world / "pairs", tmp_path / "work")


def test_event_files_have_every_loss_and_every_evaluation(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    path = config(world, "board", EVALUATION, run="tensorboard = true")
    records: Records = []
    train(path, output=tmp_path / "model", work=tmp_path / "work", report=records.append)
    read: dict[str, dict[int, float]] = {}
    for file in sorted((tmp_path / "work" / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:  # length as uint64, its checksum, the event, its checksum
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                read.setdefault(value.tag, {})[event.step] = value.simple_value
            content = content[16 + length :]
    steps = [record for record in records if "loss" in record]
    for name in ("loss", "dense", "lex", "mul", "inter", "learning_rate", "tokens_per_second", "lex_margin"):
        assert read[f"training/{name}"] == pytest.approx({r["step"]: r[name] for r in steps}, rel=1e-6)
    assert read["ndcg_at_10/all"] == pytest.approx(
        {r["after"]: r["ndcg_at_10"]["all"] for r in events(records, "evaluation")}, rel=1e-6
    )


MINING = """
[mining]
every = 2
num_negatives = 3
range_min = 1
range_max = 20
"""


def test_negatives_are_mined_again_with_the_weights_of_the_step_and_a_resumed_run_has_the_same(
    world: Path, tmp_path: Path
) -> None:
    pytest.importorskip("qdrant_edge")
    path = config(world, "mined", MINING, data="negatives_per_query = 2")
    whole: Records = []
    train(path, output=tmp_path / "a", work=tmp_path / "whole", report=whole.append)
    steps = [record for record in whole if "loss" in record]
    assert [record["after"] for record in events(whole, "mined")] == [2, 4]
    assert [record["passages"] > 8 for record in steps] == [False, False, True, True, True, True]
    mined = [(tmp_path / "whole" / "mined" / f"step-{step}.jsonl").read_text() for step in (2, 4)]
    assert mined[0] != mined[1]

    resumed: Records = []
    for _ in range(10):
        taken = sum("loss" in record for record in resumed)
        try:
            train(
                path,
                output=tmp_path / "b",
                work=tmp_path / "resumed",
                report=resumed.append,
                stop=lambda taken=taken: sum("loss" in record for record in resumed) > taken,
            )
        except KeyboardInterrupt:
            continue
        break
    assert [record["loss"] for record in resumed if "loss" in record] == [record["loss"] for record in steps]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_lost_file_of_mined_negatives_is_named(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge")
    path = config(world, "lost", MINING)
    settings = TrainingConfig.load(path)
    Trainer(settings, world / "pairs", tmp_path / "work").run(steps=3)
    for file in (tmp_path / "work" / "mined").glob("step-2*"):
        file.unlink() if file.is_file() else None
    with pytest.raises(InvalidInput, match=r"step-2\.jsonl is missing"):
        Trainer(settings, world / "pairs", tmp_path / "work").run(steps=1)


def test_mining_in_the_run_and_a_teacher_are_refused_together(world: Path) -> None:
    path = config(world, "both", MINING + '\n[loss]\nkd = "kl"\n')
    with pytest.raises(InvalidInput, match="no teacher's scores"):
        TrainingConfig.load(path)
