"""Taking a trained network out of this package: stock configs and checkpoints, ONNX and other formats."""
