"""A model exported for sentence-transformers: the library gives the vectors and scores of M3Encoder."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

from m3_connectors import InvalidInput, M3Embeddings, M3Encoder
from m3_connectors.cli.app import main
from m3_connectors.encoder import TruncationWarning
from m3_connectors.errors import StorageFull
from m3_connectors.integrations.sentence_transformers import export
from m3_connectors.integrations.sentence_transformers.token_weights import TokenWeights
from m3_connectors.scoring import multivector_scores
from m3_connectors.testing.checkpoints import TEXTS, write_checkpoint
from m3_connectors.training.checkpoint import export_model, import_model

SHIPPED = Path(__file__).parents[2] / "models" / "m3-tiny"
ODD_TEXTS = [
    *TEXTS.values(),
    "What is BGE M3?",
    "don't (Berlin), e-mail@example.org: 3.14 %",
    "  blanks   in\ttab\nline\u00a0no-break\u3000wide  ",
    "ﬁne Ⅷ ½ ＡＢＣ é e\u0301 ßẞ İı",
    "أهلا إلى آخر ٱلكتاب مُدَرِّس ـــ",
    "emoji 👩‍👩‍👧 🇩🇪 \u200b\ufeff",
    "a <mask> b </s> <pad> <unk> c",
    "▁ a▁b",
    "x" * 300,
    "the same the same THE SAME",
    "one two three " * 100,
    "",
    " ",
]
"""Scripts, blanks, compatibility forms, special tokens as text, lengths from none to hundreds of tokens."""


def _published(folder: Path) -> Path:
    return SHIPPED


def _trained(folder: Path) -> Path:
    """Return a directory as the trainer writes it at the end of a run, in float16."""
    start = import_model(write_checkpoint(folder / "start"))
    export_model(start.model, start.tokenizer, folder / "trained")
    return folder / "trained"


def _narrow(folder: Path) -> Path:
    """Return a checkpoint whose multi-vectors are narrower than its dense vectors."""
    directory = write_checkpoint(folder / "narrow", seed=2)
    head = torch.load(directory / "colbert_linear.pt")
    torch.save({name: value[:20] for name, value in head.items()}, directory / "colbert_linear.pt")
    return directory


class World:
    """A model, its export, and what M3Encoder computes."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.folder = export(model, folder)
        self.encoder = M3Encoder(model, device="cpu", precision="float32")
        self.ours: M3Embeddings = self.encoder.encode(ODD_TEXTS)
        self._loaded: dict[str, Any] = {}

    def load(self, kind: Callable[..., Any], name: str, **options: Any) -> Any:
        if name not in self._loaded:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs
                self._loaded[name] = kind(str(self.folder / name), device="cpu", **options)
        return self._loaded[name]


@pytest.fixture(scope="module", params=[_published, _trained, _narrow])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("export")
    return World(request.param(folder), folder / "exported")


def test_the_dense_vectors_are_ours(world: World) -> None:
    model = world.load(SentenceTransformer, "dense")
    assert model.max_seq_length == world.encoder.max_length
    np.testing.assert_allclose(model.encode(ODD_TEXTS), world.ours.dense, rtol=0, atol=2e-6)


def test_the_sparse_vectors_are_ours(world: World) -> None:
    model = world.load(SparseEncoder, "sparse", trust_remote_code=True)
    assert model.similarity_fn_name == "dot"
    rows = model.encode(ODD_TEXTS).to_dense().numpy()
    np.testing.assert_allclose(rows, world.ours.sparse.toarray(), rtol=0, atol=1e-5)
    assert ((rows > 0) == (world.ours.sparse.toarray() > 0)).all()


@pytest.mark.parametrize("task", ["encode", "encode_query", "encode_document"])
def test_the_rows_of_the_multivectors_are_ours(world: World, task: str) -> None:
    model = world.load(MultiVectorEncoder, "multivector")
    for text, theirs, ours in zip(
        ODD_TEXTS, getattr(model, task)(ODD_TEXTS), world.ours.multivectors, strict=True
    ):
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=0, atol=2e-6, err_msg=text)


def test_their_similarity_of_multivectors_is_our_score(world: World) -> None:
    model = world.load(MultiVectorEncoder, "multivector")
    assert model.similarity_fn_name == "meanmaxsim"
    rows = model.encode(ODD_TEXTS[:8])
    scores = model.similarity(rows[:3], rows[3:]).numpy()
    documents = world.encoder.encode(ODD_TEXTS[3:8]).multivectors
    ours = [multivector_scores(world.ours.multivectors[i], documents) for i in range(3)]
    np.testing.assert_allclose(scores, ours, rtol=0, atol=2e-6)


