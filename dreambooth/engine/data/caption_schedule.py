"""Which text a picture is read with at each place of a run, out of a bounded set that is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth.core import captions
from dreambooth.core.settings.dataset import Captions


class CaptionSchedule:
    """`captions` are the distinct captions of all pictures; `texts` are what is encoded: each caption's variants."""

    def __init__(
        self, own: Sequence[str], of_class: Sequence[str], options: Captions, seed: int, epoch: int = 1
    ) -> None:
        """`epoch` is how many pictures of yours an epoch sees."""
        self.captions = list(dict.fromkeys([*own, *of_class]))
        self.share_without, self.every, self.epoch, self.seed = options.dropout, options.dropout_every, epoch, seed
        yours = {caption: captions.variants(caption, options, seed) for caption in dict.fromkeys(own)}
        texts = [text for variants in yours.values() for text in variants]
        nothing = [""] if options.dropout or options.dropout_every else []
        self.texts = list(dict.fromkeys([*texts, *of_class, *nothing]))
        number = {text: n for n, text in enumerate(self.texts)}
        self._own = [[number[text] for text in yours.get(caption, ())] for caption in self.captions]
        self._plain = torch.tensor([number.get(caption, -1) for caption in self.captions])
        self._nothing = number.get("", -1)

    def of_yours(self, chosen: Tensor, position: int) -> Tensor:
        """The texts' numbers for your pictures with these captions' numbers (B,), the first of them at `position`."""
        return torch.tensor([self._one(int(caption), position + n) for n, caption in enumerate(chosen)])

    def of_class(self, chosen: Tensor) -> Tensor:
        """The texts' numbers for pictures of the class with these captions' numbers (B,)."""
        return self._plain[chosen]

    def _one(self, caption: int, place: int) -> int:
        in_bare_epoch = self.every and (place // self.epoch + 1) % self.every == 0
        if in_bare_epoch or captions.is_dropped(self.share_without, self.seed, place):
            return self._nothing
        variants = self._own[caption]
        return variants[captions.pick(len(variants), self.seed, place)]
