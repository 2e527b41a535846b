"""Parts of libraries that are imported with everything and used by few runs: read when they are first used.

diffusers' packages of models import every model there is; its schedulers import parts of scipy, and diffusers and peft
bitsandbytes wherever it is installed, which takes most of PyTorch's compiler along. Here such a module stays empty
until something of it is asked for. Submodules of diffusers' packages do without what the package itself would import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_WHOLE = ("bitsandbytes", "scipy.stats", "scipy.integrate")  # whose parts need what the module itself does
_OF_IMPORTING = ("__path__", "__file__", "__cached__", "__spec__")
_PACKAGES = ("diffusers.models.transformers", "diffusers.models.autoencoders")


def put_off() -> None:
    """From now on these modules are imported when they are first used. What is there already stays."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Module(ModuleType):
    """A module that has not run yet."""

    def __getattr__(self, name: str) -> Any:
        if name in _OF_IMPORTING:  # asked for while it is made
            raise AttributeError(name)
        _wake(self)
        return getattr(self, name)


class _Later(Loader):
    """Leaves a module empty."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """It runs when it is woken."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for name in _WHOLE:
            if fullname.startswith(f"{name}.") and isinstance(module := sys.modules.get(name), _Module):
                _wake(module)
        if fullname not in (*_WHOLE, *_PACKAGES):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


def _wake(module: ModuleType) -> None:
    """Runs the module; from now on it is like any other."""
    spec = module.__spec__
    module.__class__ = ModuleType
    if spec is not None and isinstance(later := spec.loader, _Later):
        spec.loader = module.__loader__ = later.loader
        later.loader.exec_module(module)
