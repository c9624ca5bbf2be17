"""Configuration that more than one folder reads: what a model is, and how its memory is pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from fastsam2.enums import Protect, PrunePolicy, PrunePreset, QueryPolicy
from fastsam2.errors import PromptError, expected

IMAGE_STRIDE = 16  # pixels per grid token, fixed by Hiera and the feature pyramid
IMAGE_SIZE_MULTIPLE = 32  # Hiera tiles an 8-wide window embedding over the stride-4 map
LOW_RES_STRIDE = 4  # pixels per low-resolution logit
LEAST_MERGED = 0.25  # share of queries left when every 2x2 cell is merged
KEEP_BUCKETS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)  # shapes stay static: one engine profile or CUDA graph per bucket

PRESET_KEEP = {PrunePreset.FAST: 0.02, PrunePreset.BALANCED: 0.05, PrunePreset.QUALITY: 0.25}  # all: router, guard, both protections

# What official apply_postprocessing=True sets in a model's config, whatever other overrides say.
POSTPROCESSING: dict[str, bool | float] = {
    "sam_mask_decoder_extra_args.dynamic_multimask_via_stability": True,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": 0.05,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": 0.98,
    "binarize_mask_from_pts_for_mem_enc": True,
}


class ModelSpec(BaseModel):
    """What the runtime must know of a model; written into the manifest by the exporter.

    Sizes in tokens, channels or pixels. Names follow the official config keys where there is one
    (facebookresearch/sam2 `sam2/modeling/sam2_base.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # as given to `fastsam2 export --model`
    image_size: int = Field(gt=0, multiple_of=IMAGE_SIZE_MULTIPLE)  # S: side of the square input, pixels
    hidden_dim: int = Field(gt=0)  # C
    memory_dim: int = Field(gt=0)  # D
    num_maskmem: int = Field(ge=2)  # frames a step attends to: one prompt slot + the last num_maskmem - 1
    max_object_pointers: int = Field(ge=2)  # official max_obj_ptrs_in_encoder
    multimask_min_points: int  # multimask output when min <= points <= max ...
    multimask_max_points: int
    multimask_for_tracking: bool  # ... also on frames that are not an object's first
    pointer_offsets: bool  # SAM 2.1 encodes how far away a pointer is, SAM 2.0 does not
    signed_pointer_offsets: bool  # 2.1: negative for pointers from the future
    text_dim: int = Field(default=512, gt=0)  # E: width of text embeddings, of CLIP ViT-B unless a text encoder of another width was added
    crop_size: int = Field(default=224, gt=0)  # I: side of the square input of the crop encoder, pixels; of CLIP ViT-B unless one was added

    @property
    def grid(self) -> int:
        """Grid tokens along one side, g."""
        return self.image_size // IMAGE_STRIDE

    @property
    def tokens(self) -> int:
        """Grid tokens of a frame, N = g²."""
        return self.grid**2

    @property
    def low_res(self) -> int:
        """Side of the low-resolution logits, 4g."""
        return self.image_size // LOW_RES_STRIDE

    @property
    def pointer_tokens(self) -> int:
        """Memory tokens one object pointer is split into, C/D."""
        return self.hidden_dim // self.memory_dim

    @property
    def table_rows(self) -> int:
        """Rows of the position tables: N grid rows, N/4 pooled rows, one identity row for pointers."""
        return self.tokens + self.tokens // 4 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Which memory rows survive once a frame is no longer the newest, and which tokens of a frame query them. `Prune()` keeps all.

    Args:
        policy: how rows are chosen. `dense` never gathers; every other policy goes through the top-k gather even at keep 1.0.
        keep: fraction of a frame's N rows to keep, (0, 1]; rounded UP to the next bucket.
        tokens: the same as a row count K; give this or `keep`.
        protect: frames kept dense. The default (both) is what public evidence calls safe.
        seed: for `random`; the choice depends on seed, object id and frame only.
        buckets: the legal keep fractions, ascending, ending in 1.0.
        guard: raise the budget, bucket by bucket up to all rows, while tracking looks unsure (`runtime/guard.py`).
        queries: which tokens of the current frame go through memory attention; independent of `policy`. `drop` and `merge` need a bundle
            with a query_attention graph.
        query_keep: share of a frame's N tokens that stay queries, (0, 1]; with merge the share after merging, [0.25, 1]. Not rounded to
            buckets. Required with drop and merge.

    Raises:
        PromptError: if a value is out of range, both `keep` and `tokens` are given, or `queries` and `query_keep` do not fit.
    """

    policy: PrunePolicy = PrunePolicy.DENSE
    keep: float | None = None
    tokens: int | None = None
    protect: tuple[Protect, ...] = (Protect.PROMPT, Protect.NEWEST)
    seed: int = 0
    buckets: tuple[float, ...] = KEEP_BUCKETS
    guard: bool = False
    queries: QueryPolicy = QueryPolicy.ALL
    query_keep: float | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "policy", PrunePolicy(self.policy))
            object.__setattr__(self, "protect", tuple(Protect(p) for p in self.protect))
        except ValueError as error:
            raise PromptError(
                expected(
                    f"a policy of {[p.value for p in PrunePolicy]} and protect from {[p.value for p in Protect]}",
                    f"policy={self.policy!r}, protect={self.protect!r}",
                    "Pick one of those names",
                )
            ) from error
        if self.keep is not None and self.tokens is not None:
            raise PromptError(expected("keep or tokens", f"keep={self.keep} and tokens={self.tokens}", "Give one of the two"))
        if self.keep is not None and not (0.0 < self.keep <= 1.0):
            raise PromptError(expected("keep in (0, 1]", self.keep, "Use 0.05 to keep 5 % of a frame's rows"))
        if self.tokens is not None and self.tokens < 1:
            raise PromptError(expected("tokens >= 1", self.tokens, "Use the number of rows to keep of each frame"))
        if list(self.buckets) != sorted(set(self.buckets)) or not self.buckets or self.buckets[0] <= 0 or self.buckets[-1] != 1.0:
            raise PromptError(
                expected("ascending bucket fractions in (0, 1] ending in 1.0", self.buckets, f"The default is {KEEP_BUCKETS}")
            )
        if self.policy is PrunePolicy.DENSE and (self.keep not in (None, 1.0) or self.tokens is not None):
            raise PromptError(
                expected(
                    "no budget below 1.0 with policy dense", f"keep={self.keep}, tokens={self.tokens}", "Name a policy, for example mask"
                )
            )
        if self.policy is PrunePolicy.POOL2X2 and (self.keep not in (None, 0.25) or self.tokens is not None):
            raise PromptError(
                expected(
                    "keep 0.25 or none with policy pool2x2", f"keep={self.keep}, tokens={self.tokens}", "2x2 pooling always keeps a quarter"
                )
            )

        if self.guard and not self.policy.scores_rows:
            raise PromptError(expected("guard with a policy that has a budget", self.policy.value, "Name another policy, or leave it out"))
        self._check_queries()

    def _check_queries(self) -> None:
        try:
            object.__setattr__(self, "queries", QueryPolicy(self.queries))
        except ValueError as error:
            names = [q.value for q in QueryPolicy]
            raise PromptError(expected(f"queries of {names}", repr(self.queries), "Pick one of those names")) from error
        if self.queries is QueryPolicy.ALL:
            if self.query_keep is not None:
                got = f"query_keep={self.query_keep}"
                raise PromptError(expected("no query_keep where all tokens are queries", got, "Name a form as well: drop or merge"))
            return
        least = LEAST_MERGED if self.queries is QueryPolicy.MERGE else 0.0
        if self.query_keep is None or not least <= self.query_keep <= 1.0 or self.query_keep == 0.0:
            legal = f"query_keep in {'[0.25' if least else '(0'}, 1] with queries {self.queries.value}"
            raise PromptError(expected(legal, self.query_keep, "Use 0.5 to keep half of a frame's tokens as queries"))

    @classmethod
    def preset(cls, preset: PrunePreset | str) -> Prune:
        """The options a preset stands for.

        Raises:
            PromptError: if there is no such preset.
        """
        try:
            return cls(policy=PrunePolicy.ROUTER, keep=PRESET_KEEP[PrunePreset(preset)], guard=True)
        except ValueError as error:
            raise PromptError(expected(f"a preset of {[p.value for p in PrunePreset]}", preset, "Pick one of those names")) from error

    def rows(self, tokens_per_frame: int) -> int:
        """K, the rows kept of one frame of N = `tokens_per_frame` tokens: the asked-for budget rounded up to a bucket.

        Raises:
            PromptError: if `tokens` asks for more rows than a frame has.
        """
        if self.policy is PrunePolicy.POOL2X2:
            return tokens_per_frame // 4
        if self.tokens is not None:
            if self.tokens > tokens_per_frame:
                raise PromptError(expected(f"at most {tokens_per_frame} tokens", self.tokens, "This model's frames have no more"))
            wanted = self.tokens
        else:
            wanted = bucket_rows(1.0 if self.keep is None else self.keep, tokens_per_frame)
        return min(k for k in (bucket_rows(b, tokens_per_frame) for b in self.buckets) if k >= wanted)

    def query_rows(self, tokens_per_frame: int) -> int:
        """K, the queries of one object on a frame of N = `tokens_per_frame` tokens: at least the share asked for."""
        wanted = bucket_rows(1.0 if self.query_keep is None else self.query_keep, tokens_per_frame)
        if self.queries is QueryPolicy.MERGE:
            return tokens_per_frame - (tokens_per_frame - wanted) // 3 * 3  # a merged cell leaves one query of four
        return wanted

    def budgets(self, tokens_per_frame: int) -> tuple[int, ...]:
        """`rows` and, with the guard, the larger buckets it may rise to, ascending.

        Raises:
            PromptError: as `rows`.
        """
        least = self.rows(tokens_per_frame)
        larger = {bucket_rows(b, tokens_per_frame) for b in self.buckets} if self.guard else set()
        return (least, *sorted(k for k in larger if k > least))


def bucket_rows(fraction: float, tokens_per_frame: int) -> int:
    """Rows of a keep fraction: ceil(fraction · N), immune to binary rounding of the fraction (0.05 · 4096 → 205)."""
    return max(1, math.ceil(round(fraction * tokens_per_frame, 6)))
