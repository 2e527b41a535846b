"""The parts of libraries that few runs use, which are imported lazily to start the engine faster.

diffusers, transformers and peft import every model and method that they have, scipy, bitsandbytes, PyTorch's compiler
and its distributed tensors. A run needs a tenth of that. TABLE names modules of the versions in engine-lock.txt; a
module that it does not name is imported as usual.
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
from dreambooth.engine.process.lazy_modules import LazyAttribute, LazyModule


def install() -> None:
    """From now on the modules of TABLE run when they are first used; those that are imported already stay as they are.

    Garbage collection is off until `settle`: imports create many objects and hardly any garbage.
    """
    gc.disable()
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    lazy_modules.install(TABLE)


def settle() -> None:
    """To be called when the imports are done: turns garbage collection on, without the objects that they created."""
    gc.freeze()
    gc.enable()


def _begin_transformers() -> None:
    """Makes transformers work as on a PyTorch without `torch.distributed`, since it shards no model here, and generate
    no docstrings for its models, for which it would import much."""
    import torch.distributed
    from transformers import utils
    from transformers.utils import import_utils

    utils.auto_docstring = _without_docstring
    available, torch.distributed.is_available = torch.distributed.is_available, lambda: False
    try:
        import_utils.is_torch_distributed_available()  # which caches its answer
    finally:
        torch.distributed.is_available = available


def _without_docstring(documented: Any = None, **about: Any) -> Any:
    return _without_docstring if documented is None else documented


def _begin_peft() -> None:
    """Imports first what peft imports first, as its submodules import each other in a circle. peft looks for layers of
    bitsandbytes only once bitsandbytes has been loaded, as without that there are none."""
    from peft import import_utils

    import_utils.is_bnb_available = import_utils.is_bnb_4bit_available = lambda: lazy_modules.is_loaded("bitsandbytes")
    importlib.import_module("torch.distributed.tensor")  # where it looks for a class
    importlib.import_module("peft.utils")


class _Marks:
    """Marks on functions that mean something to PyTorch's compiler alone; they are passed on when it is loaded."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Any]] = []
        self.compiler: Any = None  # once it is loaded

    def marking(self, name: str) -> Callable[[Any], Any]:
        def mark(function: Any) -> Any:
            self.marks.append((name, function))
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

    def pass_on(self) -> None:
        """Passes all marks on to the compiler, which has been loaded."""
        self.compiler = importlib.import_module("torch._dynamo")
        for name, function in self.marks:
            getattr(self.compiler, name)(function)


_marks = _Marks()
_CLIP = "transformers.models.clip"

TABLE = {
    "bitsandbytes": LazyModule(),
    "diffusers.hooks": LazyModule(parts=None),
    "diffusers.models.autoencoders": LazyModule(parts=None),
    "diffusers.models.transformers": LazyModule(parts=None),
    "diffusers.models.unets": LazyModule(parts=None),
    "httpx._main": LazyModule(stand_ins={"main": LazyAttribute("httpx._main", "main")}),
    "peft": LazyModule(
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
    "peft.helpers": LazyModule(
        stand_ins={"disable_input_dtype_casting": LazyAttribute("peft.helpers", "disable_input_dtype_casting")}
    ),
    "peft.tuners": LazyModule(parts=None),
    "requests": LazyModule(),
    "scipy.integrate": LazyModule(),
    "scipy.optimize": LazyModule(
        stand_ins={"linear_sum_assignment": LazyAttribute("scipy.optimize", "linear_sum_assignment")}
    ),
    "scipy.stats": LazyModule(),
    "torch._dynamo": LazyModule(
        parts=("torch._dynamo.config", "torch._dynamo._trace_wrapped_higher_order_op"),
        stand_ins={
            "allow_in_graph": _marks.marking("allow_in_graph"),
            "assume_constant_result": _marks.marking("assume_constant_result"),
            "disable": _marks.disable,
            "graph_break": lambda msg="": None,
        },
        after=_marks.pass_on,
    ),
    "torch.distributed.tensor": LazyModule(stand_ins={"DTensor": LazyAttribute("torch.distributed.tensor", "DTensor")}),
    "transformers": LazyModule(
        parts=None,
        names={
            "BloomPreTrainedModel": "transformers.models.bloom.modeling_bloom",
            "CLIPTextConfig": f"{_CLIP}.configuration_clip",
            "CLIPTextModel": f"{_CLIP}.modeling_clip",
            "CLIPTextModelWithProjection": f"{_CLIP}.modeling_clip",
            "CLIPTokenizer": f"{_CLIP}.tokenization_clip",
            "PreTrainedModel": "transformers.modeling_utils",
        },
        stand_ins={"AutoImageProcessor": LazyAttribute("transformers", "AutoImageProcessor")},
        before_parts=_begin_transformers,
    ),
    "transformers.models": LazyModule(parts=None),
    "transformers.processing_utils": LazyModule(stand_ins={"Unpack": typing_extensions.Unpack}),
}
