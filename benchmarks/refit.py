"""What a new head finds in a store that keeps full vectors, and in one that keeps codes only.

python -m benchmarks.refit
"""

from __future__ import annotations

import runpy
from collections.abc import Callable

import numpy as np

from benchmarks.data import Task
from benchmarks.printing import FOLDER, header, paragraph, table, write
from st_dimreduce import Precision, Summary
from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.search import search
from st_dimreduce.fitting.fit import fit_head

ABOUT = """
    {:,} docstrings and {:,} queries, all-MiniLM-L6-v2: nDCG@10 in percent of the full vectors'. The old head was fitted
    on other texts (CISI, abstracts of library science) or on a quarter of the documents, none of which a query looks
    for; the store holds codes of all documents. Old head: it stays. Codes only: the codes are decoded and mapped back
    by the pseudo-inverse of the old head's weight, a new head is fitted on what comes out and reduces that. Full
    vectors: a new head is fitted on the full vectors and reduces those; with texts, also on cloze pairs, as when all
    texts are encoded again."""
NOTES = """
    From floats, int8 and int4 codes a refit regains nearly all that full vectors would without texts. From int2 codes
    it regains little or loses, from binary codes it loses much: the noise of the old codes is coded a second time. Keep
    the old head there until the texts are encoded again."""
SIZES = (256, 128)
PRECISIONS = (Precision.FLOAT32, Precision.INT8, Precision.INT4, Precision.INT2, Precision.BINARY)


def main() -> None:
    task, other = (Task("all-MiniLM-L6-v2", name) for name in ("docstrings", "CISI"))
    mapped_back = runpy.run_path(str(FOLDER.parent / "examples" / "databases" / "refit_qdrant.py"))["mapped_back"]
    full = task.judge(lambda top_k: search(task.queries, task.documents, "float32", top_k))["ndcg"]

    def share(head: BaseHead, precision: Precision, documents: np.ndarray = task.documents) -> str:
        codes, queries = quantize(head.transform(documents), precision), head.transform(task.queries)
        return f"{100 * task.judge(lambda top_k: search(queries, codes, precision, top_k))['ndcg'] / full:.1f}"

    olds: dict[str, Callable[[int], BaseHead]] = {
        "other texts": lambda size: fit_head(Summary.of(other.documents), size, cloze_pairs=other.cloze_pairs),
        "a quarter": lambda size: fit_head(Summary.of(task.documents[-len(task.documents) // 4 :]), size),
    }
    summary, rows = Summary.of(task.documents), []
    for size in SIZES:
        without, with_texts = fit_head(summary, size), fit_head(summary, size, cloze_pairs=task.cloze_pairs)
        for name, fit in olds.items():
            old = fit(size)
            for precision in PRECISIONS:
                codes = quantize(old.transform(task.documents), precision)
                back = mapped_back(old, dequantize(codes, precision, size))
                again = share(fit_head(Summary.of(back), size), precision, back)
                new = share(without, precision), share(with_texts, precision)
                rows.append([name, f"{size}", precision.value, share(old, precision), again, *new])
                print(rows[-1], flush=True)
    head = ["old head fitted on", "dims", "codes", "old head", "codes only", "full vectors", "full vectors, texts"]
    about = header("refit", ["st_dimreduce", "numpy"], ABOUT.format(len(task.documents), len(task.queries)))
    write("REFIT.md", ["# Refit", about, table(head, rows, left=3), paragraph(NOTES)])


if __name__ == "__main__":
    main()
