"""How a head came about and how to use it, and every place where that is stored.

A record is found wherever its head is: in ``st_dimreduce.json`` beside a head or a reduced model, in the settings of
a ``DimReduce``, and where a stock model loaded and saved by any version of Sentence Transformers still has it. That is
the config of its transformer, whose unknown keys survive; a static embedding has none, and gets a comment in its model
card. In memory the head's module has it as an attribute.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import write_json
from st_dimreduce.untrusted import read_object, read_text, short

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

RECORD = "st_dimreduce.json"  # in the folder of a head or of a reduced model
_MODULES, _CONFIG, _CARD = "modules.json", "config.json", "README.md"
_KEY = "st_dimreduce"  # in the config of a model's transformer
_COMMENT = re.compile(r"<!-- st_dimreduce (\{.*\}) -->")
_LARGEST = 1e100  # of any number in a record
_NORMS = 1e-30, 1e30  # whose inverse float32 holds


@dataclass(frozen=True)
class FitRecord:
    """How a head was fitted and how to use it; what is not known is None.

    Attributes:
        precision: Precision that the head was fitted for: the one to store its vectors in. Defaults to ``"float32"``.
        mean_norm: Mean norm of the vectors that the head reduces, 1e-30 to 1e30: 1 for unit vectors, and for a head
            behind Pooling that of the pooled embeddings. Stored vectors are scaled to it first.
        nested: Sizes at which the outputs may be truncated, ascending.
        method: Method of the fit.
        objective: ``"quality"`` or ``"fidelity"``.
        vectors: Number of vectors that the head was fitted on.
        cloze_pairs: Number of cloze pairs used for within-pair whitening and to choose the strength.
        labelled_pairs: Number of labelled pairs it was trained on.
        strength: How far the objective quality departed from fidelity.
        whitening: Power of the eigenvalues by which the directions were divided.
        rotation: ``"itq"``, ``"random"`` or None.
        gain: Root mean square of the Tanh's input on the vectors fitted on.
        seed: Seed of the fit.
        trained_steps: Step of contrastive training with the lowest held-out loss.
        distilled_steps: Step of distillation with the lowest held-out loss.
        base_model: Name of the base model on the Hub.
        license, license_name, license_link, language: What the base model's card says.
        versions: Versions of the packages that fitted the head, by name.
        choice: The options measured for a byte budget, a :meth:`st_dimreduce.fitting.budget.Choice.to_dict`.
        figures: What was measured of the model, a :meth:`st_dimreduce.Comparison.to_dict`.
        reference: What the fit does with vectors held out from it, which :meth:`st_dimreduce.Head.drift` compares later
            vectors with.

    Raises:
        UserError: If a value is of the wrong type or out of range.
    """

    precision: Precision = Precision.FLOAT32
    mean_norm: float | None = None
    nested: tuple[int, ...] | None = None
    method: str | None = None
    objective: str | None = None
    vectors: int | None = None
    cloze_pairs: int | None = None
    labelled_pairs: int | None = None
    strength: float | None = None
    whitening: float | None = None
    rotation: str | None = None
    gain: float | None = None
    seed: int | None = None
    trained_steps: int | None = None
    distilled_steps: int | None = None
    base_model: str | None = None
    license: str | list[str] | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | list[str] | None = None
    versions: dict[str, str] | None = None
    choice: dict[str, Any] | None = field(default=None, metadata={"large": True})
    figures: dict[str, Any] | None = field(default=None, metadata={"large": True})
    reference: dict[str, Any] | None = field(default=None, metadata={"large": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", Precision(self.precision))
        if isinstance(self.nested, list):
            object.__setattr__(self, "nested", tuple(self.nested))
        for each in fields(self):
            value, (kinds, expected) = getattr(self, each.name), _KINDS.get(each.name, (str, "a string"))
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise UserError(f"the fit record says {each.name} {short(value)}: expected {expected}")
            if isinstance(value, (int, float)) and each.name != "mean_norm" and not abs(value) < _LARGEST:
                raise UserError(f"the fit record says {each.name} {short(value)}: expected a finite number")
        if self.nested is not None and not all(isinstance(size, int) and size > 0 for size in self.nested):
            raise UserError(f"the fit record says nested {short(self.nested)}: expected sizes of at least 1")
        if self.mean_norm is not None and not _NORMS[0] <= self.mean_norm <= _NORMS[1]:
            raise UserError(
                f"the fit record says mean_norm {short(self.mean_norm)}: expected a number greater than 0, "
                f"{_NORMS[0]:g} to {_NORMS[1]:g}"
            )

    def to_dict(self, *, large: bool = True) -> dict[str, Any]:
        """Return what is known as JSON can hold it.

        Args:
            large: Whether to include ``choice``, ``figures`` and ``reference``, which only ``st_dimreduce.json`` has.
                Defaults to True.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self) if large or not each.metadata}
        known = {name: value for name, value in values.items() if value is not None}
        known["precision"] = self.precision.value
        return known | ({"nested": list(self.nested)} if self.nested else {})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FitRecord:
        """Read what :meth:`to_dict` returned; names that this version does not know are ignored."""
        names = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in names and value is not None})


