"""The size of a head, as a user states it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise

from st_dimreduce.codes.rows import as_count
from st_dimreduce.enums import Precision, Store
from st_dimreduce.errors import UserError

DEFAULT_DIM = 128
FEWEST_VECTORS = 60  # with fewer, too few neighbours are held out to compare options


@dataclass(frozen=True)
class Size:
    """How small to make vectors: a dimension, a byte budget, or a share of quality to keep.

    Args:
        dim: Dimension k of the reduced embeddings. Defaults to the last of ``nested``, or to 128 if no size is given.
        bytes: Bytes per stored vector. The dimension and precision are those that retrieve best on held-out data.
        keep: Share in (0, 1] of the full embeddings' retrieval metric on held-out data. The dimension and precision are
            the smallest that keep it.
        nested: Ascending sizes at which the outputs may be truncated, such as ``(64, 128, 256)``; the last is ``dim``.
            In multiples of 8, codes can be truncated there too.
        store: The vector store, such as ``"pgvector"``, with ``bytes`` or ``keep``: only precisions that the store
            searches itself are considered. ``docs/stores.md`` lists them.
        precision: Precision that the vectors will be stored in. With ``bytes`` or ``keep`` the only one considered.
            Defaults to None: the best of all, or float32 with a dimension.

    Raises:
        UserError: If several sizes are given, one is out of range, or the store or precision is not known.
    """

    dim: int | None = None
    _: KW_ONLY
    bytes: int | None = None
    keep: float | None = None
    nested: Sequence[int] | None = None
    store: Store | str | None = None
    precision: Precision | str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("precision", Precision), ("store", Store)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, kind(value))
        if self.nested and self.dim is None:
            object.__setattr__(self, "dim", self.nested[-1])
        given = [name for name in ("dim", "bytes", "keep") if getattr(self, name) is not None]
        if len(given) > 1:
            found = " and ".join("nested" if self.nested and name == "dim" else name for name in given)
            raise UserError(f"{found} were given: give exactly one of dim (--dim), bytes (--bytes) and keep (--keep)")
        if not given:
            object.__setattr__(self, "dim", DEFAULT_DIM)
        self._check_ranges()
        if self.store is not None and self.dim is not None:
            advice = "give bytes (--bytes) or keep (--keep), not a dimension"
            raise UserError(f"store={str(self.store)!r} is for choosing a precision: {advice}")

    @classmethod
    def of(cls, size: int | Size) -> Size:
        """Return the size itself, or that of a dimension."""
        return size if isinstance(size, cls) else cls(size)  # type: ignore[arg-type]

    def _check_ranges(self) -> None:
        for name, what in (("dim", "size"), ("bytes", "budget")):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_count(value, name, f"choose a {what} of at least 1"))
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"keep={self.keep}: choose a share greater than 0 and at most 1, such as 0.99")
        if self.nested:
            nested = tuple(as_count(size, "nested", "give ascending sizes of at least 1") for size in self.nested)
            if nested[-1] != self.dim or any(a >= b for a, b in pairwise(nested)):
                raise UserError(f"nested={self.nested}: give ascending sizes, of which the last is dim={self.dim}")
            object.__setattr__(self, "nested", nested)

    @property
    def fewest_vectors(self) -> int:
        """Smallest number of vectors that a head of this size can be fitted on."""
        return FEWEST_VECTORS if self.dim is None else self.dim
