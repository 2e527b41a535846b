"""Modules that are imported lazily: each runs when it is first asked for something that it cannot give without
running."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from types import ModuleType
from typing import Any

_OF_IMPORTING = ("__path__", "__file__", "__cached__", "__spec__", "__wrapped__")


@dataclass(frozen=True)
class LazyModule:
    """What a module can give without running."""

    parts: Sequence[str] | None = ()  # its submodules that can be imported without it; None: all
    names: Mapping[str, str] = field(default_factory=dict)  # attributes, by the submodule that each comes from
    stand_ins: Mapping[str, Any] = field(default_factory=dict)  # attributes, with what replaces each until it has run
    before_parts: Callable[[], None] | None = None  # called before its first submodule is imported
    after: Callable[[], None] | None = None  # called once, when it has run


class LazyAttribute:
    """Stands for a function or class of a lazy module, which runs when this is called or an attribute of it is read."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        return getattr(loaded(self._module), self._name)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return self._real()(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: Any) -> bool:  # a class that does not exist yet has no instances
        return is_loaded(self._module) and isinstance(instance, self._real())


def install(table: Mapping[str, LazyModule]) -> None:
    """From now on these modules are imported lazily; those that are imported already stay as they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(table))


def is_loaded(name: str) -> bool:
    """Whether a module was imported and has run, or is running."""
    return name in sys.modules and not _is_waiting(sys.modules[name])


class _Module(ModuleType):
    """A module that has not run yet, or is running now."""

    def __getattr__(self, name: str) -> Any:
        if name in _OF_IMPORTING:  # read while it is created
            raise AttributeError(name)
        own: _Loader = self.__dict__["__loader__"]
        if not own.running:
            with own.lock:
                if type(self) is _Module and not own.running:
                    return self._answer(own, name)
        if own.running_in != threading.get_ident():
            with own.lock:  # another thread runs it
                return getattr(self, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def _answer(self, own: _Loader, name: str) -> Any:
        known = own.known
        if name == "__version__":
            return version(self.__name__)
        if name in known.stand_ins:
            return known.stand_ins[name]
        if name in known.names:
            return getattr(importlib.import_module(known.names[name]), name)
        part = f"{self.__name__}.{name}"
        if _stands_alone(known, part) and PathFinder.find_spec(part, self.__path__):
            return importlib.import_module(part)
        own.load(self)
        return getattr(sys.modules[self.__name__], name)


class _RanModule(ModuleType):
    """A module that has run. Some have put another object into sys.modules then, which is asked for what is missing."""

    def __getattr__(self, name: str) -> Any:
        now = sys.modules.get(self.__name__)
        if now is None or now is self:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(now, name)


class _Loader(Loader):
    """Leaves a module empty until `load` runs it."""

    def __init__(self, loader: Loader, known: LazyModule) -> None:
        self.loader, self.known = loader, known
        self.lock = threading.RLock()
        self.running, self.running_in = False, 0

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Does not run the module; `load` does."""
        if self.known.before_parts:
            self.known.before_parts()

    def load(self, module: ModuleType) -> None:
        """Runs the module; from now on it is like any other."""
        with self.lock:
            if self.running or type(module) is not _Module:
                return
            self.running, self.running_in = True, threading.get_ident()
            spec = module.__spec__
            if spec is not None:
                spec.loader = self.loader
            self.loader.exec_module(module)
            module.__loader__ = self.loader
            module.__class__ = _RanModule
            if self.known.after:
                self.known.after()


class _Finder(MetaPathFinder):
    def __init__(self, table: Mapping[str, LazyModule]) -> None:
        self.table = table

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for parent in self._above(fullname):
            known, module = self.table[parent], sys.modules.get(parent)
            if module is not None and _is_waiting(module) and not _stands_alone(known, fullname):
                module.__dict__["__loader__"].load(module)
        if fullname not in self.table or fullname in sys.modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.table[fullname])
        return spec

    def _above(self, name: str) -> list[str]:
        """The lazy modules that it is a submodule of, the outermost first."""
        pieces = name.split(".")
        return [above for n in range(1, len(pieces)) if (above := ".".join(pieces[:n])) in self.table]


def _stands_alone(known: LazyModule, part: str) -> bool:
    return known.parts is None or part in known.parts


def _is_waiting(module: ModuleType) -> bool:
    return type(module) is _Module and not module.__dict__["__loader__"].running


def loaded(name: str) -> ModuleType:
    """The module, after it has run."""
    module = importlib.import_module(name)
    if _is_waiting(module):
        module.__dict__["__loader__"].load(module)
    return sys.modules[name]
