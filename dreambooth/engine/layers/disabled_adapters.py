"""A model as it was before its adapters: they rest for a while, and nothing is taken out or put in."""

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
    """Within it these layers do what they did before they were adapted."""
    # Not by peft's enable_adapters, which also turns off that their weights learn.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
