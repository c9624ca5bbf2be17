"""Bundle -> masks: the streaming tracker and everything around it. Needs numpy and ONNX Runtime; never torch."""
