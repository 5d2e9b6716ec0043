"""What the rules look at: the repository's files, and Python files parsed once.

A rule is a function from such values to a list of `Violation`; an empty list means that all is well. It gets its input
as a parameter, so that a test can hand it a small wrong file and see that it is found.
"""

import ast
import functools
import io
import subprocess
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "tierstore"


@dataclass(frozen=True, slots=True)
class Violation:
    """Where a rule is broken, and how."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True, eq=False)
class TextFile:
    """A file of the repository. ``path`` is relative to its root, with slashes."""

    path: str
    text: str

    def violation(self, line: int, text: str) -> Violation:
        """A violation in this file."""
        return Violation(self.path, line, text)


@dataclass(frozen=True, eq=False)
class PythonFile(TextFile):
    """A Python file, with its syntax tree."""

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.path)

    @functools.cached_property
    def module(self) -> str:
        """The dotted name under which it is imported."""
        return self.path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def in_source(self) -> bool:
        """Whether it is part of the package."""
        return self.path.startswith(f"src/{PACKAGE}/")

    @property
    def in_testing(self) -> bool:
        """Whether it is part of what the package ships for tests."""
        return self.path.startswith(f"src/{PACKAGE}/testing/")

    @property
    def inner_path(self) -> str:
        """Its path inside the package."""
        return self.path.removeprefix(f"src/{PACKAGE}/")

    @functools.cached_property
    def imports(self) -> Sequence["Import"]:
        """Every import, wherever it stands, also inside functions and under ``if TYPE_CHECKING``."""
        return tuple(self._imports())

    def _imports(self) -> Iterator["Import"]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    local = alias.asname or alias.name.partition(".")[0]
                    yield Import(alias.name, local, alias.name if alias.asname else local, node.lineno)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield Import(name, alias.asname or alias.name, name, node.lineno)

    @functools.cached_property
    def names(self) -> Sequence[tuple[str, int]]:
        """Every name or attribute chain that starts at an import, written out in full: ``("time.time", 12)``."""
        meaning = {found.local: found.means for found in self.imports}
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name | ast.Attribute) and (chain := _chain(node)) is not None:
                first, *rest = chain
                if first in meaning:
                    found.append((".".join([meaning[first], *rest]), node.lineno))
        return tuple(found)

    @functools.cached_property
    def attributes(self) -> Sequence[tuple[str, int]]:
        """The last name of every attribute access, whatever it is taken from."""
        return tuple((node.attr, node.lineno) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute))

    @functools.cached_property
    def comments(self) -> Sequence[tuple[str, int]]:
        """Every comment."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return tuple((token.string, token.start[0]) for token in tokens if token.type == tokenize.COMMENT)

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Every function and method."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    @property
    def classes(self) -> Iterator[ast.ClassDef]:
        """Every class."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    def full_name(self, node: ast.expr) -> str:
        """What an expression that names something means, with imports written out; empty for other expressions."""
        chain = _chain(node.value if isinstance(node, ast.Subscript) else node)
        if chain is None:
            return ""
        meaning = {found.local: found.means for found in self.imports}
        return ".".join([meaning.get(chain[0], chain[0]), *chain[1:]])


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: its full name, what it is called in the file, and what that stands for."""

    name: str
    local: str
    means: str
    line: int


def _chain(node: ast.expr) -> list[str] | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return [node.id, *reversed(names)]


@functools.cache
def repository_paths() -> Sequence[str]:
    """All files that are, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    paths = {path for path in listed.stdout.decode().split("\0") if path}
    return tuple(sorted(path for path in paths if (ROOT / path).is_file()))


@functools.cache
def text_files() -> Sequence[TextFile]:
    """All files of the repository that hold text."""
    found = []
    for path in repository_paths():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            found.append(TextFile(path, content.decode()))
    return tuple(found)


@functools.cache
def python_files() -> Sequence[PythonFile]:
    """All Python files of the repository."""
    return tuple(PythonFile(file.path, file.text) for file in text_files() if file.path.endswith(".py"))


@functools.cache
def source_files() -> Sequence[PythonFile]:
    """The Python files of the package."""
    return tuple(file for file in python_files() if file.in_source)
