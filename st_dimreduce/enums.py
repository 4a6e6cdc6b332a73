"""The choices that users make, as string enums: a string is checked as soon as it is given."""

from __future__ import annotations

import math
from enum import Enum

from st_dimreduce.errors import UserError


class StringEnum(str, Enum):
    """A string with a few valid values; the error for any other lists them."""

    __str__ = str.__str__  # "int4" in a message, not "Precision.INT4"

    @classmethod
    def _missing_(cls, value: object) -> None:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__).lstrip("_")
        raise UserError(f"unknown {name} {value!r}: choose from {', '.join(choice.value for choice in cls)}")


class Precision(StringEnum):
    """Number format of a stored dimension."""

    FLOAT32 = "float32"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"
    BINARY = "binary"

    @property
    def bits(self) -> int:
        """Bits per dimension."""
        return {"float32": 32, "int8": 8, "int4": 4, "int2": 2, "binary": 1}[self.value]

    def bytes_per_vector(self, out_features: int) -> int:
        """Bytes per vector of this many dimensions; the last byte is padded with zero bits."""
        return math.ceil(out_features * self.bits / 8)


class Objective(StringEnum):
    """What a head is fitted for: retrieval quality, or fidelity to the base model's neighbours."""

    QUALITY = "quality"
    FIDELITY = "fidelity"


class Store(StringEnum):
    """A vector store whose types :mod:`st_dimreduce.codes.stores` knows."""

    FAISS = "faiss"
    QDRANT = "qdrant"
    PGVECTOR = "pgvector"
    ELASTICSEARCH = "elasticsearch"
    OPENSEARCH = "opensearch"
    LANCEDB = "lancedb"
    CHROMA = "chroma"
    MILVUS = "milvus"
    MILVUS_LITE = "milvus-lite"
    SQLITE_VEC = "sqlite-vec"
    USEARCH = "usearch"
    DUCKDB = "duckdb"
    WEAVIATE = "weaviate"
    REDIS = "redis"
    MONGODB = "mongodb"
    VESPA = "vespa"


class OnBadRow(StringEnum):
    """What to do with a vector that has no direction: NaN, infinite or zero."""

    RAISE = "raise"
    ZERO = "zero"


class Kind(StringEnum):
    """Kind of an index: an inverted file, or all codes scanned."""

    IVF = "ivf"
    FLAT = "flat"


class Variant(StringEnum):
    """Number format of the weights of an exported model."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Outcome(StringEnum):
    """What a reader makes of a model's folder."""

    RIGHT = "right"
    UNREDUCED = "unreduced"
    DIFFERENT = "different"
    FAILS = "fails"


class Verdict(StringEnum):
    """Whether a head still fits the vectors that arrive, from good to bad."""

    FITS = "fits"
    WATCH = "watch"
    REFIT = "refit"
