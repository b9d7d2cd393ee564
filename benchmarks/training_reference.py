"""The side of FlagEmbedding 1.4.2 in the benchmarks of training; run by a Python that has it and transformers < 5.

    pip install "FlagEmbedding==1.4.2" "transformers<5"     # in an environment of its own: our own needs neither
    PYTHON benchmarks/training_reference.py TASK.json       # TASK.json is written by the benchmark that starts this

Its own model, loss and collator are used as they are; the loop around them is ``its forward, backward, AdamW``. Rows
are printed as JSON Lines. This file imports nothing of m3_connectors, and nothing of m3_connectors imports it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from encoder import peak_memory_gb, reset_peak_memory
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderCollator
from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
from FlagEmbedding.finetune.embedder.encoder_only.m3.runner import EncoderOnlyEmbedderM3Runner
from torch import Tensor
from transformers import AutoTokenizer

Row = dict[str, Any]

NAME = "FlagEmbedding"


class Watched(EncoderOnlyEmbedderM3Model):  # type: ignore[misc]
    """Its model, which records the parts of the loss; ``padding_rows = False`` removes one behaviour of it.

    The rows of padding are zero vectors after its mask, and remain among the rows of which a query row takes the
    best: a token score below 0 becomes 0 wherever the passage is shorter than the longest of its batch.
    """

    padding_rows = True

    def start_step(self) -> None:
        self.parts: list[float] = []
        self.token_scores = self.clamped = 0
        self.raised = 0.0

    def compute_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = super().compute_loss(scores, target)
        self.parts.append(loss.item())
        return loss

    def distill_loss(self, *arguments: Any, **options: Any) -> Tensor:
        loss: Tensor = super().distill_loss(*arguments, **options)
        self.parts.append(loss.item())
        return loss

    def compute_colbert_score(self, q_reps: Tensor, p_reps: Tensor, q_mask: Tensor | None = None) -> Tensor:
        assert q_mask is not None
        padding = (p_reps == 0).all(-1)
        products = torch.einsum("qin,pjn->qipj", q_reps, p_reps)
        best = products.masked_fill(padding[None, None], float("-inf")).amax(-1)  # [queries, rows, passages]
        real = q_mask[:, 1:].bool()[:, :, None].expand_as(best)
        clamped = real & (best < 0) & padding.any(-1)
        self.token_scores, self.clamped = int(real.sum()), int(clamped.sum())
        raised = torch.where(clamped, -best, 0.0).detach().sum(1) / q_mask[:, 1:].sum(-1, keepdim=True)
        self.raised = float(raised.max())
        if self.padding_rows:
            scores: Tensor = super().compute_colbert_score(q_reps, p_reps, q_mask)
            return scores
        best = best.masked_fill(~real, 0.0)
        return best.sum(1) / q_mask[:, 1:].sum(-1, keepdim=True) / self.temperature


def load(task: Row, kind: type[EncoderOnlyEmbedderM3Model]) -> EncoderOnlyEmbedderM3Model:
    """Load the checkpoint as its runner does, float32, with its documented options of unified fine-tuning."""
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    model = kind(
        EncoderOnlyEmbedderM3Runner.get_model(task["model"]),
        tokenizer=tokenizer,
        temperature=task["temperature"],
        normalize_embeddings=True,
        sentence_pooling_method="cls",
        unified_finetuning=True,
        use_self_distill=task["distil"],
    )
    model.train()
    return model


def collator(model: EncoderOnlyEmbedderM3Model, sub_batch_size: int = -1) -> AbsEmbedderCollator:
    return AbsEmbedderCollator(
        tokenizer=model.tokenizer,
        query_max_len=8192,
        passage_max_len=8192,
        sub_batch_size=sub_batch_size,
        padding=True,
        return_tensors="pt",
    )


def features(batch: Row) -> list[tuple[str, list[str], None]]:
    """Return its examples: a query, its positive followed by its negatives, and no scores of a teacher."""
    queries, passages = batch["queries"], batch["passages"]
    group = len(passages) // len(queries)
    assert batch["targets"] == [i * group for i in range(len(queries))], "it takes groups of equal size"
    return [(query, passages[i * group : (i + 1) * group], None) for i, query in enumerate(queries)]


def losses(task: Row) -> Iterator[Row]:
    """Take one step of plain AdamW per batch; yield the loss of every step before its update."""
    model = load(task, Watched)
    model.padding_rows = task["padding_rows"]
    collate = collator(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=task["learning_rate"], weight_decay=0.0, foreach=False
    )
    names = ("dense", "lex", "mul", "inter", "distilled_dense", "distilled_lex", "distilled_mul")
    for step, batch in enumerate(task["batches"]):
        inputs = collate(features(batch))
        model.start_step()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield {
            "kind": "step",
            "engine": NAME,
            "variant": task["variant"],
            "step": step,
            "loss": loss.item(),
            **dict(zip(names, model.parts, strict=False)),
            "clamped_token_scores": model.clamped,
            "token_scores": model.token_scores,
            "largest_raise_of_s_mul": model.raised,
            "token_checksum": checksum(inputs),
        }


def checksum(inputs: Row) -> int:
    """Return a checksum of all token ids without padding, to show that both sides read the same tokens."""
    total = 0
    for side in ("queries", "passages"):
        for ids, mask in zip(inputs[side]["input_ids"], inputs[side]["attention_mask"], strict=True):
            total = zlib.crc32(ids[mask.bool()].to(torch.int32).numpy().tobytes(), total)
    return total


def speed(task: Row) -> Iterator[Row]:
    """Load and warm up; then, for each line of the standard input, take a step of every batch and yield its cost."""
    model = load(task, EncoderOnlyEmbedderM3Model)
    if task["gradient_checkpointing"]:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    # Its collator pads each sub-batch to that sub-batch's longest text, and its model then cannot join multi-vectors of
    # different lengths. The model's own splitting of a batch padded as a whole works, and is used here.
    model.sub_batch_size = task["sub_batch_size"] or -1
    collate = collator(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task["learning_rate"], fused=True)
    loaded = peak_memory_gb()
    if limit := task["memory_limit_gib"]:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30), int(limit * 2**30)))
    dtype = torch.bfloat16 if task["dtype"] == "bfloat16" else None
    # The moments of AdamW are allocated by the first step.
    step(model, optimizer, collate(features(task["warm_up"])), dtype)
    yield {"kind": "ready"}
    for _ in sys.stdin:
        reset_peak_memory()
        tokens = padded = 0
        preparing = 0.0
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            for batch in task["batches"]:
                before = time.process_time()
                inputs = collate(features(batch))
                preparing += time.process_time() - before
                for side in ("queries", "passages"):
                    tokens += int(inputs[side]["attention_mask"].sum())
                    padded += inputs[side]["attention_mask"].numel()
                step(model, optimizer, inputs, dtype)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            yield {"kind": "out of memory", "error": str(error).splitlines()[0][:200]}
            return
        yield {
            "kind": "measurement",
            "steps": len(task["batches"]),
            "tokens": tokens,
            "padded_tokens": padded,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "preparing_cpu_seconds": preparing,
            "peak_memory_gb": peak_memory_gb(),
            "loaded_memory_gb": loaded,
        }


def step(
    model: EncoderOnlyEmbedderM3Model,
    optimizer: torch.optim.Optimizer,
    inputs: Row,
    dtype: torch.dtype | None = None,
) -> None:
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(**inputs).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # the default of its trainer
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    if version("FlagEmbedding") != "1.4.2":
        sys.exit(f"FlagEmbedding is {version('FlagEmbedding')}; this reads the parts of 1.4.2.")
    warnings.simplefilter("ignore")
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    versions = {name: version(name) for name in ("FlagEmbedding", "transformers", "torch", "tokenizers")}
    print(json.dumps({"kind": "versions", "engine": NAME, **versions}), flush=True)
    for row in {"losses": losses, "speed": speed}[task["mode"]](task):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
