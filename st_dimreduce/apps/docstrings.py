"""Retrieval corpus made of the docstrings of installed packages, without a download.

A docstring's first sentence is the query, the prose below it is the relevant document. There are thousands of such
pairs, written by people, on every machine that runs this package.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from st_dimreduce.errors import UserError
from st_dimreduce.progress import progress_bar

PACKAGES = ("numpy", "scipy", "sklearn", "torch", "networkx")

# A section title over a rule (numpydoc), a bare "Args:" (Google style), a field list (":param x:") or a prompt
# ends the prose: names and types follow, not sentences.
_END_OF_PROSE = re.compile(r"^\s*(\S.*\n\s*[-=~]{3,}\s*$|[A-Z]\w*( \w+)?:\s*$|:\w+|>>>|\.\. \w+)", re.MULTILINE)
_FIRST_SENTENCE = re.compile(r"(.+?(?:[.!?](?=\s|$)|\n\s*\n|$))(.*)", re.DOTALL)
_MIN_WORDS_QUERY, _MIN_WORDS_DOCUMENT = 3, 8


def docstring_pairs(count: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """Collect (query, document) pairs from the docstrings of numpy, scipy, scikit-learn, torch and networkx.

    Source files are parsed, never imported. A sentence or document that occurs twice is left out, so that each query
    has exactly one relevant document.

    Args:
        count: Number of pairs to draw; all pairs, in random order, if None (the default).
        seed: Seed of the draw and the order. Defaults to 0.

    Returns:
        List of (first sentence, prose below it).

    Raises:
        ValueError: If ``count`` is less than 1, or greater than the number of pairs.
    """
    pairs = _unambiguous_pairs()
    if count is not None and not 1 <= count <= len(pairs):
        raise UserError(
            f"{count} docstring pairs were asked for: choose 1 to {len(pairs)}, those of the installed packages"
        )
    return random.Random(seed).sample(pairs, len(pairs) if count is None else count)  # noqa: S311, no secret


@cache
def _unambiguous_pairs() -> list[tuple[str, str]]:
    packages = progress_bar("Reading", "packages", PACKAGES)
    pairs = {pair for name in packages for pair in package_pairs(name)}
    queries = Counter(query for query, _ in pairs)
    documents = Counter(document for _, document in pairs)
    return sorted(pair for pair in pairs if queries[pair[0]] == 1 and documents[pair[1]] == 1)


def package_pairs(name: str) -> Iterator[tuple[str, str]]:
    """Yield the (first sentence, prose below it) of every docstring of one package; nothing if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.relative_to(root).parts:
            continue
        try:
            tree = _parse(path.read_bytes())
        except SyntaxError:  # a package may ship a file written for a newer Python
            continue
        for node in _definitions(tree):
            pair = _split(ast.get_docstring(node) or "")
            if pair:
                yield pair


def _parse(source: bytes) -> ast.Module:
    """Parse with the garbage collector off: a tree has no cycles, and a collection visits every imported object."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(source)
    finally:
        if collecting:
            gc.enable()


def _definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every class and function in a tree, without visiting expressions, which hold none."""
    for statements in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, statements, ()):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child
            yield from _definitions(child)


def _split(docstring: str) -> tuple[str, str] | None:
    match = _FIRST_SENTENCE.match(docstring)
    if match is None:
        return None
    query, rest = match.groups()
    end = _END_OF_PROSE.search(rest)
    document = rest[: end.start()] if end else rest
    query, document = " ".join(query.split()), " ".join(document.split())
    if len(query.split()) < _MIN_WORDS_QUERY or len(document.split()) < _MIN_WORDS_DOCUMENT:
        return None
    return query, document
