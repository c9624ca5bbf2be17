"""Official SAM 2 checkpoint -> bundle. Needs torch, sam2, hydra and onnx; importing this package does not load them."""

from fastsam2.export.exporter import export_bundle

__all__ = ["export_bundle"]
