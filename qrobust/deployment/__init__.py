"""From torch to one ONNX graph, and what onnxruntime makes of it."""
