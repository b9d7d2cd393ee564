"""M3Embeddings: the three representations of a batch of texts, stored by component and without padding."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save, save_file

from m3_connectors.errors import InvalidInput
from m3_connectors.files import replacing

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

T = TypeVar("T")

Component = Literal["dense", "sparse", "multivector"]
COMPONENTS: tuple[Component, ...] = ("dense", "sparse", "multivector")


class Vocabulary(Protocol):
    """Converts token ids to readable text, as ``tokenizers.Tokenizer`` and ``M3Encoder`` do."""

    def id_to_token(self, id: int) -> str | None:
        """Return the token of an id, or None if there is no such id."""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The model that produced a vector; two vectors can be compared only if their models match.

    Attributes:
        name: The hub name or directory name of the model.
        revision: The commit of the hub repository; None if unknown.
        dimension: The width of dense vectors and of multi-vector rows.
        vocabulary_size: The number of token ids.
        vocabulary_fingerprint: The SHA-256 (hex) of the vocabulary; where it agrees, so do the token ids.
        weights_fingerprint: The SHA-256 (hex) of the network's heads and last layer; None if unknown.
            Fine-tuning changes it; renaming the directory does not.
        precision: "int8" if it computed in integers; None in floating point. The vectors of both can be compared.
    """

    name: str
    revision: str | None
    dimension: int
    vocabulary_size: int
    vocabulary_fingerprint: str
    weights_fingerprint: str | None = None
    precision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision[:7]}" if self.revision else ""
        computed = f", {self.precision}" if self.precision else ""
        return f"{self.name}{at} ({self.dimension} dims{computed})"

    def to_json(self) -> dict[str, Any]:
        """Return the fields; without a precision of None, which earlier versions do not know."""
        raw = dataclasses.asdict(self)
        if self.precision is None:
            del raw["precision"]
        return raw

    def matches(self, other: ModelInfo) -> bool:
        """Return whether the vectors of both can be compared.

        Widths and vocabularies must be equal. If both have a fingerprint of the weights, it decides, because a
        directory may be renamed and a fine-tuned copy may keep its name. Otherwise the name and the known revisions do.
        """
        if None not in (self.weights_fingerprint, other.weights_fingerprint):
            same = self.weights_fingerprint == other.weights_fingerprint
        else:
            same = self.name == other.name and (
                None in (self.revision, other.revision) or self.revision == other.revision
            )
        return (
            same
            and self.dimension == other.dimension
            and self.vocabulary_fingerprint == other.vocabulary_fingerprint
        )


