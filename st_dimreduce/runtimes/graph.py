"""ONNX graphs made by hand: a head by itself, and codes behind any embedding.

The only file that names ONNX's operators. It is imported where a graph is made: it needs the extra ``onnx``.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.codes.precision import INT8_STEPS, Precision, thresholds

OPSET = 20
_IR_VERSION = 10  # what runtimes of 2024 read already
_SHORTEST = 1e-30  # squared length below which a row counts as zero and stays zero


def head_graph(head: DimReduce) -> ModelProto:
    """Return a head as a graph from ``embedding``, float32 of shape (n, d), to ``reduced``, unit rows of shape (n, k).

    These are the rows that :func:`st_dimreduce.reduce_vectors` stores. A row of zeros without a bias stays zero.

    Raises:
        ValueError: If the head ends in something other than Tanh or Identity.
    """
    names = {nn.Tanh: "Tanh", nn.Identity: "Identity"}
    activation = type(head.activation_function)
    if activation not in names:
        raise ValueError(f"the head ends in {activation.__name__}, expected Tanh or Identity: train it with one")
    weights = {name: value.detach().float().cpu().numpy() for name, value in head.linear.named_parameters()}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["embedding", *weights], ["linear"], transB=1),
            helper.make_node(names[activation], ["linear"], ["activated"]),
            *_scaled("activated", "reduced"),
        ],
        "head",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", head.in_features])],
        [helper.make_tensor_value_info("reduced", TensorProto.FLOAT, ["batch", head.out_features])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)


def add_codes(model: ModelProto, precision: Precision) -> None:
    """Give a graph one output more: ``codes``, what :func:`st_dimreduce.quantize` makes of its first output.

    int8 of shape (n, k) for int8, else uint8 of shape (n, ceil(k * bits / 8)). The sums of a row are added up in
    another order than NumPy's, so that an entry on the edge between two codes may get the other one. NaN has no code.

    Args:
        model: A graph whose first output is of shape (n, k), float32; changed in place.
        precision: Any but float32.
    """
    source = model.graph.output[0]
    size = source.type.tensor_type.shape.dim[1].dim_value
    nodes = _scaled(source.name, "codes/scaled", math.sqrt(size))
    if precision is Precision.INT8:
        width, kind = size, TensorProto.INT8
        limits = [_constant(f"codes/{bound}", np.float32(bound)) for bound in (-127, 127)]
        nodes += [
            _constant("codes/steps", np.float32(INT8_STEPS)),
            helper.make_node("Mul", ["codes/scaled", "codes/steps"], ["codes/number"]),
            helper.make_node("Round", ["codes/number"], ["codes/rounded"]),
            *limits,
            helper.make_node("Clip", ["codes/rounded", "codes/-127", "codes/127"], ["codes/whole"]),
        ]
    else:
        width, kind = precision.bytes_per_vector(size), TensorProto.UINT8
        # Each entry's number times its place in its byte: one product packs, and every number in it is whole.
        place = np.zeros((size, width), np.float32)
        entries, per_byte = np.arange(size), 8 // precision.bits
        place[entries, entries // per_byte] = 2.0 ** (precision.bits * (per_byte - 1 - entries % per_byte))
        nodes += [
            _constant("codes/thresholds", thresholds(precision)),
            _constant("codes/last", np.array([-1])),
            helper.make_node("Unsqueeze", ["codes/scaled", "codes/last"], ["codes/entries"]),
            helper.make_node("Greater", ["codes/entries", "codes/thresholds"], ["codes/exceeds"]),
            helper.make_node("Cast", ["codes/exceeds"], ["codes/exceeded"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["codes/exceeded", "codes/last"], ["codes/number"], keepdims=0),
            _constant("codes/place", place),
            helper.make_node("MatMul", ["codes/number", "codes/place"], ["codes/whole"]),
        ]
    model.graph.node.extend([*nodes, helper.make_node("Cast", ["codes/whole"], ["codes"], to=kind)])
    model.graph.output.append(helper.make_tensor_value_info("codes", kind, ["batch", width]))


def _scaled(source: str, target: str, length: float = 1.0) -> list[NodeProto]:
    """Nodes that scale every row to a length."""
    return [
        _constant(f"{target}/axes", np.array([1])),
        helper.make_node("ReduceSumSquare", [source, f"{target}/axes"], [f"{target}/squares"]),
        _constant(f"{target}/shortest", np.float32(_SHORTEST)),
        helper.make_node("Max", [f"{target}/squares", f"{target}/shortest"], [f"{target}/safe"]),
        helper.make_node("Sqrt", [f"{target}/safe"], [f"{target}/norm"]),
        _constant(f"{target}/length", np.float32(length)),
        helper.make_node("Div", [f"{target}/length", f"{target}/norm"], [f"{target}/factor"]),
        helper.make_node("Mul", [source, f"{target}/factor"], [target]),
    ]


def _constant(name: str, value: np.ndarray | np.generic) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))
