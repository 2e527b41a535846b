"""Where a picture's subject is likely to be: what stands out from the rest, by arithmetic alone.

It knows no faces and no things. It looks for what the rest of the picture does not repeat (the spectral residual of
Hou and Zhang, CVPR 2007) and for colours that the picture's edges do not have. That finds a subject before a calm or
an even ground; in a picture that is busy everywhere it stays near the middle.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIDE = 64  # pixels: the spectral residual looks at a picture as a whole, and needs no more
_EDGE_DISCOUNT = 0.5  # how much less a salient point counts at a window's edge than in its middle


def best_window(image: Image.Image, width: float, height: float) -> tuple[float, float]:
    """The place (x, y) of the most salient window of `width` by `height` pixels of the image, each from 0 (left or top)
    to 1 (right or bottom)."""
    salient = saliency(image)
    return _best_place(salient.sum(0), width / image.width), _best_place(salient.sum(1), height / image.height)


def saliency(image: Image.Image) -> np.ndarray:
    """How salient each part of an image is: (64, 64), not negative, summing to 1."""
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float64) / 255
    # Opponent colours: lightness, red against green, and blue against yellow.
    channels = np.stack([rgb.mean(2), rgb[..., 0] - rgb[..., 1], rgb[..., 2] - rgb[..., :2].mean(2)], axis=2)
    total = _normalize(_spectral_residual(channels)) + _normalize(_edge_color_distance(channels))
    return total / total.sum() if total.sum() > 1e-9 else np.full((_SIDE, _SIDE), 1 / _SIDE**2)


def _spectral_residual(channels: np.ndarray) -> np.ndarray:
    """The saliency map (H, W) of channels (H, W, C) by their spectral residual: the log amplitude spectrum less its
    smooth part, which all images share (Hou and Zhang, equations 3 to 5)."""
    spectrum = np.fft.fft2(channels, axes=(0, 1))
    log_amplitude = np.log(np.abs(spectrum) + 1e-3)
    residual = log_amplitude - _blur(log_amplitude, 1)
    reconstructed = np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)), axes=(0, 1))
    contrast = channels.std((0, 1))  # a channel without contrast tells nothing
    return _blur((np.abs(reconstructed) ** 2 * contrast).sum(2, keepdims=True), 3)[..., 0]


def _edge_color_distance(channels: np.ndarray) -> np.ndarray:
    """How far each colour of (H, W, C) is from the nearest quarter of the colours at the image's edge, (H, W)."""
    blurred = _blur(channels, 2)
    edge = np.concatenate([blurred[0, ::8], blurred[-1, ::8], blurred[::8, 0], blurred[::8, -1]])
    distance = np.abs(blurred[:, :, None, :] - edge[None, None]).sum(3)
    return np.partition(distance, len(edge) // 4, axis=2)[..., len(edge) // 4]


def _blur(values: np.ndarray, radius: int) -> np.ndarray:
    """A box filter over (H, W, C) of 2 radius + 1 pixels, applied twice, with the edges repeated."""
    for _ in range(2):
        for axis in (0, 1):
            pad = [(0, 0)] * 3
            pad[axis] = (radius + 1, radius)
            sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis)
            size = 2 * radius + 1
            values = (np.take(sums, range(size, sums.shape[axis]), axis) - np.take(sums, range(_SIDE), axis)) / size
    return values


def _normalize(values: np.ndarray) -> np.ndarray:
    """Values from 0, which is the lower half of them, to 1."""
    values = np.maximum(0, values - np.median(values))
    return values / values.max() if values.max() > 1e-9 else values


def _best_place(profile: np.ndarray, share: float) -> float:
    """The place, from 0 to 1, of the window of this `share` of a profile (64,) in which the profile's sum, weighted
    towards the window's middle, is greatest; the most central of several."""
    fine = np.repeat(profile, 8)
    size = max(1, round(share * len(fine)))
    if size >= len(fine):
        return 0.5
    offsets = np.linspace(-1, 1, size)
    sums = np.convolve(fine, 1 - _EDGE_DISCOUNT * offsets**2, mode="valid")
    last = len(sums) - 1
    best = np.flatnonzero(sums >= sums.max() * (1 - 1e-6))
    most_central = best[np.abs(best - last / 2).argmin()]
    return 0.5 if abs(most_central - last / 2) <= 1 else float(most_central / last)
