"""Loading: every wrong file is named, nothing in a file is run, a directory never touches the network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from m3_connectors.encoder import M3Encoder
from m3_connectors.errors import InvalidInput, ModelFormat, Unavailable
from m3_connectors.testing.checkpoints import SMALL, TEXTS, write_checkpoint


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "models" / "copy"))


def test_both_weight_formats_and_the_roberta_prefix(encoder: M3Encoder, tmp_path: Path) -> None:
    pickled = write_checkpoint(tmp_path / "pickled", weights="pytorch_model.bin")
    assert "roberta.embeddings.word_embeddings.weight" in torch.load(
        pickled / "pytorch_model.bin", weights_only=True
    )
    other = M3Encoder(pickled, device="cpu", precision="float32")
    texts = list(TEXTS.values())
    np.testing.assert_array_equal(other.encode(texts).dense, encoder.encode(texts).dense)
    assert other.info.weights_fingerprint == encoder.info.weights_fingerprint


def test_the_pooler_and_stored_position_ids_are_ignored(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["pooler.dense.weight"] = torch.zeros(32, 32)
    state["embeddings.position_ids"] = torch.arange(8194)[None]
    save_file(state, copy / "model.safetensors")
    assert len(M3Encoder(copy, device="cpu").encode(["a"])) == 1


def test_info(copy: Path, encoder: M3Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    info = M3Encoder(copy, device="cpu").info
    assert info.name == "models/copy"
    assert info.revision is None
    assert (info.dimension, info.vocabulary_size) == (SMALL.hidden_size, SMALL.vocab_size)
    assert info.vocabulary_fingerprint == encoder.info.vocabulary_fingerprint
    monkeypatch.chdir(copy.parent)
    assert (
        M3Encoder("copy", device="cpu", precision="float32").info == info
    )  # by another spelling, in another dtype


def test_other_weights_have_another_fingerprint(tmp_path: Path, encoder: M3Encoder) -> None:
    other = M3Encoder(write_checkpoint(tmp_path, seed=1), device="cpu").info
    assert other.weights_fingerprint != encoder.info.weights_fingerprint
    assert other.vocabulary_fingerprint == encoder.info.vocabulary_fingerprint


def test_a_hub_cache_directory_keeps_its_name_and_commit(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--BAAI--bge-m3" / "snapshots" / ("5617a9f" * 6)[:40]
    shutil.copytree(checkpoint, snapshot)
    info = M3Encoder(snapshot, device="cpu").info
    assert (info.name, info.revision) == ("BAAI/bge-m3", snapshot.name)


def test_recommended_weights(copy: Path, encoder: M3Encoder) -> None:
    assert encoder.recommended_weights == {}
    (copy / "weights.json").write_text('{"dense_sparse": [1, 0.3, 0], "all": [0.2, 0.3, 1]}')
    assert M3Encoder(copy, device="cpu").recommended_weights == {
        "dense_sparse": (1, 0.3, 0),
        "all": (0.2, 0.3, 1),
    }


def test_a_configuration_may_begin_with_a_byte_order_mark(copy: Path, encoder: M3Encoder) -> None:
    content = (copy / "config.json").read_bytes()
    (copy / "config.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert M3Encoder(copy, device="cpu").info.weights_fingerprint == encoder.info.weights_fingerprint


def test_a_tokenizer_with_far_fewer_tokens_than_the_model_is_named(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    M3Encoder(copy, device="cpu")
    assert not caplog.records
    raw = json.loads((copy / "config.json").read_text())
    rows = raw["vocab_size"] + 2000
    (copy / "config.json").write_text(json.dumps(raw | {"vocab_size": rows}))
    add_tensors(**{"embeddings.word_embeddings.weight": torch.ones(rows, raw["hidden_size"])})(copy)
    M3Encoder(copy, device="cpu")
    [record] = caplog.records
    assert f"the model has vectors for {rows:,}" in record.getMessage()


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
@pytest.mark.parametrize("name", ["token_budget", "threads", "max_length"])
def test_sizes_are_whole_numbers(copy: Path, name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is {value!r}"):
        M3Encoder(copy, device="cpu", **{name: value})  # type: ignore[arg-type]


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(content)


def save(name: str, content: object) -> Callable[[Path], None]:
    return lambda directory: torch.save(content, directory / name)


def configure(**values: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(share * len(content))])

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 2271064456\n"


def add_tensors(**tensors: torch.Tensor) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        state = load_file(directory / "model.safetensors")
        save_file(state | tensors, directory / "model.safetensors")

    return change


def as_directory(name: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return change


def sparse_head_as_multivector_head(directory: Path) -> None:
    shutil.copy(directory / "sparse_linear.pt", directory / "colbert_linear.pt")


def drop_tensor(directory: Path) -> None:
    state = load_file(directory / "model.safetensors")
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "config.json is missing"),
        (write("config.json", "{"), "config.json is not JSON"),
        (write("config.json", "[]"), "config.json contains a JSON list"),
        (configure(model_type="bert"), "model_type 'bert'"),
        (configure(hidden_act="relu"), "hidden_act 'relu'"),
        (configure(position_embedding_type="relative_key"), "position_embedding_type 'relative_key'"),
        (configure(is_decoder=True), "is_decoder True"),
        (as_directory("config.json"), "config.json cannot be read"),
        # Each of these used to give other vectors silently.
        (configure(num_hidden_layers=1), "contains encoder.layer.1.attention.*, which no model of the sizes"),
        (configure(pad_token_id=0), "gives <pad> the id 1, but config.json has pad_token_id 0"),
        (
            add_tensors(**{"encoder.layer.0.attention.self.query.lora_A": torch.ones(2, 2)}),
            "contains encoder.layer.0.attention.self.query.lora_A, which no model",
        ),
        (
            add_tensors(**{"roberta.embeddings.LayerNorm.bias": torch.ones(32)}),
            "contains embeddings.LayerNorm.bias twice",
        ),
        (sparse_head_as_multivector_head, "rows of one dimension are all 1 or -1"),
        (write("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer"),
        (write("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
        (write("sparse_linear.pt", POINTER), "sparse_linear.pt is a Git LFS pointer"),
        (configure(hidden_size="wide"), "config.json has hidden_size 'wide'"),
        (write("config.json", '{"model_type": "xlm-roberta"}'), "config.json lacks a size"),
        (remove("tokenizer.json"), "tokenizer.json is missing"),
        (write("tokenizer.json", "{}"), "tokenizer.json is not a tokenizer"),
        (configure(vocab_size=100), "tokenizer.json has the token id"),
        (remove("model.safetensors"), "neither model.safetensors nor pytorch_model.bin"),
        (write("model.safetensors", "not tensors"), "model.safetensors cannot be read"),
        (truncate("model.safetensors", 0), "model.safetensors cannot be read"),
        (truncate("model.safetensors", 0.001), "model.safetensors cannot be read"),
        (truncate("model.safetensors", 0.7), "model.safetensors cannot be read"),
        (drop_tensor, "model.safetensors lacks 1 tensors, such as encoder.layer.1.output.dense.bias"),
        (configure(intermediate_size=65), r"model.safetensors: encoder.layer.0.intermediate.dense.* is \[64"),
        (remove("sparse_linear.pt"), "sparse_linear.pt is missing"),
        (remove("colbert_linear.pt"), "colbert_linear.pt is missing"),
        (save("sparse_linear.pt", {"weight": torch.zeros(1, 32)}), "sparse_linear.pt lacks bias"),
        (
            save("colbert_linear.pt", {"weight": torch.ones(8, 16), "bias": torch.ones(8)}),
            r"colbert_linear.pt: colbert_linear.weight is \[8, 16\]",
        ),
        (save("sparse_linear.pt", [1, 2]), "sparse_linear.pt does not contain a state dict"),
        (
            save("sparse_linear.pt", {"weight": 1, "bias": 2}),
            "sparse_linear.pt does not contain a state dict",
        ),
        (write("sparse_linear.pt", "no zip"), "sparse_linear.pt cannot be read as plain tensors"),
        (truncate("colbert_linear.pt", 0.7), "colbert_linear.pt cannot be read as plain tensors"),
        (write("weights.json", '{"all": [1, 2]}'), "does not map method names to three weights"),
        (write("weights.json", "[1]"), "weights.json is not a weights file"),
    ],
)
def test_a_wrong_file_is_named_with_what_to_do(
    copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    with pytest.raises(ModelFormat, match=message) as caught:
        M3Encoder(copy, device="cpu")
    said = str(caught.value)
    assert len(said.splitlines()) == 2
    assert said.splitlines()[1].startswith("  ")
    assert "weights_only" not in said


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("run-by-the-pickle",)


@pytest.mark.parametrize("name", ["sparse_linear.pt", "pytorch_model.bin"])
def test_code_in_a_pickle_is_not_run(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    (copy / "model.safetensors").unlink() if name.endswith(".bin") else None
    torch.save(Malicious(), copy / name)
    with pytest.raises(ModelFormat, match=name):
        M3Encoder(copy, device="cpu")
    assert not (copy / "run-by-the-pickle").exists()


def test_pytorch_s_advice_to_run_the_code_is_never_shown(copy: Path) -> None:
    torch.save(Malicious(), copy / "sparse_linear.pt")
    with pytest.raises(ModelFormat, match="Download the file again") as caught:
        M3Encoder(copy, device="cpu")
    shown = "".join(traceback.format_exception(caught.value))
    assert "arbitrary code" not in shown


def test_a_directory_never_touches_the_network(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    M3Encoder(copy, device="cpu").encode(["a"])


@pytest.mark.parametrize("name", ["./no-such", "no/such/place", "/no-such", "just-a-name"])
def test_what_is_neither_directory_nor_hub_name(name: str) -> None:
    with pytest.raises(ModelFormat, match="neither a directory nor a hub name"):
        M3Encoder(name)


def test_an_unreachable_hub_is_said_in_a_line_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def unreachable(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("Got: ConnectError: name not known\nPlease check your connection.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(Unavailable, match="models/m3-tiny@v1") as caught:
        M3Encoder("models/m3-tiny", revision="v1", device="cpu")
    first, remedy = str(caught.value).splitlines()
    assert "there is no directory 'models/m3-tiny', and the hub cannot be reached" in first
    assert first.endswith("Got: ConnectError: name not known")
    assert 'M3Encoder("DIRECTORY")' in remedy
    assert "--model DIRECTORY" in remedy


@pytest.mark.parametrize("device", ["foo", "cuda:x"])
def test_an_unknown_device_is_reported_with_the_known_ones(device: str) -> None:
    with pytest.raises(InvalidInput, match=device) as caught:
        M3Encoder("no-such-model", device=device)
    assert "Use cpu, cuda or mps" in str(caught.value)
    assert "privateuseone" not in str(caught.value)
