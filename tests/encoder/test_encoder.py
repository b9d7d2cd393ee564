"""M3Encoder: order, independence of neighbours, what is computed, limits, memory, threads, MCLS, streams."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.encoder import M3Encoder, TruncationWarning, heads
from m3_connectors.encoder.loading import load
from m3_connectors.errors import InvalidInput
from m3_connectors.testing.checkpoints import TEXTS

WORDS = " ".join(TEXTS.values()).split()


def words(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


MIXED = [words(n, seed=n) for n in (1, 300, 7, 7, 2, 90, 0, 31, 600, 7, 16)]


def assert_same(a: M3Embeddings, b: M3Embeddings, tolerance: float = 0) -> None:
    assert a.components == b.components == COMPONENTS
    assert a.dense is not None
    assert b.dense is not None
    assert a.multivectors is not None
    assert b.multivectors is not None
    assert a.sparse is not None
    assert b.sparse is not None
    assert a.multivectors.counts.tolist() == b.multivectors.counts.tolist()
    np.testing.assert_allclose(a.dense, b.dense, atol=tolerance, rtol=0)
    np.testing.assert_allclose(a.multivectors.rows, b.multivectors.rows, atol=tolerance, rtol=0)
    np.testing.assert_allclose(a.sparse.toarray(), b.sparse.toarray(), atol=tolerance, rtol=0)


def new_encoder(checkpoint: Path, **options: int) -> M3Encoder:
    return M3Encoder(checkpoint, device="cpu", precision="float32", **options)


# --- order, neighbours, budget --------------------------------------------------------------------------------


def test_order_is_kept_and_neighbours_do_not_matter(encoder: M3Encoder) -> None:
    together = encoder.encode(MIXED)
    alone = M3Embeddings.concatenate([encoder.encode([text]) for text in MIXED])
    assert_same(together, alone, tolerance=1e-6)


def test_the_budget_does_not_change_the_answer(encoder: M3Encoder, checkpoint: Path) -> None:
    for budget in (1, 64, 700):
        assert_same(new_encoder(checkpoint, token_budget=budget).encode(MIXED), encoder.encode(MIXED), 1e-6)


def test_a_batch_never_exceeds_the_budget_unless_one_text_does(checkpoint: Path) -> None:
    encoder = new_encoder(checkpoint, token_budget=100)
    seen: list[list[int]] = []
    spy_on_attention(encoder, lambda lengths: seen.append(list(lengths)))
    encoder.encode(MIXED)
    batches = seen[::2]  # the model has two layers
    assert sum(len(batch) for batch in batches) == len(MIXED)
    assert all(sum(batch) <= 100 or len(batch) == 1 for batch in batches)
    assert any(len(batch) > 1 for batch in batches)


def test_rows_are_unit_and_weights_positive(encoder: M3Encoder) -> None:
    e = encoder.encode(MIXED)
    assert e.dense is not None
    assert e.multivectors is not None
    assert e.sparse is not None
    assert e.dense.dtype == e.multivectors.rows.dtype == e.sparse.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(e.dense, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(e.multivectors.rows, axis=1), 1, atol=1e-5)
    assert e.sparse.data.min() > 0
    assert e.sparse.has_sorted_indices


# --- components -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [c for n in (1, 2, 3) for c in itertools.combinations(COMPONENTS, n)])
def test_only_what_was_asked_for_is_computed(
    encoder: M3Encoder, monkeypatch: pytest.MonkeyPatch, wanted: tuple[Component, ...]
) -> None:
    calls: list[Component] = []
    for component, name in zip(
        COMPONENTS, ("dense_vectors", "token_weights", "multivector_rows"), strict=True
    ):
        original = getattr(heads, name)

        def counted(
            *args: object, _head: Callable[..., object] = original, _c: Component = component
        ) -> object:
            calls.append(_c)
            return _head(*args)

        monkeypatch.setattr(heads, name, counted)
    result = encoder.encode(["one text", "another"], components=wanted)
    assert result.components == wanted
    assert calls == list(wanted)


@pytest.mark.parametrize("components", ["dense", (), ("dense", "lexical"), ("colbert",)])
def test_unknown_components_are_refused(encoder: M3Encoder, components: object) -> None:
    with pytest.raises(InvalidInput, match="dense, sparse, multivector"):
        encoder.encode(["a"], components=components)  # type: ignore[arg-type]


def test_sparse_keeps_the_largest_weight_and_skips_special_tokens() -> None:
    matrix = heads.sparse_matrix(
        np.array([9, 0.5, 0.25, 0.75, 0, 8, 0.125], np.float32),
        np.array([0, 7, 5, 7, 6, 2, 7]),
        np.array([0, 0, 0, 0, 0, 0, 2]),
        shape=(3, 10**9),  # a row of that width could not be allocated
        without=np.array([0, 1, 2, 3]),
    )
    assert matrix.shape == (3, 10**9)
    assert matrix.indptr.tolist() == [0, 2, 2, 3]
    assert matrix.indices.tolist() == [5, 7, 7]
    assert matrix.data.tolist() == [0.25, 0.75, 0.125]


# --- input ----------------------------------------------------------------------------------------------------


def test_no_text_gives_an_empty_result(encoder: M3Encoder) -> None:
    e = encoder.encode([])
    assert len(e) == 0
    assert e.components == COMPONENTS
    assert e.dense is not None
    assert e.dense.shape == (0, encoder.info.dimension)
    assert e.sparse is not None
    assert e.sparse.shape == (0, encoder.info.vocabulary_size)
    assert list(encoder.encode_stream([])) == []


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["nested"], float("nan")])
def test_a_text_that_is_not_a_string_is_named(encoder: M3Encoder, bad: object) -> None:
    with pytest.raises(InvalidInput, match=r"texts\[2\] is"):
        encoder.encode(["a", "b", bad, "c"])  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match=r"texts\[5\] is"):
        list(encoder.encode_stream(["a"] * 5 + [bad], batch_texts=2))  # type: ignore[list-item]


def test_a_lone_surrogate_is_named(encoder: M3Encoder) -> None:
    with pytest.raises(InvalidInput, match=r"texts\[1\] has a lone surrogate U\+D800 at character 3"):
        encoder.encode(["fine", "bad\ud800"])


@pytest.mark.parametrize("texts", ["one text", b"bytes", None, 7])
def test_an_argument_that_is_not_a_list_of_texts_is_refused(encoder: M3Encoder, texts: object) -> None:
    with pytest.raises(InvalidInput, match=r" encode\(\[text\]\)"):
        encoder.encode(texts)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"encode_stream\(\[text\]\)"):
        encoder.encode_stream(texts)  # type: ignore[arg-type]


def test_options_out_of_range_are_refused(encoder: M3Encoder, checkpoint: Path) -> None:
    with pytest.raises(InvalidInput, match="3 to 8192"):
        encoder.encode(["a"], max_length=8193)
    with pytest.raises(InvalidInput, match="3 to 8192"):
        encoder.encode(["a"], max_length=2)
    with pytest.raises(InvalidInput, match="token_budget is 0"):
        M3Encoder(checkpoint, token_budget=0)
    with pytest.raises(InvalidInput, match="precision is 'half'"):
        M3Encoder(checkpoint, precision="half")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="float16"):
        M3Encoder(checkpoint, device="cpu", precision="float16")
    with pytest.raises(InvalidInput, match="device 'abacus'"):
        M3Encoder(checkpoint, device="abacus")


# --- length ---------------------------------------------------------------------------------------------------


def test_a_cut_text_is_reported(encoder: M3Encoder) -> None:
    texts = [words(3), words(50, seed=1), words(60, seed=2)]
    with pytest.warns(TruncationWarning, match="2 texts are longer than 20 tokens") as caught:
        e = encoder.encode(texts, max_length=20)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert e.truncated.tolist() == [False, True, True]
    assert e.token_counts is not None
    assert e.kept_token_counts is not None
    assert e.token_counts.tolist() == encoder.count_tokens(texts)
    assert e.kept_token_counts.tolist() == [encoder.count_tokens(texts)[0], 20, 20]
    assert e.multivectors.counts[1:].tolist() == [19, 19]


def test_a_text_of_exactly_the_maximum_is_not_cut(encoder: M3Encoder) -> None:
    tokens = len(encoder.token_strings(words(50))) + 1
    assert encoder.encode([words(50)], max_length=tokens).truncated_count == 0


def test_the_maximum_of_an_encoder_holds_unless_a_call_says_otherwise(checkpoint: Path) -> None:
    short = new_encoder(checkpoint, max_length=16)
    assert short.max_length == 16
    with pytest.warns(TruncationWarning):
        assert short.encode([words(50)]).truncated_count == 1
    assert short.encode([words(50)], max_length=512).truncated_count == 0


def test_a_stream_warns_once(encoder: M3Encoder) -> None:
    with pytest.warns(TruncationWarning) as caught:
        parts = list(
            encoder.encode_stream([words(40, seed=i) for i in range(6)], batch_texts=2, max_length=10)
        )
    assert len(caught) == 1
    assert sum(part.truncated_count for part in parts) == 6


def test_token_strings_align_with_multivector_rows(encoder: M3Encoder) -> None:
    text = TEXTS["Greek"] + " <unk> 🦊"
    tokens = encoder.token_strings(text)
    multivectors = encoder.encode([text]).multivectors
    assert multivectors is not None
    assert len(tokens) == len(multivectors[0])
    assert tokens[-1] == "</s>"
    assert tokens[0].startswith("▁")


# --- MCLS -----------------------------------------------------------------------------------------------------


def mcls_by_hand(checkpoint: Path, text: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Dense and multi-vector computed the plain way: CLS, 256 tokens, CLS, 256 tokens …, the network as trained."""
    parts = load(str(checkpoint), revision=None, dtype=torch.float32)
    content = parts.tokenizer.encode(text, add_special_tokens=False).ids
    ids: list[int] = []
    for i, token in enumerate(content):
        ids += [0, token] if i % 256 == 0 else [token]
    ids.append(2)
    cls = torch.tensor([token == 0 for token in ids])
    with torch.no_grad():
        hidden = parts.model(torch.tensor(ids), [len(ids)])
        dense = torch.nn.functional.normalize(hidden[cls].mean(0), dim=-1)
        rows = torch.nn.functional.normalize(parts.model.colbert_linear(hidden[~cls]), dim=-1)
    return dense.numpy(), rows.numpy(), int(cls.sum())


