"""The TensorRT side. `fastsam2.engines.trt_compat` chooses the flavor; nothing is imported until it is asked for."""
