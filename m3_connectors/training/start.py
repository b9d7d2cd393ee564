"""An initial model that can retrieve before any training: latent semantic indexing in an XLM-RoBERTa.

Word embeddings come from a singular value decomposition of the matrix of pieces and texts. A text is a
passage with all its queries, or a sentence with all its translations, so pieces of several languages
that share texts get similar embeddings. Two dimensions are reserved:

- *importance* contains how rare a piece is in its language (the log of its idf). The attention of ``<s>`` in
  the first layer uses it, so that the dense vector starts as an idf-weighted mean; the sparse head uses it
  too.
- *marker* distinguishes ``<s>`` from the other tokens, and is set to zero at the end.

All other weights are small at the start, so that every layer passes its input through.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.sparse.csgraph import connected_components

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import Layer, M3Model
from m3_connectors.training.batches import wrap
from m3_connectors.training.data import PairStore
from m3_connectors.training.dense_teacher import TeacherVectors
from m3_connectors.training.ranges import STRICT, NotNegative, Positive
from m3_connectors.training.tokenizer import FIRST_PIECE

_IMPORTANCE, _MARKER = -2, -1
RESERVED = 2
"""The dimensions that the initial model reserves."""


@dataclass(frozen=True, config=STRICT)
class StartSettings:
    """The constants of the initial model.

    Attributes:
        power_iterations: The number of power iterations of the randomised decomposition.
        singular_power: The embeddings are the left singular vectors times the singular values to this power.
        sharpness: The attention of ``<s>`` to a piece is proportional to the idf of the piece to this power.
        lexical_scale: The sparse head is fitted to ``scale * sqrt(idf)``.
        fit_sparse_head: Whether to fit the sparse head in this way also if the run starts from a checkpoint, one
            whose head was never trained.
        longest: The maximum number of tokens of a passage that are counted.
        ridge: With a teacher: the ridge of the regression, in units of the mean weight of a piece.
        regression_steps: With a teacher: the number of steps of conjugate gradients.
    """

    power_iterations: int = Field(default=2, ge=0)
    singular_power: float = 0.5
    sharpness: NotNegative = 1.5
    lexical_scale: Positive = 0.14
    fit_sparse_head: bool = False
    longest: int = Field(default=384, ge=1)
    ridge: Positive = 0.1
    regression_steps: int = Field(default=20, ge=1)


def count_matrix(store: PairStore, vocabulary_size: int, longest: int) -> sp.csr_array:
    """Count each piece in each document, ``float32 [documents, vocabulary]``, without held-out pairs.

    A document is a set of texts that are connected by pairs: in monolingual sources a passage with its
    queries, in ``par_`` sources a sentence with its translations.
    """
    kept = ~np.asarray(store.held_out)
    parallel = np.char.startswith(np.array(store.sources), "par_")[store.source] & kept
    texts = len(store.offsets) - 1
    links = sp.coo_array(
        (np.ones(parallel.sum(), np.int8), (store.query[parallel], store.passage[parallel])),
        shape=(texts, texts),
    )
    _, cluster = connected_components(links, directed=False)
    members = np.unique(
        np.stack(
            [
                np.concatenate([cluster[store.passage[kept]], cluster[store.passage[kept]]]),
                np.concatenate([store.passage[kept], store.query[kept]]),
            ],
            1,
        ),
        axis=0,
    )
    documents, row = np.unique(members[:, 0], return_inverse=True)
    lengths = np.minimum(store.lengths, longest)
    text_starts = np.concatenate([[0], np.cumsum(lengths)])
    inside = np.arange(text_starts[-1]) - np.repeat(text_starts[:-1] - store.offsets[:-1], lengths)
    by_text = sp.csr_array(
        (np.ones(len(inside), np.float32), store.tokens[inside].astype(np.int32), text_starts),
        shape=(texts, vocabulary_size),
    )
    by_text.sum_duplicates()
    joined = sp.csr_array(
        (np.ones(len(members), np.float32), (row, members[:, 1])), shape=(len(documents), texts)
    )
    counts = (joined @ by_text).tocsr()
    counts.sort_indices()
    return counts


def passages_by_language(
    store: PairStore, vocabulary_size: int, longest: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return how many training passages of each language contain each piece, and how many there are.

    Returns:
        float32 ``[vocabulary, languages]``, and int64 ``[languages]``.
    """
    kept = ~np.asarray(store.held_out)
    passages, first = np.unique(store.passage[kept], return_index=True)
    language = store.passage_language[kept][first]
    holding = np.zeros((vocabulary_size, len(store.languages)), np.float32)
    totals = np.bincount(language, minlength=len(store.languages))
    for number in np.flatnonzero(totals):
        texts = passages[language == number]
        seen = np.concatenate([np.unique(store.text(text)[:longest]) for text in texts])
        holding[:, number] = np.bincount(seen, minlength=vocabulary_size)
    return holding, totals


