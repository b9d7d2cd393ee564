"""Measure tokens per second of M3Encoder, FlagEmbedding and plain transformers, and the machine's matrix-product rate.

    python benchmarks/encoder.py --threads 2 --flag-python PATH   # PATH: a Python with FlagEmbedding==1.4.2
    python benchmarks/encoder.py --report benchmarks/results/encoder-2025-01-31.jsonl

A random checkpoint of the real model's size (568 million parameters) encodes texts of exact token lengths into all
three components. Every engine runs in a separate process, so that its peak memory can be measured. Slow engines encode
long texts with 1 and 3 layers, extrapolated to 24; their rows say so. Raw rows are written to a JSON Lines file, after
a record of the machine; the table is generated from that file alone.

The share of the matrix rate is (operations of the layers' products and of attention) / seconds / rate, where the rate
is the best that bfloat16 products of the layers' shapes reached just before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LAYERS = 24
WIDTH = 1024
LENGTHS = (16, 128, 512, 2048, 8192)
MIXED = "mixed"
"""Texts of 16 to 384 tokens, with all lengths equally likely: about 60 to 1,500 characters."""

Row = dict[str, Any]


# --- the texts and the model ------------------------------------------------------------------------------------------


def texts_of(case: int | str, tokens: int) -> list[str]:
    """Return texts of ``case`` tokens each (or of mixed lengths), with about ``tokens`` tokens in total."""
    from m3_connectors.testing.checkpoints import small_tokenizer

    tokenizer = small_tokenizer()
    words = [
        token[1:]
        for token in sorted(tokenizer.get_vocab())
        if token[0] == "▁" and len(tokenizer.encode(token[1:], add_special_tokens=False).ids) == 1
    ]
    rng = random.Random(0)
    texts: list[str] = []
    while tokens > 0:
        length = case if isinstance(case, int) else rng.randint(16, 384)
        texts.append(" ".join(rng.choices(words, k=length - 2)))
        tokens -= length
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    assert case == MIXED or set(counts) == {case}, counts
    return texts


def operations(lengths: list[int], layers: int) -> float:
    """Return the number of floating-point operations of the layers' products and of attention."""
    per_token = 24 * WIDTH**2
    return layers * sum(n * (per_token + 4 * WIDTH * n) for n in lengths)


def write_model(directory: Path) -> None:
    """Write the full checkpoint, and beside it the same one reduced to 1 and to 3 layers."""
    from m3_connectors.testing.checkpoints import M3_LARGE, write_checkpoint

    full = write_checkpoint(directory / str(LAYERS), config=M3_LARGE)
    for layers in (1, 3):
        short = directory / str(layers)
        short.mkdir()
        for file in full.iterdir():
            (short / file.name).symlink_to(file)
        (short / "config.json").unlink()
        config = json.loads((full / "config.json").read_text()) | {"num_hidden_layers": layers}
        (short / "config.json").write_text(json.dumps(config))


# --- the engines, each in a separate process -------------------------------------------------------------------------

Encode = Callable[[list[str]], object]


def engine_ours(directory: Path, precision: str = "auto") -> Encode:
    from m3_connectors.encoder import M3Encoder

    encoder = M3Encoder(directory, device="cpu", precision=precision)
    return encoder.encode


def engine_ours_float32(directory: Path) -> Encode:
    return engine_ours(directory, "float32")


def engine_ours_int8(directory: Path) -> Encode:
    return engine_ours(directory, "int8")


def engine_flagembedding(directory: Path) -> Encode:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(
        str(directory), devices="cpu"
    )  # as its README says; on a CPU it computes in float32

    def encode(texts: list[str]) -> object:
        # Its own batch size (256). It computes the first batch twice, to probe for memory.
        return model.encode(
            texts, max_length=8192, return_dense=True, return_sparse=True, return_colbert_vecs=True
        )

    return encode


