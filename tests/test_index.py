"""Index and AsyncIndex over a real small model and the memory store."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import inspect
import itertools
import pydoc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import anyio
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal

from m3_connectors import (
    ALL,
    DENSE,
    AsyncIndex,
    CutDocument,
    Document,
    Index,
    M3Embeddings,
    M3Encoder,
    Weights,
    aconnect,
    connect,
)
from m3_connectors.adding import MOST_CUT_NAMED
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import InvalidInput, ModelMismatch, NotFound
from m3_connectors.methods import METHODS, MethodName, save_weights
from m3_connectors.scoring import score
from m3_connectors.testing.checkpoints import write_checkpoint

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "seven wizards mix brews near the lake",
    "a fox and a dog sleep",
    "Книга лежит на столе в городской библиотеке",
    "书放在城市图书馆的桌子上",
    "the dog",
]
DOCUMENTS = [Document(f"d{i}", text, {"n": i, "even": i % 2 == 0}) for i, text in enumerate(TEXTS)]


class _Named:
    """A real encoder under another precision's name."""

    def __init__(self, encoder: M3Encoder, precision: str | None) -> None:
        self._encoder = encoder
        self.info = dataclasses.replace(encoder.info, precision=precision)
        self.recommended_weights = encoder.recommended_weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        return self._encoder.encode(texts, components=components).replace(model=self.info)


