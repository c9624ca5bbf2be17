"""Train nano's own small CLIP: `python -m fastsam2.training.text_tower --out FOLDER`.

    procedural scenes -> (crop of an actor, words for it) -> contrastive training -> an ordinary CLIP checkpoint, for `fastsam2 add-text`

It knows the colours, patterns and shapes of procedural captions and nothing else; real pictures need a real CLIP. Interrupt it at any
time: the next call goes on from the last save. The tokenizer is trained here too: byte-level BPE by CLIP's rules, so that any text can
be spelled.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from fastsam2.contracts import CLIP_CONTEXT
from fastsam2.runtime.auto_text import object_crop
from fastsam2.training.clips import TRAINING_SEED, is_visible
from fastsam2.training.saves import save
from fastsam2.training.scene import PLAIN, Actor, Scene
from fastsam2.training.shapes import SHAPES
from fastsam2.training.textures import COLOURS, PATTERNS

OUT = Path("out/text_tower")
CROP = 64  # pixels, side of a crop
TEXT_DIM = 512  # as CLIP ViT-B, so that nano takes the same path as a real CLIP
VOCABULARY = "vocabulary.txt"  # what `run --text auto` may answer: two words, since it has to name what is seen, and not all of it
CANDIDATES = 16  # captions that a crop is matched to when accuracy is measured
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of openai/CLIP, what its preprocessors expect

# Second number of the seeds of scenes here; those of `clips.py` have the run's seed there, and a small one.
_TRAINING_STREAM, _UNSEEN_STREAM = 1_000_001, 1_000_002
_LEVEL = replace(PLAIN, targets=(2, 3), distractors=(2, 4), radius=(0.12, 0.28))
_FRAME = 160  # pixels, side of a scene
_GREY = 127  # outside the mask in masked crops, and beside crops that are not square
_REUSE = 8  # steps that use a scene, each at another time
_WARM_UP = 100  # steps
_RATE, _WEIGHT_DECAY, _CLIP_NORM = 1e-3, 0.02, 1.0
_LARGEST_SCALE = 4.6052  # ln 100, as openai/CLIP bounds its temperature
_SAVE_SECONDS, _LOG_EVERY = 60, 20

SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict(gray=("grey",), purple=("violet",), cyan=("turquoise",)),
    **dict(striped=("stripy",), checkered=("checked",), dotted=("spotted",), mottled=("blotchy",), shaded=("fading",), plain=("solid",)),
    **dict(disc=("circle",), oval=("ellipse",), bar=("rectangle",), gear=("cog",), crescent=("moon",), ring=("hoop",)),
    **dict(cross=("plus",), drop=("teardrop",), figure=("silhouette",)),
}
_ANYTHING = ("thing", "object", "one")

Words = frozenset[str]
"""What a text says, or what is true of a crop: names of colours, pattern and shape. A text fits a crop when it says nothing else."""


def words_of(actor: Actor) -> Words:
    """Everything that is true of an actor."""
    look = actor.look
    colours = {look.first} if look.pattern == "plain" else {look.first, look.second}
    return frozenset({*colours, look.pattern, actor.shape})


def random_phrase(words: Words, caption: str, rng: np.random.Generator) -> tuple[str, Words]:
    """One way to say some or all of what is true of a crop: half of the time its caption.

    Args:
        words: what is true.
        caption: the usual way to say it.
        rng: chooses.

    Returns:
        The phrase, and the words it stands for: never none, and only some of `words`.
    """
    if rng.random() < 0.5:
        return caption, words
    colours, patterns = sorted(words & COLOURS.keys()), sorted(words & set(PATTERNS))
    colours = [str(c) for c in rng.permutation(colours)][: int(rng.choice([0, 1, 2], p=[0.15, 0.25, 0.6]))]
    patterns = patterns if rng.random() < 0.75 else []
    shapes = sorted(words - COLOURS.keys() - set(PATTERNS)) if rng.random() < 0.8 or not (colours or patterns) else []
    said = frozenset((*colours, *patterns, *shapes))
    adjectives = [" and ".join(_synonym(c, rng) for c in colours)] if colours else []
    adjectives += [_synonym(p, rng) for p in patterns]
    if rng.random() < 0.3:
        adjectives.reverse()
    noun = _synonym(shapes[0], rng) if shapes else str(rng.choice(_ANYTHING))
    article = str(rng.choice(["", "a", "the", "a picture of a"], p=[0.4, 0.3, 0.2, 0.1]))
    return " ".join([*article.split(), *adjectives, noun]), said


def _synonym(word: str, rng: np.random.Generator) -> str:
    return str(rng.choice([word, word, *SYNONYMS.get(word, ())]))


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of actors and what can be said of them; n of them.

    Attributes:
        pixels: uint8 [n, 64, 64, 3] RGB.
        words: what is true of each.
        captions: the usual way to say it.
        phrases: a random way to say some of it, and what that stands for.
    """

    pixels: npt.NDArray[np.uint8]
    words: list[Words]
    captions: list[str]
    phrases: list[tuple[str, Words]]


