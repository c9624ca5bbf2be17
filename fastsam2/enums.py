"""Closed choices that also parse from text (`PrunePolicy("mask")`)."""

from enum import Enum


class GraphRole(str, Enum):
    """The graphs of a bundle; tensor tables in `fastsam2.contracts`."""

    IMAGE_ENCODER = "image_encoder"
    MEMORY_ATTENTION = "memory_attention"
    QUERY_ATTENTION = "query_attention"
    MASK_DECODER = "mask_decoder"
    MASK_PROMPT = "mask_prompt"
    MEMORY_ENCODER = "memory_encoder"
    TEXT_ENCODER = "text_encoder"
    CROP_ENCODER = "crop_encoder"
    ROUTER = "router"
    ROUTER_GATHER = "router_gather"


class ExportTarget(str, Enum):
    """Which consumer a set of graphs is shaped for.

    ONNXRUNTIME: com.microsoft MultiHeadAttention, raw 64-wide memory rows as attention values (the fastest measured on a CPU).
    TENSORRT: standard ONNX operators only, values as wide as keys (TensorRT fuses only equal widths), additive `memory_bias`.
    """

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class PrunePolicy(str, Enum):
    """How the memory rows of a frame are chosen; one file each in `runtime/policies/`."""

    DENSE = "dense"
    RANDOM = "random"
    UNIFORM = "uniform"
    MASK = "mask"
    POOL2X2 = "pool2x2"
    ROUTER = "router"

    @property
    def scores_rows(self) -> bool:
        """Whether rows are ranked and the best of them kept, so that there is a budget to choose."""
        return self not in (PrunePolicy.DENSE, PrunePolicy.POOL2X2)


class QueryPolicy(str, Enum):
    """Which tokens of the current frame go through memory attention; chosen in `runtime/query_pruning.py`."""

    ALL = "all"
    DROP = "drop"
    MERGE = "merge"


class PrunePreset(str, Enum):
    """Named `Prune` options; what each stands for is in `fastsam2.config`."""

    FAST = "fast"
    BALANCED = "balanced"
    QUALITY = "quality"


class Alarm(str, Enum):
    """Why the guard raised the row budget; limits in `runtime/guard.py`."""

    SCORE = "object score dropped"
    IOU = "predicted IoU dropped"
    AREA = "mask area jumped"


class Protect(str, Enum):
    """Frames whose rows are never pruned."""

    PROMPT = "prompt"
    NEWEST = "newest"


class ScoredFrames(str, Enum):
    """Which frames of an object are scored; `benchmarks/score.py` says exactly."""

    AFTER_PROMPT = "after_prompt"
    DAVIS = "davis"


class Dataset(str, Enum):
    """A benchmark of video object segmentation; `benchmarks/protocols.py` says what each asks."""

    DAVIS = "davis"
    SAV = "sav"
    MOSE = "mose"
    LVOS = "lvos"
    YTVOS = "ytvos"
    FOLDER = "folder"


class BackendName(str, Enum):
    """Where graphs run; opened in `runtime/backends/open.py`."""

    AUTO = "auto"  # the first of the others, last to first, that is ready here
    GPU = "gpu"  # the first of those that need one
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"


class Precision(str, Enum):
    """Number format of most of an engine's graph; what stays float32 is decided in `engines/precision.py`."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Flavor(str, Enum):
    """Which TensorRT builds and runs an engine; chosen in `engines/trt_compat.py`."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