def engine_transformers(directory: Path, dtype: str = "float32") -> Encode:
    """The model card's formulas on ``AutoModel``: padded, one batch, its default attention."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    kind = getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=kind).eval()
    heads = {
        name: torch.load(directory / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")
    }
    heads = {name: {part: tensor.to(kind) for part, tensor in state.items()} for name, state in heads.items()}
    linear, normalize = torch.nn.functional.linear, torch.nn.functional.normalize

    @torch.inference_mode()
    def encode(texts: list[str]) -> object:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=8192, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state
        dense = normalize(hidden[:, 0].float(), dim=-1)
        weights = torch.relu(linear(hidden, **heads["sparse"])).float()
        rows = normalize(linear(hidden[:, 1:], **heads["colbert"]).float(), dim=-1)
        return dense, weights, rows

    return encode


def engine_transformers_bfloat16(directory: Path) -> Encode:
    return engine_transformers(directory, "bfloat16")


ENGINES: dict[str, Callable[[Path], Encode]] = {
    "m3_connectors": engine_ours,
    "m3_connectors float32": engine_ours_float32,
    "m3_connectors int8": engine_ours_int8,
    "FlagEmbedding": engine_flagembedding,
    "transformers float32": engine_transformers,
    "transformers bfloat16": engine_transformers_bfloat16,
}

# Tokens per measurement by case, repeats, and numbers of layers; chosen so that a run takes a few minutes.
Plan = dict[int | str, tuple[int, int, tuple[int, ...]]]
ALL, CUT = (LAYERS,), (1, 3)
MIXED_TOKENS = 2000
PLANS: dict[str, Plan] = {
    "m3_connectors": {
        **dict.fromkeys((16, 128, 512, 2048), (4096, 3, ALL)),
        MIXED: (MIXED_TOKENS, 3, ALL),
        8192: (8192, 2, ALL),
    },
    "m3_connectors float32": {**dict.fromkeys((16, 128, 512), (1024, 2, ALL)), MIXED: (MIXED_TOKENS, 1, ALL)},
    "m3_connectors int8": {
        **dict.fromkeys((16, 128, 512, 2048), (4096, 3, ALL)),
        MIXED: (MIXED_TOKENS, 3, ALL),
        8192: (8192, 2, ALL),
    },
    "FlagEmbedding": {
        16: (512, 2, ALL),
        128: (512, 2, ALL),
        512: (1024, 1, ALL),
        MIXED: (MIXED_TOKENS, 1, ALL),
        2048: (2048, 1, CUT),
        8192: (8192, 1, CUT),
    },
    "transformers float32": {
        **dict.fromkeys((16, 128, 512), (512, 2, ALL)),
        MIXED: (MIXED_TOKENS, 1, ALL),
        2048: (2048, 1, CUT),
        8192: (8192, 1, CUT),
    },
    "transformers bfloat16": {
        **dict.fromkeys((16, 128, 512), (1024, 2, ALL)),
        MIXED: (MIXED_TOKENS, 1, ALL),
        2048: (2048, 1, CUT),
        8192: (8192, 1, CUT),
    },
}


def work(engine: str, models: Path, threads: int, scale: float) -> Iterator[Row]:
    """Measure one engine; runs in a separate process."""
    import torch

    torch.set_num_threads(threads)
    yield {"kind": "versions", "engine": engine, **versions()}
    for layers in (LAYERS, *CUT):
        plan = {case: (n, repeats) for case, (n, repeats, which) in PLANS[engine].items() if layers in which}
        if not plan:
            continue
        encode = ENGINES[engine](models / str(layers))
        loaded = peak_memory_gb()
        encode(texts_of(16, 64))  # warm up
        for case, (tokens, repeats) in plan.items():
            texts = texts_of(case, max(int(tokens * scale), 1))
            lengths = [len(text.split()) + 2 for text in texts]
            for repeat in range(repeats):
                reset_peak_memory()
                before = matrix_rate()
                start, start_cpu = time.perf_counter(), time.process_time()
                encode(texts)
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
                yield {
                    "kind": "measurement",
                    "engine": engine,
                    "case": case,
                    "layers": layers,
                    "repeat": repeat,
                    "texts": len(texts),
                    "tokens": sum(lengths),
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,  # less than seconds * threads if others took time
                    "operations": operations(lengths, layers),
                    "matrix_rate_gflops": max(before, matrix_rate()),
                    "peak_memory_gb": peak_memory_gb(),
                    "loaded_memory_gb": loaded,
                }


def agreement(directory: Path, threads: int, model: str) -> Iterator[Row]:
    """Compare bfloat16 and int8 with float32: cosines of vectors and multi-vector rows, differences of scores."""
    import numpy as np

    from m3_connectors import scoring
    from m3_connectors.encoder import M3Encoder

    cases = {case: texts_of(case, max(512, case)) for case in (16, 128, 512, 2048)}
    exact = None
    for precision in ("float32", "bfloat16", "int8"):
        encoder = M3Encoder(directory, device="cpu", precision=precision, threads=threads)
        output = {case: encoder.encode(texts) for case, texts in cases.items()}
        del encoder
        if exact is None:
            exact = output
            continue
        for case in cases:
            single, half = exact[case], output[case]
            differences = {
                f"s_{component}_difference": float(
                    np.abs(
                        scoring.score(component, exact[16][0], single)
                        - scoring.score(component, output[16][0], half)
                    ).max()
                )
                for component in single.components
            }
            rows = (single.multivectors.rows * half.multivectors.rows).sum(1)
            yield {
                "kind": "agreement",
                "model": model,
                "precision": precision,
                "case": case,
                "texts": len(cases[case]),
                "dense_cosine_lowest": float((single.dense * half.dense).sum(1).min()),
                "multivector_cosine_lowest": float(rows.min()),
                "multivector_cosine_mean": float(rows.mean()),
                "sparse_weight_difference": float(np.abs((single.sparse - half.sparse).data).max(initial=0)),
                "sparse_weight_largest": float(single.sparse.data.max(initial=0)),
                **differences,
            }


def matrix_rate() -> float:
    """Measure bfloat16 products of a layer's shapes in GFLOP/s: the better of packed and plain weights; about 0.3 s."""
    import torch

    global _operands
    if _operands is None:
        rows = {k: torch.randn(1024, k).bfloat16() for k in (WIDTH, 4 * WIDTH)}
        shapes = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
        plain = [(rows[k], torch.randn(n, k).bfloat16(), torch.zeros(n).bfloat16()) for n, k in shapes]
        _operands = [[(torch.nn.functional.linear, *three) for three in plain]]
        try:
            pack, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
            packed = [(x, pack(weight), bias) for x, weight, bias in plain]
            _operands.append([(lambda x, w, b: product(x, w, b, "none", [], ""), *three) for three in packed])
        except (AttributeError, RuntimeError):
            pass
    work_of_one_pass = 1024 * 24 * WIDTH**2
    best = float("inf")
    with torch.inference_mode():
        for products in _operands * 3:
            start = time.perf_counter()
            for function, x, weight, bias in products:
                function(x, weight, bias)
            best = min(best, time.perf_counter() - start)
    return work_of_one_pass / best / 1e9


