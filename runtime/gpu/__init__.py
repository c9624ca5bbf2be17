"""The tracker on an NVIDIA GPU: memory, engines and kernels on one stream. Nothing heavy is imported until it is asked for."""
