"""Recorded operations as one function that runs them on other inputs.

It has no modules, no autograd and no autocast: at a batch size of 1 much of a training step's time goes there. Each
tensor is deleted right after its last use, so that a replay takes no more memory than the recorded run.
"""

from __future__ import annotations

import itertools
import linecache
import math
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreambooth.engine.tracing.recorder import Constant, Made, NotTraceable, Operation, Recorder

# By which norms of a replay may differ from those of an eager run: half precision on a GPU, where sums have no order.
RELATIVE_TOLERANCE = 0.02
_NUMBERS = itertools.count()


class Program:
    """Replays a computation, on inputs of the same shapes, strides, dtypes and devices as it was recorded with."""

    def __init__(self, recorder: Recorder, outputs: Sequence[Tensor]) -> None:
        named = [recorder.reference(tensor) for tensor in outputs]
        self._run = _function(recorder, named)
        self.length = len(recorder.operations)

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the outputs, in the order of the recorded ones."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            return self._run(*inputs)


def record(function: Callable[[list[Tensor]], list[Tensor]], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Program]:
    """Runs a computation once and records it. Returns its outputs, and the program that replays it.

    Raises NotTraceable, in the middle of the computation, where that cannot be recorded.
    """
    given = [tensor.detach().clone() for tensor in inputs]  # in storages of their own
    with Recorder(given) as recorder:
        outputs = function(given)
    return outputs, Program(recorder, outputs)


def signature(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The properties of its inputs that a program depends on."""
    return tuple((one.shape, one.stride(), one.dtype, one.device) for one in tensors)


def _function(recorder: Recorder, outputs: list[Made | Constant]) -> Callable[..., tuple[Tensor, ...]]:
    """Compiles the operations to a Python function, as local variables are fast. Tracebacks show its lines."""
    source = _Source()
    lines = []
    for operation, unused in _needed(recorder.operations, outputs):
        lines.append(source.line(operation))
        if unused:
            lines.append("del " + ", ".join(map(_name, unused)))
    lines.append(f"return ({', '.join(map(_name, outputs))},)")
    head = f"def run({', '.join(map(_name, recorder.inputs))}):"
    constants = {_name(Constant(n)): tensor for n, tensor in enumerate(recorder.constants)}
    space: dict[str, Any] = {**constants, **source.objects}
    text, file = "\n    ".join([head, *lines]), f"<traced {next(_NUMBERS)}>"
    exec(compile(text, file, "exec"), space)
    run: Callable[..., tuple[Tensor, ...]] = space.pop("run")  # which refers to the space: both go with the program
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    weakref.finalize(run, linecache.cache.pop, file, None)
    return run


def _needed(operations: list[Operation], outputs: list[Made | Constant]) -> list[tuple[Operation, list[Made]]]:
    """The operations that have effects or whose results are used, each with the tensors that are not used after it."""
    used, needed = set(outputs), []
    for operation in reversed(operations):
        if not operation.has_effects and not used.intersection(operation.results):
            continue
        ends = dict.fromkeys(one for one in [*operation.results, *operation.used] if one and one not in used)
        used.update(operation.used)
        needed.append((operation, list(ends)))
    return needed[::-1]


class _Source:
    """Python source for operations. It contains only numbers and names made here; `objects` are what the names stand
    for, so that no string of an operation becomes code."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self._functions: dict[Any, str] = {}

    def line(self, operation: Operation) -> str:
        function = self._functions.setdefault(
            operation.function, f"{_plain_name(operation.function)}_{len(self._functions)}"
        )
        # `_op` skips the Python wrapper of PyTorch's operations.
        self.objects[function] = getattr(operation.function, "_op", operation.function)
        given = [*map(self._text, operation.args), *(f"{k}={self._text(v)}" for k, v in operation.kwargs.items())]
        call = f"{function}({', '.join(given)})"
        if not any(operation.results):
            return call
        names = ", ".join("_" if one is None else _name(one) for one in operation.results)
        return f"{names}{',' * operation.is_many} = {call}"

    def _text(self, value: Any) -> str:
        if isinstance(value, (Made, Constant)):
            return _name(value)
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(self._text, value)) + "]"
        if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        name = f"o{len(self.objects)}"
        self.objects[name] = value
        return name


def _plain_name(function: Any) -> str:
    """The name of an operation or a Python function in tracebacks, of letters, digits and underscores."""
    known = getattr(function, "func", function)  # of functools.partial
    return re.sub(r"\W", "_", getattr(known, "__qualname__", type(known).__name__), flags=re.ASCII)


def _name(one: Made | Constant) -> str:
    return f"{'t' if isinstance(one, Made) else 'c'}{one.number}"


__all__ = ["RELATIVE_TOLERANCE", "NotTraceable", "Program", "record", "signature"]
