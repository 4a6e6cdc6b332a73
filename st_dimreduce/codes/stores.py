"""What each vector store holds and searches by itself: the facts of docs/stores.md, which is printed from here.

A store is listed with the types that take our codes as they are, byte for byte or cast without loss. What a store's own
quantiser does to float vectors is named beside, in words: its codes are not ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from st_dimreduce.enums import Precision, Store


@dataclass(frozen=True)
class Column:
    """A type of a store that holds vectors of one precision and is searched there.

    Attributes:
        precision: The precision of the codes.
        type: The store's name for the type.
        hand_over: How codes are given to the store, as an expression of ``codes``.
        distance: The store's distance under which the order is that of the cosines, or of the bits.
        query: Precision in which the store takes queries: ``"float32"``, or that of the codes.
        most: Dimensions of a vector at most, with an index; None where no limit is stated.
        bits: Bits per dimension. Defaults to those of the precision.
    """

    precision: Precision
    type: str = "codes"
    hand_over: str = "codes"
    distance: str = "cosine"
    query: Precision = Precision.FLOAT32
    most: int | None = None
    bits: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", self.bits or self.precision.bits)

    def bytes_per_vector(self, out_features: int) -> int:
        """Return the bytes of a vector's codes in the store, without ids and index."""
        return math.ceil(out_features * self.bits / 8)


@dataclass(frozen=True)
class StoreFacts:
    """What is known of a store.

    Attributes:
        name: The store's own name.
        version: Version that the facts are of.
        tested: Whether the tests store and search vectors there; otherwise its documentation is the source.
        columns: The types that take our codes.
        quantisers: What the store itself can do to float vectors.
        sources: Addresses of the documentation.
    """

    name: str
    version: str
    tested: bool
    columns: tuple[Column, ...]
    quantisers: str
    sources: tuple[str, ...]


def columns_of(store: Store) -> tuple[Column, ...]:
    """Return the types of a store to choose from: of each precision the one of fewest bits, the first where equal."""
    narrowest: dict[Precision, Column] = {}
    for column in STORES[store].columns:
        if column.precision not in narrowest or column.bits < narrowest[column.precision].bits:
            narrowest[column.precision] = column
    return tuple(narrowest.values())


_FLOAT, _INT8, _INT4, _INT2, _BITS = (
    Precision.FLOAT32,
    Precision.INT8,
    Precision.INT4,
    Precision.INT2,
    Precision.BINARY,
)


def _float(kind: str, most: int | None = None, distance: str = "cosine", hand_over: str = "codes") -> Column:
    return Column(_FLOAT, kind, hand_over, distance, most=most)


def _half(kind: str, most: int | None = None, distance: str = "cosine", hand_over: str = "codes") -> Column:
    return Column(_FLOAT, kind, hand_over, distance, most=most, bits=16)


def _int8(kind: str, most: int | None = None, distance: str = "cosine", hand_over: str = "codes") -> Column:
    return Column(_INT8, kind, hand_over, distance, _INT8, most)


def _bits(kind: str, most: int | None = None, distance: str = "Hamming", hand_over: str = "codes") -> Column:
    return Column(_BITS, kind, hand_over, distance, _BITS, most)


