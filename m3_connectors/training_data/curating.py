"""One pass of curation over examples: ingestion's stages on each passage, and what only pairs need."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from m3_connectors.curation import BrokenCharacters, Curation, Dropped, ExactDuplicates, Languages, Stage
from m3_connectors.curation.languages import FIELD, UNDETERMINED
from m3_connectors.curation.words import normalised
from m3_connectors.documents import Document
from m3_connectors.training_data.examples import Example, Unusable
from m3_connectors.training_data.overlap import KeptOut

Origin = Literal["documents", "translations", "labels"]
"""What examples are: parts of one document, translations of each other, or queries with labelled passages."""

_SHOWN_CHARACTERS = 300

REPEATED_PAIRS = "repeated pairs"
EVALUATION = "evaluation texts"
SAME = "query is the passage"


@dataclasses.dataclass(frozen=True)
class DroppedPair:
    """A pair that was dropped, or a line that has none.

    Attributes:
        place: Where it was read.
        stage: What dropped it, by which reports count.
        reason: Why, in one line.
        value: The value that decided, such as a share, a language, or the words that an evaluation text has too.
        duplicate_of: The place of the earlier pair that it repeats.
        query: The beginning of its query.
        positive: The beginning of its passage.
    """

    place: str
    stage: str
    reason: str
    value: float | str | None = None
    duplicate_of: str | None = None
    query: str | None = None
    positive: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The pair as JSON takes it, without what it lacks."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class PairReport:
    """What a pass has done so far.

    Attributes:
        read: The number of pairs read, and of lines and documents that have none.
        kept: The number of pairs that were kept.
        examples: The number of examples that they are in: one may have several passages.
        dropped: The number of the others, by what dropped them.
        kept_out: The number of pairs that share text with an evaluation set, by its name.
        languages: The number of pairs kept by language, ``en``, or ``en-de`` for two; the most frequent first.
        kinds: The number of pairs kept by kind.
        negatives: The number of negatives kept.
        negatives_dropped: The number of negatives left out of examples that were kept, by reason.
    """

    read: int
    kept: int
    examples: int
    dropped: Mapping[str, int]
    kept_out: Mapping[str, int]
    languages: Mapping[str, int]
    kinds: Mapping[str, int]
    negatives: int
    negatives_dropped: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return dataclasses.asdict(self)


class PairCurator:
    """Passes examples through the stages; a context manager.

    Each positive passes the stages of the curation, in their order, and then: whether it is the query itself, the
    evaluation texts, repeated pairs, and duplicates of passages. The decisions depend only on the examples and their
    order.

    Args:
        curation: The stages for passages. Languages are always tagged.
        kept_out: Evaluation texts.
        on_dropped: Called with each pair or line that is dropped.
        origin: What the examples are. The two sides of a pair from a document have one language, and a passage is
            compared with those of its kind, as the body and the sections of one document are similar to each other.
            A passage with a label, or a translation, may occur again with another query: only texts that are nearly,
            but not exactly, those of an earlier passage are its duplicates. A labelled query whose language is not
            clear has that of its passage.

    Raises:
        InvalidInput: A language cannot be detected.
        MissingDependency: A package that a stage needs is not installed.
    """

    def __init__(
        self,
        curation: Curation,
        kept_out: KeptOut | None = None,
        on_dropped: Callable[[DroppedPair], object] = lambda dropped: None,
        *,
        origin: Origin,
    ) -> None:
        self._wanted = curation.languages
        self._text_stages = dataclasses.replace(curation, tag_languages=True, duplicates=None).stages()
        self._broken = BrokenCharacters(curation.max_broken) if curation.max_broken is not None else None
        self._detect = Languages()
        self._duplicates = Curation(duplicates=curation.duplicates)
        self._kept_out = kept_out
        self._on_dropped = on_dropped
        self._origin = origin
        self._open = contextlib.ExitStack()
        self._pairs = self._open.enter_context(ExactDuplicates())
        self._passages: dict[str, list[Stage]] = {}
        self._read = self._kept = self._examples = self._negatives = 0
        self._dropped: Counter[str] = Counter()
        self._kept_out_by: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._negatives_dropped: Counter[str] = Counter()

    def curated(self, items: Iterable[Example | Unusable]) -> Iterator[Example]:
        """Yield the examples that are kept, with their languages, each when it is asked for."""
        for item in items:
            if isinstance(item, Unusable):
                self._read += 1
                self._drop(DroppedPair(item.place, item.stage, item.reason))
            elif (kept := self._curated(item)) is not None:
                yield kept

    @property
    def report(self) -> PairReport:
        """The report of what has been read so far."""
        return PairReport(
            read=self._read,
            kept=self._kept,
            examples=self._examples,
            dropped=dict(self._dropped.most_common()),
            kept_out=dict(self._kept_out_by.most_common()),
            languages=dict(self._languages.most_common()),
            kinds=dict(self._kinds.most_common()),
            negatives=self._negatives,
            negatives_dropped=dict(self._negatives_dropped.most_common()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _curated(self, example: Example) -> Example | None:
        negatives, negative_scores = self._negatives_of(example)
        positives: list[str] = []
        scores: list[float] = []
        languages: set[tuple[str, str]] = set()
        for i, positive in enumerate(example.positives):
            self._read += 1
            place = example.place if len(example.positives) == 1 else f"{example.place} pos[{i}]"
            outcome = self._outcome(example, positive, negatives, place)
            if isinstance(outcome, DroppedPair):
                self._drop(
                    dataclasses.replace(
                        outcome,
                        query=example.query[:_SHOWN_CHARACTERS],
                        positive=positive[:_SHOWN_CHARACTERS],
                    )
                )
                continue
            positives.append(positive)
            scores.extend(example.positive_scores[i : i + 1])
            languages.add(outcome)
            lang_q, lang_p = outcome
            self._languages[lang_q if lang_q == lang_p else f"{lang_q}-{lang_p}"] += 1
        if not positives:
            return None
        self._kept += len(positives)
        self._kinds[example.kind] += len(positives)
        self._examples += 1
        self._negatives += len(negatives)
        lang_q, lang_p = languages.pop() if len(languages) == 1 else (UNDETERMINED, UNDETERMINED)
        return dataclasses.replace(
            example,
            positives=tuple(positives),
            positive_scores=tuple(scores),
            negatives=negatives,
            negative_scores=negative_scores,
            lang_q=lang_q,
            lang_p=lang_p,
        )

    def _outcome(
        self, example: Example, positive: str, negatives: tuple[str, ...], place: str
    ) -> tuple[str, str] | DroppedPair:
        """Return the languages of query and passage, or why the pair is dropped."""
        passage = Document(place, positive, {FIELD: example.lang_p} if example.lang_p else {})
        for stage in self._text_stages:
            outcome = stage(passage)
            if isinstance(outcome, Dropped):
                return _dropped(outcome)
            passage = outcome
        lang_p = str(passage.metadata[FIELD])
        if self._broken is not None:
            outcome = self._broken(Document(place, example.query))
            if isinstance(outcome, Dropped):
                return DroppedPair(place, outcome.stage, f"the query: {outcome.reason}", outcome.value)
        lang_q = example.lang_q or self._language_of(example.query, lang_p)
        if self._wanted is not None and lang_q not in self._wanted:
            return DroppedPair(place, Languages.name, f"the language of its query is {lang_q!r}", lang_q)
        if normalised(example.query) == normalised(positive):
            return DroppedPair(place, SAME, "the query has the same text as the passage")
        for what, text in (("query", example.query), ("passage", positive)):
            if self._kept_out is not None and (shared := self._kept_out.shared_with(text)) is not None:
                self._kept_out_by[shared.name] += 1
                reason = f"its {what} shares words with a text of {shared.name}"
                return DroppedPair(place, EVALUATION, reason, shared.run)
        # Triples repeat a pair with other negatives, which is not the same example. Unlike white space, "\0" is not
        # normalised.
        key = "\0".join(map(normalised, (example.query, positive, *negatives)))
        outcome = self._pairs(Document(place, key))
        if isinstance(outcome, Dropped):
            reason = f"has the same query and passage as {outcome.duplicate_of}"
            return DroppedPair(place, REPEATED_PAIRS, reason, duplicate_of=outcome.duplicate_of)
        for stage in self._stages_of(example.kind):
            outcome = stage(passage)
            if isinstance(outcome, Dropped):
                if self._origin != "documents" and outcome.stage == ExactDuplicates.name:
                    break  # the same passage as one that was kept, with another query
                return _dropped(outcome)
        return lang_q, lang_p

    def _language_of(self, query: str, lang_p: str) -> str:
        """Return the language of a query."""
        if self._origin == "documents":
            return lang_p
        tagged = self._detect(Document("", query))
        assert isinstance(tagged, Document)
        language = str(tagged.metadata[FIELD])
        return lang_p if language == UNDETERMINED and self._origin == "labels" else language

    def _stages_of(self, kind: str) -> list[Stage]:
        name = kind if self._origin == "documents" else ""
        if name not in self._passages:
            self._passages[name] = self._duplicates.stages()
            for stage in self._passages[name]:
                if isinstance(stage, contextlib.AbstractContextManager):
                    self._open.enter_context(stage)
        return self._passages[name]

    def _negatives_of(self, example: Example) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return the negatives that are kept, and their scores."""
        known = set(map(normalised, example.positives))
        kept: list[int] = []
        for i, negative in enumerate(example.negatives):
            text = normalised(negative)
            if text in known:
                self._negatives_dropped["repeated, or a positive"] += 1
            elif self._kept_out is not None and self._kept_out.shared_with(negative) is not None:
                self._negatives_dropped[EVALUATION] += 1
            else:
                known.add(text)
                kept.append(i)
        scores = example.negative_scores
        return tuple(example.negatives[i] for i in kept), tuple(scores[i] for i in kept if scores)

    def _drop(self, dropped: DroppedPair) -> None:
        self._dropped[dropped.stage] += 1
        self._on_dropped(dropped)


def _dropped(dropped: Dropped) -> DroppedPair:
    return DroppedPair(
        dropped.document.id, dropped.stage, dropped.reason, dropped.value, dropped.duplicate_of
    )
