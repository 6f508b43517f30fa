"""Hand a finished network on: as an ONNX file, and with a model card."""
