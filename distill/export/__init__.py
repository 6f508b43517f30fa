"""Take a run elsewhere: an ONNX file, and the model card in its folder."""
