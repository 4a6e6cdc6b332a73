"""ONNX graphs of models, traced from small modules."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce.codes.precision import INT8_STEPS, thresholds
from st_dimreduce.enums import Precision, Variant
from st_dimreduce.errors import UserError

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
IR_VERSION = 10  # which runtimes of 2024 read
_SMALLEST_NORM = 1e-15  # a row of a smaller norm counts as zero and stays zero


def model_graph(embed: EmbedTokens, precision: Precision) -> ModelProto:
    """Trace a model into a graph.

    Args:
        embed: The model, from token ids on.
        precision: Precision of the output ``codes``; no such output for float32.

    Returns:
        The graph from ``input_ids`` and ``attention_mask``, int64 of shape (batch, length), to the outputs that
        :class:`EmbedTokens` names.

    Raises:
        ValueError: If torch cannot trace the model.
    """
    ids = torch.zeros((2, 4), dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    axes = {0: "batch", 1: "length"}
    with _quiet(), torch.no_grad():
        if precision is not Precision.FLOAT32:
            embed.codes = Codes(precision, embed(ids, mask)[-1].shape[1])
        try:
            program: Any = torch.onnx.export(
                embed,
                (ids, mask),
                dynamo=True,
                dynamic_shapes=(axes, axes),
                input_names=["input_ids", "attention_mask"],
                output_names=embed.outputs,
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise UserError(f"this model cannot be exported: torch cannot trace it: {reason}") from error
    proto: ModelProto = program.model_proto
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # source files and lines on this machine
    return proto


class EmbedTokens(nn.Module):
    """Computes reduced embeddings from token ids: what ``SentenceTransformer.encode`` gives, and those of the tokens.

    A reader that pools by itself takes ``last_hidden_state``, of shape (batch, length, k). There the heads are applied
    to every token, without their Tanh, which is linear but for rounding where a head has the usual gain: what is
    linear may come before a mean or a choice of tokens as well as behind it. ``sentence_embedding``, of shape
    (batch, k), is the model's own. ``codes`` are the codes of it.

    Args:
        model: A model that the portable form can hold; its modules are copied.

    Attributes:
        pooling: The pooling of the tokens that gives the sentence embedding, ``"mean"``, ``"cls"`` or ``"lasttoken"``;
            None if there is no one such, or the tokens are to be left out: they are an output where there is one.
        codes: Computes the codes; None, the default, if they are to be left out.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        modules: list[Any] = copy.deepcopy(list(model))
        if isinstance(modules[0], StaticEmbedding):
            weight = modules[0].embedding.weight
            modules[:1] = [LookUp(weight), Pooling(weight.shape[1], "mean")]
            self.token_types = False
        else:
            self.token_types = "token_type_ids" in model.preprocess(["a text"])
            # Other implementations of attention leave checks for NaN in the graph.
            modules[0].auto_model.set_attn_implementation("eager")
        self.pooling = pooling_of(modules[1])
        self.chain = nn.ModuleList(modules).float().cpu().eval()
        self.truncate_dim = model.truncate_dim
        self.codes: Codes | None = None

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in their order."""
        given = {"last_hidden_state": self.pooling, "sentence_embedding": True, "codes": self.codes is not None}
        return [name for name, wanted in given.items() if wanted]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.token_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        features = self.chain[0](features)
        tokens = features["token_embeddings"]
        for module in self.chain[1:]:
            features = module(features)
            if self.pooling and isinstance(module, Dense):
                tokens = module.linear(tokens)
        embedding = features["sentence_embedding"][..., : self.truncate_dim]
        outputs = [tokens[..., : self.truncate_dim], embedding] if self.pooling else [embedding]
        return (*outputs,) if self.codes is None else (*outputs, self.codes(embedding))


class LookUp(nn.Module):
    """Looks up the token embeddings that ``StaticEmbedding`` takes the mean of.

    Args:
        weight: Embeddings of the tokens, tensor of shape (tokens, d).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features | {"token_embeddings": F.embedding(features["input_ids"], self.weight)}


def pooling_of(module: nn.Module) -> str | None:
    """Return the mode by which a reader pools as this module does; None if readers have no such mode."""
    if not isinstance(module, Pooling):
        return None
    modes = [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode)
    return modes[0] if len(modes) == 1 and modes[0] in {"mean", "cls", "lasttoken"} else None


class Codes(nn.Module):
    """Computes the codes of embeddings, as :func:`st_dimreduce.quantize` does.

    A row's norm is summed in another order than by NumPy, so that an entry on the very edge between two codes may get
    the other one. NaN has no code.

    Args:
        precision: ``int8``, ``int4``, ``int2`` or ``binary``.
        out_features: Size k of an embedding.
    """

    thresholds: Tensor
    place: Tensor

    def __init__(self, precision: Precision, out_features: int) -> None:
        super().__init__()
        self.precision = precision
        self.norm = math.sqrt(out_features)
        if precision is Precision.INT8:
            return
        # The factor that moves an entry's level to its place in its byte: one matrix product packs.
        per_byte = 8 // precision.bits
        place = torch.zeros(out_features, precision.bytes_per_vector(out_features))
        for entry in range(out_features):
            place[entry, entry // per_byte] = 2 ** (8 - precision.bits * (entry % per_byte + 1))
        self.register_buffer("thresholds", torch.from_numpy(thresholds(precision)))
        self.register_buffer("place", place)

    def forward(self, embeddings: Tensor) -> Tensor:
        scaled = _unit(embeddings) * self.norm
        if self.precision is Precision.INT8:
            return torch.round(scaled * INT8_STEPS).clamp(-127, 127).to(torch.int8)
        levels = (scaled.unsqueeze(-1) > self.thresholds).float().sum(dim=-1)
        return (levels @ self.place).to(torch.uint8)


def _unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=_SMALLEST_NORM)


def write_variant(graph: ModelProto, path: Path, variant: Variant) -> None:
    """Write a graph with smaller weights; inputs and outputs keep their types.

    fp16 halves the file. int8 is ONNX Runtime's dynamic quantisation, with a scale per channel of every weight and 7
    of its 8 bits, since sums of 8 overflow on processors without VNNI.

    Args:
        graph: The graph; left unchanged.
        path: The file to make.
        variant: The number format.
    """
    import onnx  # noqa: PLC0415, optional

    with _quiet(), tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as work:
        if variant is Variant.FP16:
            from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415, optional

            onnx.save(convert_float_to_float16(copy.deepcopy(graph), keep_io_types=True), path)
            return
        from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415, optional

        whole = Path(work, "whole.onnx")
        onnx.save(graph, whole)
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of packages that are not installed, of their own deprecations, and as advice."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
