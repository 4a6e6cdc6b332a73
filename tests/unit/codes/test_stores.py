"""The types of the vector stores: what the code reads, and the page that shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from st_dimreduce import Precision
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.stores import Column, all_columns, columns_of
from st_dimreduce.enums import Store

PAGE = Path("docs/stores.md")


def tables():
    """The rows of each table of the page, as lists of cells, without head and rule."""
    found = [[]]
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [rows[2:] for rows in found if rows]


def test_the_page_shows_the_types_that_the_code_reads():
    types, quantisers = tables()
    stores = {name.split(" (")[0]: Store(name.split("`")[1]) for name, *_ in quantisers}
    shown = {store: [] for store in Store}
    for name, precision, kind, _, _, queries, bits, limit in types:
        query, most = Precision(queries.removesuffix(" codes")), int(limit.replace(",", "")) if limit else None
        shown[stores[name]].append(Column(Precision(precision), kind.strip("`"), query, int(bits), most))
    assert {store: tuple(columns) for store, columns in shown.items()} == all_columns()


@pytest.mark.parametrize("row", tables()[1], ids=lambda row: row[0])
def test_every_store_has_a_version_and_sources(row):
    _, version, tested, quantisers, sources = row
    assert version
    assert tested in ("yes", "no")
    assert quantisers
    assert sources.startswith("[1](https://")


@pytest.mark.parametrize("store", Store)
def test_every_store_has_types(store):
    columns = all_columns()[store]
    assert columns[0].precision is Precision.FLOAT32  # every store takes floats
    for column in columns:
        assert column.query in (Precision.FLOAT32, column.precision)
        assert column.bits in (column.precision.bits, 16)
        assert column.precision is Precision.FLOAT32 or column.bits == column.precision.bits


@pytest.mark.parametrize("store", Store)
def test_the_bytes_are_those_of_the_codes(store):
    vectors = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)
    for column in all_columns()[store]:
        codes = quantize(vectors, column.precision)
        halved = 2 if column.bits == 16 else 1
        assert column.bytes_per_vector(100) * halved == codes[0].nbytes


def test_of_each_precision_the_smallest_type_is_chosen_from():
    def types(store):
        return {column.precision.value: column.type for column in columns_of(store)}

    assert types(Store.PGVECTOR) == {"float32": "halfvec", "binary": "bit"}
    assert types(Store.CHROMA) == {"float32": "embedding"}
    assert [column.query for column in columns_of(Store.FAISS)] == [Precision.FLOAT32] * len(Precision)
