"""``Head``: a fitted layer, with a verb for everything that can be done with one."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import Objective, OnBadRow, Precision
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.size import DEFAULT_DIM, Size
from st_dimreduce.fitting.summary import Summary

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from st_dimreduce.vectors.drift import Drift
    from st_dimreduce.vectors.reduce import Transformed


class Head(BaseHead):
    """A linear layer and a Tanh that reduce embeddings of d dimensions to k.

    Get one with :meth:`fit`, :meth:`load` or :meth:`from_model`. ``transform`` returns floats, ``encode`` codes.

    Args:
        weight: float32 array of shape (k, d), 1 <= k <= d.
        bias: float32 array of shape (k,), or None (the default).
        activation: ``"Tanh"`` (the default), or ``"Identity"`` for a head that was trained without.
        record: How the head was fitted. Defaults to an empty record.

    Raises:
        UserError: If a shape is wrong, a value is not finite or the activation is unknown.
    """

    @classmethod
    def fit(
        cls,
        source: Any,
        size: int | Size = DEFAULT_DIM,
        *,
        objective: Objective | str = Objective.QUALITY,
        pairs: Pairs | None = None,
        strength: float | None = None,
        column: str | None = None,
        on_bad_row: OnBadRow | str = OnBadRow.RAISE,
        seed: int = 0,
    ) -> Head:
        """Fit a head on vectors, without texts or a model, in one pass and in bounded memory.

        Args:
            source: Vectors of size d, in float64, 32, 16 or bfloat16: a NumPy array or torch tensor of shape (n, d); a
                ``.npy``, ``.parquet``, ``.arrow`` or ``.feather`` file, or a folder of one of these kinds, read in the
                order of their names; an Arrow Table, RecordBatch or RecordBatchReader; a ``datasets.Dataset``; a flat
                FAISS index; any iterable of arrays of shape (n, d); or a :class:`st_dimreduce.Summary` of vectors.
            size: Dimension k of the reduced vectors, or a :class:`st_dimreduce.Size`. Defaults to 128.
            objective: ``"quality"``, to find what people look for, or ``"fidelity"``, to find what the full vectors
                find. Defaults to ``"quality"``.
            pairs: Embedded pairs of a query and the document it should find, to train on. Defaults to None.
            strength: How far quality departs from fidelity, 0 (not at all) to 2. Defaults to None: 1.
            column: The column of vectors in a table, lists of floats of one length. Defaults to None: the only one.
            on_bad_row: ``"raise"`` (the default) stops at the first vector that is NaN, infinite or zero; ``"zero"``
                leaves such vectors out.
            seed: Seed of the sample and of the fit. Defaults to 0.

        Returns:
            A head for vectors of the source's mean norm, ``head.record.mean_norm``.

        Raises:
            FileNotFoundError: If there is no such file or folder.
            ModuleNotFoundError: If the source is a table and pyarrow is missing.
            UserError: If an argument is out of range, the source cannot be read as vectors of one size or holds one
                without a direction, or there are fewer vectors than ``size``.
        """
        size, objective = Size.of(size), Objective(objective)
        if not isinstance(source, Summary):
            from st_dimreduce.vectors.fit import summarize  # noqa: PLC0415, reading files is not always needed

            source = summarize(source, column=column, on_bad_row=on_bad_row, seed=seed)
        return cls._of(fit_head(source, size, objective=objective, pairs=pairs, strength=strength, seed=seed))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Head:
        """Read a head with its record, without loading its model.

        Args:
            path: A folder that :meth:`save` wrote, or a reduced model: its folder, or its name on the Hub, from which
                only the head's files are downloaded.

        Raises:
            UserError: If there is no head.
        """
        from st_dimreduce.models.load import load_head  # noqa: PLC0415, a head in memory needs no reader

        return cls._of(load_head(path))

    @classmethod
    def from_model(cls, model: SentenceTransformer) -> Head:
        """Return a reduced model's head with its record.

        Raises:
            UserError: If the model ends in no head.
        """
        from st_dimreduce.dim_reduce import DimReduce  # noqa: PLC0415, takes seconds to import

        return cls._of(DimReduce.from_model(model).to_head())

    def attach(
        self, model: SentenceTransformer | str | os.PathLike[str], *, trainable: bool = False
    ) -> SentenceTransformer:
        """Attach the head to the model that its vectors came from, so that encoded queries match the stored vectors.

        Stored vectors usually have norm 1, but before its ``Normalize`` a model's embeddings have larger norms: the
        weight is divided by their mean norm, measured on a few sentences. The model then
        agrees with the reduced stored vectors to a cosine of 0.9999.

        Args:
            model: The base model: a name, a path, or a ``SentenceTransformer``, which is left unchanged.
            trainable: Whether to attach the head as a ``DimReduce``, for training, instead of as a stock ``Dense``,
                which loads without ``trust_remote_code``. Defaults to False.

        Returns:
            A new model with the base model's prompts, similarity function and maximum length.

        Raises:
            UserError: If the model cannot be loaded, its embeddings are not of the head's size, or the head's record
                has no mean norm.
        """
        from st_dimreduce.models.attach import attach_head  # noqa: PLC0415, takes seconds to import

        return attach_head(model, self, trainable=trainable)

    def transform_file(
        self,
        source: Any,
        target: str | os.PathLike[str],
        precision: Precision | str | None = None,
        *,
        column: str | None = None,
        on_bad_row: OnBadRow | str = OnBadRow.RAISE,
        overwrite: bool = False,
        append: bool = False,
    ) -> Transformed:
        """Reduce stored vectors and write them as codes, in their order and in bounded memory.

        The result is ``head.encode(vectors, precision)``. A run that was killed and is called again with the same
        arguments goes on where it was.

        Args:
            source: Vectors of size d, as in :meth:`fit`.
            target: A path that ends in ``.npy`` (the codes only), ``.parquet`` or ``.arrow`` for one file, or in no
                suffix for a folder of part files, ``.npy`` from arrays and ``.parquet`` from tables.
            precision: Precision of the codes. Defaults to None: the one that the head was fitted for.
            column: The column of vectors in a table. Defaults to None: the only one. Other columns are copied.
            on_bad_row: ``"raise"`` (the default) stops at the first vector that is NaN, infinite or zero; ``"zero"``
                stores the code of a zero vector in its place, and counts it.
            overwrite: Replace a target that exists, and the parts of another run. Defaults to False.
            append: Of a source that has grown since the target was written, reduce what has come since; a target that
                does not exist is made. Defaults to False.

        Returns:
            What was written.

        Raises:
            BlockingIOError: If another run is writing the target.
            FileExistsError: If the target exists and ``overwrite`` is False.
            FileNotFoundError: If there is no such file or folder to read.
            ModuleNotFoundError: If source or target is a table and pyarrow is missing.
            OSError: If the disk is full; the rows that are done stay.
            UserError: If the source cannot be read as vectors of the head's size, holds one without a direction, or
                changes meanwhile, or an unfinished run was begun with something else; says which. With ``append``, if
                the target's codes are not those that the head gives for the source's first rows.
        """
        from st_dimreduce.vectors.reduce import transform_file  # noqa: PLC0415, reading files is not always needed

        options: dict[str, Any] = {"column": column, "on_bad_row": on_bad_row}
        return transform_file(self, source, target, precision, **options, overwrite=overwrite, append=append)

    def drift(
        self, source: Any, *, column: str | None = None, on_bad_row: OnBadRow | str = OnBadRow.RAISE, seed: int = 0
    ) -> Drift:
        """Judge whether the head still fits the vectors that arrive.

        Args:
            source: Vectors of size d, 200 or more, as in :meth:`fit`.
            column: As in :meth:`fit`.
            on_bad_row: As in :meth:`fit`.
            seed: Seed of the sample. Defaults to 0.

        Raises:
            UserError: If there are fewer than 200 vectors, or of another size, or the head's record has no reference.
        """
        from st_dimreduce.vectors.drift import measure_drift  # noqa: PLC0415, reading files is not always needed

        return measure_drift(self, source, column=column, on_bad_row=on_bad_row, seed=seed)

    @classmethod
    def _of(cls, head: BaseHead) -> Head:
        return cls(**{field.name: getattr(head, field.name) for field in fields(head)})
