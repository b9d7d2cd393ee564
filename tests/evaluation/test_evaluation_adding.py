"""Methods added to an evaluation: one that fails harms nothing, another one of the same name is told, and what was cut
off or has no digest yet is made anew from what is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from evaluations import without_digests
from sentence_checkpoints import write_cross_encoder, write_sentence_model

from m3_connectors.documents import Document
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import InvalidInput, Unavailable
from m3_connectors.evaluation import evaluate as evaluation
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.baselines.endpoint import EmbeddingEndpoint
from m3_connectors.evaluation.baselines.rerank import CrossEncoderRanking
from m3_connectors.evaluation.baselines.sentence_models import SentenceModel
from m3_connectors.evaluation.compare import compare, pairs_of_methods
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.evaluate import Plan, evaluate
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.methods import DENSE, SPARSE

TASK = Dataset(
    "toy",
    "test",
    Corpus.of([Document(f"d{i}", f"the quick fox {i} jumps") for i in range(12)]),
    {f"q{i}": f"fox {i}" for i in range(3)},
    {f"q{i}": {f"d{i}": 1} for i in range(3)},
)


@dataclasses.dataclass
class Fixed:
    """Answers as it is told to, or fails."""

    name: str
    answer: str = "d0"
    description: str = "fixed"
    fails: bool = False
    requires: Sequence[str] = ()

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        for run in self.requires:
            folder.run(run)
        if self.fails:
            raise Unavailable("no", backend="endpoint", operation="embed")
        return {query: [(self.answer, 1.0)] for query in dataset.queries}


class World:
    """Evaluations of one dataset into one folder; counts how often the store is asked."""

    def __init__(self, encoder: M3Encoder, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoder, self.out, self.scored = encoder, out, 0
        real = evaluation._score

        async def spy(*arguments: object) -> None:
            self.scored += 1
            await real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(evaluation, "_score", spy)

    def __call__(self, *baselines: Baseline, out: Path | None = None) -> EvaluationFolder:
        plan = Plan(methods={"dense": DENSE, "sparse": SPARSE}, baselines=baselines)
        return evaluate(TASK, self.encoder, plan, out or self.out)

    def files(self, out: Path | None = None) -> dict[str, bytes]:
        root = out or self.out
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.name != "environment.json"
        }


@pytest.fixture
def world(encoder: M3Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(encoder, tmp_path / "out", monkeypatch)


class TestABaselineThatFails:
    def test_leaves_a_complete_evaluation_usable(self, world: World) -> None:
        world()
        before = world.files()
        with pytest.raises(Unavailable):
            world(Fixed("misspelt", fails=True))
        assert world.files() == before
        compare(pairs_of_methods(world.out, ["dense", "sparse"]))
        assert world(Fixed("right")).record.complete
        assert "right" in EvaluationFolder(world.out).means()
        assert world.scored == 1

    def test_loses_no_run_that_was_added_before_it(self, world: World, tmp_path: Path) -> None:
        world()
        with pytest.raises(Unavailable):
            world(Fixed("slow"), Fixed("last", fails=True))
        compare(pairs_of_methods(world.out, ["dense", "sparse"]))
        stamp = (world.out / "runs" / "slow.trec").stat().st_mtime_ns
        folder = world(Fixed("slow"), Fixed("last", requires=["slow"]))
        assert (world.out / "runs" / "slow.trec").stat().st_mtime_ns == stamp
        assert [method.name for method in folder.record.methods] == ["dense", "sparse", "slow", "last"]
        world(Fixed("slow"), Fixed("last"), out=tmp_path / "whole")
        assert world.files() == world.files(tmp_path / "whole")

    def test_binds_nobody_though_the_evaluation_was_never_complete(self, world: World) -> None:
        with pytest.raises(Unavailable):
            world(Fixed("misspelt", fails=True))
        assert [method.name for method in world(Fixed("right")).record.methods] == [
            "dense",
            "sparse",
            "right",
        ]
        assert world.scored == 1

    def test_another_one_of_its_name_has_a_run_of_its_own(self, world: World) -> None:
        world()
        with pytest.raises(Unavailable):
            world(Fixed("same", "d1", "as at first"), Fixed("last", fails=True))
        assert world(Fixed("same", "d2", "otherwise")).run("same")["q0"] == [("d2", 1.0)]


class TestAnotherBaselineOfTheSameName:
    def test_is_refused(self, world: World) -> None:
        world(Fixed("same", description="as at first"))
        with pytest.raises(InvalidInput, match="method same: as at first, not otherwise"):
            world(Fixed("same", description="otherwise"))

    def test_sentence_models_say_prefixes_and_weights(self, tmp_path: Path) -> None:
        model = write_sentence_model(tmp_path / "model")
        plain = SentenceModel(str(model)).description
        assert SentenceModel(str(model)).description == plain
        prefixed = SentenceModel(f"{model}?query=query:%20").description
        assert "'query: ' before queries" in prefixed
        assert prefixed != SentenceModel(f"{model}?passage=query:%20").description != plain
        _retrain(model)
        assert SentenceModel(str(model)).description != plain

    def test_cross_encoders_say_their_weights(self, tmp_path: Path) -> None:
        model = write_cross_encoder(tmp_path / "model")
        before = CrossEncoderRanking(str(model)).description
        assert CrossEncoderRanking(str(model)).description == before
        _retrain(model)
        assert CrossEncoderRanking(str(model)).description != before

    def test_endpoints_say_where_and_how_but_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "https://me:secret@one.example/v1?key=secret")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        specs = ("m", "m?max_characters=10", "m?max_characters=20", "m?query=a", "m?passage=a")
        said = [EmbeddingEndpoint(spec).description for spec in specs]
        monkeypatch.setenv("OPENAI_BASE_URL", "https://two.example/v1")
        said.append(EmbeddingEndpoint("m").description)
        assert len(set(said)) == len(said)
        assert "https://one.example/v1" in said[0]
        assert "secret" not in "".join(said)


def _retrain(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, path, {"format": "pt"})


class TestOrder:
    """What needs a run that is not there by its turn is refused before anything is encoded."""

    @pytest.mark.parametrize(
        "baselines",
        [
            [Fixed("again", requires=["nothing"])],
            [Fixed("again", requires=["first"]), Fixed("first")],
            [Fixed("again", requires=["again"])],
        ],
    )
    def test_a_run_that_is_not_before_it(self, world: World, baselines: list[Fixed]) -> None:
        with pytest.raises(InvalidInput, match=r"again needs the run .*only dense, sparse precede it"):
            world(*baselines)
        assert world.scored == 0
        assert not world.out.exists()

    def test_a_reranker_needs_what_it_ranks(self, tmp_path: Path) -> None:
        model = write_cross_encoder(tmp_path / "model")
        assert CrossEncoderRanking(f"{model}?of=bm25").requires == ("bm25",)
        assert CrossEncoderRanking(str(model)).requires == ()  # Dense is computed from the scores


class TestDigests:
    @pytest.mark.parametrize(
        "name", ["qrels.trec", "runs/dense.trec", "runs/fixed.trec", "queries.parquet", "documents.parquet"]
    )
    def test_what_was_cut_off_is_made_anew_without_the_store(self, world: World, name: str) -> None:
        world(Fixed("fixed"))
        before = world.files()
        path = world.out / name
        path.write_bytes(path.read_bytes()[:-30])
        assert world(Fixed("fixed")).record.complete
        assert world.files() == before
        assert world.scored == 1

    def test_scores_that_were_cut_off_are_asked_again(self, world: World) -> None:
        world()
        before = world.files()
        path = world.out / "scores" / "00000.parquet"
        path.write_bytes(path.read_bytes()[:-30])
        world()
        assert (world.scored, world.files()) == (2, before)

    def test_a_folder_without_them_gets_them_without_the_store(self, world: World) -> None:
        folder = world(Fixed("fixed"))
        before = world.files()
        without_digests(folder)
        for name in ("qrels.trec", "runs/dense.trec"):  # cut off while nobody could know
            path = world.out / name
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        assert world(Fixed("fixed")).record.complete
        assert world.files() == before
        assert world.scored == 1