@dataclasses.dataclass(frozen=True)
class EncodedRows:
    """The rows of texts in the bytes in which a collection stores them.

    Rows of a few bits that were read from a collection lose precision again if they are encoded a second time. Their
    bytes are therefore kept beside them, and stored as they are by a collection of the same precision.

    Attributes:
        precision: The name of the precision.
        texts: The bytes of the rows of each text, ``[n]``.
    """

    precision: str
    texts: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class MultiVectors:
    """One matrix of unit rows per text, with the matrices of all texts concatenated.

    Attributes:
        rows: float32 ``[total, d]``.
        offsets: int64 ``[n + 1]``, from 0 to ``total``; the rows of text i are
            ``rows[offsets[i]:offsets[i + 1]]``.
        encoded: The bytes that ``rows`` were read from; None if the rows were not read from a collection, or if
            encoding them again gives the same bytes.

    Raises:
        InvalidInput: The shapes or dtypes are inconsistent.
    """

    rows: Float32
    offsets: Int64
    encoded: EncodedRows | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype != np.float32:
            raise InvalidInput(
                f"multivectors.rows is {_shape(self.rows)}; it must be float32 [total, d].\n"
                "  Build it with MultiVectors.from_list, which also converts the dtype."
            )
        offsets = self.offsets
        if (
            offsets.ndim != 1
            or offsets.dtype != np.int64
            or len(offsets) < 1
            or offsets[0] != 0
            or offsets[-1] != len(self.rows)
            or (np.diff(offsets) < 0).any()
        ):
            raise InvalidInput(
                f"multivectors.offsets is {_shape(offsets)}; it must be int64 [n + 1] and increase from 0 to "
                f"{len(self.rows)} (the number of rows).\n  Build it with MultiVectors.from_list."
            )
        if self.encoded is not None and len(self.encoded.texts) != len(self):
            raise InvalidInput(
                f"multivectors.encoded has the rows of {len(self.encoded.texts)} texts, and the offsets are of "
                f"{len(self)}.\n  Give the bytes of every text, or leave them out."
            )

    @classmethod
    def from_list(cls, matrices: Sequence[npt.ArrayLike], dimension: int) -> MultiVectors:
        """Concatenate one matrix ``[tokens_i, dimension]`` per text; an empty list is a text without rows.

        The matrices may have any float dtype.

        Raises:
            InvalidInput: A matrix has a different shape.
        """
        arrays = [np.asarray(matrix, dtype=np.float32) for matrix in matrices]
        arrays = [array.reshape(0, dimension) if array.size == 0 else array for array in arrays]
        for i, array in enumerate(arrays):
            if array.ndim != 2 or array.shape[1] != dimension:
                raise InvalidInput(
                    f"matrices[{i}] is {_shape(array)}; it must be [tokens, {dimension}].\n"
                    "  Check the dimension, and give one matrix per text."
                )
        offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int64)
        rows = np.concatenate(arrays) if arrays else np.empty((0, dimension), dtype=np.float32)
        return cls(rows, offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[MultiVectors]) -> MultiVectors:
        """Concatenate batches; at least one is needed."""
        counts = np.concatenate([part.counts for part in parts])
        kept = [part.encoded for part in parts if part.encoded is not None]
        encoded = None
        if len(kept) == len(parts) and len({part.precision for part in kept}) == 1:
            encoded = EncodedRows(kept[0].precision, tuple(text for part in kept for text in part.texts))
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            encoded,
        )

    @property
    def counts(self) -> Int64:
        """The number of rows of each text, int64 ``[n]``."""
        return np.diff(self.offsets)

    @property
    def dimension(self) -> int:
        """The width of a row."""
        return int(self.rows.shape[1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> Float32: ...
    @overload
    def __getitem__(self, at: slice) -> MultiVectors: ...
    def __getitem__(self, at: int | slice) -> Float32 | MultiVectors:
        if isinstance(at, slice):
            encoded = self.encoded and dataclasses.replace(self.encoded, texts=self.encoded.texts[at])
            if at.step not in (None, 1):
                some = MultiVectors.from_list([self[i] for i in range(len(self))[at]], self.dimension)
                return dataclasses.replace(some, encoded=encoded)
            start, stop, _ = at.indices(len(self))
            stop = max(start, stop)
            bounds = self.offsets[start : stop + 1]
            return MultiVectors(self.rows[bounds[0] : bounds[-1]], bounds - bounds[0], encoded)
        i = _position(at, len(self))
        return self.rows[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[Float32]:
        return (self[i] for i in range(len(self)))


class M3Embeddings:
    """The representations of n texts (paper section 3.2), one array per component; immutable.

    Args:
        dense: float32 ``[n, d]``, unit rows.
        sparse: scipy CSR float32 ``[n, vocabulary]``, weights > 0; other sparse formats are converted.
        multivectors: Per text float32 ``[tokens - 1, d]``, unit rows (the first token, ``<s>``, has none).
        truncated: bool ``[n]``: whether the text was longer than the maximum and was truncated; all False by
            default.
        model: The model that produced the vectors; None if unknown.
        token_counts: int64 ``[n]``: the number of tokens of each whole text, including ``<s>`` and ``</s>``;
            None if unknown.
        kept_token_counts: int64 ``[n]``: how many of these tokens the model read; None if unknown.

    Raises:
        InvalidInput: No component is given, or the shapes or dtypes are inconsistent.
    """

    __slots__ = (
        "_dense",
        "_kept_token_counts",
        "_model",
        "_multivectors",
        "_sparse",
        "_token_counts",
        "_truncated",
    )

    def __init__(
        self,
        dense: Float32 | None = None,
        sparse: sp.csr_array | None = None,
        multivectors: MultiVectors | None = None,
        truncated: Bool | None = None,
        model: ModelInfo | None = None,
        token_counts: Int64 | None = None,
        kept_token_counts: Int64 | None = None,
    ) -> None:
        if dense is not None and (
            not isinstance(dense, np.ndarray) or dense.ndim != 2 or dense.dtype != np.float32
        ):
            raise InvalidInput(
                f"dense is {_shape(dense)}; it must be a float32 array [n, d].\n"
                "  Convert it with numpy.asarray(dense, dtype=numpy.float32)."
            )
        if sparse is not None:
            sparse = sp.csr_array(sparse)
            if sparse.dtype != np.float32:
                raise InvalidInput(
                    f"sparse is {sparse.dtype}; it must be float32.\n"
                    "  Convert it with sparse.astype('float32')."
                )
        columns: dict[Component, Float32 | sp.csr_array | MultiVectors | None]
        columns = {"dense": dense, "sparse": sparse, "multivector": multivectors}
        sizes = {name: _rows(column) for name, column in columns.items() if column is not None}
        if not sizes:
            raise InvalidInput(
                "M3Embeddings was created without a component.\n"
                "  Pass at least one of dense, sparse and multivectors."
            )
        if len(set(sizes.values())) > 1:
            raise InvalidInput(
                f"the components have different numbers of texts: {sizes}.\n"
                "  Give every component one row (or matrix) per text."
            )
        self._dense, self._sparse, self._multivectors = dense, sparse, multivectors
        self._model = model
        if truncated is None:
            truncated = np.zeros(len(self), dtype=np.bool_)
        for name, counts in (
            ("truncated", truncated),
            ("token_counts", token_counts),
            ("kept_token_counts", kept_token_counts),
        ):
            if counts is not None and (not isinstance(counts, np.ndarray) or counts.shape != (len(self),)):
                kind = "a bool" if name == "truncated" else "an int64"
                raise InvalidInput(
                    f"{name} is {_shape(counts)}; it must be {kind} array [{len(self)}].\n"
                    "  Give one value per text, or leave it out."
                )
        self._truncated: Bool = truncated
        self._token_counts, self._kept_token_counts = token_counts, kept_token_counts

    @property
    def dense(self) -> Float32:
        """The dense vectors, float32 ``[n, d]``, unit rows.

        Raises:
            InvalidInput: This component was not requested when the texts were encoded.
        """
        return self._present(self._dense, "dense")

    @property
    def sparse(self) -> sp.csr_array:
        """The token weights, scipy CSR float32 ``[n, vocabulary]``, > 0.

        Raises:
            InvalidInput: This component was not requested when the texts were encoded.
        """
        return self._present(self._sparse, "sparse")

    @property
    def multivectors(self) -> MultiVectors:
        """One float32 ``[tokens - 1, d]`` per text, unit rows (the first token, ``<s>``, has none).

        Raises:
            InvalidInput: This component was not requested when the texts were encoded.
        """
        return self._present(self._multivectors, "multivector")

    @property
    def truncated(self) -> Bool:
        """Which texts were longer than the maximum and were truncated, bool ``[n]``."""
        return self._truncated

    @property
    def token_counts(self) -> Int64 | None:
        """The tokens of each whole text, including ``<s>`` and ``</s>``, int64 ``[n]``; None if unknown."""
        return self._token_counts

    @property
    def kept_token_counts(self) -> Int64 | None:
        """How many of these tokens the model read, int64 ``[n]``; None if unknown."""
        return self._kept_token_counts

    @property
    def model(self) -> ModelInfo | None:
        """The model that produced the vectors; None if unknown."""
        return self._model

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that are present."""
        return tuple(name for name in COMPONENTS if self._column(name) is not None)

    @property
    def truncated_count(self) -> int:
        """The number of texts that were truncated."""
        return int(self._truncated.sum())

    def replace(self, **parts: Any) -> M3Embeddings:
        """Return a copy with the named arguments of ``M3Embeddings`` replaced; None removes a component."""
        own = {name.removeprefix("_"): getattr(self, name) for name in self.__slots__}
        return M3Embeddings(**(own | parts))

    def __repr__(self) -> str:
        parts, model = ", ".join(self.components), self._model or "unknown model"
        return f"<M3Embeddings of {len(self)} texts: {parts}; {model}>"

    def _column(self, component: Component) -> Float32 | sp.csr_array | MultiVectors | None:
        return {"dense": self._dense, "sparse": self._sparse, "multivector": self._multivectors}[component]

    def _present(self, column: T | None, component: Component) -> T:
        if column is None:
            there = ", ".join(self.components)
            raise InvalidInput(
                f"these embeddings have no {component} component, only {there}.\n"
                f"  Encode with components={(*self.components, component)!r}, or check .components first."
            )
        return column

    def __len__(self) -> int:
        return next(
            _rows(column) for column in (self._dense, self._sparse, self._multivectors) if column is not None
        )

    def __getitem__(self, at: int | slice) -> M3Embeddings:
        """Return the texts of a slice; an int returns a batch of one."""
        if isinstance(at, int):
            i = _position(at, len(self))
            at = slice(i, i + 1)
        return M3Embeddings(
            dense=None if self._dense is None else self._dense[at],
            sparse=None if self._sparse is None else self._sparse[at],
            multivectors=None if self._multivectors is None else self._multivectors[at],
            truncated=self._truncated[at],
            model=self._model,
            token_counts=None if self._token_counts is None else self._token_counts[at],
            kept_token_counts=None if self._kept_token_counts is None else self._kept_token_counts[at],
        )

    def __iter__(self) -> Iterator[M3Embeddings]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[M3Embeddings]) -> M3Embeddings:
        """Concatenate batches of one model.

        Raises:
            InvalidInput: There are no parts, or they have different components or models.
        """
        if not parts:
            raise InvalidInput("there is nothing to concatenate.\n  Pass at least one M3Embeddings.")
        first = parts[0]
        for part in parts[1:]:
            if part.components != first.components or part.model != first.model:
                raise InvalidInput(
                    f"{first.components} of {first.model} cannot be concatenated with {part.components} of "
                    f"{part.model}.\n  Encode all parts with one model and the same components."
                )
        names = first.components
        return cls(
            dense=np.concatenate([part.dense for part in parts]) if "dense" in names else None,
            sparse=sp.csr_array(sp.vstack([part.sparse for part in parts], format="csr"))
            if "sparse" in names
            else None,
            multivectors=MultiVectors.concatenate([part.multivectors for part in parts])
            if "multivector" in names
            else None,
            truncated=np.concatenate([part.truncated for part in parts]),
            model=first.model,
            token_counts=_joined([part.token_counts for part in parts]),
            kept_token_counts=_joined([part.kept_token_counts for part in parts]),
        )

    def lexical_weights(self, i: int, vocabulary: Vocabulary) -> dict[str, float]:
        """Return the sparse weights of text i by readable token, highest first.

        Raises:
            InvalidInput: The embeddings have no sparse component.
        """
        row = self.sparse[[_position(i, len(self))]]
        return {
            vocabulary.id_to_token(int(row.indices[j])) or f"<{row.indices[j]}>": float(row.data[j])
            for j in np.argsort(-row.data, kind="stable")
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; an existing file is replaced atomically.

        Raises:
            InvalidInput: The path is a directory, or its parent is not a directory.
            OSError: The file cannot be written.
        """
        target = Path(path)
        if target.is_dir() or not target.parent.is_dir():
            raise InvalidInput(
                f"{target} cannot be written: {'it' if target.is_dir() else target.parent} is "
                f"{'a directory' if target.is_dir() else 'not a directory'}.\n"
                "  Choose a file name in an existing directory."
            )
        tensors, metadata = self._tensors()
        try:
            with replacing(target, shared=True) as partial:
                save_file(tensors, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(
                f"{target} cannot be written: {error}\n  Check the free disk space and the permissions."
            ) from error

    def to_bytes(self) -> bytes:
        """Return the content of the file that ``save`` writes."""
        tensors, metadata = self._tensors()
        return bytes(save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> M3Embeddings:
        """Read a file written by ``save``.

        Raises:
            InvalidInput: The file was not written by ``save``, or it is damaged.
            FileNotFoundError: The file does not exist.
        """
        try:
            with safe_open(os.fspath(path), framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get("m3_connectors", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise InvalidInput(
                f"{path} was not written by M3Embeddings.save, or it is damaged: {error}\n"
                "  Check the path, or encode the texts again."
            ) from error
        if header.get("format") != _FORMAT:
            raise InvalidInput(
                f"{path} was not written by M3Embeddings.save (format {header.get('format')!r}).\n"
                "  Check the path, or encode the texts again."
            )
        try:
            return cls._from_tensors(tensors, header)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{path} is damaged: {error}\n  Encode the texts again.") from error

    def _tensors(self) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, str]]:
        tensors: dict[str, npt.NDArray[np.generic]] = {"truncated": self._truncated}
        for name, counts in (
            ("token_counts", self._token_counts),
            ("kept_token_counts", self._kept_token_counts),
        ):
            if counts is not None:
                tensors[name] = np.ascontiguousarray(counts)
        if self._dense is not None:
            tensors["dense"] = np.ascontiguousarray(self._dense)
        if self._sparse is not None:
            tensors["sparse.indptr"] = self._sparse.indptr.astype(np.int64)
            tensors["sparse.indices"] = self._sparse.indices.astype(np.int64)
            tensors["sparse.data"] = self._sparse.data
        if self._multivectors is not None:
            tensors["multivectors.rows"] = np.ascontiguousarray(self._multivectors.rows)
            tensors["multivectors.offsets"] = self._multivectors.offsets
        header = {
            "format": _FORMAT,
            "vocabulary_size": None if self._sparse is None else int(self._sparse.shape[1]),
            "model": None if self._model is None else self._model.to_json(),
        }
        return tensors, {"m3_connectors": json.dumps(header)}

    @classmethod
    def from_bytes(cls, content: bytes) -> M3Embeddings:
        """Read what ``to_bytes`` returns, which is also the content of a file written by ``save``.

        Raises:
            InvalidInput: The content is not that of such a file, or it is damaged.
        """
        try:
            tensors = load_tensors(content)
            start = 8  # the length of the header comes first, as 8 bytes
            end = start + int.from_bytes(content[:start], "little")
            header = json.loads(json.loads(content[start:end])["__metadata__"]["m3_connectors"])
            if header["format"] != _FORMAT:
                raise ValueError(f"format {header['format']!r}")
            return cls._from_tensors(tensors, header)
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(
                f"{len(content):,} bytes are not what M3Embeddings.save writes: {str(error) or type(error).__name__}\n"
                "  Give the content of such a file, or encode the texts again."
            ) from error

    @classmethod
    def _from_tensors(cls, tensors: Mapping[str, Any], header: Mapping[str, Any]) -> M3Embeddings:
        sparse = None
        if "sparse.data" in tensors:
            shape = (len(tensors["sparse.indptr"]) - 1, header["vocabulary_size"])
            parts = (tensors["sparse.data"], tensors["sparse.indices"], tensors["sparse.indptr"])
            sparse = sp.csr_array(parts, shape=shape)
            sparse.check_format(
                full_check=True
            )  # token ids beyond the vocabulary would be read out of bounds
        multivectors = None
        if "multivectors.rows" in tensors:
            multivectors = MultiVectors(tensors["multivectors.rows"], tensors["multivectors.offsets"])
        return cls(
            dense=tensors.get("dense"),
            sparse=sparse,
            multivectors=multivectors,
            truncated=tensors["truncated"],
            model=ModelInfo(**header["model"]) if header["model"] else None,
            token_counts=tensors.get("token_counts"),
            kept_token_counts=tensors.get("kept_token_counts"),
        )


_FORMAT = "M3Embeddings/1"


def _position(at: int, length: int) -> int:
    """Return an index >= 0, counting from the end if negative; iteration relies on IndexError at the end."""
    if not -length <= at < length:
        raise IndexError(f"text {at} is out of range for {length} texts")
    return at % length


def _rows(column: Float32 | sp.csr_array | MultiVectors) -> int:
    return len(column) if isinstance(column, MultiVectors) else int(column.shape[0])


def _shape(array: object) -> str:
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    return f"{array.dtype} {list(array.shape)}"


def _joined(parts: Sequence[Int64 | None]) -> Int64 | None:
    """Return the counts of all parts; None if one is unknown."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None
