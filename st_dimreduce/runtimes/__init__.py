"""Runtimes: reduced models and heads as graphs for ONNX Runtime and OpenVINO."""