@pytest.mark.parametrize(("first", "second"), [(None, "int8"), ("int8", None)])
def test_documents_of_another_precision_are_stored_and_named_once(
    encoder: M3Encoder, first: str | None, second: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with connect("memory:", encoder=_Named(encoder, first)) as index:
        index.add(DOCUMENTS)
        assert not caplog.messages
        index.use_encoder(_Named(encoder, second))
        assert [hit.document.id for hit in index.search(TEXTS[5], k=1)] == ["d5"]
        assert not caplog.messages, "searching mixes nothing"
        index.add(iter([Document(f"more{i}", TEXTS[0]) for i in range(600)]))  # two batches
        assert index.count() == 606
    (said,) = caplog.messages
    assert "(32 dims, int8)" in said
    assert "(32 dims)" in said
    assert "names only the first" in said


@pytest.fixture
def index(encoder: M3Encoder) -> Iterator[Index]:
    with connect("memory:", encoder=encoder) as index:
        index.add(DOCUMENTS)
        yield index


@pytest.mark.parametrize("name", METHODS)
def test_search_ranks_by_the_weighted_sum_of_the_three_scores(
    index: Index, encoder: M3Encoder, name: str
) -> None:
    query, documents = encoder.encode(["the lazy dog"]), encoder.encode(TEXTS)
    hits = index.search("the lazy dog", method=name, k=4)
    weights = METHODS[name].weights
    s = [score(c, query, documents) for c in ("dense", "sparse", "multivector")]
    fused = sum(w * column.astype(float) for w, column in zip(weights, s, strict=True))
    found = s[1] > 0 if name == "sparse" else np.full(len(TEXTS), True)
    expected = [i for i in np.argsort(-fused) if found[i]][:4]
    assert [hit.document.id for hit in hits] == [f"d{i}" for i in expected]
    for hit, i in zip(hits, expected, strict=True):
        assert hit.score == pytest.approx(fused[i], abs=1e-4)
        of = (hit.scores.dense, hit.scores.sparse, hit.scores.multivector)
        assert of == pytest.approx([column[i] for column in s], abs=1e-4)
        assert hit.document == DOCUMENTS[i]


def test_a_method_with_custom_weights_uses_exactly_these(index: Index) -> None:
    for hit in index.search("the dog", method=ALL.weighted(0.15, 0.5, 0.35)):
        s = hit.scores
        assert None not in (s.dense, s.sparse, s.multivector)
        assert hit.score == pytest.approx(0.15 * s.dense + 0.5 * s.sparse + 0.35 * s.multivector, abs=1e-6)  # type: ignore[operator]


def test_precomputed_embeddings_give_the_same_answer_as_texts(index: Index, encoder: M3Encoder) -> None:
    texts = ["the dog", "library"]
    by_text = index.search_many(texts, k=3)
    by_vectors = index.search_many(list(encoder.encode(texts)), k=3)
    assert [[h.document.id for h in hits] for hits in by_text] == [
        [h.document.id for h in hits] for hits in by_vectors
    ]


def test_filters_hold(index: Index) -> None:
    hits = index.search("the dog", filter={"n": {"$gte": 2}, "even": True})
    assert sorted(hit.document.id for hit in hits) == ["d2", "d4"]
    assert index.count({"even": False}) == 3


def test_add_twice_is_add_once_and_replaces(index: Index) -> None:
    report = index.add([Document("d5", "seven wizards mix brews near the lake")])
    assert report.written == 1
    assert index.count() == len(DOCUMENTS)
    (stored,) = index.get(["d5"])
    assert stored is not None
    assert stored.text == "seven wizards mix brews near the lake"
    # The same text twice: equal scores, in the order of the ids.
    hits = index.search("seven wizards mix brews near the lake", method="dense", k=2)
    assert [hit.document.id for hit in hits] == ["d1", "d5"]
    assert hits[0].score == pytest.approx(hits[1].score) == pytest.approx(1, abs=1e-5)


def test_of_duplicate_ids_in_one_call_the_last_wins_and_the_report_says_so(encoder: M3Encoder) -> None:
    twice = [Document("a", "fox"), Document("b", "dog"), Document("a", "wizards")]
    for embeddings in (None, encoder.encode([d.text for d in twice])):
        with connect("memory:", encoder=encoder) as index:
            report = index.add(twice, embeddings=embeddings)
            assert (report.written, report.duplicates) == (2, ("a",))
            (stored,) = index.get(["a"])
            assert stored is not None
            assert stored.text == "wizards"
            assert index.explain("wizards", "a").scores.dense == pytest.approx(1, abs=1e-5)


def test_a_bad_document_in_a_list_stops_the_call_before_anything_is_written(encoder: M3Encoder) -> None:
    with connect("memory:", encoder=encoder) as index:
        with pytest.raises(InvalidInput, match=r"documents\[1\]\.text is NoneType \(id 'b'\)"):
            index.add([Document("a", "fox"), Document("b", None)])  # type: ignore[arg-type]
        assert index.count() == 0


def test_bad_embeddings_stop_the_call_before_anything_is_written_however_many(encoder: M3Encoder) -> None:
    one = encoder.encode(["fox"])
    many = M3Embeddings.concatenate([one] * 600)
    assert many.dense is not None
    many.dense[550] = np.nan
    with connect("memory:", encoder=encoder) as index:
        with pytest.raises(InvalidInput, match=r"dense has NaN or infinity in row 550"):
            index.add([Document(str(i), "fox") for i in range(600)], embeddings=many)
        assert index.count() == 0


def test_the_callers_iterator_is_read_in_the_callers_thread_and_may_use_the_index(encoder: M3Encoder) -> None:
    with connect("memory:", encoder=encoder) as index:

        def documents() -> Iterator[Document]:
            for i in range(3):
                assert threading.current_thread() is threading.main_thread()
                yield Document(f"{i}", f"fox {index.count()}")

        assert index.add(documents()).written == 3


class _Held:
    """An encoder that says when it has begun, and ends when it may."""

    def __init__(self, encoder: M3Encoder, *, interrupts: bool = False) -> None:
        self.info, self.recommended_weights = encoder.info, encoder.recommended_weights
        self.begun, self.may_end, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._encoder, self._interrupts = encoder, interrupts

    def encode(self, texts: list[str], **options: object) -> M3Embeddings:
        self.begun.set()
        if self._interrupts:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert self.may_end.wait(60)
        self.ended.set()
        return self._encoder.encode(texts)


def _when_given_up(
    patch: pytest.MonkeyPatch, then: Callable[[], None], *, interrupt: Callable[[], None] = lambda: None
) -> list[Any]:
    """What is handed to the loop: first a call, behind which ``interrupt`` comes, next its end, then ``then``."""
    start = BlockingPortal.start_task_soon
    handed_over: list[Any] = []

    numbers = itertools.count(1)

    def hand_over(portal: BlockingPortal, call: Any, *args: Any, **options: Any) -> Any:
        # Counted before it starts: a call may send the interrupt before this thread has its future.
        number = next(numbers)
        future = start(portal, call, *args, **options)
        handed_over.append(future)
        if number == 1:
            interrupt()
        elif number == 2:
            future.add_done_callback(lambda _: then())
        return future

    patch.setattr(BlockingPortal, "start_task_soon", hand_over)
    return handed_over


def test_ctrl_c_in_add_returns_when_nothing_is_written_any_more(
    encoder: M3Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = _Held(encoder, interrupts=True)
    # A while after it was given up: a call that does not wait would have returned by then.
    later = threading.Timer(0.3, held.may_end.set)
    with connect("memory:", encoder=held) as index:  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            _when_given_up(patch, later.start)
            with pytest.raises(KeyboardInterrupt):
                index.add(DOCUMENTS)
        assert held.ended.is_set()
        assert index.count() == 0


def test_ctrl_c_while_a_call_is_handed_over_writes_nothing(
    encoder: M3Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = _Held(encoder)

    def interrupt() -> None:
        # At the latest moment: the call is under way, and nobody holds its future yet.
        assert held.begun.wait(60)
        raise KeyboardInterrupt

    with connect("memory:", encoder=held) as index:  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            handed_over = _when_given_up(patch, held.may_end.set, interrupt=interrupt)
            with pytest.raises(KeyboardInterrupt):
                index.add(DOCUMENTS)
        held.may_end.set()
        concurrent.futures.wait(handed_over[:1], timeout=60)
        assert handed_over[0].done()
        assert index.count() == 0


def test_a_garbage_collected_index_ends_its_thread(encoder: M3Encoder) -> None:
    before = threading.active_count()
    for _ in range(5):
        connect("memory:", encoder=encoder)
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_an_iterator_is_stored_in_batches_of_bounded_size(encoder: M3Encoder) -> None:
    progress: list[int] = []
    with connect("memory:", encoder=encoder) as index:
        report = index.add((Document(str(i), "fox") for i in range(1100)), progress=progress.append)
        assert report.written == index.count() == 1100
    assert progress == [512, 1024, 1100]


def test_documents_that_are_cut_are_named_with_what_is_lost(checkpoint: object, encoder: M3Encoder) -> None:
    short = M3Encoder(str(checkpoint), precision="float32", max_length=8)
    told: list[CutDocument] = []
    with connect("memory:", encoder=short) as index:
        with pytest.warns(UserWarning, match="cut"):
            report = index.add(DOCUMENTS, on_cut=told.append)
        assert index.get(["d0"])[0] == DOCUMENTS[0]  # the text is stored whole
    lengths = dict(zip([d.id for d in DOCUMENTS], encoder.count_tokens(TEXTS), strict=True))
    expected = tuple(CutDocument(id, tokens, 8) for id, tokens in lengths.items() if tokens > 8)
    assert expected
    assert tuple(told) == report.cut == expected
    assert report.truncated == len(expected)
    assert report.lost_tokens == sum(tokens - 8 for tokens in lengths.values() if tokens > 8)
    assert expected[0].lost_token_count == (expected[0].token_count or 0) - 8
    assert expected[0].lost_share == 1 - 8 / (expected[0].token_count or 0)


def test_a_report_names_so_many_and_on_cut_hears_of_all(checkpoint: object) -> None:
    short = M3Encoder(str(checkpoint), precision="float32", max_length=4)
    told: list[str] = []
    with connect("memory:", encoder=short) as index, pytest.warns(UserWarning, match="cut"):
        report = index.add(
            (Document(str(i), "the lazy brown fox") for i in range(MOST_CUT_NAMED + 100)),
            on_cut=lambda document: told.append(document.id),
        )
    assert told == [str(i) for i in range(MOST_CUT_NAMED + 100)]
    assert [document.id for document in report.cut] == told[:MOST_CUT_NAMED]
    assert report.truncated == len(told)


def test_embeddings_that_do_not_say_how_long_their_texts_were(encoder: M3Encoder) -> None:
    given = encoder.encode(["fox", "lake"]).replace(
        truncated=np.array([False, True]), token_counts=None, kept_token_counts=None
    )
    with connect("memory:", encoder=encoder) as index:
        report = index.add([Document("a", "fox"), Document("b", "lake")], embeddings=given)
    assert report.cut == (CutDocument("b", None, None),)
    assert (report.truncated, report.lost_tokens, report.cut[0].lost_share) == (1, 0, None)


def test_a_truncated_query_is_reported_each_time(
    checkpoint: object, caplog: pytest.LogCaptureFixture
) -> None:
    short = M3Encoder(str(checkpoint), precision="float32", max_length=8)
    with connect("memory:", encoder=short) as index:
        index.add([Document("a", "fox")])
        tokens = short.count_tokens(["fox " * 20])[0]
        with pytest.warns(UserWarning, match="cut"):
            index.search("fox " * 20)
        with pytest.warns(UserWarning, match="cut"):
            index.search_many(["fox", "fox " * 20])
    lost = f"{tokens - 8} ({(tokens - 8) / tokens:.0%})"
    whole = f"has {tokens} tokens, but the model reads at most 8: the last {lost}"
    assert [record.getMessage() for record in caplog.records] == [
        f"the query {whole} were ignored.",
        f"queries[1] {whole} were ignored.",
    ]


def test_explain_adds_up(index: Index) -> None:
    e = index.explain("the lazy dog", "d0", method="all")
    assert e.document == DOCUMENTS[0]
    w, s = e.weighted, e.scores
    assert (w.dense, w.sparse, w.multivector) == pytest.approx((s.dense, 0.3 * s.sparse, s.multivector))  # type: ignore[operator]
    assert e.score == pytest.approx(w.dense + w.sparse + w.multivector)  # type: ignore[operator]
    assert e.score == pytest.approx(index.search("the lazy dog", k=6, filter={"n": 0})[0].score, abs=1e-6)
    assert sum(match.score for match in e.tokens) == pytest.approx(s.sparse, abs=1e-5)
    assert [m.score for m in e.tokens] == sorted((m.score for m in e.tokens), reverse=True)
    assert np.mean([pair.similarity for pair in e.pairs]) == pytest.approx(s.multivector, abs=1e-5)
    # A random model tells equal tokens apart by position alone; the text against itself pairs each with itself.
    assert all(p.query_token == p.document_token for p in index.explain(TEXTS[0], "d0").pairs)


def test_explain_of_an_unknown_document(index: Index) -> None:
    with pytest.raises(NotFound, match="no document 'x'"):
        index.explain("dog", "x")


def test_delete_by_ids_and_by_filter(index: Index) -> None:
    assert index.delete(["d0", "unknown"]) == 1
    assert index.delete(filter={"even": True}) == 2
    assert index.count() == 3
    assert index.get(["d0", "d1"])[0] is None
    for wrong in ({}, {"ids": ["a"], "filter": {"n": 1}}, {"filter": {}}):
        with pytest.raises(InvalidInput, match=r"either ids or a non-empty filter, but got (neither|both)\."):
            index.delete(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": True}, "k is True"),
        ({"method": "best"}, "unknown method 'best'"),
        ({"method": None}, "unknown method None"),
        ({"filter": {"n": {"$near": 1}}}, r"unknown operator '\$near'"),
        ({"query": 7}, "queries\\[0\\] is int"),
    ],
)
def test_bad_searches(index: Index, arguments: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        index.search(**{"query": "dog", **arguments})  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers(index: Index) -> None:
    assert len(index.search("dog", k=np.int64(3))) == 3  # type: ignore[arg-type]
    assert Weights(np.float32(1), np.float64(2), np.int64(1)) == Weights(1, 2, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda index: index.add(None),
        lambda index: index.add(DOCUMENTS[0]),
        lambda index: index.add(DOCUMENTS, embeddings=np.ones((6, 32))),
        lambda index: index.get(None),
        lambda index: index.get("d0"),
        lambda index: index.search_many(None),
        lambda index: index.search_many("dog"),
        lambda index: index.delete([1]),
    ],
)
def test_calls_of_a_wrong_shape_are_refused(index: Index, call: Callable[[Index], object]) -> None:
    with pytest.raises(InvalidInput, match=r"\n  (Pass|Use) "):
        call(index)


def test_a_name_is_no_encoder() -> None:
    with pytest.raises(InvalidInput, match=r"Use M3Encoder\('BAAI/bge-m3'\)"):
        connect("memory:", encoder="BAAI/bge-m3")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [(-1, 0, 1), (float("nan"), 1, 1), (0, 0, 0), (float("inf"), 0, 0)])
def test_bad_weights(weights: tuple[float, float, float]) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        Weights(*weights)


def test_bad_embeddings_are_refused_before_the_store(encoder: M3Encoder) -> None:
    good = encoder.encode(["fox"])
    assert good.dense is not None
    wide = M3Embeddings(np.ones((1, 5), np.float32), good.sparse, good.multivectors)
    beyond = good.sparse.copy()  # type: ignore[union-attr]
    beyond.indices[-1] = 10**6
    outside = M3Embeddings(good.dense, beyond, good.multivectors)
    nan = M3Embeddings(np.full_like(good.dense, np.nan), good.sparse, good.multivectors)
    with connect("memory:", encoder=encoder) as index:
        for bad, says in (
            (wide, "5 wide"),
            (nan, "NaN"),
            (outside, "outside the vocabulary"),
            (good[:0], "0 embeddings"),
            (M3Embeddings(good.dense), "do not have"),
        ):
            with pytest.raises(InvalidInput, match=says):
                index.add([Document("a", "fox")], embeddings=bad)
        assert index.count() == 0


def test_another_model_is_refused_by_name(encoder: M3Encoder, tmp_path: object) -> None:
    other = M3Encoder(str(write_checkpoint(f"{tmp_path}/other-m3", seed=9)), precision="float32")
    with connect("memory:", encoder=encoder) as index:
        index.add(DOCUMENTS)
        with pytest.raises(ModelMismatch, match=r"small-m3.*other-m3"):
            index.search(other.encode(["fox"]))
        with pytest.raises(ModelMismatch, match=r"small-m3.*other-m3"):
            index.add([Document("a", "fox")], embeddings=other.encode(["fox"]))


def test_a_model_recommends_its_weights_by_method_name_and_methods_given_whole_are_kept(
    tmp_path: object,
) -> None:
    directory = write_checkpoint(f"{tmp_path}/tuned")
    (directory / "weights.json").write_text('{"all": [0.5, 2, 1]}')
    with connect("memory:", encoder=M3Encoder(str(directory), precision="float32")) as index:
        index.add(DOCUMENTS)
        assert index.methods["all"].weights == Weights(0.5, 2, 1)
        assert index.methods["dense_sparse"].weights == METHODS["dense_sparse"].weights
        assert index.search("dog")[0].score == index.search("dog", method=ALL.weighted(0.5, 2, 1))[0].score
        assert index.search("dog")[0].score != index.search("dog", method=ALL)[0].score


def test_the_users_weights_take_precedence_over_the_models(tmp_path: Path) -> None:
    directory = write_checkpoint(f"{tmp_path}/tuned")
    (directory / "weights.json").write_text('{"all": [0.5, 2, 1], "dense_sparse": [3, 1, 0]}')
    encoder = M3Encoder(str(directory), precision="float32")
    save_weights(tmp_path / "mine.json", {"all": Weights(0.1, 5, 0.2)})
    for weights in (tmp_path / "mine.json", str(tmp_path / "mine.json"), {"all": Weights(0.1, 5, 0.2)}):
        with connect("memory:", encoder=encoder, weights=weights) as index:
            index.add(DOCUMENTS)
            assert index.methods["all"].weights == Weights(0.1, 5, 0.2)
            assert index.methods["dense_sparse"].weights == Weights(3, 1, 0)
            assert index.search("dog") == index.search("dog", method=ALL.weighted(0.1, 5, 0.2))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"some": Weights(1, 1, 1)}, "unknown method 'some'"),
        ({"all": (1, 0.3, 1)}, r"weights is \{'all'"),
        (7, "weights is 7"),
        (__file__, "is not JSON"),
    ],
)
def test_an_invalid_weights_argument_is_refused(encoder: M3Encoder, weights: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        connect("memory:", encoder=encoder, weights=weights)


def test_without_an_encoder_texts_are_refused_with_what_to_do(encoder: M3Encoder) -> None:
    with pytest.raises(NotFound):
        connect("memory:")
    with pytest.raises(NotFound):
        connect("memory:", encoder=encoder, create=False)


@pytest.mark.parametrize("url", ["mysql://x", "", "qdrant", None, 7])
def test_unusable_urls(url: str) -> None:
    with pytest.raises(InvalidInput, match="does not name a store"):
        connect(url)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "é", ".x", "x" * 201, None])
