"""Answer matching: DPR's rule, against a second implementation that shares nothing with the first."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

import pytest

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.answers import has_answer, judge, tokens, unify_punctuation
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.measures import per_query

SCRIPTS = {
    "Latin": "abcdefghijklmnopqrstuvwxyzàéîõüçñßøłABCDEÉÜİ",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяёїЁЖ",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئ\u064b\u064e\u0651\u0640",
    "Devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढतथदधनपफबभमयरलवशषसह\u093e\u093f\u0940\u094d\u0902\u093c",
    "Han and Kana": "北京大学東日本語中国人民あいうえおがぎぱアイウエオガギパー々",
    "Thai and Hangul": "กขคงจฉชซญดตถทธนบปพฟภมยรลวศษสหอ\u0e31\u0e34\u0e35\u0e38\u0e48\u0e49한국어서울가나다라마각",
}
BETWEEN = [
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\t",
    "-",
    ", ",
    ". ",
    " · ",
    "'",
    "\u00a0",
    "\u200b",
    "/",
    " 7",
    "٣ ",
    "९",
    "𝟜 ",
    "²",
]


def words(text: str) -> list[str]:
    """DPR's tokens by hand: a character at a time, by its Unicode category, with the standard library only."""
    found: list[str] = []
    within = False
    for letter in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(letter)[0]
        if kind in "LNM":
            if within:
                found[-1] += letter
            else:
                found.append(letter)
        elif kind not in "ZC":
            found.append(letter)
        within = kind in "LNM"
    return [word.lower() for word in found]


def holds(answers: list[str], text: str) -> bool:
    """Window by window; an answer without tokens is nowhere."""
    passage = words(text)
    for answer in answers:
        wanted = words(answer)
        for start in range(len(passage) - len(wanted) + 1) if wanted else ():
            if all(passage[start + i] == wanted[i] for i in range(len(wanted))):
                return True
    return False


def cases(seed: int, count: int) -> list[tuple[str, list[str], str]]:
    """Passages and answers: cut from the passage, changed a little, or strangers to it."""
    draw = random.Random(seed)
    names = list(SCRIPTS)

    def text(alphabet: str, size: int) -> str:
        parts = [
            "".join(draw.choices(alphabet, k=draw.randint(1, 4))) + draw.choice(BETWEEN) for _ in range(size)
        ]
        return "".join(parts)

    def answer(alphabet: str, passage: str) -> str:
        start = draw.randrange(len(passage))
        cut = passage[start : start + draw.randint(1, 12)]
        changes: list[Callable[[], str]] = [
            lambda: cut,
            lambda: cut.upper(),
            lambda: unicodedata.normalize(draw.choice(["NFC", "NFD", "NFKC"]), cut),
            lambda: cut.replace(" ", draw.choice([" - ", "  ", "\u00a0", ""])),
            lambda: cut + draw.choice(alphabet),
            lambda: " ".join(passage.split()[:2]),
            lambda: draw.choice(passage.split()),
            lambda: text(alphabet, 2),
            lambda: draw.choice(["", " ", "\u200b", ".", "-"]),
        ]
        return draw.choice(changes)()

    made = []
    for i in range(count):
        script = names[i % len(names)]
        # Few letters: strangers meet by chance too.
        alphabet = "".join(draw.sample(SCRIPTS[script], 8))
        passage = text(alphabet, draw.randint(1, 30))
        made.append((script, [answer(alphabet, passage) for _ in range(draw.randint(1, 3))], passage))
    return made


class TestAgainstAnotherImplementation:
    def test_a_thousand_cases_in_six_scripts(self) -> None:
        drawn = cases(seed=20240205, count=1002)
        by_script: dict[str, list[bool]] = {}
        for script, answers, passage in drawn:
            expected = holds(answers, passage)
            assert has_answer(answers, passage) == expected, (script, answers, passage)
            by_script.setdefault(script, []).append(expected)
        assert set(by_script) == set(SCRIPTS)
        for script, hits in by_script.items():  # both outcomes are common: agreement says something
            assert 0.2 < sum(hits) / len(hits) < 0.9, script

    def test_tokens(self) -> None:
        for _, answers, passage in cases(seed=7, count=300):
            for text in (passage, *answers):
                assert tokens(text) == words(text)


