"""The text that each image is trained with at each position of a run, of a set that is known beforehand, so that it can
be cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth.core import captions
from dreambooth.core.settings.dataset import Captions


class CaptionSchedule:
    """`captions` are the distinct captions of all images; `texts` is what is encoded: the variants of each caption, and
    the empty text where captions are dropped."""

    def __init__(
        self, own: Sequence[str], of_class: Sequence[str], options: Captions, seed: int, epoch: int = 1
    ) -> None:
        """`own` and `of_class` are the captions of the subject's images and of class images; `epoch` is how many of the
        subject's images an epoch has."""
        self.captions = list(dict.fromkeys([*own, *of_class]))
        self.dropout, self.dropout_every, self.epoch, self.seed = options.dropout, options.dropout_every, epoch, seed
        variants = {caption: captions.variants(caption, options, seed) for caption in dict.fromkeys(own)}
        texts = [text for of_caption in variants.values() for text in of_caption]
        empty = [""] if options.dropout or options.dropout_every else []
        self.texts = list(dict.fromkeys([*texts, *of_class, *empty]))
        number = {text: n for n, text in enumerate(self.texts)}
        # By the caption's number: the numbers of its variants, and of the caption itself as a class image's.
        self._variants = [[number[text] for text in variants.get(caption, ())] for caption in self.captions]
        self._class_text = torch.tensor([number.get(caption, -1) for caption in self.captions])
        self._empty_text = number.get("", -1)

    def first(self, caption: int) -> str:
        """The first variant of a caption, given by its number, of the subject's images: what previews and validation
        read."""
        return self.texts[self._variants[caption][0]]

    def of_instances(self, caption_numbers: Tensor, position: int) -> Tensor:
        """(B,) caption numbers of the subject's images, the first at `position` -> the numbers of their texts (B,)."""
        return torch.tensor([self._text(int(caption), position + n) for n, caption in enumerate(caption_numbers)])

    def of_class(self, caption_numbers: Tensor) -> Tensor:
        """(B,) caption numbers of class images -> the numbers of their texts (B,)."""
        return self._class_text[caption_numbers]

    def _text(self, caption: int, position: int) -> int:
        epoch_is_dropped = self.dropout_every and (position // self.epoch + 1) % self.dropout_every == 0
        if epoch_is_dropped or captions.is_dropped(self.dropout, self.seed, position):
            return self._empty_text
        variants = self._variants[caption]
        return variants[captions.pick(len(variants), self.seed, position)]
