"""Ways to do convolutions that are not the default, put in place of it for a training that is measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

BENCHMARK = "cudnn.benchmark"  # cuDNN tries its kernels on the first of each shape, and keeps the quickest
CHANNELS_LAST = "channels_last"  # pictures and weights lie as the tensor cores read them
WAYS = {
    "cudnn.benchmark on": (BENCHMARK,),
    "convolutions channels_last": (CHANNELS_LAST,),
    "cudnn.benchmark on, convolutions channels_last": (BENCHMARK, CHANNELS_LAST),
}


def install(ways: Sequence[str]) -> None:
    """Has the training that follows in this process take these ways."""
    import torch

    from dreambooth.engine.run import setup
    from dreambooth.engine.training import precision

    plain_choice, plain_preparation = precision.set_deterministic, setup.prepare_session

    @functools.wraps(plain_choice)
    def tuned(on: bool) -> None:
        plain_choice(on)
        torch.backends.cudnn.benchmark = True

    @functools.wraps(plain_preparation)
    def turned(*given: Any) -> Any:
        session, validation = plain_preparation(*given)
        session.model.unet.to(memory_format=torch.channels_last)
        return session, validation

    if BENCHMARK in ways:
        precision.set_deterministic = tuned
    if CHANNELS_LAST in ways:
        setup.prepare_session = turned
