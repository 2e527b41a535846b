"""Which parts of libraries are imported with everything and used by few runs; they are read when they are first used.

diffusers, transformers and peft import every model and method that there is, scipy, bitsandbytes, PyTorch's compiler
and what it shares models among devices with. A run needs a tenth of it. TABLE names modules of the versions in
engine-lock.txt; what it does not name is imported as always, only more slowly.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import typing_extensions

from dreambooth.engine.process import lazy_modules
from dreambooth.engine.process.lazy_modules import Asleep, Later


def put_off() -> None:
    """From now on these modules are imported when they are first used. What is there already stays.

    Nothing is collected as garbage until `settle`: imports make many objects and next to no garbage.
    """
    gc.disable()
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    lazy_modules.put(TABLE)


def settle() -> None:
    """The imports are done; what they have made is not looked through for garbage again."""
    gc.freeze()
    gc.enable()


def _begin_transformers() -> None:
    """Has transformers work as on a PyTorch without `torch.distributed`, as it shards no model here, and write no
    docstrings for its models, for which it imports what it would tell of."""
    import torch.distributed
    from transformers import utils
    from transformers.utils import import_utils

    utils.auto_docstring = _without_docstring
    available, torch.distributed.is_available = torch.distributed.is_available, lambda: False
    try:
        import_utils.is_torch_distributed_available()  # it asks once and remembers
    finally:
        torch.distributed.is_available = available


def _without_docstring(documented: Any = None, **about: Any) -> Any:
    return _without_docstring if documented is None else documented


def _begin_peft() -> None:
    """Imports first what is first in peft's own order, as its parts import each other in a ring. It looks for layers of
    bitsandbytes only where somebody has made such: bitsandbytes is awake then."""
    from peft import import_utils

    import_utils.is_bnb_available = import_utils.is_bnb_4bit_available = lambda: lazy_modules.is_awake("bitsandbytes")
    importlib.import_module("torch.distributed.tensor")  # where it looks for a class
    importlib.import_module("peft.utils")


class _Marks:
    """What PyTorch's compiler is told about functions while it is not there. It means something to it alone."""

    def __init__(self) -> None:
        self.made: list[tuple[str, Any]] = []
        self.compiler: Any = None  # once it is there

    def marking(self, name: str) -> Callable[[Any], Any]:
        def mark(function: Any) -> Any:
            self.made.append((name, function))
            return function

        return mark

    def disable(self, fn: Any = None, recursive: bool = True, **more: Any) -> Any:
        """A function that is not to be compiled."""
        if fn is None:
            return functools.partial(self.disable, recursive=recursive, **more)
        disabled: list[Any] = []

        @functools.wraps(fn)
        def call(*arguments: Any, **named: Any) -> Any:
            if self.compiler is None:
                return fn(*arguments, **named)
            if not disabled:
                disabled.append(self.compiler.disable(fn, recursive, **more))
            return disabled[0](*arguments, **named)

        return call

    def tell(self) -> None:
        """The compiler is there: it hears what it has missed."""
        self.compiler = importlib.import_module("torch._dynamo")
        for name, function in self.made:
            getattr(self.compiler, name)(function)


_marks = _Marks()
_CLIP = "transformers.models.clip"

TABLE = {
    "bitsandbytes": Asleep(),
    "diffusers.hooks": Asleep(parts=None),
    "diffusers.models.autoencoders": Asleep(parts=None),
    "diffusers.models.transformers": Asleep(parts=None),
    "diffusers.models.unets": Asleep(parts=None),
    "httpx._main": Asleep(stand_ins={"main": Later("httpx._main", "main")}),
    "peft": Asleep(
        parts=None,
        names={
            "LoHaConfig": "peft.tuners.loha",
            "LoKrConfig": "peft.tuners.lokr",
            "LoraConfig": "peft.tuners.lora",
            "PeftConfig": "peft.config",
            "inject_adapter_in_model": "peft.mapping",
        },
        before_parts=_begin_peft,
    ),
    "peft.helpers": Asleep(
        stand_ins={"disable_input_dtype_casting": Later("peft.helpers", "disable_input_dtype_casting")}
    ),
    "peft.tuners": Asleep(parts=None),
    "requests": Asleep(),
    "scipy.integrate": Asleep(),
    "scipy.optimize": Asleep(stand_ins={"linear_sum_assignment": Later("scipy.optimize", "linear_sum_assignment")}),
    "scipy.stats": Asleep(),
    "torch._dynamo": Asleep(
        parts=("torch._dynamo.config", "torch._dynamo._trace_wrapped_higher_order_op"),
        stand_ins={
            "allow_in_graph": _marks.marking("allow_in_graph"),
            "assume_constant_result": _marks.marking("assume_constant_result"),
            "disable": _marks.disable,
            "graph_break": lambda msg="": None,
        },
        after=_marks.tell,
    ),
    "torch.distributed.tensor": Asleep(stand_ins={"DTensor": Later("torch.distributed.tensor", "DTensor")}),
    "transformers": Asleep(
        parts=None,
        names={
            "BloomPreTrainedModel": "transformers.models.bloom.modeling_bloom",
            "CLIPTextConfig": f"{_CLIP}.configuration_clip",
            "CLIPTextModel": f"{_CLIP}.modeling_clip",
            "CLIPTextModelWithProjection": f"{_CLIP}.modeling_clip",
            "CLIPTokenizer": f"{_CLIP}.tokenization_clip",
            "PreTrainedModel": "transformers.modeling_utils",
        },
        stand_ins={"AutoImageProcessor": Later("transformers", "AutoImageProcessor")},
        before_parts=_begin_transformers,
    ),
    "transformers.models": Asleep(parts=None),
    "transformers.processing_utils": Asleep(stand_ins={"Unpack": typing_extensions.Unpack}),
}
