"""The page of what each vector store holds: docs/stores.md, printed from the facts that ``store=`` reads.

python -m benchmarks.store_types
"""

from __future__ import annotations

from benchmarks.printing import paragraph, table, write
from st_dimreduce.codes.stores import STORES, Column, StoreFacts
from st_dimreduce.enums import Precision

INTRO = """
    A byte budget, or a share to keep, takes the precision that finds most when our own `search` reads the codes. A
    vector store reads fewer. With `store="pgvector"` (`--store pgvector`), only the types that the store searches by
    itself are considered, each measured as the store will search it: by queries in codes, where it takes no others."""
CODE = """```bash
st-dimreduce fit vectors.parquet --bytes 128 --store pgvector --output head
```

```python
from st_dimreduce import Head, Size, reduce_model
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.vectors.fit import summarize

head = Head.fit("vectors.npy", bytes_per_vector=128, store="pgvector")
head.precision  # what to store; head.record.choice names the type and what else was measured
```"""
RULES = [
    """`codes` in the table are `quantize(head.transform(vectors), precision)`, or what `apply` wrote. Queries are
    reduced by the same head and given in the precision of the column "queries": `quantize(query, "int8")` and so on;
    "float32" also takes unnormalised queries where the distance is a cosine.""",
    """Types of 16 bits are not a precision of ours: they hold `float32` codes in two bytes per dimension, and the store
    casts them. Of a unit vector that loses nothing that could be measured, so a budget for a store that has such a type
    counts two bytes. `apply` still writes four.""",
    """`binary` codes are `numpy.packbits(reduced > 0)`: k bits, filled up to whole bytes with zeros, which change no
    Hamming distance. Where a store asks for a multiple of 8, it is 8 times the bytes of a code.""",
    """`int8` codes have nearly, not exactly, the same norm: take the cosine where a store has it. Qdrant's `uint8` has
    no sign, so 128 is added to codes and queries, and the Euclidean distance, which does not see it, gives nearly the
    order of the cosines.""",
    """A store's own quantiser gets `float32` codes: reduced vectors are quantised like any others, and where the floats
    stay on disk they are smaller too.""",
]
CHOICE = [
    "A type for `int8`: as many dimensions as bytes. 128 of them find no less than the full float32 vectors.",
    """Bits and no bytes (pgvector, LanceDB, DuckDB): as many dimensions as the base model has, a bit each. With reduced
    vectors as 16-bit floats beside the bits, in a column that no index reads, one query takes 200 candidates by their
    bits and orders them by the floats: that finds no less than the full vectors.""",
    """Qdrant: the type `turbo4`, of float32 codes of twice as many dimensions as bytes. No floats are kept, and in
    three of four cases it finds more than `uint8` in the same bytes. `store="qdrant"` does not propose it: its codes
    are Qdrant's own.""",
    "FAISS: `int4` and `int2` in the index of `build_index`.",
    """Floats only (Chroma, Milvus Lite, Weaviate): 128 dimensions, and the store's own quantiser, if it has one, on
    them.""",
]

MIGRATE = """<!-- not run: the reader's own database; guides/pgvector.md makes one, and its commands are these -->
```bash
pip install 'st_dimreduce[databases]'
st-dimreduce migrate postgresql://localhost/shop --table documents --head head --bytes 256 --dry-run
st-dimreduce migrate postgresql://localhost/shop --table documents --head head --bytes 256
```"""
MIGRATION = [
    """The first line says what would be done, the second does it: where the folder `head` does not exist, a head is
    fitted on up to 50,000 of the vectors and saved there; then each vector is reduced, and written beside the
    full one. At the end stand the bytes before and after, the overlap@10 by exact search, and the index and the
    query to paste.""",
    """After an interruption the same command continues, and later it reduces what was added. Where a full vector is
    changed, empty its codes in the same statement: the next call fills them again.""",
]
PLACES = [
    """**pgvector.** `postgresql://user@host/database`. Codes go into a new column of the table (`--to NAME`; by
    default `embedding_reduced` beside `embedding`) of type `halfvec` or `bit`. If the table has an index of
    vectors, every row that changes is entered there anew, which takes many times as long: take a table of its
    own then, `--to documents_reduced.embedding`, whose rows go with those of the documents. Rows are locked for
    the time of their batch. Leave the password out of the command, where other users can see it: `PGPASSWORD`
    and `~/.pgpass` are read.""",
    """**Qdrant.** `http://host:6333`, with the key in `QDRANT_API_KEY`, or the folder of the client's local mode.
    Codes go into a new collection (`--to`) under the same ids, of type `float16` or `uint8`, and payloads are
    copied. Indexes of payloads and other vectors of the points are not: make them there. A named vector is
    chosen by `--column`.""",
    """**DuckDB.** A file. Codes go into a new table (`--to`) with the same ids: `FLOAT[k]`, `BIT`, or a `BLOB` of
    int8, int4 or int2 codes that `search` reads.""",
]
ALREADY = """
    `--precision` chooses among the types. Codes of two heads never meet: another head, or another type, is refused
    where codes are. For a new head give another `--to`, and switch when it is full: searches go on in the old
    codes. The full vectors are never changed; drop them yourself when you are sure, or keep them on disk for the
    next head."""


def row(facts: StoreFacts, column: Column) -> list[str]:
    """Return the cells of a type."""
    query = "float32" if column.query is Precision.FLOAT32 else f"{column.query.value} codes"
    most = f"{column.most:,}" if column.most else ""
    cells = [facts.name, column.precision.value, f"`{column.type}`", f"`{column.hand_over}`", column.distance, query]
    return [*cells, f"{column.bits}", most]


def page() -> list[str]:
    """Return the blocks of the page."""
    head = ["store", "precision", "type", "give it", "distance", "queries", "bits", "dimensions at most"]
    types = [row(facts, column) for facts in STORES.values() for column in facts.columns]
    quantisers = [
        [
            f"{facts.name} (`{store.value}`)",
            facts.version,
            "yes" if facts.tested else "no",
            facts.quantisers,
            ", ".join(f"[{number}]({source})" for number, source in enumerate(facts.sources, 1)),
        ]
        for store, facts in STORES.items()
    ]
    return [
        "# Stores",
        paragraph(INTRO),
        CODE,
        "## What each store searches by itself",
        paragraph("Bits are those of a dimension; the last column is empty where no limit is documented."),
        table(head, types, left=6),
        *map(paragraph, RULES),
        "## Which to take",
        paragraph("What each finds is in `benchmarks/STORES.md`, with the bytes searched and on disk."),
        "\n".join(paragraph(f"- {line}").replace("\n", "\n  ") for line in CHOICE),
        "## Migrate a database",
        MIGRATE,
        *map(paragraph, MIGRATION),
        "\n".join(paragraph(f"- {line}").replace("\n", "\n  ") for line in PLACES),
        paragraph(ALREADY),
        "## What each store can do to floats",
        paragraph(
            "Tested: the tests store vectors there and search them. The others were not run here: their rows follow "
            "their documentation."
        ),
        table(["store", "version", "tested", "its own quantisers", "sources"], quantisers, left=5),
    ]


if __name__ == "__main__":
    write("../docs/stores.md", page())