class CropSource:
    """Makes the crops of any step.

    Args:
        scenes: rendered in a step; each shows about four actors.
        seed: of the run.
        masked: share of crops whose surroundings are grey.
        unseen: draw from the scenes that training never sees.
    """

    def __init__(self, scenes: int, *, seed: int, masked: float = 0.5, unseen: bool = False) -> None:
        self.scenes, self.masked = scenes, masked
        self._stream = (TRAINING_SEED, _UNSEEN_STREAM if unseen else _TRAINING_STREAM, seed)
        self._scene = lru_cache(maxsize=2 * scenes)(self._make_scene)

    def __getitem__(self, step: int) -> Crops:
        """The crops of a step; the same whatever was asked for before."""
        rng = np.random.default_rng((*self._stream, 1, step))
        pixels, words, captions, phrases = [], [], [], []
        for slot in range(self.scenes):
            scene = self._scene(slot, (step + slot * _REUSE // self.scenes) // _REUSE)
            time_s = float(rng.uniform(0, 3000))
            frame, ids = scene.render(time_s)
            for index, actor in enumerate(scene.actors):
                if not is_visible(scene, index, time_s, ids):
                    continue
                pixels.append(square_crop(frame, ids == index + 1, masked=bool(rng.random() < self.masked), flip=bool(rng.random() < 0.5)))
                words.append(words_of(actor))
                captions.append(actor.caption)
                phrases.append(random_phrase(words[-1], captions[-1], rng))
        return Crops(np.stack(pixels), words, captions, phrases)

    def _make_scene(self, slot: int, generation: int) -> Scene:
        return Scene((*self._stream, 0, slot, generation), _LEVEL, (_FRAME, _FRAME))


def square_crop(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], *, masked: bool = False, flip: bool = False
) -> npt.NDArray[np.uint8]:
    """The picture round a mask with its proportions kept, on grey where it is not square.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: bool [H, W], not empty.
        masked: grey outside the mask too.
        flip: mirror it.

    Returns:
        uint8 [64, 64, 3].
    """
    shown = np.where(mask[..., None], image, np.uint8(_GREY)) if masked else image
    crop = object_crop(shown, mask)
    height, width = crop.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), _GREY, np.uint8)
    square[(side - height) // 2 :, (side - width) // 2 :][:height, :width] = crop[:, ::-1] if flip else crop
    resized = cv2.resize(square, (CROP, CROP), interpolation=cv2.INTER_AREA if side > CROP else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def make_tokenizer(merges: int = 600, phrases: int = 5000) -> Any:
    """A fast `CLIPTokenizer` for procedural phrases. Its ids: 256 bytes, 256 bytes that end a word, merged parts of words, begin, end.

    Args:
        merges: at most so many parts of words.
        phrases: random ones to learn them from.
    """
    rng = np.random.default_rng(0)
    corpus = []
    for _ in range(phrases):
        first, second = rng.choice(list(COLOURS), 2, replace=False)
        words = frozenset((str(first), str(second), str(rng.choice(PATTERNS)), str(rng.choice([*SHAPES, "figure"]))))
        corpus.append(random_phrase(words, " ".join(sorted(words)), rng)[0])
    rules = transformers.CLIPTokenizer().backend_tokenizer
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(corpus, trainer)
    learnt: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]  # annotated as list[str], but pairs it takes
    parts = dict.fromkeys([*alphabet, *(f"{byte}</w>" for byte in alphabet), *(a + b for a, b in learnt), BEGIN, END])
    return transformers.CLIPTokenizer(
        vocab={part: i for i, part in enumerate(parts)}, merges=learnt, model_max_length=CLIP_CONTEXT, bos_token=BEGIN, eos_token=END
    )


def make_model(tokenizer: Any) -> Any:
    """A `CLIPModel` of about a million weights, random: 64 x 64 pixels, 512 wide embeddings."""
    size = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": begin, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    text = {**size, **ids, "num_hidden_layers": 2, "max_position_embeddings": CLIP_CONTEXT, "projection_dim": TEXT_DIM}
    vision = {**size, "num_hidden_layers": 3, "image_size": CROP, "patch_size": 8, "projection_dim": TEXT_DIM}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_DIM))


