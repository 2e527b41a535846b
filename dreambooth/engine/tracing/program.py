"""Operations that were written down, as one function that does them again on other inputs.

It has no modules, no autograd and no autocast: at a batch of one that is where much of a training step's time goes. A
tensor is let go of right after its last use, so that no more memory is held than before.
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

# Norms may differ by this share from those of PyTorch itself: half precision on a card, where sums have no fixed order.
RELATIVE_TOLERANCE = 0.02
_NUMBERS = itertools.count()


class Program:
    """Does a computation again, on tensors of the same shapes, strides and kinds as those it was written down with."""

    def __init__(self, recorder: Recorder, outputs: Sequence[Tensor]) -> None:
        named = [recorder.reference(tensor) for tensor in outputs]
        self._run = _function(recorder, named)
        self.length = len(recorder.operations)

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, in the order that they were named."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            return self._run(*inputs)


def record(function: Callable[[list[Tensor]], list[Tensor]], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Program]:
    """Does a computation once. Returns what it returned, and what does it again.

    Raises NotTraceable, of which the computation is left half done, where that cannot be.
    """
    given = [tensor.detach().clone() for tensor in inputs]  # in storages of their own
    with Recorder(given) as recorder:
        outputs = function(given)
    return outputs, Program(recorder, outputs)


def signature(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What of its inputs a program depends on."""
    return tuple((one.shape, one.stride(), one.dtype, one.device) for one in tensors)


def _function(recorder: Recorder, outputs: list[Made | Constant]) -> Callable[..., tuple[Tensor, ...]]:
    """Python's own compiler makes it: locals are the quickest names that there are. Tracebacks show its lines."""
    source = _Source()
    lines = []
    for operation, gone in _needed(recorder.operations, outputs):
        lines.append(source.line(operation))
        if gone:
            lines.append("del " + ", ".join(map(_name, gone)))
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
    """The operations that something comes of, each with the tensors that nobody uses after it."""
    used, needed = set(outputs), []
    for operation in reversed(operations):
        if not operation.acts and not used.intersection(operation.results):
            continue
        ends = dict.fromkeys(one for one in [*operation.results, *operation.used] if one and one not in used)
        used.update(operation.used)
        needed.append((operation, list(ends)))
    return needed[::-1]


class _Source:
    """Python's text for operations, of numbers and of names that are made here of letters, and the objects that these
    stand for."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self._functions: dict[Any, str] = {}

    def line(self, operation: Operation) -> str:
        function = self._functions.setdefault(
            operation.function, f"{_plain_name(operation.function)}_{len(self._functions)}"
        )
        # PyTorch's operations without the time that their Python takes.
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
    """How a traceback names an operation or a function of Python's."""
    known = getattr(function, "func", function)  # of a partial one
    return re.sub(r"\W", "_", getattr(known, "__qualname__", type(known).__name__), flags=re.ASCII)


def _name(one: Made | Constant) -> str:
    return f"{'t' if isinstance(one, Made) else 'c'}{one.number}"


__all__ = ["RELATIVE_TOLERANCE", "NotTraceable", "Program", "record", "signature"]