_NUMBER = ((int, float), "a number")
_TEXTS = ((str, list), "a string or a list of strings")
_DICT = (dict, "an object")
_KINDS: dict[str, tuple[Any, str]] = {
    "nested": (tuple, "a list of sizes"),
    "mean_norm": _NUMBER,
    "strength": _NUMBER,
    "whitening": _NUMBER,
    "gain": _NUMBER,
    "license": _TEXTS,
    "language": _TEXTS,
    "versions": _DICT,
    "choice": _DICT,
    "figures": _DICT,
    "reference": _DICT,
    **dict.fromkeys(
        ("vectors", "cloze_pairs", "labelled_pairs", "seed", "trained_steps", "distilled_steps"),
        (int, "a whole number"),
    ),
}


def read_record(folder: Path, head: Mapping[str, Any]) -> FitRecord:
    """Return the record of a head that is saved in a folder; an empty one if there is none.

    Args:
        folder: The folder of the head, or of the reduced model.
        head: Settings of the head's module, which a ``DimReduce`` has its record in.

    Raises:
        UserError: If what is there is not a record.
    """
    if "record" in head:
        content = head["record"]
    elif (folder / RECORD).exists():
        content = read_object(folder / RECORD)
    elif (folder / _MODULES).exists() and (folder / _CONFIG).exists():
        content = read_object(folder / _CONFIG).get(_KEY, {})
    else:
        return record_in_card(read_text(folder / _CARD) if (folder / _CARD).exists() else None)
    if not isinstance(content, Mapping):
        raise UserError(f"its fit record is {short(content)}: expected an object")
    return FitRecord.from_dict(content)


def write_record(folder: Path, record: FitRecord, in_features: int, out_features: int) -> None:
    """Write the record of a head to its folder, or to a reduced model's and where a model loaded from there has it.

    Args:
        folder: The folder.
        record: The record.
        in_features: Size d of the embeddings that the head reduces.
        out_features: Size k of the reduced embeddings.
    """
    write_json(folder / RECORD, {"in_features": in_features, "out_features": out_features, **record.to_dict()})
    if not (folder / _MODULES).exists():  # of a head: config.json is its own
        return
    config, card = folder / _CONFIG, folder / _CARD
    if config.exists():
        content = json.loads(config.read_text(encoding="utf-8"))
        write_json(config, content | {_KEY: record.to_dict(large=False)})
    elif card.exists():
        card.write_text(f"{card.read_text(encoding='utf-8')}\n{record_comment(record)}\n", encoding="utf-8")


def record_of(model: SentenceTransformer, head: nn.Module) -> FitRecord:
    """Return the record of a model in memory, whose head is this module; an empty one if there is none."""
    record = getattr(head, "record", None)
    if isinstance(record, FitRecord):
        return record
    content = getattr(_config_of(model), _KEY, None)
    return FitRecord.from_dict(content) if isinstance(content, Mapping) else record_in_card(model._model_card_text)


def set_record(model: SentenceTransformer, head: nn.Module, record: FitRecord) -> None:
    """Give a model in memory, whose head is this module, a record."""
    head.__dict__["record"] = record  # which a stock Dense does not declare
    if (config := _config_of(model)) is not None:
        setattr(config, _KEY, record.to_dict(large=False))


def record_comment(record: FitRecord) -> str:
    """Return the record as a comment for a model card, which a loaded model has and saves again."""
    text = json.dumps(record.to_dict(large=False)).replace(">", "\\u003e")
    return f"<!-- st_dimreduce {text} -->"


def record_in_card(card: str | None) -> FitRecord:
    """Return the record in a model card's comment; an empty one if there is none that can be read."""
    found = _COMMENT.search(card or "")
    with suppress(ValueError, RecursionError):
        return FitRecord.from_dict(json.loads(found[1])) if found else FitRecord()
    return FitRecord()


def _config_of(model: SentenceTransformer) -> Any:
    """Return the config of a model's transformer; None if it starts with another module."""
    return getattr(getattr(model[0], "auto_model", None), "config", None)
