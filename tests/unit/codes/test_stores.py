"""The types of the vector stores: one table for the code and for readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.store_types import page
from st_dimreduce import Precision, quantize
from st_dimreduce.codes.stores import STORES, columns_of
from st_dimreduce.enums import Store


def test_the_page_is_the_table_that_the_code_reads():
    assert Path("docs/stores.md").read_text(encoding="utf-8") == "\n\n".join(page()) + "\n", (
        "print it anew: python -m benchmarks.store_types"
    )


@pytest.mark.parametrize("store", Store)
def test_every_store_has_types_and_sources(store):
    facts = STORES[store]
    assert facts.columns[0].precision is Precision.FLOAT32  # every store takes floats
    assert facts.version
    assert facts.sources
    assert all(source.startswith("https://") for source in facts.sources)
    for column in facts.columns:
        assert column.query in (Precision.FLOAT32, column.precision)
        assert column.bits in (column.precision.bits, 16)
        assert column.precision is Precision.FLOAT32 or column.bits == column.precision.bits


@pytest.mark.parametrize("store", Store)
def test_the_bytes_are_those_of_the_codes(store):
    vectors = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)
    for column in STORES[store].columns:
        codes = quantize(vectors, column.precision)
        halved = 2 if column.bits == 16 else 1
        assert column.bytes_per_vector(100) * halved == codes[0].nbytes


def test_of_each_precision_the_smallest_type_is_chosen_from():
    def types(store):
        return {column.precision.value: column.type for column in columns_of(store)}

    assert types(Store.PGVECTOR) == {"float32": "halfvec", "binary": "bit"}
    assert types(Store.CHROMA) == {"float32": "embedding"}
    assert [column.query for column in columns_of(Store.FAISS)] == [Precision.FLOAT32] * len(Precision)