def test_long_texts_are_cut_where_we_cut_them(tmp_path: Path) -> None:
    world = World(SHIPPED, tmp_path / "out")
    text, limit = "one two three " * 100, 40
    with pytest.warns(TruncationWarning):
        ours = world.encoder.encode([text], max_length=limit)
    model = world.load(MultiVectorEncoder, "multivector")
    model.max_seq_length = limit
    theirs = model.encode([text])[0].numpy()
    np.testing.assert_allclose(theirs, ours.multivectors[0], rtol=0, atol=2e-6)


def test_only_a_start_token_in_the_text_itself_lacks_its_row(tmp_path: Path) -> None:
    world = World(SHIPPED, tmp_path / "out")
    ours = world.encoder.encode(["a <s> b"])
    strings = world.encoder.token_strings("a <s> b")
    theirs = world.load(MultiVectorEncoder, "multivector").encode(["a <s> b"])[0].numpy()
    kept = [token != "<s>" for token in strings]
    assert strings.count("<s>") == 1
    np.testing.assert_allclose(theirs, ours.multivectors[0][kept], rtol=0, atol=2e-6)


def test_a_sparse_model_that_the_library_saved_is_loaded_again(world: World, tmp_path: Path) -> None:
    world.load(SparseEncoder, "sparse", trust_remote_code=True).save(str(tmp_path / "saved"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = SparseEncoder(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    rows = again.encode(ODD_TEXTS).to_dense().numpy()
    np.testing.assert_allclose(rows, world.ours.sparse.toarray(), rtol=0, atol=1e-5)


def test_the_sparse_head_gives_the_same_without_padding() -> None:
    torch.manual_seed(5)
    head = TokenWeights(4, 9, [0, 2])
    hidden, ids = torch.randn(2, 3, 4), torch.tensor([[0, 5, 2], [0, 7, 7]])
    mask = torch.ones(2, 3, dtype=torch.long)
    padded = head({"token_embeddings": hidden, "input_ids": ids, "attention_mask": mask})
    flat = head(
        {
            "token_embeddings": hidden.reshape(1, 6, 4),
            "input_ids": ids.reshape(1, 6),
            "cu_seq_lens_q": torch.tensor([0, 3, 6]),
        }
    )
    assert torch.equal(flat["sentence_embedding"], padded["sentence_embedding"])
    assert padded["sentence_embedding"].shape == (2, 9)


def test_the_dense_directory_is_a_checkpoint_of_ours(world: World) -> None:
    again = M3Encoder(world.folder / "dense", device="cpu", precision="float32").encode(ODD_TEXTS)
    assert (again.dense == world.ours.dense).all()
    assert (again.multivectors.rows == world.ours.multivectors.rows).all()
    assert (again.sparse != world.ours.sparse).nnz == 0


def test_the_weights_are_on_disk_once(tmp_path: Path) -> None:
    folder = export(SHIPPED, tmp_path / "out")
    places = [folder / kind / "model.safetensors" for kind in ("dense", "sparse", "multivector")]
    assert len({path.stat().st_ino for path in places}) == 1


def test_a_file_system_without_hard_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = export(write_checkpoint(tmp_path / "model"), tmp_path / "out")
    contents = {(folder / kind / "model.safetensors").read_bytes() for kind in ("dense", "sparse")}
    assert len(contents) == 1


def test_a_directory_with_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="exists and is not an empty directory") as raised:
        export(SHIPPED, tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the directory .*absent does not exist"):
        export(SHIPPED, tmp_path / "absent" / "out")


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(export.__globals__, "save_file", full)
    model = write_checkpoint(tmp_path / "model")
    with pytest.raises(StorageFull, match="Free"):
        export(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_command_names_how_each_directory_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export-model", "sentence-transformers", str(out), "--model", str(SHIPPED)]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["folder"] == str(out)
    assert set(printed["loaded_by"]) == {path.name for path in out.iterdir()}
    assert printed["loaded_by"]["sparse"] == f"SparseEncoder('{out}/sparse', trust_remote_code=True)"
    assert main(arguments) == 1
    assert "is not an empty directory" in capsys.readouterr().err


def test_another_library_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-model", "tensorflow", str(tmp_path / "out")]) == 2
    assert "sentence-transformers" in capsys.readouterr().err
