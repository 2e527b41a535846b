"""Which text a picture has at each position of a run, of a set that is known beforehand, so that all can be cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth.core import captions
from dreambooth.core.settings.dataset import Captions


class CaptionSchedule:
    """`captions` are the distinct captions of all pictures; `texts` is what is encoded: the variants of each caption,
    and the empty text where captions are dropped."""

    def __init__(
        self, own: Sequence[str], of_class: Sequence[str], options: Captions, seed: int, epoch: int = 1
    ) -> None:
        """`own` and `of_class` are the captions of training pictures and class pictures; `epoch` is how many training
        pictures an epoch has."""
        self.captions = list(dict.fromkeys([*own, *of_class]))
        self.share_without, self.every, self.epoch, self.seed = options.dropout, options.dropout_every, epoch, seed
        variants = {caption: captions.variants(caption, options, seed) for caption in dict.fromkeys(own)}
        texts = [text for own_texts in variants.values() for text in own_texts]
        empty = [""] if options.dropout or options.dropout_every else []
        self.texts = list(dict.fromkeys([*texts, *of_class, *empty]))
        number = {text: n for n, text in enumerate(self.texts)}
        self._own = [[number[text] for text in variants.get(caption, ())] for caption in self.captions]
        self._plain = torch.tensor([number.get(caption, -1) for caption in self.captions])
        self._empty = number.get("", -1)

    def first(self, caption: int) -> str:
        """The first of the texts that a training picture's caption, given by its number, stands for: what previews and
        validation read."""
        return self.texts[self._own[caption][0]]

    def of_yours(self, chosen: Tensor, position: int) -> Tensor:
        """The numbers of the texts of training pictures with these captions' numbers (B,), the first at `position`."""
        return torch.tensor([self._one(int(caption), position + n) for n, caption in enumerate(chosen)])

    def of_class(self, chosen: Tensor) -> Tensor:
        """The numbers of the texts of class pictures with these captions' numbers (B,)."""
        return self._plain[chosen]

    def _one(self, caption: int, place: int) -> int:
        in_bare_epoch = self.every and (place // self.epoch + 1) % self.every == 0
        if in_bare_epoch or captions.is_dropped(self.share_without, self.seed, place):
            return self._empty
        variants = self._own[caption]
        return variants[captions.pick(len(variants), self.seed, place)]
