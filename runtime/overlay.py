"""Pictures of results: frame + masks ──► masks tinted in palette colours, with outlines and id labels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fastsam2.errors import PromptError, expected
from fastsam2.runtime.result import Result

LABEL_PAD = 2  # pixels between an id and the edge of its plate


def _davis_palette() -> npt.NDArray[np.uint8]:
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


# uint8 [256, 3], RGB: the PASCAL VOC and DAVIS colour map. Entry 0 is the background; the bits of an index are dealt to R, G, B in turn,
# most significant bit of the colour first.
PALETTE = _davis_palette()


def palette_index(object_id: int) -> int:
    """The palette entry of an object: its id for 1..255, others wrap around without ever taking the background's 0."""
    return (object_id - 1) % 255 + 1


def draw_overlay(frame: npt.NDArray[np.uint8], result: Result, *, alpha: float = 0.5) -> npt.NDArray[np.uint8]:
    """Draws the visible objects of a result over its frame.

    Args:
        frame: uint8 [H, W, 3], RGB; not changed.
        result: masks [B, H, W]. Where objects overlap the lowest id is on top; every object keeps its outline.
        alpha: weight of the palette colour inside a mask, 0..1; outlines are opaque.

    Returns:
        uint8 [H, W, 3], RGB, a new array.

    Raises:
        PromptError: if alpha is out of range, or frame and masks differ in size.
    """
    if not 0.0 <= alpha <= 1.0:
        raise PromptError(expected("alpha in 0..1", alpha, "0 draws outlines only, 1 hides the frame"))
    if frame.shape != (*result.masks.shape[1:], 3) or frame.dtype != np.uint8:
        got = f"{frame.dtype} {list(frame.shape)} and masks {list(result.masks.shape)}"
        raise PromptError(expected("frame uint8 [H, W, 3] with masks [B, H, W]", got, "Draw a result over the frame it was computed from"))
    order = np.argsort(result.ids)[::-1].tolist()
    drawn = [_Drawn(result.ids[i], result.masks[i]) for i in order if result.visible[i] and result.masks[i].any()]
    colour = np.zeros(frame.shape[:2], np.uint8)
    strength = np.zeros(frame.shape[:2], np.uint8)
    for item in drawn:
        colour[item.box][item.inside] = palette_index(item.object_id)
        strength[item.box][item.inside] = round(alpha * 255)
    for item in drawn:
        outline = _outline(item.inside, max(1, round(frame.shape[0] / 360)))
        colour[item.box][outline] = palette_index(item.object_id)
        strength[item.box][outline] = 255
    tint = Image.fromarray(colour)
    tint.putpalette(PALETTE.tobytes())
    picture = Image.fromarray(frame)
    picture.paste(tint.convert("RGB"), mask=Image.fromarray(strength))
    _label(picture, drawn)
    return np.array(picture)


class _Drawn:
    """An object with at least one pixel: its bounding box (rows, columns) and its mask within."""

    def __init__(self, object_id: int, mask: npt.NDArray[np.bool_]) -> None:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        self.object_id = object_id
        self.box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        self.inside = mask[self.box]


def _outline(mask: npt.NDArray[np.bool_], thickness: int) -> npt.NDArray[np.bool_]:
    """Pixels of a mask nearer than `thickness` to its outside, along rows or columns."""
    t = thickness
    padded = np.pad(mask, t)
    inner: npt.NDArray[np.bool_] = padded[: -2 * t, t:-t] & padded[2 * t :, t:-t] & padded[t:-t, : -2 * t] & padded[t:-t, 2 * t :]
    return mask & ~inner


@lru_cache(maxsize=8)
def label_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, `size` pixels high."""
    return ImageFont.load_default(size)


def _label(picture: Image.Image, drawn: list[_Drawn]) -> None:
    """Writes each id on a plate in the object's colour, over the top of its mask and within the picture."""
    draw = ImageDraw.Draw(picture)
    font = label_font(max(10, picture.height // 36))
    for item in drawn:
        rows, columns = item.box
        text = str(item.object_id)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * LABEL_PAD, bottom - top + 2 * LABEL_PAD
        x = min(max((columns.start + columns.stop - width) / 2, 0), max(picture.width - width, 0))
        y = min(max(rows.start - height, 0), max(picture.height - height, 0))
        red, green, blue = PALETTE[palette_index(item.object_id)].tolist()
        ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)  # BT.601 luma of the plate
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=(red, green, blue))
        draw.text((x + LABEL_PAD - left, y + LABEL_PAD - top), text, font=font, fill=ink)
