"""Shrink sentence embeddings: one fitted layer behind any Sentence Transformers model."""

from st_dimreduce.compare import compare
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.fitting import fit_head
from st_dimreduce.portable import save_portable
from st_dimreduce.precision import Precision, dequantize, quantize
from st_dimreduce.recipe import reduce_model
from st_dimreduce.search import rescore, search
from st_dimreduce.summary import Summary

__all__ = [
    "DimReduce",
    "Precision",
    "Summary",
    "compare",
    "dequantize",
    "fit_head",
    "quantize",
    "reduce_model",
    "rescore",
    "save_portable",
    "search",
]
__version__ = "0.1.0"
