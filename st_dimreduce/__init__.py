"""Shrink sentence embeddings: one fitted layer behind any Sentence Transformers model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_dimreduce.codes.index import CodeIndex, merge_indexes, open_index
    from st_dimreduce.codes.precision import dequantize, quantize
    from st_dimreduce.codes.search import rescore, search
    from st_dimreduce.codes.tokens import TokenCodes, search_multi_vector
    from st_dimreduce.dim_reduce import DimReduce
    from st_dimreduce.enums import Objective, Precision, Verdict
    from st_dimreduce.evaluation.compare import Comparison, compare
    from st_dimreduce.fitting.budget import Choice, Size, choose
    from st_dimreduce.fitting.fit import fit_head
    from st_dimreduce.fitting.pairs import Pairs
    from st_dimreduce.fitting.summary import Summary
    from st_dimreduce.head import FitRecord, Head, save_head
    from st_dimreduce.models.attach import attach_head
    from st_dimreduce.models.load import load_head
    from st_dimreduce.models.multi_vector import reduce_multi_vector
    from st_dimreduce.portable.check import check
    from st_dimreduce.portable.fix import fix
    from st_dimreduce.portable.readers import check_readers
    from st_dimreduce.portable.save import save_portable
    from st_dimreduce.recipe import reduce_model
    from st_dimreduce.runtimes.export import export
    from st_dimreduce.runtimes.publish import publish
    from st_dimreduce.vectors.drift import Drift, drift
    from st_dimreduce.vectors.encode import encode_and_reduce, search_codes
    from st_dimreduce.vectors.fit import fit_on_vectors, summarize
    from st_dimreduce.vectors.index import add_to_index, build_index
    from st_dimreduce.vectors.reduce import reduce_vectors

# Every public name and the module it is imported from, when it is first asked for (PEP 562).
_HOMES = {
    "Choice": "fitting.budget",
    "CodeIndex": "codes.index",
    "Comparison": "evaluation.compare",
    "DimReduce": "dim_reduce",
    "Drift": "vectors.drift",
    "FitRecord": "head",
    "Head": "head",
    "Objective": "enums",
    "Pairs": "fitting.pairs",
    "Precision": "enums",
    "Size": "fitting.budget",
    "Summary": "fitting.summary",
    "TokenCodes": "codes.tokens",
    "Verdict": "enums",
    "add_to_index": "vectors.index",
    "attach_head": "models.attach",
    "build_index": "vectors.index",
    "check": "portable.check",
    "check_readers": "portable.readers",
    "choose": "fitting.budget",
    "compare": "evaluation.compare",
    "dequantize": "codes.precision",
    "drift": "vectors.drift",
    "encode_and_reduce": "vectors.encode",
    "export": "runtimes.export",
    "fit_head": "fitting.fit",
    "fit_on_vectors": "vectors.fit",
    "fix": "portable.fix",
    "load_head": "models.load",
    "merge_indexes": "codes.index",
    "open_index": "codes.index",
    "publish": "runtimes.publish",
    "quantize": "codes.precision",
    "reduce_model": "recipe",
    "reduce_multi_vector": "models.multi_vector",
    "reduce_vectors": "vectors.reduce",
    "rescore": "codes.search",
    "save_head": "head",
    "save_portable": "portable.save",
    "search": "codes.search",
    "search_codes": "vectors.encode",
    "search_multi_vector": "codes.tokens",
    "summarize": "vectors.fit",
}
__all__ = [
    "Choice",
    "CodeIndex",
    "Comparison",
    "DimReduce",
    "Drift",
    "FitRecord",
    "Head",
    "Objective",
    "Pairs",
    "Precision",
    "Size",
    "Summary",
    "TokenCodes",
    "Verdict",
    "add_to_index",
    "attach_head",
    "build_index",
    "check",
    "check_readers",
    "choose",
    "compare",
    "dequantize",
    "drift",
    "encode_and_reduce",
    "export",
    "fit_head",
    "fit_on_vectors",
    "fix",
    "load_head",
    "merge_indexes",
    "open_index",
    "publish",
    "quantize",
    "reduce_model",
    "reduce_multi_vector",
    "reduce_vectors",
    "rescore",
    "save_head",
    "save_portable",
    "search",
    "search_codes",
    "search_multi_vector",
    "summarize",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
