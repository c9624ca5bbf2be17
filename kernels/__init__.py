"""Operations that ONNX Runtime and TensorRT do not offer in the needed form; `reference` defines what each one computes."""
