"""PyTorch's number of threads follows the cores of the process, unless somebody chose it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from m3_connectors.encoder import threads
from m3_connectors.encoder.threads import set_threads


@pytest.fixture(autouse=True)
def _four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (3, 3), (4, 4), (64, 4)])
def test_the_default_is_lowered_to_the_cores_and_never_raised(
    cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    set_threads(None)
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_in_the_environment_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    monkeypatch.setenv(name, "4")
    set_threads(None)
    assert torch.get_num_threads() == 4


def test_a_number_of_the_caller_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    set_threads(3)
    assert torch.get_num_threads() == 3
