"""The head as a Sentence Transformers module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.record import FitRecord, record_of, set_record


class DimReduce(Dense):
    """Reduces embeddings to fewer dimensions: Dropout -> Linear -> Tanh.

    Use it to train a head together with its model. It carries the record of its fit (:attr:`record`), and
    :func:`st_dimreduce.save_portable` saves it in the portable form. If you need neither, the stock modules ``Dropout``
    and ``Dense`` compute the same.

    Place it after Pooling or Normalize, or between Transformer and Pooling to reduce ``"token_embeddings"``.

    Args:
        in_features: Size d of the embeddings.
        out_features: Size k of the reduced embeddings, 1 to ``in_features``.
        bias: Whether to add a bias. Defaults to True.
        activation_function: Module applied last. Defaults to ``nn.Tanh()``; None means ``nn.Identity()``.
        init_weight: Initial weight, tensor of shape (k, d). Defaults to None: drawn as by ``nn.Linear``.
        init_bias: Initial bias, tensor of shape (k,). Defaults to None.
        module_input_name: The feature to reduce. Defaults to ``"sentence_embedding"``.
        module_output_name: The feature to write. Defaults to None: the input feature.
        use_residual: As in ``Dense``; the portable form does not support it. Defaults to False.
        dropout: Share of the inputs zeroed in training, in [0, 1). Defaults to 0.1.
        record: How the weights were fitted. Defaults to None: an empty record.

    Raises:
        UserError: If a size, the dropout or the shape of an initial value is out of range.
    """

    config_keys = [*Dense.config_keys, "dropout", "record"]  # noqa: RUF012, as in every module of Sentence Transformers

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation_function: Callable[[Tensor], Tensor] | None = nn.Tanh(),  # noqa: B008, as in Dense
        init_weight: Tensor | None = None,
        init_bias: Tensor | None = None,
        module_input_name: str = "sentence_embedding",
        module_output_name: str | None = None,
        use_residual: bool = False,
        *,
        dropout: float = 0.1,
        record: FitRecord | Mapping[str, Any] | None = None,
    ) -> None:
        if not 1 <= out_features <= in_features:
            raise UserError(f"out_features={out_features}: choose a size from 1 to in_features={in_features}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout={dropout}: choose a rate of at least 0 and less than 1")
        for value, shape in ((init_weight, (out_features, in_features)), (init_bias, (out_features,))):
            if value is not None and tuple(value.shape) != shape:
                raise UserError(f"an initial value has shape {tuple(value.shape)}, expected {shape}")
        super().__init__(
            in_features=in_features,
            out_features=out_features,
            bias=bias,
            activation_function=activation_function,
            init_weight=init_weight,
            init_bias=init_bias,
            module_input_name=module_input_name,
            module_output_name=module_output_name,
            use_residual=use_residual,
        )
        self.dropout = dropout
        self.record = record if isinstance(record, FitRecord) else FitRecord.from_dict(record or {})

    @property
    def precision(self) -> Precision:
        """Precision that the head was fitted for."""
        return self.record.precision

    def forward(self, features: dict[str, Tensor | Any], **_: Any) -> dict[str, Tensor | Any]:
        inputs = features[self.module_input_name]
        features[self.module_input_name] = F.dropout(inputs, self.dropout, self.training)
        features = super().forward(features)
        if self.module_output_name != self.module_input_name:
            features[self.module_input_name] = inputs
        return features

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {"record": self.record.to_dict()}

    def to_head(self) -> BaseHead:
        """Return the head as plain arrays in float32, with its record.

        Raises:
            UserError: If it ends in something other than Tanh or Identity, or has a residual connection.
        """
        return plain_head(self, self.record)

    def to_dense(self) -> Dense:
        """Return a stock ``Dense`` with the same weights, which loads without this package."""
        return _copy(self, Dense, self.record)

    @classmethod
    def from_head(cls, head: BaseHead, dropout: float = 0.1) -> DimReduce:
        """Return a head as a trainable module.

        Args:
            head: The head.
            dropout: As in :class:`DimReduce`. Defaults to 0.1.
        """
        return _copy(head.to_dense(), cls, head.record, dropout=dropout)

    @classmethod
    def from_model(cls, model: SentenceTransformer) -> DimReduce:
        """Return a copy of a reduced model's head with its record, from a ``DimReduce`` or a stock ``Dense``.

        Raises:
            UserError: If the model ends in no head.
        """
        dense, record = head_of(model)
        return _copy(dense, cls, record, dropout=getattr(dense, "dropout", 0.1))


def head_of(model: SentenceTransformer) -> tuple[Dense, FitRecord]:
    """Return the ``Dense`` or ``DimReduce`` that is a reduced model's head, and its record.

    Raises:
        UserError: If the model ends in no head.
    """
    modules = [module for module in model if not isinstance(module, (Normalize, Pooling))]
    if not isinstance(modules[-1], Dense) or modules[-1].use_residual:
        last = type(modules[-1]).__name__ + (" with a residual connection" if isinstance(modules[-1], Dense) else "")
        raise UserError(
            f"the model ends in {last}, it has no head: give a reduced model, or reduce this one first (reduce_model, "
            "st-dimreduce reduce)"
        )
    return modules[-1], record_of(model, modules[-1])


def chosen_precision(model: SentenceTransformer) -> Precision | None:
    """Return the precision that a head was fitted for; None if none was chosen (float32), or the model has no head."""
    try:
        precision = head_of(model)[1].precision
    except ValueError:
        return None
    return None if precision == Precision.FLOAT32 else precision


def keep_record(model: SentenceTransformer, record: FitRecord) -> None:
    """Give the head of a reduced model a record, in place of the one it has."""
    set_record(model, head_of(model)[0], record)


def plain_head(dense: Dense, record: FitRecord) -> BaseHead:
    """Return a ``Dense`` as plain arrays in float32, with a record.

    Raises:
        UserError: If it ends in something other than Tanh or Identity, or has a residual connection.
    """
    if dense.use_residual:
        raise UserError("the module has a residual connection: expected a head without one")
    tensors: dict[str, np.ndarray | None] = {
        name: value.detach().float().cpu().numpy() for name, value in dense.linear.named_parameters()
    }
    activation: Any = type(dense.activation_function).__name__
    return BaseHead(tensors["weight"], tensors.get("bias"), activation, record)  # type: ignore[arg-type]


def _copy(dense: Dense, form: type[Dense], record: FitRecord, **extra: Any) -> Any:
    """Return a copy of the same weights and dtype in another form."""
    config = {key: getattr(dense, key) for key in Dense.config_keys}
    copy = form(**config, **extra).to(dense.linear.weight)
    copy.load_state_dict(dense.state_dict())
    copy.__dict__["record"] = record  # which a stock Dense does not declare
    return copy
