"""An index of codes: a standard FAISS index in FAISS's own file, with a small JSON beside it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st_dimreduce.codes.codes import Codes
from st_dimreduce.codes.origin import INDEX_FILE, Origin
from st_dimreduce.codes.rows import as_count, scale_rows
from st_dimreduce.codes.search import decode, unit_queries
from st_dimreduce.enums import Kind
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_folder, write_json
from st_dimreduce.progress import progress_bar
from st_dimreduce.untrusted import read_json, read_object, short
from st_dimreduce.vectors.inverted_file import Lists, codebook, faiss, new_index, pad, to_faiss, train_centroids

if TYPE_CHECKING:
    from torch import Tensor

_FAISS_FILE, _NAMES_FILE = "index.faiss", "ids.json"
_FORMAT = "st_dimreduce.index.2"
_MOST_NAMES = 1 << 36  # bytes of the file of string ids
_LARGEST_ID = 2**63 - 1
_LARGEST_SEED = 2**31 - 1  # that FAISS takes

_FEWEST_ROWS = 1000  # for more than one cell
_ADDED = 1 << 14  # codes at a time
_RESCORED = 1 << 20  # candidates at a time
_SCORED_ALL = 1000  # codes, up to which all of them are scored
_FILTERED_ALL = 20_000  # documents of a filter, likewise

_DEPTHS = (10, 100)  # results for which recall is measured
_SAMPLE = 256  # documents that recall is measured with
_LIKENESS = np.float32(0.6)  # cosine of a question and the code of the document that it is about
_FACTORS = (1, 2, 4, 8, 16, 32, 64)  # candidates per result
_ENOUGH = 0.9995  # recall that more candidates or cells hardly raise
_ROUNDING = np.float32(1e-6)  # of a cosine
_GROWN, _SHRUNK = 3 / 2, 2 / 3  # of the size at which recall was measured


@dataclass(frozen=True)
class Measured:
    """Recall of an index against exact search, which :meth:`Index.search` chooses by.

    Attributes:
        vectors: Number of vectors when it was measured.
        candidates: Candidates per result that are rescored.
        cells: Numbers of cells looked into (FAISS's ``nprobe``), ascending.
        recalls: By the number of results, ``"10"`` and ``"100"``, the recall at each number of cells.
    """

    vectors: int
    candidates: int
    cells: tuple[int, ...]
    recalls: dict[str, tuple[float, ...]]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Measured:
        """Read what :func:`dataclasses.asdict` wrote to JSON."""
        recalls = {str(depth): tuple(map(float, content["recalls"][str(depth)])) for depth in _DEPTHS}
        cells = tuple(map(int, content["cells"]))
        if any(len(each) != len(cells) for each in recalls.values()) or min(cells, default=1) < 1:
            raise UserError("recalls do not fit cells")
        return cls(int(content["vectors"]), as_count(content["candidates"], "candidates", "at least 1"), cells, recalls)

    def cells_for(self, recall: float, k: int) -> int | None:
        """Return the least number of cells that reaches a recall for k results; None where none does.

        More results than were measured take more cells in proportion.
        """
        depth = next((depth for depth in _DEPTHS if depth >= k), _DEPTHS[-1])
        reached = zip(self.cells, self.recalls[str(depth)], strict=True)
        cells = next((cells for cells, share in reached if share >= recall), None)
        return cells if cells is None else math.ceil(cells * max(k / depth, 1))


class Index:
    """Codes that are searched without scoring all of them, and the ids of their documents.

    FAISS looks into the cells nearest to a query and proposes candidates. These are then scored as
    :meth:`st_dimreduce.Codes.search` scores them, from the codes in FAISS's lists. The index is in memory: its codes
    and 16 to 24 bytes per vector more. Several threads may search it, but not while it is changed.

    :meth:`build` and :meth:`load` make one.

    Attributes:
        kind: ``"ivf"`` or ``"flat"``.
        origin: Precision, dimensions and head of the codes.
        measured: Recall by the number of cells looked into.
    """

    def __init__(
        self,
        index: Any,
        kind: Kind,
        origin: Origin,
        measured: Measured,
        names: list[str] | None = None,
        next_id: int = 0,
    ) -> None:
        self.kind, self.origin, self.measured = kind, origin, measured
        self._index, self._lists = index, Lists(index, origin)
        self._next_id = max(next_id, int(self._lists.ids.max(initial=-1)) + 1)
        self._names = None if names is None else np.array(names, object)  # of the ascending ids
        self._numbers = None if names is None else dict(zip(names, self._lists.ids.tolist(), strict=True))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def __reduce__(self) -> tuple[Any, ...]:  # FAISS pickles its part itself
        names = None if self._names is None else self._names.tolist()
        return Index, (self._index, self.kind, self.origin, self.measured, names, self._next_id)

    @property
    def has_names(self) -> bool:
        """Whether its ids are strings."""
        return self._names is not None

    def __repr__(self) -> str:
        stored = f"{len(self):,} x {self.origin.out_features} {self.origin.precision.value}"
        return f"Index({self.kind.value}, {stored}, cells: {self._index.nlist:,})"

    @classmethod
    def build(
        cls,
        codes: Codes,
        ids: Iterable[int] | Iterable[str] | None = None,
        kind: Kind | str = Kind.IVF,
        *,
        cells: int | None = None,
        seed: int = 0,
    ) -> Index:
        """Build an index of codes, and measure its recall.

        Args:
            codes: Codes of n documents, such as :meth:`st_dimreduce.Head.encode` or
                :meth:`st_dimreduce.Codes.load` returns; they may be memory-mapped.
            ids: n integers from 0 to 2^63 - 1, or n strings. Defaults to None: row numbers. Strings take about 150
                bytes of memory each.
            kind: ``"ivf"``, an inverted file; or ``"flat"``, which scans every code. Defaults to ``"ivf"``.
            cells: Cells of the inverted file. Defaults to None: a power of two near 1.3 times the square root of n.
            seed: Seed of the k-means and of the sample that recall is measured with. Defaults to 0.

        Raises:
            MissingExtraError: If FAISS is missing.
            UserError: If there are no codes, more cells than codes, or ids repeat or are of another number or type.
        """
        kind = Kind(kind)
        if not isinstance(codes, Codes) or not len(codes):
            given = "no code" if isinstance(codes, Codes) else f"codes of type {type(codes).__name__}"
            raise UserError(f"{given} to index: give at least one, as head.encode(vectors) or Codes.load(path) does")
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < _LARGEST_SEED:
            raise UserError(f"seed={seed}: choose a whole number from 0 to {_LARGEST_SEED - 1}")
        if kind is Kind.FLAT and cells is not None:
            raise UserError(f"cells={cells}: a flat index has one, leave it out or choose kind='ivf'")
        if cells is None:
            cells = 1 if kind is Kind.FLAT else _usual_cells(len(codes))
        if as_count(cells, "cells", "choose at least 1") > len(codes):
            raise UserError(f"cells={cells}: choose at most {len(codes):,}, the number of codes")
        centroids = train_centroids(codes, int(cells), int(seed))
        index = cls(new_index(codes.origin, centroids), kind, codes.origin, Measured(0, 1, (), {}))
        index._insert(codes, *index._new_ids(ids, len(codes)))
        index.measure(seed=int(seed))
        return index

    def search(
        self,
        queries: np.ndarray | Tensor,
        k: int = 10,
        recall: float = 0.95,
        ids: Iterable[int] | Iterable[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the documents nearest to each query.

        Args:
            queries: Float array or tensor of shape (q, out_features), of any norm: from
                :meth:`st_dimreduce.Head.transform`, or encoded by the reduced model.
            k: Results per query; fewer where there are fewer documents. Defaults to 10.
            recall: Share of what exact search finds that should be found, over 0 and at most 1. As many cells are
                looked into as that took when recall was measured. 1 scores every code, and so does a share that no
                number of cells reached. Defaults to 0.95.
            ids: Search these documents only; ids that are not in the index are ignored. Defaults to None: all.

        Returns:
            Cosines, float32, and ids, int64 or strings in an array of objects, both of shape (q, min(k, documents)),
            the nearest first.

        Raises:
            UserError: If the queries are not of the index's dimensions or hold NaN or infinity, ``k`` is less than 1,
                or ``recall`` is not over 0 and at most 1.
        """
        unit = self._unit(queries, k)
        if not isinstance(recall, (int, float, np.number)) or not 0 < recall <= 1:
            raise UserError(f"recall={recall}: choose a share over 0 and at most 1, such as 0.95")
        ranks = None if ids is None else self._known_ranks(ids)
        searched = len(self) if ranks is None else len(ranks)
        k = min(int(k), searched)
        cells = self.measured.cells_for(recall, k) if recall < 1 else None
        few = searched <= (_SCORED_ALL if ranks is None else _FILTERED_ALL)
        if cells is None or few or self.measured.candidates * k >= searched:
            scores, found = self._lists.search(unit, k, ranks)
        else:
            cells = math.ceil(cells * len(self) / searched)  # as many allowed codes as without a filter
            selector = None if ranks is None else faiss.IDSelectorBatch(self._lists.ids[ranks])
            scores, found = self._best(unit, k, cells, selector)
            # The cells may hold fewer than k codes, and FAISS's fast scan leaves out those of the lowest score.
            missed = np.flatnonzero((found < 0).any(axis=1))
            if len(missed):
                scores[missed], found[missed] = self._lists.search(unit[missed], k, ranks)
        if self._names is None:
            return scores, found
        return scores, self._names[self._lists.ranks(found)]

    def add(self, codes: Codes, ids: Iterable[int] | Iterable[str] | None = None) -> None:
        """Add codes of the same head; thousands at a time, as every call looks through the index.

        Recall is measured again once the index has grown by half.

        Args:
            codes: n codes.
            ids: n integers from 0 to 2^63 - 1, or n strings where the index holds strings. Defaults to None: the
                numbers after the largest that the index ever held.

        Raises:
            UserError: If the codes are of another head, precision or dimension, or ids repeat, are in the index
                already, or are of another number or type.
        """
        if not isinstance(codes, Codes):
            raise UserError(f"codes are of type {type(codes).__name__}: expected Codes, as head.encode(vectors) gives")
        own, given = self.origin, codes.origin
        if (given.precision, given.out_features) != (own.precision, own.out_features):
            stored = [f"{each.out_features} dimensions in {each.precision.value}" for each in (given, own)]
            raise UserError(f"codes have {stored[0]}: the index holds {stored[1]}")
        if given.head is not None:
            own.check(given.head, "the index")
        self._insert(codes, *self._new_ids(ids, len(codes)))
        self._measure_changed()

    def remove(self, ids: Iterable[int] | Iterable[str]) -> None:
        """Remove documents; thousands at a time, as every call looks through the index.

        Recall is measured again once the index has lost a third.

        Args:
            ids: Their ids.

        Raises:
            UserError: If an id is not in the index; nothing is removed then.
        """
        given = _listed(ids)
        numbers = self._known_numbers(given)
        missing = np.flatnonzero(~self._lists.contains(numbers))
        if len(missing):
            first = int(numbers[missing[0]]) if self._names is None else given[missing[0]]
            rest = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
            raise UserError(f"id {first!r:.99}{rest} is not in the index: remove what it holds")
        if not len(numbers):
            return
        gone = self._lists.ranks(numbers)
        self._index.remove_ids(faiss.IDSelectorBatch(numbers))
        if self._names is not None and self._numbers is not None:
            for name in set(given):
                del self._numbers[name]
            self._names = np.delete(self._names, gone)
        self._lists = Lists(self._index, self.origin)
        self._measure_changed()

    def measure(self, queries: np.ndarray | Tensor | None = None, *, seed: int = 0) -> None:
        """Measure the recall at 10 and 100 results against exact search, by the number of cells looked into.

        :meth:`build`, :meth:`add` and :meth:`remove` do so with vectors made from a sample of the documents. Real
        queries tell better.

        Args:
            queries: Typical queries as in :meth:`search`, some hundreds. Defaults to None: 256 vectors at a cosine of
                0.6 to the code of a document each, in random directions; that document does not count as found.
            seed: Seed of the sample. Defaults to 0.

        Raises:
            UserError: As :meth:`search`, or if the queries are empty.
        """
        own = None
        if queries is None:
            unit, own = self._sample(seed)
        else:
            unit = self._unit(queries, 1)
            if not len(unit):
                raise UserError("there are no queries: give some hundreds, or none to measure with documents")
        itself = int(own is not None)  # which is found beside the results that count
        others = len(self) - itself
        if others < 1:
            self.measured = Measured(len(self), 1, (), {str(depth): () for depth in _DEPTHS})
            return
        scores = _other_scores(*self._lists.search(unit, min(_DEPTHS[-1] + itself, len(self))), own)
        # The least score that counts as found: one of two equal codes is as good as the other.
        least = {depth: scores[:, min(depth, others) - 1] - _ROUNDING for depth in _DEPTHS}

        def share(proposed: np.ndarray, depth: int) -> float:
            found = (proposed >= least[depth][:, None]).sum(axis=1)
            return float(np.minimum(found / min(depth, others), 1).mean())

        depth, most = _DEPTHS[0], self._index.nlist
        proposed = _other_scores(*self._candidates(unit, _FACTORS[-1] * (depth + itself), most), own, in_order=True)
        enough = (factor for factor in _FACTORS if share(proposed[:, : factor * (depth + itself)], depth) >= _ENOUGH)
        factor = next(enough, _FACTORS[-1])
        cells: list[int] = []
        recalls: dict[str, list[float]] = {str(depth): [] for depth in _DEPTHS}
        steps = sorted({round(2 ** (step / 2)) for step in range(2 * most.bit_length())} | {most})
        for count in (step for step in steps if step <= most):
            cells.append(count)
            for depth in _DEPTHS:
                proposed = _other_scores(*self._candidates(unit, factor * (depth + itself), count), own)
                recalls[str(depth)].append(round(share(proposed, depth), 4))
            if min(each[-1] for each in recalls.values()) >= _ENOUGH:
                break
        self.measured = Measured(len(self), factor, tuple(cells), {name: tuple(each) for name, each in recalls.items()})

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the index to a folder, which appears when it is complete.

        ``index.faiss`` is a plain FAISS file, which ``faiss.read_index`` reads without this package, and ``index.json``
        says what the codes are. String ids are in ``ids.json``, by ascending numbers of FAISS.

        Args:
            path: The folder.
            overwrite: Replace an index that is there. Defaults to False.

        Raises:
            FileExistsError: If ``path`` exists and ``overwrite`` is False, or holds no index.
            OSError: If the disk is full.
        """
        with new_folder(path, overwrite, marker=INDEX_FILE) as folder:
            try:
                faiss.write_index(self._index, str(folder / _FAISS_FILE))
            except RuntimeError as error:
                raise OSError(f"{path} could not be written ({' '.join(str(error).split())})") from error
            if self._names is not None:
                write_json(folder / _NAMES_FILE, self._names.tolist())
            about = {"format": _FORMAT, "kind": self.kind.value, **self.origin.to_dict(), "vectors": len(self)}
            more = {"named": self.has_names, "next_id": self._next_id, "measured": asdict(self.measured)}
            write_json(folder / INDEX_FILE, about | more)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Index:
        """Read an index that :meth:`save` wrote. FAISS reads its file: load only what you trust.

        Raises:
            FileNotFoundError: If there is no such folder.
            MissingExtraError: If FAISS is missing.
            UserError: If it holds no index, or its files are damaged or do not fit one another.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: give one that Index.save or st-dimreduce index build wrote")
        if not (folder / INDEX_FILE).is_file():
            raise UserError(f"{folder} holds no {INDEX_FILE}: give a folder that Index.save wrote")
        about = read_object(folder / INDEX_FILE)
        if about.get("format") != _FORMAT:
            raise UserError(f"{folder} is of format {short(about.get('format'))}, not {_FORMAT}: build it again")
        try:
            names = read_json(folder / _NAMES_FILE, _MOST_NAMES) if about["named"] else None
            if names is not None and names != [] and not (isinstance(names, list) and _are_names(names)):
                raise UserError(f"{_NAMES_FILE} is not a list of strings")
            origin = Origin.read(about, folder / INDEX_FILE)
            if origin is None:
                raise UserError(f"{INDEX_FILE} names no precision")
            index = faiss.read_index(str(folder / _FAISS_FILE))
            expected = new_index(origin, np.zeros((1, origin.out_features), np.float32))
            alike = type(index) is type(expected) and index.d == expected.d
            alike = alike and np.array_equal(codebook(index), codebook(expected))
            if not alike or index.ntotal != about["vectors"]:
                raise UserError(f"{_FAISS_FILE} is another index than {INDEX_FILE} says")
            return cls(
                index, Kind(about["kind"]), origin, Measured.from_dict(about["measured"]), names, int(about["next_id"])
            )
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} holds a damaged index: build it again, or copy it anew ({reason})") from error

    def _unit(self, queries: Any, k: int) -> np.ndarray:
        unit = unit_queries(queries, k)
        if unit.shape[1] != self.origin.out_features:
            expected = f"{self.origin.out_features}: encode them with the reduced model, or transform them by its head"
            raise UserError(f"queries have {unit.shape[1]} dimensions, expected {expected}")
        return unit

    def _new_ids(self, ids: Any, count: int) -> tuple[np.ndarray, list[str] | None]:
        """Return numbers that are new to the index for so many codes, and their names where these were given."""
        if ids is None:
            if self._names is not None:
                raise UserError("no ids: the index holds strings, give one per code")
            if self._next_id + count - 1 > _LARGEST_ID:
                raise UserError(f"no numbers are left after {self._next_id - 1:,}: give ids")
            return np.arange(self._next_id, self._next_id + count), None
        given = _listed(ids)
        if len(given) != count:
            raise UserError(f"{len(given):,} ids for {count:,} codes: give one per code")
        named = _are_names(given)
        if count and self._next_id and named != (self._names is not None):
            kinds = ("strings", "integers") if named else ("integers", "strings")
            raise UserError(f"ids are {kinds[0]}: the index holds {kinds[1]}")
        if named:
            known = self._numbers or {}
            _check_new([name for name in given if name in known], given)
            return np.arange(self._next_id, self._next_id + count), list(given)
        numbers = _as_numbers(given)
        _check_new(numbers[self._lists.contains(numbers)], numbers)
        return numbers, None

    def _known_numbers(self, ids: Any) -> np.ndarray:
        """Return FAISS's numbers of ids, -1 for names that the index does not hold."""
        given = _listed(ids)
        if len(given) and _are_names(given) != (self._names is not None):
            kind = "integers" if self._names is None else "strings"
            raise UserError(f"id {given[0]!r:.99} is of another type: the index holds {kind}")
        if self._numbers is not None:
            return np.array([self._numbers.get(name, -1) for name in given], np.int64)
        return _as_numbers(given)

    def _known_ranks(self, ids: Any) -> np.ndarray:
        numbers = self._known_numbers(ids)
        return self._lists.ranks(np.unique(numbers[self._lists.contains(numbers)]))

    def _insert(self, codes: Codes, numbers: np.ndarray, names: list[str] | None) -> None:
        before = len(self)
        try:
            with progress_bar("Indexing", "vectors", total=len(codes)) as bar:
                for start in range(0, len(codes), _ADDED):
                    some = codes.values[start : start + _ADDED]
                    self._index.add_with_ids(to_faiss(some, self.origin), numbers[start : start + _ADDED])
                    bar.update(len(some))
        finally:  # what was added before an interruption stays, with its ids
            done = len(self) - before
            self._lists = Lists(self._index, self.origin)
            if names is not None:
                old = np.empty(0, object) if self._names is None else self._names
                self._names = np.concatenate([old, np.array(names[:done], object)])
                self._numbers = {**(self._numbers or {}), **dict(zip(names, numbers[:done].tolist(), strict=False))}
            self._next_id = max(self._next_id, int(numbers[:done].max(initial=-1)) + 1)

    def _measure_changed(self) -> None:
        if not _SHRUNK * self.measured.vectors < len(self) < _GROWN * self.measured.vectors:
            self.measure()

    def _sample(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors that lie to documents as questions do, of norm 1, and the ids of these documents."""
        rng = np.random.default_rng(seed)
        ranks = np.sort(rng.choice(len(self), min(_SAMPLE, len(self)), replace=False))
        rows, inverse = decode(self._lists.codes(ranks), self.origin.precision, self.origin.out_features)
        noise = scale_rows(rng.standard_normal(rows.shape, np.float32))
        near = _LIKENESS * inverse[:, None] * rows + np.sqrt(1 - _LIKENESS**2) * noise
        return scale_rows(near), self._lists.ids[ranks]

    def _best(self, unit: np.ndarray, k: int, cells: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the best of the candidates: scores and FAISS's numbers, (q, k); -inf and -1 where there are fewer."""
        scores, found = np.empty((len(unit), k), np.float32), np.empty((len(unit), k), np.int64)
        count = self.measured.candidates * k
        step = max(_RESCORED // count, 1)
        for start in range(0, len(unit), step):
            rows = slice(start, start + step)
            proposed, numbers = self._candidates(unit[rows], count, cells, selector)
            order = np.argsort(-proposed, axis=1, kind="stable")[:, :k]
            scores[rows], found[rows] = (np.take_along_axis(each, order, axis=1) for each in (proposed, numbers))
        return scores, found

    def _candidates(
        self, unit: np.ndarray, count: int, cells: int, selector: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what FAISS proposes, in its order: cosines and numbers, (q, count); -inf and -1 where it has fewer."""
        count = min(count, len(self))
        parameters = faiss.SearchParametersIVF(nprobe=min(cells, self._index.nlist), sel=selector)
        # FAISS's fast scan finds nothing for zeros, which score 0 everywhere: any direction will do.
        directed = np.where(unit.any(axis=1, keepdims=True), unit, np.float32(1 / math.sqrt(unit.shape[1])))
        numbers = self._index.search(pad(directed, self._index.d), count, params=parameters)[1]
        return self._lists.score(unit, numbers), numbers


def _other_scores(scores: np.ndarray, ids: np.ndarray, own: np.ndarray | None, in_order: bool = False) -> np.ndarray:
    """Return scores without those of each query's own document, the greatest first unless they keep their order."""
    if own is not None:
        scores = np.where(ids == own[:, None], -np.inf, scores)
    return scores if in_order else -np.sort(-scores, axis=1)


def _usual_cells(count: int) -> int:
    return 2 ** round(math.log2(1.3 * math.sqrt(count))) if count >= _FEWEST_ROWS else 1


def _listed(ids: Any) -> Any:
    """Return ids in an order, with a length."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise UserError(f"ids={short(ids)}: expected several, such as [1, 2, 3]")
    return ids if isinstance(ids, (np.ndarray, range, list, tuple)) else list(ids)


def _check_new(there: Any, given: Any) -> None:
    """Raise ``UserError`` if ids are in the index already, or one is given twice; integers are in arrays."""
    if len(there):
        raise UserError(f"id {np.asarray(there)[0].item()!r:.99} is in the index already: remove it first")
    if len(np.unique(given) if isinstance(given, np.ndarray) else set(given)) < len(given):
        repeated = next(one for one, count in Counter(np.asarray(given).tolist()).items() if count > 1)
        raise UserError(f"id {repeated!r:.99} is given twice: give each code its own")


def _are_names(given: Any) -> bool:
    return len(given) > 0 and all(isinstance(one, str) for one in given)


def _as_numbers(given: Any) -> np.ndarray:
    """Return integers as int64.

    Raises:
        UserError: If they are anything but whole numbers from 0 to 2^63 - 1.
    """
    expected = "expected whole numbers from 0 to 2^63 - 1, or strings"
    numbers = np.asarray(given) if len(given) else np.empty(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise UserError(f"ids such as {given[0]!r:.99} are of type {numbers.dtype}: {expected}")
    outside = numbers[(numbers < 0) | (numbers > _LARGEST_ID)]
    if len(outside):
        raise UserError(f"ids hold {outside[0]}: {expected}")
    return numbers.astype(np.int64)