def test_unusable_collection_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="collection name"):
        connect("memory:", name)


def test_several_threads_share_an_index(index: Index) -> None:
    expected = [hit.document.id for hit in index.search("the dog")]
    answers: list[list[str]] = []

    def ask() -> None:
        answers.append([hit.document.id for hit in index.search("the dog")])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 8


def test_a_closed_index_says_so(encoder: M3Encoder) -> None:
    index = connect("memory:", encoder=encoder)
    index.close()
    index.close()
    with pytest.raises(InvalidInput, match="closed"):
        index.count()


def test_an_index_that_is_not_closed_does_not_delay_the_exit_of_python(checkpoint: object) -> None:
    code = (
        "from m3_connectors import *\n"
        f"index = connect('memory:', encoder=M3Encoder({str(checkpoint)!r}, precision='float32'))\n"
        "index.add([Document('a', 'fox')])\nprint(index.count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_async_searches_do_not_wait_for_each_other_and_give_the_same_answers(encoder: M3Encoder) -> None:
    async def main() -> None:
        assert await (await aconnect("memory:", encoder=encoder)).count() == 0
        async with aconnect("memory:", encoder=encoder) as index:
            await index.add(DOCUMENTS)
            answers = await index.search_many(["the dog"] * 20 + ["fox"], k=3)
            alone = await index.search("the dog", k=3, method=DENSE)
            assert len(answers) == 21
            assert answers[0] == answers[19] != answers[20]
            assert len(alone) == 3
            assert await index.search_many([]) == []

    anyio.run(main)


def test_the_two_faces_have_the_same_calls() -> None:
    def calls(face: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(member)
            for name, member in vars(face).items()
            if inspect.isfunction(member) and not name.startswith("_")
        }

    blocking, awaited = calls(Index), calls(AsyncIndex)
    assert blocking.keys() == awaited.keys()
    for name in blocking:
        asked = str(awaited[name]).replace("AsyncIterator[", "Iterator[")
        assert str(blocking[name]) == asked, name
    assert list(inspect.signature(connect).parameters) == list(inspect.signature(aconnect).parameters)


def test_the_two_faces_say_the_same_in_help() -> None:
    """Written out in both, so that editors show it; they may not drift apart."""
    members = [name for name in vars(AsyncIndex) if not name.startswith("_")]
    assert {"add", "search", "explain", "methods"} < set(members)
    for name in members:
        said = inspect.cleandoc(vars(Index)[name].__doc__)
        assert said == inspect.cleandoc(vars(AsyncIndex)[name].__doc__), name
        assert "AsyncIndex." not in said
    assert "method: A name" in pydoc.plain(pydoc.render_doc(Index.search))
    rest = [inspect.cleandoc(call.__doc__ or "").partition("\n")[2] for call in (connect, aconnect)]
    assert rest[0] == rest[1]
    assert "create: Whether to create the collection" in rest[0]


def test_the_names_of_methods_are_those_of_the_literal() -> None:
    assert get_args(MethodName) == tuple(METHODS)


def test_a_forgotten_await_says_so(encoder: M3Encoder) -> None:
    async def main() -> None:
        forgotten: Any = aconnect("memory:", encoder=encoder)
        with pytest.raises(InvalidInput, match=r"aconnect was not awaited.*'search'") as raised:
            await forgotten.search("fox")
        assert "index = await aconnect" in str(raised.value)
        plain_with = pytest.raises(InvalidInput, match=r"aconnect was not awaited; a plain with statement")
        with plain_with, aconnect("memory:"):  # type: ignore[attr-defined]
            raise AssertionError
        index: Any = await aconnect("memory:", encoder=encoder)
        with pytest.raises(InvalidInput, match="cannot be used in a plain with statement"), index:
            raise AssertionError
        await index.close()
        with pytest.raises(InvalidInput, match="is blocking and cannot be used in async with"):
            async with connect("memory:", encoder=encoder):  # type: ignore[attr-defined]
                raise AssertionError
        with pytest.warns(RuntimeWarning, match="aconnect was not awaited"):
            aconnect("memory:")

    anyio.run(main)
