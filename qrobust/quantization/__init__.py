"""From a float network to a fake-quantized one whose integers are those of the exported graph."""
