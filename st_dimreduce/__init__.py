"""Shrink sentence embeddings: one fitted layer behind any Sentence Transformers model."""

from st_dimreduce.compare import compare
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.fitting import fit_head
from st_dimreduce.heads import load_head, save_head
from st_dimreduce.hub import publish
from st_dimreduce.portable import save_portable
from st_dimreduce.precision import Precision, dequantize, quantize
from st_dimreduce.recipe import reduce_model
from st_dimreduce.runtimes import export
from st_dimreduce.search import rescore, search
from st_dimreduce.stack import attach_head
from st_dimreduce.summary import Summary
from st_dimreduce.vectors import reduce_vectors, summarize

__all__ = [
    "DimReduce",
    "Precision",
    "Summary",
    "attach_head",
    "compare",
    "dequantize",
    "export",
    "fit_head",
    "load_head",
    "publish",
    "quantize",
    "reduce_model",
    "reduce_vectors",
    "rescore",
    "save_head",
    "save_portable",
    "search",
    "summarize",
]
__version__ = "0.1.0"