def idf_by_language(holding: NDArray[np.float32], totals: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return, as ``float32 [vocabulary]``, the lowest idf of each piece over the languages that use it.

    A stop word of a small language is rare in all texts together, but common in its own language.
    """
    # A foreign word must not look common in a language with few texts: at least 5 uses are required.
    idf = np.where(holding >= 5, np.log((totals + 1) / (holding + 0.5)), np.inf).min(1)
    unseen = 0.9 * np.log(totals.max() + 1)
    return np.asarray(np.clip(np.where(np.isinf(idf), unseen, idf), 0.05, None), np.float32)


def semantic_vectors(
    counts: sp.csr_array, idf: NDArray[np.float32], rank: int, settings: StartSettings, seed: int
) -> NDArray[np.float32]:
    """Return unit vectors of pieces, ``float32 [vocabulary, rank]``, from a randomised SVD."""
    weighted = counts.copy()
    weighted.data = 1 + np.log(weighted.data)
    weighted = (weighted * idf[None, :]).tocsr()
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1))).ravel()
    weighted = (sp.diags_array(1 / np.maximum(norms, 1e-6)) @ weighted).tocsr().astype(np.float32)
    transposed = weighted.T.tocsr()

    generator = np.random.default_rng(seed)
    basis = transposed @ (
        weighted @ generator.standard_normal((weighted.shape[1], rank + 16)).astype(np.float32)
    )
    for _ in range(settings.power_iterations):
        basis, _ = scipy.linalg.qr(basis, mode="economic", overwrite_a=True)
        basis = transposed @ (weighted @ basis)
    basis, _ = scipy.linalg.qr(basis, mode="economic", overwrite_a=True)
    projected = weighted @ basis
    values, rotation = np.linalg.eigh((projected.T @ projected).astype(np.float64))
    order = np.argsort(values)[::-1][:rank]
    singular = np.sqrt(np.maximum(values[order], 1e-12))
    vectors = (basis @ rotation[:, order].astype(np.float32)) * (singular**settings.singular_power).astype(
        np.float32
    )
    # Fewer pieces than dimensions span fewer directions; the other components are zero.
    return np.pad(np.asarray(vectors, np.float32), ((0, 0), (0, rank - vectors.shape[1])))


def centred(vectors: NDArray[np.float32], counts_by_language: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subtract the mean vector of its languages from every piece, and normalise the result.

    Args:
        vectors: ``[vocabulary, rank]``.
        counts_by_language: ``[vocabulary, languages]``, how many texts of each language contain each piece.

    The decomposition separates the languages; without their means, translations are closer to each other.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-9)
    # A piece of two languages is assigned to each by its share of their texts, not by its raw count.
    share = counts_by_language / np.maximum(counts_by_language.sum(0, keepdims=True), 1)
    belongs = share / np.maximum(share.sum(1, keepdims=True), 1e-12)
    means = (belongs.T @ unit) / np.maximum(belongs.sum(0)[:, None], 1)
    unit = unit - belongs @ means
    return np.asarray(unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9), np.float32)


def regressed_vectors(
    store: PairStore, idf: NDArray[np.float32], teacher: TeacherVectors, settings: StartSettings
) -> NDArray[np.float32]:
    """Return vectors of pieces, float32 ``[vocabulary, width]``, whose mean in a text approximates its target.

    The mean is weighted like the attention of ``<s>`` in the initial model. Ridge regression by conjugate
    gradients; pieces of languages that share no text meet in the space of the teacher.
    """
    texts, targets = (part.numpy() for part in teacher.targets(np.arange(len(store.offsets) - 1)))
    lengths = np.minimum(store.lengths[texts], settings.longest)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    inside = np.arange(starts[-1]) - np.repeat(starts[:-1] - store.offsets[texts], lengths)
    pieces = store.tokens[inside].astype(np.int32)
    design = sp.csr_array(
        (idf[pieces] ** settings.sharpness, pieces, starts), shape=(len(texts), len(idf)), dtype=np.float32
    )
    design.sum_duplicates()
    totals = np.asarray(design.sum(1)).ravel()
    design = (sp.diags_array((1 / np.maximum(totals, 1e-6)).astype(np.float32)) @ design).tocsr()
    transposed = design.T.tocsr()
    # A rare piece has little data: the ridge draws it to zero, so relative to its own weight it counts less.
    ridge = settings.ridge * np.asarray(design.multiply(design).sum(0)).ravel().mean()
    vectors = np.zeros((len(idf), targets.shape[1]), np.float32)
    residual = transposed @ targets
    direction, square = residual.copy(), np.einsum("ij,ij->j", residual, residual)
    for _ in range(settings.regression_steps):
        image = transposed @ (design @ direction) + ridge * direction
        length = square / np.maximum(np.einsum("ij,ij->j", direction, image), 1e-20)
        vectors += length * direction
        residual -= length * image
        new_square = np.einsum("ij,ij->j", residual, residual)
        direction = residual + (new_square / np.maximum(square, 1e-20)) * direction
        square = new_square
    return vectors


def build_start(
    store: PairStore,
    config: ModelConfig,
    settings: StartSettings,
    seed: int = 0,
    teacher: TeacherVectors | None = None,
) -> M3Model:
    """Create a model of the given sizes that starts as latent semantic indexing, or near a teacher.

    Args:
        store: The pairs, tokenised with the model's tokenizer.
        config: The sizes; ``hidden_size - 2`` is the rank of the decomposition.
        settings: The constants of the initial model.
        seed: The seed of the decomposition and of the small weights.
        dense_teacher: Dense vectors of ``hidden_size - 2`` numbers that the initial model approximates; by default,
            it is latent semantic indexing.
    """
    holding, totals = passages_by_language(store, config.vocab_size, settings.longest)
    idf = idf_by_language(holding, totals)
    if teacher:
        vectors = regressed_vectors(store, idf, teacher, settings)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    else:
        counts = count_matrix(store, config.vocab_size, settings.longest)
        unit = centred(semantic_vectors(counts, idf, config.hidden_size - 2, settings, seed), holding)
    model = place_start(unit, idf, config, settings, seed)
    _fit_sparse_head(model, store, idf, settings)
    return model


def place_start(
    unit: NDArray[np.float32],
    idf: NDArray[np.float32],
    config: ModelConfig,
    settings: StartSettings,
    seed: int = 0,
) -> M3Model:
    """Write the unit vectors and idf values of the pieces to the weights of a model."""
    torch.manual_seed(seed)
    model = M3Model(config)
    width, head = config.hidden_size, config.head_size
    # A layer norm of 256 numbers gives a vector of norm 16, so the embeddings start with this norm.
    length = width**0.5
    importance = np.clip(np.log(idf / np.median(idf[FIRST_PIECE:])), -3.0, 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=config.initializer_range)
        words = model.embeddings.word_embeddings.weight
        words[:, :_IMPORTANCE] = torch.from_numpy(unit) * length * 0.97
        words[:, _IMPORTANCE] = torch.from_numpy(importance * 2)
        words[:, _MARKER] = 0
        words[:FIRST_PIECE] = 0
        words[:FIRST_PIECE, _IMPORTANCE] = -6
        words[0, _IMPORTANCE], words[0, _MARKER] = 0, length
        words[-1] = 0  # <mask>
        model.embeddings.position_embeddings.weight.normal_(std=0.01)
        model.embeddings.token_type_embeddings.weight.zero_()
        layers = [layer for layer in model.encoder.layer if isinstance(layer, Layer)]
        for layer in layers:
            attention = layer.attention
            for linear in (attention.self.query, attention.self.key, attention.self.value):
                linear.bias.zero_()
            for linear in (attention.output.dense, layer.intermediate.dense, layer.output.dense):
                linear.bias.zero_()
            attention.output.dense.weight.normal_(std=0.2 * config.initializer_range)
            layer.output.dense.weight.normal_(std=0.2 * config.initializer_range)
        first = layers[0].attention
        for row in range(0, width, head):
            # marker(<s>) * importance(piece) / sqrt(head) = sharpness * log idf, in every head.
            first.self.query.weight[row] = 0
            first.self.key.weight[row] = 0
            first.self.query.weight[row, _MARKER] = settings.sharpness * head**0.5 / (2 * length)
            first.self.key.weight[row, _IMPORTANCE] = 1.0
        first.self.value.weight += torch.eye(width)
        first.self.value.weight[_MARKER] = 0
        first.output.dense.weight += torch.eye(width)
        last = layers[-1].output.LayerNorm
        last.weight[_MARKER] = 0.0
        last.weight[_IMPORTANCE] = 0.5
        model.colbert_linear.weight.copy_(torch.eye(width))
        model.colbert_linear.weight += torch.randn(width, width) * 0.002
        model.colbert_linear.weight[:, _IMPORTANCE:] *= 0.2
        model.colbert_linear.bias.zero_()
    return model


def fit_sparse_head(model: M3Model, store: PairStore, settings: StartSettings) -> None:
    """Give a model whose sparse head was never trained a start: a token weighs as much as it is rare."""
    holding, totals = passages_by_language(store, model.config.vocab_size, settings.longest)
    _fit_sparse_head(model, store, idf_by_language(holding, totals), settings)


def _fit_sparse_head(
    model: M3Model, store: PairStore, idf: NDArray[np.float32], settings: StartSettings
) -> None:
    """Fit ``lexical_scale * sqrt(idf)`` to the hidden states of some passages by least squares."""
    kept = np.unique(store.passage[~np.asarray(store.held_out)])
    chosen = np.random.default_rng(0).choice(kept, min(400, len(kept)), replace=False)
    texts = [wrap(store.text(number), min(128, model.config.max_length)) for number in chosen]
    ids = torch.from_numpy(np.concatenate(texts))
    with torch.no_grad():
        hidden = torch.cat(
            [model(torch.from_numpy(text), [len(text)]) for text in texts],
        )[ids >= FIRST_PIECE]
        target = settings.lexical_scale * np.sqrt(idf)[ids[ids >= FIRST_PIECE].numpy()]
        design = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
        gram = design.T @ design + 1e-2 * len(design) * torch.eye(design.shape[1]).double()
        solved = torch.linalg.solve(gram, design.T @ torch.from_numpy(target).double()).float()
        model.sparse_linear.weight.copy_(solved[None, :-1])
        model.sparse_linear.bias.copy_(solved[-1:])
