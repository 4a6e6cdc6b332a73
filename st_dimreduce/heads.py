"""A head by itself: fitted on stored vectors, and kept in a folder until a model takes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_dimreduce.atomic import new_folder
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.encoding import load_model
from st_dimreduce.fitting import Objective
from st_dimreduce.layout import WEIGHTS, check_dense
from st_dimreduce.portable import RECORD, fit_record, write_json
from st_dimreduce.reading import read_object, stay_inside
from st_dimreduce.recipe import DEFAULT_POOLED_GAIN, check_one, fit_to_size
from st_dimreduce.vectors import OnBadRow, summarize

_NOT_FITTED = ("in_features", "out_features", "versions", "figures")


def fit_on_vectors(
    source: Any,
    out_features: int | None = None,
    *,
    bytes_per_vector: int | None = None,
    keep: float | None = None,
    objective: Objective | str = Objective.QUALITY,
    column: str | None = None,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    show_progress_bar: bool | None = None,
) -> DimReduce:
    """Fit a head on vectors alone, with no text and no model, in one pass over them.

    Args:
        source: As in :func:`st_dimreduce.reduce_vectors`.
        out_features: As in :func:`st_dimreduce.reduce_model`, like ``bytes_per_vector``, ``keep``, ``objective``.
        bytes_per_vector: See ``out_features``.
        keep: See ``out_features``.
        objective: See ``out_features``.
        column: As in :func:`st_dimreduce.reduce_vectors`.
        seed: Seed of the sample and the rotation. Defaults to 0.
        on_bad_row: As in :func:`st_dimreduce.summarize`.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        A head for vectors as they are in the source, whose mean length it knows: ``fitted["mean_norm"]``.

    Raises:
        ValueError: As :func:`st_dimreduce.summarize` and :func:`st_dimreduce.fit_head`, or if several sizes are given.
    """
    if (out_features, bytes_per_vector, keep) == (None, None, None):
        out_features = 128
    check_one(out_features=out_features, bytes_per_vector=bytes_per_vector, keep=keep)
    objective = Objective(objective)
    if out_features is not None and out_features < 1:
        raise ValueError(f"out_features={out_features}: choose a size from 1 to what the vectors have")
    options: dict[str, Any] = {"on_bad_row": on_bad_row, "show_progress_bar": show_progress_bar}
    summary = summarize(source, column=column, seed=seed, **options)
    settings: dict[str, Any] = {"rotation": "itq", "gain": DEFAULT_POOLED_GAIN, "seed": seed}
    settings["show_progress_bar"] = show_progress_bar
    head = fit_to_size(summary, out_features, bytes_per_vector, keep, objective, None, None, None, **settings)
    head.linear.weight.data /= summary.mean_norm
    head.fitted["mean_norm"] = summary.mean_norm
    return head


def save_head(head: DimReduce, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a head to a folder: its weights as :meth:`DimReduce.save` does, and how they came about.

    Args:
        head: The head.
        path: The folder to make. It appears when it is complete.
        overwrite: Replace a head or a reduced model that is there. Defaults to False.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or is no folder of ours.
    """
    with new_folder(path, overwrite, marker=RECORD) as folder:
        head.save(str(folder))
        write_json(folder / RECORD, fit_record(head))


def load_head(path: str | os.PathLike[str]) -> DimReduce:
    """Read a head from a folder that :func:`save_head` wrote, or from a reduced model, by name or folder.

    Raises:
        ValueError: If there is no head.
    """
    return _load(path)[1]


def load_reduced(path: str | os.PathLike[str]) -> tuple[SentenceTransformer, DimReduce]:
    """Load a reduced model, by name or folder, and a copy of its head that knows how it was fitted.

    Raises:
        ValueError: If there is no model, or it has no head.
    """
    model, head = _load(path)
    if model is None:
        raise ValueError(
            f"{path} holds a head without a model: put it behind its own with attach_head (st-dimreduce attach)"
        )
    return model, head


def _load(path: str | os.PathLike[str]) -> tuple[SentenceTransformer | None, DimReduce]:
    folder = Path(path)
    bare = folder.is_dir() and not (folder / "modules.json").exists()
    model = None if bare else load_model(path)
    head = None if model is None else DimReduce.from_model(model)
    try:
        if bare:
            stay_inside(folder, folder)
            check_dense(folder)
            if not (folder / WEIGHTS).exists():
                raise ValueError(f"{folder} holds a pickle: expected {WEIGHTS}")
        head = head or DimReduce.load(str(folder))
        record = read_object(folder / RECORD) if bare or (folder / RECORD).exists() else {}
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        expected = "expected the folder of a head or of a reduced model"
        raise ValueError(f"{folder} holds no head: {expected} ({' '.join(str(error).split())})") from error
    head.fitted |= {name: value for name, value in record.items() if name not in _NOT_FITTED}
    return model, head