@pytest.mark.parametrize("count", [1, 256, 257, 700])
def test_mcls(encoder: M3Encoder, checkpoint: Path, count: int) -> None:
    text = " ".join(["fox"] * count)
    dense, rows, cls = mcls_by_hand(checkpoint, text)
    assert cls == -(-count // 256)
    e = encoder.encode([words(5), text], mcls=True)
    assert e.dense is not None
    assert e.multivectors is not None
    np.testing.assert_allclose(e.dense[1], dense, atol=1e-5)
    np.testing.assert_allclose(e.multivectors[1], rows, atol=1e-5)
    assert len(e.multivectors[1]) == count + 1


@pytest.mark.parametrize("max_length", [257, 258, 259, 260, 515, 516])
def test_mcls_counts_the_inserted_tokens(encoder: M3Encoder, max_length: int) -> None:
    with pytest.warns(TruncationWarning):
        e = encoder.encode([" ".join(["fox"] * 600)], mcls=True, max_length=max_length)
    assert e.multivectors is not None
    content = len(e.multivectors[0]) - 1
    assert content + -(-content // 256) + 1 <= max_length
    assert content + 1 + -(-(content + 1) // 256) + 1 > max_length


# --- memory ---------------------------------------------------------------------------------------------------


def spy_on_attention(encoder: M3Encoder, spy: Callable[[list[int]], object]) -> None:
    """Call ``spy`` with the lengths of each batch, once a layer, before attention is computed."""
    original = encoder._runner._attention

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        spy(lengths)
        return original(q, k, v, lengths)

    encoder._runner._attention = attention  # type: ignore[assignment]


def failing_above(tokens: int, error: BaseException) -> Callable[[list[int]], None]:
    def fail(lengths: list[int]) -> None:
        if sum(lengths) > tokens:
            raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_budget_and_goes_on(
    encoder: M3Encoder, checkpoint: Path, error: BaseException
) -> None:
    small = new_encoder(checkpoint, token_budget=4096)
    spy_on_attention(small, failing_above(700, error))
    assert_same(small.encode(MIXED), encoder.encode(MIXED), tolerance=1e-6)
    assert 300 < small.token_budget <= 700


def test_a_text_that_does_not_fit_alone_is_an_error(checkpoint: Path) -> None:
    encoder = new_encoder(checkpoint)
    spy_on_attention(encoder, failing_above(100, torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(MIXED)


def test_other_errors_are_raised_as_they_are(checkpoint: Path) -> None:
    encoder = new_encoder(checkpoint)
    calls: list[int] = []

    def fail(lengths: list[int]) -> None:
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    spy_on_attention(encoder, fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        encoder.encode(MIXED)
    assert len(calls) == 1


# --- streams, progress, threads -------------------------------------------------------------------------------


def test_a_stream_holds_a_bounded_number_of_texts(encoder: M3Encoder) -> None:
    pulled = 0

    def source() -> Iterator[str]:
        nonlocal pulled
        for i in range(50):
            pulled += 1
            yield words(3, seed=i)

    done = 0
    for part in encoder.encode_stream(source(), batch_texts=4, components=("dense",)):
        done += len(part)
        assert pulled <= done + 4
    assert done == pulled == 50


def test_a_stream_gives_what_encode_gives(encoder: M3Encoder) -> None:
    parts = list(encoder.encode_stream(iter(MIXED), batch_texts=4))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert_same(M3Embeddings.concatenate(parts), encoder.encode(MIXED), tolerance=1e-6)


def test_a_stream_left_early_leaves_no_thread_behind(encoder: M3Encoder) -> None:
    before = threading.active_count()
    stream = encoder.encode_stream(itertools.repeat("endless"), batch_texts=2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_progress_reaches_the_total(checkpoint: Path) -> None:
    calls: list[tuple[int, int]] = []
    new_encoder(checkpoint, token_budget=64).encode(
        MIXED, progress=lambda done, total: calls.append((done, total))
    )
    assert len(calls) > 3
    assert calls == sorted(calls)
    assert calls[-1] == (len(MIXED), len(MIXED))


def test_progress_true_writes_to_stderr_only(encoder: M3Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(["a", "b"], progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err


def test_threads_share_an_encoder(encoder: M3Encoder) -> None:
    jobs = [[words(n % 13 + 1, seed=100 * j + n) for n in range(12)] for j in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(encoder.encode, jobs))
    for job, answer in zip(jobs, answers, strict=True):
        assert_same(answer, encoder.encode(job), tolerance=1e-6)


def test_threads_option_sets_pytorchs_threads(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        new_encoder(checkpoint, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# --- results --------------------------------------------------------------------------------------------------


def test_results_survive_saving(encoder: M3Encoder, tmp_path: Path) -> None:
    e = encoder.encode(MIXED)
    e.save(tmp_path / "batch")
    loaded = M3Embeddings.load(tmp_path / "batch")
    assert_same(loaded, e)
    assert loaded.model == encoder.info


def test_lexical_weights_are_readable(encoder: M3Encoder) -> None:
    e = encoder.encode(["the quick brown fox"])
    weights = e.lexical_weights(0, encoder)
    assert set(weights) <= {"▁the", "▁quick", "▁brown", "▁fox"}
    assert list(weights.values()) == sorted(weights.values(), reverse=True)