_operands: list[list[Any]] | None = None


def peak_memory_gb() -> float:
    """Return the largest resident set of this process since the last reset."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**20
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):  # not Linux: the peak is that of the complete lifetime of the process
        Path("/proc/self/clear_refs").write_text("5")


def versions() -> Row:
    from importlib.metadata import PackageNotFoundError, version

    found: Row = {"python": platform.python_version()}
    for package in ("torch", "tokenizers", "transformers", "FlagEmbedding", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


# --- the run --------------------------------------------------------------------------------------------------


def environment(threads: int) -> Row:
    """Describe the properties of the machine that affect the numbers."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "kind": "environment",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git.stdout.strip() or None,
        "cpu": fields.get("model name", platform.processor()),
        "cpu_family_model": f"{fields.get('cpu family')}/{fields.get('model')}",
        "bfloat16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()],
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": os.getloadavg(),
        "kernel": platform.release(),
    }


def run(options: argparse.Namespace) -> Path:
    """Measure all available engines."""
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    pythons = {engine: sys.executable for engine in ENGINES if engine.startswith("m3_connectors")}
    if options.flag_python:
        pythons |= dict.fromkeys(
            ("FlagEmbedding", "transformers float32", "transformers bfloat16"), options.flag_python
        )
    else:
        print("no --flag-python: FlagEmbedding and transformers are not measured", file=sys.stderr)
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads)}
    environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, out.open("w", encoding="utf-8") as file:
        models = Path(options.models or temporary)
        if not (models / str(LAYERS)).exists():
            print("writing the checkpoint …", file=sys.stderr)
            subprocess.run([sys.executable, __file__, "--write-model", models], env=environ, check=True)
        print(json.dumps(environment(options.threads)), file=file, flush=True)
        for engine, python in pythons.items():
            if options.engines and engine not in options.engines:
                continue
            command = [python, __file__, "--work", engine, "--models", models]
            command += ["--threads", str(options.threads), "--scale", str(options.scale)]
            print(f"{time.perf_counter() - started:4.0f} s  {engine}", file=sys.stderr, flush=True)
            with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("{"):
                        file.write(line)
                        file.flush()
                        print("       ", line.strip()[:150], file=sys.stderr)
            if process.returncode:
                print(f"{engine} failed with exit code {process.returncode}", file=sys.stderr)
        if not options.engines:
            print(f"{time.perf_counter() - started:4.0f} s  agreement", file=sys.stderr, flush=True)
            for row in agreement(models / str(LAYERS), options.threads, "random, 24 layers"):
                print(json.dumps(row), file=file, flush=True)
    print(f"{time.perf_counter() - started:4.0f} s  done", file=sys.stderr)
    return out


