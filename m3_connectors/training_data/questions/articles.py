"""The long documents that questions are asked about, and one passage of each, both chosen by a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from m3_connectors.curation import Curation, Curator, Dropped, ExactDuplicates, Languages
from m3_connectors.curation.languages import FIELD, UNDETERMINED
from m3_connectors.curation.words import word_count, word_spans
from m3_connectors.documents import Document
from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.training_data.curating import EVALUATION, DroppedPair
from m3_connectors.training_data.examples import Unusable
from m3_connectors.training_data.overlap import KeptOut


@dataclasses.dataclass(frozen=True)
class Article:
    """A long document, and the passage that a question is asked about.

    Attributes:
        place: Its file and id.
        text: The whole text.
        language: Its language.
        passages: Where its passages begin and end, in characters; together they cover it.
        chosen: The position of the passage in ``passages``.
        key: A hash of seed and text: equal ones are the same question.
    """

    place: str
    text: str
    language: str
    passages: tuple[tuple[int, int], ...]
    chosen: int
    key: str

    @property
    def passage(self) -> str:
        """The text of the passage."""
        start, end = self.passages[self.chosen]
        return self.text[start:end].strip()

    def passage_ids(self) -> Iterator[tuple[str, str]]:
        """Yield an id and the text of each passage."""
        for i, (start, end) in enumerate(self.passages):
            yield f"{self.key}#{i}", self.text[start:end]

    @property
    def passage_id(self) -> str:
        """The id of the passage that was chosen."""
        return f"{self.key}#{self.chosen}"


@dataclasses.dataclass(frozen=True)
class Sample:
    """The articles that were chosen, and what was left out.

    Attributes:
        articles: The articles, in the order in which they are asked about.
        read: The number of documents read, and of records that cannot be read.
        fit: The number of documents that passed all stages, of which the articles are a sample.
        dropped: The number of the others, by stage.
        kept_out: Of these, the number that share text with an evaluation set, by its name.
    """

    articles: tuple[Article, ...]
    read: int
    fit: int
    dropped: dict[str, int]
    kept_out: dict[str, int]


def sampled(
    items: Iterable[tuple[str, Document] | Unusable],
    count: int,
    *,
    seed: int,
    passage_words: int,
    curation: Curation,
    kept_out: KeptOut | None,
    on_dropped: Callable[[DroppedPair], object],
) -> Sample:
    """Choose articles at random, the same ones whenever documents and seed are the same; only these are in memory.

    Args:
        items: The documents behind the names of their files, and what cannot be read.
        count: How many articles are chosen at most.
        seed: The seed.
        passage_words: The maximum number of words of a passage.
        curation: What is dropped before. Languages are always tagged.
        kept_out: Evaluation texts: a document that shares text with them is dropped.
        on_dropped: Called with each document that is dropped, or record that cannot be read.
    """
    dropped: Counter[str] = Counter()
    kept_out_by: Counter[str] = Counter()
    read = fit = 0
    seen: set[str] = set()
    chosen: list[tuple[int, str, Document]] = []

    def drop(place: str, stage: str, reason: str, value: float | str | None = None) -> None:
        dropped[stage] += 1
        on_dropped(DroppedPair(place, stage, reason, value))

    def documents() -> Iterator[Document]:
        nonlocal read
        for item in items:
            read += 1
            if isinstance(item, Unusable):
                drop(item.place, item.stage, item.reason)
            else:
                file, document = item
                place = file if file.endswith(document.id) else f"{file} {document.id}"
                yield Document(place, document.text)

    def on_curated(one: Dropped) -> None:
        drop(one.document.id, one.stage, one.reason, one.value)

    curation = dataclasses.replace(curation, tag_languages=True)
    with Curator(curation.stages(), on_curated) as curator:
        for document in curator.curated(documents()):
            if document.metadata[FIELD] == UNDETERMINED:
                drop(document.id, Languages.name, "its language is not clear", UNDETERMINED)
            elif kept_out is not None and (shared := kept_out.shared_with(document.text)) is not None:
                kept_out_by[shared.name] += 1
                drop(document.id, EVALUATION, f"it shares words with a text of {shared.name}", shared.run)
            else:
                key = _key(seed, document.text)
                if key in seen:
                    drop(document.id, ExactDuplicates.name, "it was read before", 1.0)
                    continue
                seen.add(key)
                fit += 1
                # The largest negative numbers are those of the smallest hashes.
                rank = -int(key, 16)
                if len(chosen) < count:
                    heapq.heappush(chosen, (rank, key, document))
                elif rank > chosen[0][0]:
                    heapq.heapreplace(chosen, (rank, key, document))
    articles = tuple(_article(document, seed, passage_words) for *_, document in sorted(chosen, reverse=True))
    return Sample(articles, read, fit, dict(dropped), dict(kept_out_by))


def _article(document: Document, seed: int, passage_words: int) -> Article:
    spans = Chunking("tokens", passage_words).spans(document.text, word_spans)
    passages = tuple((span.start, span.end) for span in spans)
    counts = [word_count(document.text[start:end]) for start, end in passages]
    # The last passage of a text may be a line: little can be asked about it.
    fit = [i for i, words in enumerate(counts) if 2 * words >= passage_words] or [counts.index(max(counts))]
    key = _key(seed, document.text)
    chosen = random.Random(key).choice(fit)
    return Article(document.id, document.text, str(document.metadata[FIELD]), passages, chosen, key)


def _key(seed: int, text: str) -> str:
    # Without its place: the same file may be given by another path.
    return hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=16).hexdigest()