STORES = {
    Store.FAISS: StoreFacts(
        "FAISS",
        "1.15.1",
        True,
        (
            _float("IndexFlatIP, IndexHNSWFlat", distance="inner product"),
            _half("IndexScalarQuantizer QT_fp16", distance="inner product"),
            Column(_INT8, "IndexScalarQuantizer", "reduce_index", "inner product"),
            Column(_INT4, "build_index", distance="inner product"),
            Column(_INT2, "build_index", distance="inner product"),
            Column(_BITS, "build_index", distance="inner product"),
            _bits("IndexBinaryFlat, IndexBinaryHNSW"),
        ),
        "PQ, OPQ, RaBitQ, residual and scalar quantisers, trained on a sample",
        ("https://github.com/facebookresearch/faiss/wiki/Faiss-indexes",),
    ),
    Store.QDRANT: StoreFacts(
        "Qdrant",
        "1.19 (Edge 0.9.0)",
        True,
        (
            _float("float32", 65_536),
            _half("float16", 65_536),
            _int8("uint8", 65_536, "Euclid", "codes + 128"),
        ),
        "Type turbo4: 4 bits on a rotated grid, no floats kept. Beside floats of any type, which stay on disk: scalar "
        "(int8), binary (1, 1.5 and 2 bits; queries of 4 or 8 bits), TurboQuant (1 to 8 bits), product",
        (
            "https://qdrant.tech/documentation/manage-data/vectors/",
            "https://qdrant.tech/documentation/manage-data/quantization/",
            "https://github.com/qdrant/landing_page/pull/2517",
        ),
    ),
    Store.PGVECTOR: StoreFacts(
        "pgvector",
        "0.8.5",
        True,
        (
            _float("vector", 2_000, "<=>"),
            _half("halfvec", 4_000, "<=>", "HalfVector(row)"),
            _bits("bit", 64_000, "<~>", "Bit(reduced > 0)"),
        ),
        "binary_quantize, an expression index of the signs",
        ("https://github.com/pgvector/pgvector#readme",),
    ),
    Store.ELASTICSEARCH: StoreFacts(
        "Elasticsearch",
        "9.3",
        False,
        (
            _float("float", 4_096),
            _half("bfloat16", 4_096),
            _int8("byte", 4_096),
            _bits("bit", 4_096, "l2_norm (Hamming)", "codes.view(int8)"),
        ),
        "int8, int4 (an even number of dimensions) and bbq (1 bit; 64 dimensions or more) indexes of float and "
        "bfloat16, which stay on disk; bbq takes queries of 4 bits",
        (
            "https://www.elastic.co/docs/reference/elasticsearch/mapping-reference/dense-vector",
            "https://github.com/elastic/elasticsearch/pull/138492",
        ),
    ),
    Store.OPENSEARCH: StoreFacts(
        "OpenSearch",
        "3.1",
        False,
        (
            _float("float", 16_000, "cosinesimil"),
            _int8("byte", 16_000, "cosinesimil"),
            _bits("binary", 16_000, "hamming", "codes.view(int8)"),
        ),
        "compression_level of float, which stays on disk: 2x (float16), 4x (int8), 8x, 16x, 32x (4, 2 and 1 bit); PQ",
        (
            "https://docs.opensearch.org/latest/mappings/supported-field-types/knn-memory-optimized/",
            "https://docs.opensearch.org/latest/vector-search/optimizing-storage/binary-quantization/",
        ),
    ),
    Store.LANCEDB: StoreFacts(
        "LanceDB",
        "0.40.0",
        True,
        (
            _float("fixed_size_list<float>"),
            _half("fixed_size_list<halffloat>"),
            _bits("fixed_size_list<uint8>"),
        ),
        "Indexes beside the column: IVF_PQ, IVF_SQ, IVF_RQ (RaBitQ, 1 bit), IVF_HNSW_SQ, IVF_HNSW_PQ",
        ("https://docs.lancedb.com/indexing/vector-index", "https://docs.lancedb.com/indexing/quantization"),
    ),
    Store.CHROMA: StoreFacts(
        "Chroma",
        "1.5.9",
        True,
        (_float("embedding"),),
        "None in the local index",
        ("https://docs.trychroma.com/docs/collections/configure",),
    ),
    Store.MILVUS: StoreFacts(
        "Milvus",
        "2.6",
        False,
        (
            _float("FLOAT_VECTOR", 32_768),
            _half("FLOAT16_VECTOR", 32_768),
            _int8("INT8_VECTOR, index HNSW", 32_768),
            _bits("BINARY_VECTOR", 32_768, "HAMMING", "row.tobytes()"),
        ),
        "IVF_SQ8, IVF_PQ, IVF_RABITQ, SCANN, HNSW_SQ, HNSW_PQ, HNSW_PRQ of float vectors",
        (
            "https://milvus.io/docs/schema.md",
            "https://milvus.io/docs/limitations.md",
            "https://milvus.io/docs/ivf-rabitq.md",
            "https://github.com/zilliztech/knowhere/pull/1059",
        ),
    ),
    Store.MILVUS_LITE: StoreFacts(
        "Milvus Lite",
        "3.2.2",
        True,
        (_float("FLOAT_VECTOR"),),
        "IVF_SQ8 and HNSW_SQ, beside the floats",
        ("https://milvus.io/docs/milvus_lite.md",),
    ),
    Store.SQLITE_VEC: StoreFacts(
        "sqlite-vec",
        "0.1.9",
        True,
        (
            _float("float[k]", 8_192, hand_over="row.tobytes()"),
            _int8("int8[k]", 8_192, hand_over="vec_int8(row.tobytes())"),
            _bits("bit[k]", 8_192, "Hamming", "vec_bit(row.tobytes())"),
        ),
        "vec_quantize_int8 and vec_quantize_binary, functions of a vector",
        ("https://alexgarcia.xyz/sqlite-vec/api-reference.html",),
    ),
    Store.USEARCH: StoreFacts(
        "USearch",
        "2.26.6",
        True,
        (_float("f32"), _half("f16"), _int8("i8"), _bits("b1")),
        "Floats given to an index of f16, bf16, i8 or b1 are cast",
        ("https://unum-cloud.github.io/USearch/python/index.html",),
    ),
    Store.DUCKDB: StoreFacts(
        "DuckDB",
        "2.0.0",
        True,
        (
            _float("FLOAT[k]", distance="array_cosine_distance"),
            _bits("BIT", distance="bit_count(xor())", hand_over="a string of bits"),
        ),
        "None; the vss extension has an HNSW index of FLOAT[k]. Codes of any precision are a BLOB for `search`",
        ("https://duckdb.org/docs/lts/core_extensions/vss",),
    ),
    Store.WEAVIATE: StoreFacts(
        "Weaviate",
        "1.33",
        False,
        (_float("vector"),),
        "RQ (8 bits and 1 bit, rotated), BQ, SQ and PQ, in RAM; the floats stay on disk",
        ("https://docs.weaviate.io/weaviate/concepts/vector-quantization",),
    ),
    Store.REDIS: StoreFacts(
        "Redis",
        "8.2",
        False,
        (
            _float("FLOAT32", None, "COSINE", "row.tobytes()"),
            _half("FLOAT16", None, "COSINE", "row.tobytes()"),
            _int8("INT8", None, "COSINE", "row.tobytes()"),
        ),
        "SVS-VAMANA with LVQ (4 and 8 bits) and LeanVec; vector sets: Q8 and BIN",
        (
            "https://redis.io/docs/latest/develop/ai/search-and-query/vectors/",
            "https://github.com/redis/docs/pull/2128",
            "https://redis.io/commands/VADD",
        ),
    ),
    Store.MONGODB: StoreFacts(
        "MongoDB",
        "8 (Vector Search)",
        False,
        (
            _float("BinData float32", 8_192),
            _int8("BinData int8", 8_192),
            _bits("BinData int1", 8_192, "euclidean (Hamming)", "Binary.from_vector(row, PACKED_BIT)"),
        ),
        "scalar (int8) and binary, in RAM; the floats stay on disk and rescore",
        ("https://www.mongodb.com/docs/vector-search/about/vector-quantization/",),
    ),
    Store.VESPA: StoreFacts(
        "Vespa",
        "8",
        False,
        (
            _float("tensor<float>(x[k])", distance="angular"),
            _half("tensor<bfloat16>(x[k])", distance="angular"),
            _int8("tensor<int8>(x[k])", distance="angular"),
            _bits("tensor<int8>(x[k/8])", distance="hamming", hand_over="codes.view(int8)"),
        ),
        "None on its own; pack_bits and binarize while indexing, unpack_bits to rank bits by a float query",
        (
            "https://docs.vespa.ai/en/nearest-neighbor-search",
            "https://docs.vespa.ai/en/binarizing-vectors.html",
        ),
    ),
}
