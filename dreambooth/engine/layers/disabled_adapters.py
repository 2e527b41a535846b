"""The base model of an adapted one: its adapters are disabled for a while, and no layer is removed or added."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def adapters(modules: Iterable[nn.Module]) -> list[BaseTunerLayer]:
    """The adapted layers of some modules, of any kind."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


@contextlib.contextmanager
def disabled(layers: list[BaseTunerLayer]) -> Iterator[None]:
    """Disables the adapters of these layers until the block ends."""
    # Not with peft's enable_adapters, which also changes whether their weights require gradients.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
