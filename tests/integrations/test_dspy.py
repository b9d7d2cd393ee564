"""DSPy: a module that programs call. DSPy holds older versions than the rest, so it is not among the dev packages."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from stub_encoder import StubEncoder

from m3_connectors import ALL, Document, Index, connect
from m3_connectors.errors import InvalidInput

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that dspy imports
    dspy = pytest.importorskip(
        "dspy", reason="dspy is not installed: pip install -e '.[dspy]' in an environment of its own"
    )

from m3_connectors.integrations.dspy import M3Retriever


@pytest.fixture
def index() -> Iterator[Index]:
    with connect("memory:", encoder=StubEncoder()) as index:
        index.add([Document("a", "red apples", {"year": 2020}), Document("b", "blue plums", {"year": 2024})])
        yield index


def test_a_call_gives_the_hits_of_the_index(index: Index) -> None:
    retriever = M3Retriever(index, weights=(1, 2, 3), k=2)
    direct = index.search("blue plums", method=ALL.weighted(1, 2, 3), k=2)
    found = retriever("blue plums")
    assert found.passages == ["blue plums", "red apples"]
    assert (found.ids, found.scores) == ([hit.document.id for hit in direct], [hit.score for hit in direct])
    assert found.component_scores == [hit.scores.to_dict() for hit in direct]
    assert found.metadata == [{"year": 2024}, {"year": 2020}]
    assert retriever("blue plums", k=1, filter={"year": 2020}).ids == ["a"]
    assert anyio.run(retriever.acall, "blue plums").ids == found.ids
    with pytest.raises(InvalidInput, match="'top' is not an option of a search"):
        retriever("x", top=1)


def test_a_program_with_it_is_copied_and_called(index: Index) -> None:
    class Program(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.retrieve = M3Retriever(index, k=1)

        def forward(self, question: str) -> Any:
            return dspy.Prediction(context=self.retrieve(question).passages)

    program = Program()
    for made in (program, copy.deepcopy(program), program.deepcopy()):
        assert made(question="red apples").context == ["red apples"]


def test_the_example_of_the_page_runs() -> None:
    """The other pages are run with all docs; this one needs dspy."""
    page = (Path(__file__).parents[2] / "docs" / "dspy.md").read_text("utf-8")
    (example,) = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(compile(example, "docs/dspy.md", "exec"), {"__name__": "page"})