def pixel_values(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [n, 64, 64, 3] -> float32 [n, 3, 64, 64] as CLIP wants it."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def contrastive_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of crops over texts and of texts over crops, in which what fits too is neither right nor wrong.

    Args:
        logits: float32 [n, n], crops by texts; text i was made for crop i.
        fits: bool [n, n], text j is true of crop i.

    Returns:
        Scalar: the mean of the two, nats.
    """
    others = fits & ~torch.eye(len(fits), dtype=torch.bool)
    logits = logits.masked_fill(others, float("-inf"))
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def fitting(crops: Crops) -> torch.Tensor:
    """Whether phrase j is true of crop i, bool [n, n]."""
    return torch.tensor([[said <= words for _, said in crops.phrases] for words in crops.words])


class Trainer:
    """A run in a folder, where `last.pt` and `log.jsonl` are.

    Args:
        folder: of the run.
        steps: of the whole run; the learning rate falls to 0 at the end.
        scenes: rendered in a step.
        seed: of weights and data.
    """

    def __init__(self, folder: Path, *, steps: int, scenes: int = 24, seed: int = 0) -> None:
        self.folder, self.steps = folder, steps
        torch.manual_seed(seed)
        self.tokenizer = make_tokenizer()
        self.model = make_model(self.tokenizer).train()
        self.source = CropSource(scenes, seed=seed)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=_RATE, betas=(0.9, 0.98))
        self.step, self.seconds = 0, 0.0
        self._resume()

    def run(self) -> Any:
        """Train to the end; answers with the model."""
        clock = saved = time.monotonic()
        recent: list[float] = []
        while self.step < self.steps:
            recent.append(self._step(self.source[self.step]))
            now = time.monotonic()
            self.step, self.seconds, clock = self.step + 1, self.seconds + now - clock, now
            if self.step % _LOG_EVERY == 0 or self.step == self.steps:
                self._log(sum(recent) / len(recent))
                recent = []
            if now - saved > _SAVE_SECONDS or self.step == self.steps:
                self._save()
                saved = now
        return self.model.eval()

    def _step(self, crops: Crops) -> float:
        rate = _RATE * min((self.step + 1) / _WARM_UP, 1.0) * (1 - self.step / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens = self.tokenizer([text for text, _ in crops.phrases], padding=True, return_tensors="pt")
        out = self.model(input_ids=tokens.input_ids, pixel_values=pixel_values(crops.pixels))
        loss = contrastive_loss(out.logits_per_image, fitting(crops))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=_LARGEST_SCALE)
        return float(loss.detach())

    def _log(self, loss: float) -> None:
        scale = round(float(self.model.logit_scale.detach().exp()), 1)
        line = {"step": self.step, "of": self.steps, "seconds": round(self.seconds), "loss": round(loss, 4), "scale": scale}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(" ".join(f"{k} {v}" for k, v in line.items()), file=sys.stderr, flush=True)

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds}
        save(self.folder / "last.pt", state)

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.is_file():
            return
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"going on at step {self.step} after {self.seconds / 60:.1f} min", file=sys.stderr)


def write_checkpoint(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write a CLIP checkpoint as transformers reads it, and a vocabulary; weights rounded to float16 take half the bytes in a bundle.

    Args:
        model: `CLIPModel`; its own weights are rounded too, so that what is measured is what is written.
        tokenizer: its tokenizer.
        folder: to write into.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    size = {"height": CROP, "width": CROP}
    preprocessor = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": size, "do_center_crop": False}
    preprocessor |= {"do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (folder / VOCABULARY).write_text("".join(f"{colour} {shape}\n" for colour in COLOURS for shape in SHAPES))
    return folder


def accuracy(model: Any, tokenizer: Any, *, masked: bool, crops: int = 512, scenes: int = 24, seed: int = 0) -> float:
    """How often a crop of a scene that training never saw is matched to its caption among 16 that say different things; chance is 1/16.

    Args:
        model: `CLIPModel` in eval mode.
        tokenizer: its tokenizer.
        masked: grey surroundings.
        crops: at least so many.
        scenes: drawn at a time.
        seed: of scenes and wrong captions.

    Returns:
        0..1.
    """
    source, rng = CropSource(scenes, seed=seed, masked=float(masked), unseen=True), np.random.default_rng(seed)
    pixels: list[npt.NDArray[np.uint8]] = []
    truth: list[Words] = []
    captions: dict[Words, str] = {}
    step = 0
    while len(truth) < crops:
        found = source[step]
        step += _REUSE  # other scenes, not other times
        pixels.append(found.pixels)
        truth += found.words
        captions.update(zip(found.words, found.captions, strict=True))
    known = list(captions)
    with torch.inference_mode():
        tokens = tokenizer(list(captions.values()), padding=True, return_tensors="pt")
        batches = [model(input_ids=tokens.input_ids, pixel_values=pixel_values(part)) for part in pixels]
    scores = torch.cat([out.logits_per_image for out in batches]).numpy()
    right = 0
    for row, words in zip(scores, truth, strict=True):
        own = known.index(words)
        wrong = rng.choice(np.delete(np.arange(len(known)), own), CANDIDATES - 1, replace=False)
        right += bool(row[own] > row[wrong].max())
    return right / len(truth)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.text_tower", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the run, and for the checkpoint in the end")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--scenes", type=int, default=24, help="rendered in a step; each shows about four actors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, write the checkpoint, and say how good it is."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args.out, steps=args.steps, scenes=args.scenes, seed=args.seed)
    model = trainer.run()
    checkpoint = write_checkpoint(model, trainer.tokenizer, args.out)
    boxed, masked = (accuracy(model, trainer.tokenizer, masked=m) for m in (False, True))
    print(f"{checkpoint}: top-1 of {CANDIDATES} captions on unseen crops {boxed:.1%}, with grey surroundings {masked:.1%}")


if __name__ == "__main__":
    main()
