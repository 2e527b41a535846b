"""Counting what a training step holds at once, without a card: every tensor that is made and is still there.

Under torch's FakeTensorMode nothing is worked out, so that models of full size are measured in seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Live(TorchDispatchMode):
    """Bytes of tensors made within it that are still referred to; parts of one storage count once.

    Gradients of `trained` are counted apart. A step has moments: the forward pass, the backward pass until the first
    gradient is there, and so many equal counts of further gradients. `moments` has the most of everything else in
    each, `gradients_then` the gradients at its end.
    """

    def __init__(self, trained: Iterable[nn.Parameter] = (), held: Iterable[Tensor] = (), parts: int = 12) -> None:
        super().__init__()
        self.trained = [weight for weight in trained if weight.requires_grad]
        self.now = self.gradients = self.peak = self.done = 0
        self.is_backward = False
        self.moments = [0] * (parts + 2)
        self.gradients_then = [0] * (parts + 2)
        self._seen: dict[int, int] = {}
        for tensor in held:
            self._seen[_key(tensor)] = 0
            weakref.finalize(tensor.untyped_storage(), self._gone, _key(tensor))  # what takes its place counts
        self._hooks: list[Any] = []

    def __enter__(self) -> Live:
        self._hooks = [weight.register_post_accumulate_grad_hook(self._is_gradient) for weight in self.trained]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key in self._seen:
            return
        storage = tensor.untyped_storage()
        self._seen[key] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._gone, key)
        self._look()

    def _gone(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)

    def _is_gradient(self, weight: Tensor) -> None:
        if weight.grad is not None:
            size = self._seen.get(_key(weight.grad), 0)
            self._seen[_key(weight.grad)] = 0
            self.now -= size
            self.gradients += size
            self.done += 1
        self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self.now + self.gradients)
        place = 0
        if self.is_backward:
            parts = len(self.moments) - 2
            place = 1 + min(parts, -(-self.done * parts // max(1, len(self.trained))))
        self.moments[place] = max(self.moments[place], self.now)
        self.gradients_then[place] = self.gradients


def norms_as_on_a_card() -> Callable[[], None]:
    """Has autocast on the CPU do norms in full precision, as it does on a card. Returns what undoes it."""
    functions = nn.functional
    group, layer = functions.group_norm, functions.layer_norm

    def group_norm(values: Tensor, *arguments: Any, **more: Any) -> Tensor:
        return group(_widened(values), *(_maybe(a) for a in arguments), **{k: _maybe(v) for k, v in more.items()})

    def layer_norm(values: Tensor, *arguments: Any, **more: Any) -> Tensor:
        return layer(_widened(values), *(_maybe(a) for a in arguments), **{k: _maybe(v) for k, v in more.items()})

    functions.group_norm, functions.layer_norm = group_norm, layer_norm  # type: ignore[assignment]

    def undo() -> None:
        functions.group_norm, functions.layer_norm = group, layer

    return undo


def _maybe(value: Any) -> Any:
    return _widened(value) if isinstance(value, Tensor) else value


def _widened(values: Tensor) -> Tensor:
    return values.float() if torch.is_autocast_enabled("cpu") else values


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