# --- the report -----------------------------------------------------------------------------------------------


def report(path: Path) -> str:
    """Generate the table from raw rows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    machine = next(row for row in rows if row["kind"] == "environment")
    measured = [row for row in rows if row["kind"] == "measurement"]
    cases = [case for case in (*LENGTHS, MIXED) if any(row["case"] == case for row in measured)]
    engines = [engine for engine in ENGINES if any(row["engine"] == engine for row in measured)]
    rates = [row["matrix_rate_gflops"] for row in measured]
    lines = [
        f"{machine['cpu']} (family/model {machine['cpu_family_model']}, "
        f"{', '.join(machine['bfloat16']) or 'no bfloat16'}), "
        f"{machine['threads']} of {machine['cores']} cores, {machine['memory_gb']} GB, {machine['date'][:10]}; "
        f"bfloat16 products {min(rates):.0f}–{max(rates):.0f} GFLOP/s.",
        "",
        "| tokens a text | "
        + " | ".join(f"{engine}, tokens/s" for engine in engines)
        + " | share of matrix rate | "
        "times FlagEmbedding | peak memory, GB |",
        "|---" * (len(engines) + 4) + "|",
    ]
    for case in cases:
        speeds = {
            engine: speed([r for r in measured if (r["engine"], r["case"]) == (engine, case)])
            for engine in engines
        }
        ours = [r for r in measured if (r["engine"], r["case"]) == ("m3_connectors", case)]
        shares = [r["operations"] / r["seconds"] / 1e9 / r["matrix_rate_gflops"] for r in ours]
        times = "–"
        if speeds.get("FlagEmbedding") and speeds.get("m3_connectors"):
            times = f"{speeds['m3_connectors'][0] / speeds['FlagEmbedding'][0]:.1f}"
        share = f"{statistics.median(shares):.0%} ({min(shares):.0%}–{max(shares):.0%})" if shares else "–"
        peaks = " / ".join(
            f"{max(r['peak_memory_gb'] for r in measured if (r['engine'], r['case']) == (engine, case)):.1f}"
            if speeds[engine]
            else "–"
            for engine in engines
        )
        cells = [format_speed(speeds[engine]) for engine in engines]
        lines.append(f"| {case} | " + " | ".join(cells) + f" | {share} | {times} | {peaks} |")
    lines += [
        "",
        f"Each cell is the median (lowest–highest of the repeats); * means extrapolated to {LAYERS} from runs with "
        "1 and 3 layers, in which case the peak memory is that of those runs. Peak memory is listed in the order of "
        "the engines. FlagEmbedding computes its first batch (256 texts) twice; in long runs of texts of one length "
        "it would be up to twice as fast as shown. Mixed: 16 to 384 tokens; engines that pad spend the time of the "
        "longest text.",
    ]
    agreed = [row for row in rows if row["kind"] == "agreement"]
    if agreed:
        lines += [
            "",
            "Other precisions compared with float32 on the same texts:",
            "",
            "| model | precision | tokens a text | dense cosine, lowest | multi-vector cosine, lowest (mean) "
            "| sparse weight, largest difference | score differences, largest: dense, sparse, multi-vector |",
            "|---" * 7 + "|",
        ]
    lines += [
        f"| {row['model']} | {row.get('precision', 'bfloat16')} | {row['case']} | {row['dense_cosine_lowest']:.5f} "
        f"| {row['multivector_cosine_lowest']:.5f} ({row['multivector_cosine_mean']:.5f}) "
        f"| {row['sparse_weight_difference']:.4f} of {row['sparse_weight_largest']:.2f} "
        f"| {row['s_dense_difference']:.4f}, {row['s_sparse_difference']:.4f}, {row['s_multivector_difference']:.4f} |"
        for row in agreed
    ]
    return "\n".join(lines)


Speed = tuple[float, float, float, bool]


def speed(rows: list[Row]) -> Speed | None:
    """Return the median, lowest and highest tokens/s, and whether they are extrapolated."""
    full = [row["tokens"] / row["seconds"] for row in rows if row["layers"] == LAYERS]
    if full:
        return statistics.median(full), min(full), max(full), False
    short = {n: [row["seconds"] for row in rows if row["layers"] == n] for n in CUT}
    if not all(short.values()):
        return None
    one, three = (statistics.median(short[n]) for n in CUT)
    tokens_per_second = rows[0]["tokens"] / (one + (three - one) / 2 * (LAYERS - 1))
    return tokens_per_second, tokens_per_second, tokens_per_second, True


def format_speed(speed: Speed | None) -> str:
    if speed is None:
        return "–"
    median, low, high, extrapolated = speed
    return f"{median:,.0f}*" if extrapolated else f"{median:,.0f} ({low:,.0f}–{high:,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--flag-python", help="a Python with FlagEmbedding==1.4.2 and transformers")
    parser.add_argument("--out", default=ROOT / "benchmarks" / "results" / f"encoder-{today}.jsonl")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, help="only these engines")
    parser.add_argument("--models", type=Path, help="folder in which checkpoints are kept and reused (4 GB)")
    parser.add_argument("--scale", type=float, default=1, help="factor on the number of texts")
    parser.add_argument(
        "--agreement",
        type=Path,
        metavar="MODEL",
        help="only compare bfloat16 and int8 with float32 on a model",
    )
    parser.add_argument("--report", type=Path, help="print the table of an earlier run without measuring")
    parser.add_argument("--work", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--write-model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_model:
        write_model(options.write_model)
    elif options.agreement:
        for row in agreement(options.agreement, options.threads, options.agreement.name):
            print(json.dumps(row, indent=1))
    elif options.work:
        for row in work(options.work, options.models, options.threads, options.scale):
            print(json.dumps(row), flush=True)
    else:
        print(report(options.report or run(options)))


if __name__ == "__main__":
    main()
