"""Several processes that train one model: each encodes a share of every batch (paper section B.3).

Every process (*rank*) draws the same batch, because a batch is a function of (seed, step), and holds the same
weights. Three rules make its steps those of one process:

1. ``TrainingEncoder.apply`` encodes the texts of this rank only, and gathers the outputs of the head from all
   ranks with their gradients. A stage therefore sees the outputs of the whole batch, as with one process.
2. **The objective is the mean over ranks of the losses that they compute.** ``gather`` and ``total`` are the
   exact derivatives of this rule, so any work after ``apply`` may be repeated on all ranks or split between them.
3. The trainer sums the gradients over ranks, so that each optimiser takes the same step.

A stage without heavy work after ``apply`` does not know about ranks. Three ways to split heavy work:

- Do it in the head: it runs on the states of this rank's texts only. A head that returns one number for each
  text, such as the sum of its token losses, is split without another line.
- Split rows and gather the results, as ``stages.finetune`` does with the scores of the queries.
- Compute a sum over the texts of this rank, and return ``ranks.total(own_sum) / joint_count``: the same value
  on every rank. The joint count is a property of the batch, which every rank has.

With one process, nothing of this costs anything: ``ALONE`` returns its arguments.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from m3_connectors.errors import AnotherRankFailed, InvalidInput

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
_PLACE = (*_ALONE, "MASTER_ADDR", "MASTER_PORT")
"""The environment variables that torchrun and accelerate set."""

_LONGEST_WAIT = timedelta(hours=12)
"""While rank 0 tokenises, tunes or writes, the others wait."""

_AT_ONCE = 1 << 25
"""Gradients are summed over ranks in buffers of about this many numbers."""


class Ranks:
    """The processes of a run, and the place of this one.

    Args:
        rank: The number of this process, from 0; only rank 0 writes files.
        size: The number of processes.
        local_rank: The number of this process on its machine, which is the number of its GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.is_first = rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Return the place of this process as torchrun or accelerate describes it.

        Raises:
            InvalidInput: A variable is missing or not a number.
        """
        given = {name: environment[name] for name in _PLACE if name in environment}
        try:
            rank, size, local_rank = (int(given.get(name, _ALONE[name])) for name in _ALONE)
        except ValueError:
            raise InvalidInput(
                f"the environment has {given}.\n  Start the processes with torchrun or accelerate launch, which "
                "set these variables; unset them to train with one process."
            ) from None
        missing = [name for name in _PLACE if name not in given]
        if size > 1 and missing:
            raise InvalidInput(
                f"the environment has WORLD_SIZE={size}, but not {' and '.join(missing)}.\n  Start the processes "
                "with torchrun or accelerate launch, which set them; unset WORLD_SIZE to train with one process."
            )
        return cls(rank, size, local_rank)

    def __enter__(self) -> Self:
        """Connect the processes."""
        if self.size > 1:
            backend = (
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
            )
            dist.init_process_group(backend, timeout=_LONGEST_WAIT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect; of several processes that fail with one error, only one raises it.

        Raises:
            AnotherRankFailed: Another process failed before this one.
        """
        if self.size == 1:
            return
        if error is None:
            dist.destroy_process_group()
        elif (
            isinstance(error, Exception)
            and not isinstance(error, AnotherRankFailed)
            and not self._fails_first()
        ):
            raise self._another_failed() from error

    def _fails_first(self) -> bool:
        store = dist.distributed_c10d._get_default_store()
        try:
            return store.add("m3_failures", 1) == 1
        except RuntimeError:  # the process that kept the store has ended
            return False

    def _another_failed(self) -> AnotherRankFailed:
        return AnotherRankFailed(
            f"process {self.rank} of {self.size} ends because another process ended.\n"
            "  Read the message of that process above."
        )

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        """Translate the error of a connection that another process has closed."""
        try:
            yield
        except RuntimeError as error:
            raise self._another_failed() from error

    def device(self, setting: str) -> torch.device:
        """Return the device of this process.

        Args:
            setting: ``auto``, ``cpu``, ``cuda``, or ``cuda:N`` with one process.

        Raises:
            InvalidInput: There is no such GPU.
        """
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if setting == "cpu" or (setting == "auto" and not count):
            return torch.device("cpu")
        if not count:
            raise InvalidInput(
                f"run.device is {setting!r}, but PyTorch {torch.__version__} finds no GPU.\n"
                '  Set run.device to "cpu" or "auto", or install a driver and a PyTorch with CUDA.'
            )
        _, colon, number = setting.partition(":")
        if colon and self.size > 1:
            raise InvalidInput(
                f"run.device is {setting!r}, but there are {self.size} processes.\n"
                '  Set run.device to "cuda": each process takes the GPU of its number on its machine.'
            )
        wanted = int(number) if colon else self.local_rank
        if wanted >= count:
            raise InvalidInput(
                f"process {self.rank} needs GPU {wanted}, but there are {count} on this machine, from 0.\n"
                "  Set run.device to one of them, or start as many processes on a machine as it has GPUs."
            )
        return torch.device("cuda", wanted)

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Let rank 0 run the block before the others, which then find the files that it wrote."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.any(False)

    def any(self, condition: bool) -> bool:
        """Return whether a condition is true on any rank."""
        if self.size == 1:
            return condition
        flag = torch.tensor([int(condition)])
        with self._calling():
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def of_first(self, value: float) -> float:
        """Return the value of rank 0, such as a time that decides what comes next."""
        if self.size == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64)
        with self._calling():
            dist.broadcast(number, 0)
        return number.item()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of rank 0: another kind of processor may round differently."""
        if self.size == 1:
            return
        with self._calling(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)

    def shares(self, loads: Sequence[int]) -> list[list[int]]:
        """Return the numbers of the items of each rank, so that the sums of their loads are about equal."""
        shares: list[list[int]] = [[] for _ in range(self.size)]
        sums = [0] * self.size
        for item in sorted(range(len(loads)), key=lambda i: -loads[i]):
            least = sums.index(min(sums))
            shares[least].append(item)
            sums[least] += loads[item]
        return shares

    def ranges(self, loads: Sequence[int]) -> list[range]:
        """Return a range of items for each rank, so that the sums of their loads are about equal."""
        reached = torch.tensor([0, *loads]).cumsum(0)
        wanted = torch.arange(1, self.size) * int(reached[-1]) / self.size
        borders = [0, *torch.searchsorted(reached, wanted).clamp(max=len(loads)).tolist(), len(loads)]
        return [range(first, last) for first, last in itertools.pairwise(borders)]

    def gather(self, parts: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """Concatenate the rows of all ranks; nothing is padded.

        Args:
            parts: Tensors of this rank, each ``[rows, ...]``.
            counts: For each tensor, its number of rows on every rank, which all ranks know.

        Returns:
            For each tensor, the rows of rank 0, then those of rank 1, … In the backward pass, the gradients of
            all ranks are summed in float32.
        """
        if self.size == 1:
            return tuple(parts)
        return _Gather.apply(self, counts, *parts)  # type: ignore[no-any-return]

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over ranks, with its gradient."""
        return value if self.size == 1 else _Total.apply(self, value)

    def sum_gradients(self, leaves: Iterable[Tensor]) -> None:
        """Sum the gradients of leaves over ranks; a leaf without a gradient on every rank keeps none."""
        if self.size == 1:
            return
        every = list(leaves)
        present = torch.tensor([leaf.grad is not None for leaf in every], dtype=torch.uint8)
        with self._calling():
            dist.all_reduce(present, dist.ReduceOp.MAX)
        bucket: list[Tensor] = []
        for leaf, anywhere in zip(every, present.tolist(), strict=True):
            if not anywhere:
                continue
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
            if bucket and sum(map(Tensor.numel, bucket)) + leaf.grad.numel() > _AT_ONCE:
                self._sum_together(bucket)
                bucket = []
            bucket.append(leaf.grad)
        self._sum_together(bucket)

    def _sum_together(self, gradients: Sequence[Tensor]) -> None:
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with self._calling():
            dist.all_reduce(flat)
        for gradient, summed in zip(
            gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(summed.view_as(gradient))

    def _gathered(self, part: Tensor, counts: Sequence[int]) -> Tensor:
        whole = part.new_empty(sum(counts), *part.shape[1:])
        slices = torch.split(whole, list(counts))
        slices[self.rank].copy_(part)
        with self._calling():
            # Each rank sends its rows to their place: no rank pads its rows to the number of another.
            for source, rows in enumerate(slices):
                if rows.numel():
                    dist.broadcast(rows, source)
        return whole

    def _summed_share(self, gradient: Tensor, counts: Sequence[int]) -> Tensor:
        """Return this rank's rows of the sum of a gradient over ranks."""
        own = gradient
        with self._calling():
            for target, rows in enumerate(torch.split(gradient, list(counts))):
                wide = rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
                if wide.numel():
                    dist.reduce(wide, target)
                if target == self.rank:
                    own = wide.to(gradient.dtype)
        return own


class _Gather(torch.autograd.Function):
    """All outputs of a head in one node: the backward passes of all ranks communicate in the same order."""

    @staticmethod
    def forward(
        ctx: Any, ranks: Ranks, counts: Sequence[Sequence[int]], *parts: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.counts = ranks, counts
        return tuple(ranks._gathered(part, count) for part, count in zip(parts, counts, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        summed = (
            ctx.ranks._summed_share(gradient, count)
            for gradient, count in zip(gradients, ctx.counts, strict=True)
        )
        return None, None, *summed


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, value: Tensor) -> Tensor:
        ctx.ranks = ranks
        return _summed(ranks, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, _summed(ctx.ranks, gradients[0])


def _summed(ranks: Ranks, value: Tensor) -> Tensor:
    whole = value.clone(memory_format=torch.contiguous_format)
    with ranks._calling():
        dist.all_reduce(whole)
    return whole


ALONE = Ranks()
"""One process."""
