"""The head as a Sentence Transformers module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

Array = TypeVar("Array", np.ndarray, Tensor)


class DimReduce(Dense):
    """Reduces an embedding to fewer dimensions: Dropout -> Linear -> Tanh, the form of a head that is trained.

    Stands behind Pooling or Normalize, or between Transformer and Pooling to reduce ``"token_embeddings"``.
    Raises ``ValueError`` if a size, the dropout rate or the shape of an initial value is out of range.

    Args:
        in_features, out_features: Sizes of the input and of the output, which is at most as large.
        dropout: Share of the inputs zeroed while training, in [0, 1). Defaults to 0.1.
        bias, activation_function, init_weight, init_bias, module_input_name, module_output_name: As in ``Dense``.
    """

    config_keys = [*Dense.config_keys, "dropout"]  # noqa: RUF012, as in every module of Sentence Transformers
    precision = property(lambda self: self.fitted.get("precision", "float32"), doc="What the fit says to store in.")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dropout: float = 0.1,
        bias: bool = True,
        activation_function: Callable[[Tensor], Tensor] | None = nn.Tanh(),  # noqa: B008, as in Dense
        init_weight: Tensor | None = None,
        init_bias: Tensor | None = None,
        module_input_name: str = "sentence_embedding",
        module_output_name: str | None = None,
    ) -> None:
        if not 1 <= out_features <= in_features:
            raise ValueError(f"out_features={out_features}: choose a size from 1 to in_features={in_features}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: choose a rate of at least 0 and less than 1")
        for value, shape in ((init_weight, (out_features, in_features)), (init_bias, (out_features,))):
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"an initial value has shape {tuple(value.shape)}, expected {shape}")
        rest = (activation_function, init_weight, init_bias, module_input_name, module_output_name)
        super().__init__(in_features, out_features, bias, *rest)
        self.dropout = dropout
        self.fitted: dict[str, Any] = {}  # how the weights came about: what st_dimreduce.json says

    def forward(self, features: dict[str, Tensor | Any], **_: Any) -> dict[str, Tensor | Any]:
        x = F.dropout(features[self.module_input_name], self.dropout, self.training)
        features[self.module_output_name] = self.activation_function(self.linear(x))
        return features

    @torch.no_grad()
    def reduce(self, embeddings: Array, normalize_embeddings: bool = False, batch_size: int = 8192) -> Array:
        """Reduce stored embeddings of shape (n, in_features), else a ``ValueError``, to (n, out_features).

        NumPy in, NumPy (float32) out; torch in, torch out; no dropout, no gradient. ``normalize_embeddings=True``
        scales each row to length 1, as a model that ends in ``Normalize`` does.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.in_features:
            raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}, expected (n, {self.in_features})")
        weight, given = self.linear.weight, embeddings if isinstance(embeddings, Tensor) else None
        place: Any = {"dtype": torch.float32} if given is None else {"dtype": weight.dtype, "device": given.device}
        out: Any = torch.empty(len(embeddings), self.out_features, **place)
        for i in range(0, len(embeddings), batch_size):
            rows: Any = embeddings[i : i + batch_size]
            rows = torch.from_numpy(np.require(rows, np.float32, ["C", "W"])) if given is None else rows
            reduced = self.activation_function(self.linear(rows.to(weight)))
            out[i : i + batch_size] = F.normalize(reduced, dim=-1) if normalize_embeddings else reduced
        return out.numpy() if given is None else out

    def to_dense(self) -> Dense:
        """Return the stock ``Dense`` with the same weights: the form that loads without this package."""
        return _copy(self, Dense)

    @classmethod
    def from_model(cls, model: SentenceTransformer) -> DimReduce:
        """Return a copy of a reduced model's head, be it a ``DimReduce`` or a stock ``Dense`` (dropout 0.1)."""
        kept = [module for module in model if not isinstance(module, (Normalize, Pooling))]
        if not isinstance(kept[-1], Dense) or kept[-1].use_residual:
            raise ValueError(f"the model ends in {type(kept[-1]).__name__}: expected a DimReduce or Dense as its head")
        return _copy(kept[-1], cls, dropout=getattr(kept[-1], "dropout", 0.1))


def _copy(head: Dense, form: type[Dense], **extra: Any) -> Any:
    config = {key: getattr(head, key) for key in Dense.config_keys if key != "use_residual"}
    copy = form(**config, **extra).to(head.linear.weight)
    copy.load_state_dict(head.state_dict())
    copy.__dict__["fitted"] = dict(getattr(head, "fitted", {}))  # which a stock Dense does not declare
    return copy
