"""Python's part of the stand-ins for Chaquopy's classes: objects by number, and Java's classes by ``import``."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import itertools
import types
from typing import Any, ClassVar

_objects: dict[int, Any] = {}
_numbers = itertools.count(1)
_loader: Any = None


class _Package(types.ModuleType):
    """A package of Java's, whose classes are found when they are asked for."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return jclass(f"{self.__name__}.{name}")
        except Exception:  # Java's ClassNotFoundException among them
            raise AttributeError(f"there is no Java class {self.__name__}.{name}") from None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        first = name.split(".")[0]
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if first == "android" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> _Package:
        return _Package(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def jclass(name: str) -> Any:
    """A class by its name, as Chaquopy's ``java.jclass``."""
    from java.lang import Class

    return Class.forName(name, True, _loader)


def install(loader: Any) -> None:
    """Let Python import the classes that a class loader of the tests has; once."""
    global _loader
    if _loader is None:
        import sys

        import java

        _loader, java.jclass = loader, jclass
        sys.meta_path.insert(0, _Finder())


def module(name: str) -> int:
    return _keep(importlib.import_module(name))


def call(number: int, name: str, *arguments: Any) -> int:
    return _keep(getattr(_objects[number], name)(*arguments))


def text(number: int) -> str:
    return str(_objects[number])


def _keep(found: Any) -> int:
    number = next(_numbers)
    _objects[number] = found
    return number
