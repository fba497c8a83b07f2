"""Encoder and heads → ONNX → TensorRT plan → installed in a model repository. Run as `python -m build.<step>`."""
