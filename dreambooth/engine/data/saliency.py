"""Where a picture's subject is likely to be: what stands out from the rest, by arithmetic alone.

It knows no faces and no things. It looks for what the rest of the picture does not repeat (the spectral residual of
Hou and Zhang, CVPR 2007) and for colours that the picture's edges do not have. That finds a subject before a calm or
an even ground; in a picture that is busy everywhere it stays near the middle.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIDE = 64  # pixels: the spectral residual looks at a picture as a whole, and needs no more
_TO_THE_EDGE = 0.5  # how much less an outstanding point counts at a window's edge than in its middle


def find(image: Image.Image, width: float, height: float) -> tuple[float, float]:
    """Where a window of `width` by `height` pixels of the picture lies best: 0 is left or top, 1 right or bottom."""
    standing_out = saliency(image)
    share_across, share_down = width / image.width, height / image.height
    return _best(standing_out.sum(0), share_across), _best(standing_out.sum(1), share_down)


def saliency(image: Image.Image) -> np.ndarray:
    """How much each part of a picture stands out: (64, 64), not negative, summing to 1."""
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.float64) / 255
    opponents = np.stack(
        [colours.mean(2), colours[..., 0] - colours[..., 1], colours[..., 2] - colours[..., :2].mean(2)], axis=2
    )
    found = _normal(_residual(opponents)) + _normal(_strangeness(opponents))
    return found / found.sum() if found.sum() > 1e-9 else np.full((_SIDE, _SIDE), 1 / _SIDE**2)


def _residual(channels: np.ndarray) -> np.ndarray:
    """The energy of what is left of the spectrum (H, W, C) once its smooth part, which all pictures share, is gone."""
    spectrum = np.fft.fft2(channels, axes=(0, 1))
    logarithm = np.log(np.abs(spectrum) + 1e-3)
    residual = logarithm - _blur(logarithm, 1)
    back = np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)), axes=(0, 1))
    strength = channels.std((0, 1))  # a channel in which nothing happens says nothing
    return _blur((np.abs(back) ** 2 * strength).sum(2, keepdims=True), 3)[..., 0]


def _strangeness(channels: np.ndarray) -> np.ndarray:
    """How far each colour (H, W, C) is from the colours of the picture's edge: from the nearest quarter of them."""
    blurred = _blur(channels, 2)
    edge = np.concatenate([blurred[0, ::8], blurred[-1, ::8], blurred[::8, 0], blurred[::8, -1]])
    distance = np.abs(blurred[:, :, None, :] - edge[None, None]).sum(3)
    return np.partition(distance, len(edge) // 4, axis=2)[..., len(edge) // 4]


def _blur(values: np.ndarray, radius: int) -> np.ndarray:
    """A box filter (H, W, C) that is applied twice, its edges repeated."""
    for _ in range(2):
        for axis in (0, 1):
            pad = [(0, 0)] * 3
            pad[axis] = (radius + 1, radius)
            sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis)
            wide = 2 * radius + 1
            values = (np.take(sums, range(wide, sums.shape[axis]), axis) - np.take(sums, range(_SIDE), axis)) / wide
    return values


def _normal(values: np.ndarray) -> np.ndarray:
    """From 0, where the quieter half of the picture is, to 1."""
    values = np.maximum(0, values - np.median(values))
    return values / values.max() if values.max() > 1e-9 else values


def _best(profile: np.ndarray, share: float) -> float:
    """The place, from 0 to 1, of the window that holds most of a profile, and most of it in its middle."""
    fine = np.repeat(profile, 8)
    wide = max(1, round(share * len(fine)))
    if wide >= len(fine):
        return 0.5
    offsets = np.linspace(-1, 1, wide)
    held = np.convolve(fine, 1 - _TO_THE_EDGE * offsets**2, mode="valid")
    last = len(held) - 1
    best = np.flatnonzero(held >= held.max() * (1 - 1e-6))
    nearest = best[np.abs(best - last / 2).argmin()]
    return 0.5 if abs(nearest - last / 2) <= 1 else float(nearest / last)
