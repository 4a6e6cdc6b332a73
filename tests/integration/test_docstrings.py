"""The corpus of docstrings, from the packages that are installed."""

from __future__ import annotations

import pytest

from st_dimreduce.apps.docstrings import docstring_pairs


def test_docstring_pairs():
    pairs = docstring_pairs(300, seed=1)
    assert pairs == docstring_pairs(300, seed=1)
    assert pairs != docstring_pairs(300, seed=2)
    queries, documents = zip(*pairs, strict=True)
    assert len(set(queries)) == len(set(documents)) == 300
    assert not any(query in document for query, document in pairs), "a query that stands in its document is no question"
    assert not any("Parameters ---" in document or ">>>" in document for document in documents)
    assert len(docstring_pairs()) > 5000
    with pytest.raises(ValueError, match="0 docstring pairs were asked for"):
        docstring_pairs(0)
