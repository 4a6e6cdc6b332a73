"""A fitted layer as plain arrays with its record: everything a head does without a model, a file of vectors or a fit.

Imports NumPy and safetensors only. :class:`st_dimreduce.Head` adds the methods that need the rest of the package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from safetensors.numpy import save_file

from st_dimreduce.codes.codes import Codes
from st_dimreduce.codes.fingerprint import fingerprint
from st_dimreduce.codes.rows import as_array, is_tensor, refuse_masked, scale_rows
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_folder, write_json
from st_dimreduce.record import RECORD, FitRecord, read_record, write_record
from st_dimreduce.untrusted import Shapes, read_object, read_pickle, read_tensors, short, stay_inside

if TYPE_CHECKING:
    from sentence_transformers.sentence_transformer.modules import Dense
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")
Activation = Literal["Tanh", "Identity"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
ACTIVATIONS: dict[str, str] = {  # by class name, the full name that every reader knows
    "Tanh": "torch.nn.modules.activation.Tanh",
    "Identity": "torch.nn.modules.linear.Identity",
}
_ACTIVATION = re.compile(r"torch\.nn\.(modules\.activation\.[A-Z]\w*|(modules\.linear\.)?Identity|Tanh)")
_LARGEST = 2**20  # in_features and out_features of a file that is read
_SMALLEST_NORM = np.float32(1e-12)


@dataclass(frozen=True, eq=False)
class BaseHead:
    """A linear layer and a Tanh that reduce embeddings of d dimensions to k.

    Args:
        weight: float32 array of shape (k, d), 1 <= k <= d.
        bias: float32 array of shape (k,), or None (the default).
        activation: ``"Tanh"`` (the default), or ``"Identity"`` for a head that was trained without.
        record: How the head was fitted. Defaults to an empty record.

    Raises:
        UserError: If a shape is wrong, a value is not finite or the activation is unknown.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None
    activation: Activation = "Tanh"
    record: FitRecord = field(default_factory=FitRecord)

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            refuse_masked(getattr(self, name), f"the values of {name}")
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), np.float32))
        shape = self.weight.shape
        if len(shape) != 2 or not 1 <= shape[0] <= shape[1]:
            raise UserError(f"weight has shape {shape}, expected (out_features, in_features), 1 <= out <= in")
        if self.bias is not None and self.bias.shape != shape[:1]:
            raise UserError(f"bias has shape {self.bias.shape}, expected {shape[:1]}")
        if not all(np.isfinite(values).all() for values in (self.weight, self.bias) if values is not None):
            raise UserError("the weights hold NaN or infinity: expected finite values")
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"the head ends in {self.activation}, expected Tanh or Identity: train it with one of these"
            )

    @property
    def in_features(self) -> int:
        """Size d of the embeddings that the head reduces."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Size k of the reduced embeddings."""
        return self.weight.shape[0]

    @property
    def precision(self) -> Precision:
        """Precision that the head was fitted for."""
        return self.record.precision

    @property
    def fingerprint(self) -> str:
        """Identity of the head, stored with its codes: the same for the head alone and attached to a model.

        Scaling the head to another norm changes it by rounding only; compare two with
        :func:`st_dimreduce.codes.fingerprint.same_head`.
        """
        norm = self.record.mean_norm
        scaled = self.weight * np.float64(1.0 if norm is None else norm)
        return fingerprint(scaled, self.bias, (self.activation, norm is not None))

    @overload
    def forward(self, embeddings: np.ndarray) -> np.ndarray: ...

    @overload
    def forward(self, embeddings: Tensor) -> Tensor: ...

    def forward(self, embeddings: Any) -> Any:
        """Return the output of the layer in float32, as the reduced model computes it.

        The embeddings are not scaled. For stored vectors, whose norm may differ, use :meth:`transform`.

        Args:
            embeddings: Array or torch tensor of shape (n, d).

        Returns:
            float32 of shape (n, k), not scaled to norm 1: an array for an array; for a tensor a tensor on its device,
            without gradient.

        Raises:
            UserError: If the embeddings are not of shape (n, d), or entries are masked.
        """
        return self._reduce(embeddings, False, 8192, None)

    @overload
    def transform(self, embeddings: np.ndarray) -> np.ndarray: ...

    @overload
    def transform(self, embeddings: Tensor) -> Tensor: ...

    def transform(self, embeddings: Any) -> Any:
        """Reduce embeddings or stored vectors of any norm to unit vectors.

        Cosines ignore the norm of a vector, but the Tanh is nearly linear only at the norm that the head was fitted
        for. So each row is first scaled to the mean norm in the head's record. A head without one, such as a head
        trained from random weights, takes the rows unscaled, as its model does.

        Args:
            embeddings: Array or torch tensor of shape (n, d).

        Returns:
            float32 of shape (n, k), rows of norm 1: an array for an array; for a tensor a tensor on its device,
            without gradient.

        Raises:
            UserError: If the embeddings are not of shape (n, d), or entries are masked.
        """
        return self._reduce(embeddings, True, 2048, self.record.mean_norm)

    def encode(self, embeddings: Any, precision: Precision | str | None = None) -> Codes:
        """Reduce embeddings or stored vectors of any norm, and quantise them.

        Args:
            embeddings: Array or torch tensor of shape (n, d).
            precision: Precision of the codes. Defaults to None: the one that the head was fitted for.

        Returns:
            n codes, with the head's fingerprint.

        Raises:
            UserError: As :meth:`transform`.
        """
        precision = self.precision if precision is None else Precision(precision)
        rows = self.transform(embeddings)
        rows = rows if isinstance(rows, np.ndarray) else rows.cpu().numpy()
        return Codes.of(rows, precision, self.fingerprint)

    def _reduce(self, embeddings: Any, normalize_embeddings: bool, batch_size: int, norm: float | None) -> Any:
        expected = f"(n, {self.in_features})"
        embeddings = embeddings if is_tensor(embeddings) else as_array(embeddings, "the embeddings", expected)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.in_features:
            raise UserError(f"the embeddings: got shape {tuple(embeddings.shape)}, expected {expected}")
        if is_tensor(embeddings):
            return self._reduce_tensor(embeddings, normalize_embeddings, batch_size, norm)
        out = np.empty((len(embeddings), self.out_features), np.float32)
        buffer = np.empty((0 if norm is None else min(batch_size, len(embeddings)), self.in_features), np.float32)
        for start in range(0, len(embeddings), batch_size):
            rows, block = out[start : start + batch_size], np.asarray(embeddings[start : start + batch_size])
            block = np.asarray(block, np.float32) if norm is None else scale_rows(block, norm, buffer[: len(block)])
            np.matmul(block, self.weight.T, out=rows)
            if self.bias is not None:
                rows += self.bias
            if self.activation == "Tanh":
                np.tanh(rows, out=rows)
            if normalize_embeddings:
                rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SMALLEST_NORM)
        return out

    def _reduce_tensor(
        self, embeddings: Tensor, normalize_embeddings: bool, batch_size: int, norm: float | None
    ) -> Tensor:
        import torch  # noqa: PLC0415, the caller has it

        weight = torch.tensor(self.weight, device=embeddings.device)
        bias = None if self.bias is None else torch.tensor(self.bias, device=embeddings.device)
        out = torch.empty((len(embeddings), self.out_features), dtype=torch.float32, device=embeddings.device)
        with torch.no_grad():
            for start in range(0, len(embeddings), batch_size):
                rows = embeddings[start : start + batch_size]
                if norm is not None:
                    rows = rows if rows.dtype.itemsize > 2 else rows.float()
                    # By the largest entry first: the square of a large norm would overflow.
                    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
                    rows = torch.nn.functional.normalize(rows, dim=1) * norm
                reduced = torch.nn.functional.linear(rows.float(), weight, bias)
                reduced = reduced.tanh() if self.activation == "Tanh" else reduced
                reduced = torch.nn.functional.normalize(reduced, dim=1) if normalize_embeddings else reduced
                out[start : start + batch_size] = reduced
        return out

    def with_record(self, **changes: Any) -> BaseHead:
        """Return the same head with some fields of its record changed."""
        return replace(self, record=replace(self.record, **changes))

    def for_norm(self, mean_norm: float) -> BaseHead:
        """Return the head for vectors of another mean norm, with the same outputs.

        Raises:
            UserError: If the record has no mean norm, or ``mean_norm`` is not from 1e-30 to 1e30.
        """
        if self.record.mean_norm is None:
            raise UserError(
                "the head's record has no mean_norm, the mean norm of the vectors that it reduces: set it, "
                "head.with_record(mean_norm=1.0) for vectors of norm 1"
            )
        changed = self.with_record(mean_norm=mean_norm)
        # In float64: float32 may hold neither the scale nor its inverse.
        return replace(changed, weight=self.weight * np.float64(self.record.mean_norm / mean_norm))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the head to a folder: its weights as a ``Dense`` is saved, and ``st_dimreduce.json``.

        Args:
            path: The folder to create; it appears once it is complete.
            overwrite: Replace an existing head or reduced model. Defaults to False.

        Raises:
            FileExistsError: If ``path`` exists and ``overwrite`` is False, or if it holds anything but a head.
        """
        sizes = {"in_features": self.in_features, "out_features": self.out_features}
        tensors = {"linear.weight": self.weight} | ({} if self.bias is None else {"linear.bias": self.bias})
        with new_folder(path, overwrite, marker=RECORD) as folder:
            activation = ACTIVATIONS[self.activation]
            write_json(folder / CONFIG, {**sizes, "bias": self.bias is not None, "activation_function": activation})
            save_file(tensors, folder / WEIGHTS)
            write_record(folder, self.record, **sizes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BaseHead:
        """Read a head from a folder that :meth:`save` wrote, or that holds a saved ``DimReduce`` or ``Dense``.

        Raises:
            UserError: If there is no head.
        """
        folder = Path(path)
        try:
            stay_inside(folder, folder)
            if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
                raise UserError(f"{folder} holds a pickle: expected {WEIGHTS}")
            config, tensors = read_dense(folder)
            return cls.of_dense(config, tensors, read_record(folder, config))
        except (OSError, ValueError, TypeError) as error:
            expected = "expected the folder of a head or of a reduced model"
            raise UserError(f"{folder} holds no head: {expected} ({' '.join(str(error).split())})") from error

    @classmethod
    def of_dense(cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], record: FitRecord) -> BaseHead:
        """Return a saved ``Dense`` as a head, from the settings and tensors that :func:`read_dense` returns."""
        if config.get("use_residual"):
            raise UserError("it has a residual connection: expected a head without one")
        activation: Any = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
        return cls(tensors["linear.weight"], tensors.get("linear.bias"), activation, record)

    def to_dense(self) -> Dense:
        """Return a stock ``Dense`` with the same weights, which loads without this package."""
        import torch  # noqa: PLC0415, a head alone needs neither
        from sentence_transformers.sentence_transformer.modules import Dense  # noqa: PLC0415

        return Dense(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            activation_function=getattr(torch.nn, self.activation)(),
            init_weight=torch.tensor(self.weight),
            init_bias=None if self.bias is None else torch.tensor(self.bias),
        )


def read_dense(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the settings of a saved ``Dense`` or ``DimReduce``, and its tensors as finite float32 arrays.

    Raises:
        UserError: If a setting is invalid, or the weights do not fit the settings.
    """
    config = read_object(folder / CONFIG)
    for name in ("in_features", "out_features"):
        size = config.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _LARGEST:
            raise UserError(f"{folder / CONFIG} says {name} {short(size)}: expected 1 to {_LARGEST:,}")
    activation = config.get("activation_function", ACTIVATIONS["Tanh"])
    if not is_activation(activation):
        raise UserError(
            f"{folder / CONFIG} names the activation {short(activation)}, which is none of torch.nn's: expected "
            f"one such as {ACTIVATIONS['Tanh']!r}"
        )
    for name in ("module_input_name", "module_output_name"):
        if not isinstance(config.get(name), (str, type(None))):
            raise UserError(f"{folder / CONFIG} says {name} {short(config[name])}: expected a word")
    columns, rows = config["in_features"], config["out_features"]
    expected: Shapes = {"linear.weight": (rows, columns)}
    expected |= {"linear.bias": (rows,)} if config.get("bias", True) else {}
    expected |= {"residual.weight": (rows, columns)} if config.get("use_residual") and rows != columns else {}
    file = folder / (WEIGHTS if (folder / WEIGHTS).exists() else PICKLE)
    if not file.is_file():
        raise UserError(f"{folder} holds no weights: expected {WEIGHTS}")
    if file.name == WEIGHTS:
        return config, read_tensors(file, expected)
    if file.stat().st_size < columns * rows:  # before anything of this size is allocated
        raise UserError(f"{file} is too small for the {rows} x {columns} weights that config.json asks for")
    tensors = read_pickle(file)
    shapes = {name: values.shape for name, values in tensors.items()}
    if shapes != expected or not all(np.isfinite(values).all() for values in tensors.values()):
        raise UserError(f"{file} holds {short(shapes)}, config.json asks for {expected}, finite")
    return config, tensors


def is_activation(name: Any) -> bool:
    """Whether this names an activation of ``torch.nn``, which a reader may import and call; imports nothing."""
    return isinstance(name, str) and _ACTIVATION.fullmatch(name) is not None