class TestHasAnswer:
    @pytest.mark.parametrize(
        ("answer", "text", "found"),
        [
            ("Paris", "He lives in PARIS.", True),
            ("Paris", "Parisian", False),  # whole tokens
            ("New York", "new-york", False),  # the hyphen is a token
            ("New York", "New\n  York City", True),
            ("3,000", "about 3,000 people", True),
            ("3,000", "about 3000 people", False),
            ("Düsseldorf", "Du\u0308sseldorf", True),  # composed and decomposed are one
            ("Düsseldorf", "Dusseldorf", False),  # marks are not dropped
            ("हिन्दी", "यह हिन्दी है", True),
            ("हिन", "यह हिन्दी है", False),
            ("서울", "서울은", False),
            ("北京", "北京大学", False),  # no spaces: a run of letters is one token
            ("C++", "the C++ language", True),
            ("C", "the C++ language", True),
            ("", "anything", False),
            ("\u200b", "anything", False),
            ("a b", "a b", True),
            ("a b", "b a", False),
            ("a", "", False),
        ],
    )
    def test_by_hand(self, answer: str, text: str, found: bool) -> None:
        assert has_answer([answer], text) is found
        assert has_answer(["no such thing at all", answer], text) is found

    def test_without_answers(self) -> None:
        assert not has_answer([], "text")


def small() -> Dataset:
    texts = {"d1": "goethe wrote faust", "d2": "a ship sails", "d3": "faust, by goethe", "d4": "rain"}
    return Dataset(
        name="own",
        split="test",
        documents=Corpus.of([Document(id, text) for id, text in texts.items()]),
        queries={"q1": "who wrote faust", "q2": "what sails", "q3": "what falls"},
        qrels={},
        answers={"q1": ("Goethe",), "q2": ("the ship", "Ship"), "q3": ("snow",)},
    )


class TestJudge:
    def test_what_was_found_is_judged(self) -> None:
        found = {"q1": ["d2", "d3", "d1"], "q2": ["d1", "d2"], "q3": []}
        assert judge(small(), found) == {
            "q1": {"d1": 1, "d2": 0, "d3": 1},
            "q2": {"d1": 0, "d2": 1},
            "q3": {},  # asked and found nothing: it counts
        }

    def test_strangers_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="1 of the documents found are not in own, such as 'd9'"):
            judge(small(), {"q1": ["d9", "d1"]})
        with pytest.raises(InvalidInput, match="'q9' is not a query of own"):
            judge(small(), {"q9": ["d1"]})

    def test_a_dataset_with_judgements_is_refused(self) -> None:
        judged = Dataset("x", "test", Corpus.of([Document("d", "t")]), {"q": "t"}, {"q": {"d": 1}})
        with pytest.raises(InvalidInput, match="judgements of documents"):
            judge(judged, {"q": ["d"]})


class TestRecallOverAnswers:
    def test_by_query_and_depth(self) -> None:
        qrels = {"q1": {"a": 0, "b": 1, "c": 1}, "q2": {"a": 0}, "q3": {}, "q4": {"z": 1}}
        late = [f"x{i}" for i in range(20)]
        run = {"q1": ["a", "b", "c"], "q2": ["a"], "q3": [], "q4": [*late, "z"]}
        values = per_query(qrels, run, ["Recall@1", "Recall@20", "Recall@100"], "answers")
        assert values["Recall@1"] == {"q1": 0, "q2": 0, "q3": 0, "q4": 0}
        assert values["Recall@20"] == {"q1": 1, "q2": 0, "q3": 0, "q4": 0}
        assert values["Recall@100"] == {"q1": 1, "q2": 0, "q3": 0, "q4": 1}


@pytest.mark.parametrize(
    ("text", "unified"),
    [
        ("“so” ‘it’ `goes´", "\"so\" 'it' 'goes'"),
        ("5′ 7″ ‴", "5' 7'' '''"),
        ("a‐b–c—d−e", "a-b-c-d-e"),
        ("wait… and . . . go", "wait... and ... go"),
        ("soft\u00adhyphen\x07 \x0bline", "softhyphen  line"),
        ("1⁄2", "1/2"),
        ("Case Stays", "Case Stays"),
    ],
)
def test_unify_punctuation(text: str, unified: str) -> None:
    assert unify_punctuation(text) == unified
