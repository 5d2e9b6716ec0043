"""Rules of contracts: they are pure, they are written out, and every store is held to its laws."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from tests.tidy.sources import PACKAGE, PythonFile, Violation

LAWS: Mapping[str, str] = {
    f"{PACKAGE}.backends.high_volume.contract.HighVolumeBackend": f"{PACKAGE}.testing.laws.high_volume",
    f"{PACKAGE}.backends.long_term.contract.LongTermBackend": f"{PACKAGE}.testing.laws.long_term",
    f"{PACKAGE}.changelog.contract.ChangeLog": f"{PACKAGE}.testing.laws.changelog",
}
"""Each contract, and the module that holds its laws."""

_ABSTRACT = frozenset({"abc.abstractmethod"})
_ABC = frozenset({"abc.ABC"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _abstract_classes(file: PythonFile) -> Iterator[ast.ClassDef]:
    for node in file.classes:
        if any(file.full_name(base) in _ABC for base in node.bases):
            yield node


def _methods(node: ast.ClassDef) -> Iterator[Function]:
    return (method for method in node.body if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef))


def _is_abstract(file: PythonFile, method: Function) -> bool:
    return any(file.full_name(decorator) in _ABSTRACT for decorator in method.decorator_list)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name.startswith("__")


def abstract_methods_are_described(files: Sequence[PythonFile]) -> list[Violation]:
    """An abstract method's docstring is the contract: overrides need none of their own because it is there."""
    return [
        file.violation(method.lineno, f"{node.name}.{method.name} promises nothing: give it a docstring")
        for file in files
        for node in file.classes
        for method in _methods(node)
        if _is_abstract(file, method) and _is_public(method.name) and not ast.get_docstring(method)
    ]


def contracts_have_no_bodies(files: Sequence[PythonFile]) -> list[Violation]:
    """In a contract's module every method of an abstract class is abstract and has no default body."""
    violations = []
    for file in files:
        if PurePosixPath(file.path).name != "contract.py":
            continue
        for node in _abstract_classes(file):
            for method in _methods(node):
                if not _is_abstract(file, method):
                    violations.append(file.violation(method.lineno, f"{node.name}.{method.name} is not abstract"))
                elif len(method.body) > 1 or not ast.get_docstring(method):
                    violations.append(file.violation(method.lineno, f"{node.name}.{method.name} has a default body"))
    return violations


def stores_have_laws(sources: Sequence[PythonFile], conformance: Sequence[PythonFile]) -> list[Violation]:
    """Every class that implements a contract is put under its laws by a file in ``tests/conformance``."""
    return [
        file.violation(node.lineno, f"{node.name} is under no law class of {laws} in tests/conformance")
        for file in sources
        if not file.in_testing
        for node in file.classes
        for contract, laws in LAWS.items()
        if any(file.full_name(base) == contract for base in node.bases)
        if not any(_puts_under(test, file.module, laws) for test in conformance)
    ]


def _puts_under(test: PythonFile, module: str, laws: str) -> bool:
    imports_store = any(found.name.startswith(f"{module}.") or found.name == module for found in test.imports)
    return imports_store and any(
        base.startswith(f"{laws}.") for node in test.classes for base in map(test.full_name, node.bases)
    )
