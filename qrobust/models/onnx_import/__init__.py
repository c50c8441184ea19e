"""A float ONNX classifier as a torch network with gradients: its operators become ordinary torch modules."""
