"""Export finished networks: ONNX files and model cards."""
