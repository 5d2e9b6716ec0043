"""Rules of imports: layers, cycles, who builds the stores, and where a vendor's library may be used."""

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence

from tests.tidy.sources import PACKAGE, PythonFile, Violation

OPEN = frozenset(
    {"audit", "types", "errors", "limits", "clock", "idsource", "invariants", "listing", "telemetry", "tasks"},
)
"""Open to every layer. Among themselves they must only be free of cycles."""

COMPOSITION = frozenset({"__main__", "build", "cli", "process", "config", "config_loading", "logs", "opening"})
"""What reads the settings, builds the rest and runs it. Nothing below imports it."""

ENGINES = frozenset({"embedded", "postgresql", "bigtable", "object_storage"})
"""What the stores of one engine share."""

LAYERS: Mapping[str, frozenset[str]] = {
    "embedded": OPEN | {"embedded"},
    "postgresql": OPEN | {"postgresql"},  # a listing passes over what cannot be read there, too
    "bigtable": OPEN | {"bigtable"},
    "object_storage": OPEN | {"object_storage"},
    "backends": OPEN | ENGINES | {"backends"},
    "changelog": OPEN | ENGINES | {"changelog"},
    "tiering": OPEN | {"backends", "changelog", "tiering"},
    "service": OPEN | {"backends", "changelog", "tiering", "service"},
    "admission": OPEN | {"backends", "changelog", "tiering", "service", "admission"},
    "http": OPEN | {"backends", "changelog", "tiering", "service", "admission", "http"},
    **dict.fromkeys(OPEN, OPEN),
    **dict.fromkeys(
        COMPOSITION,
        OPEN | COMPOSITION | ENGINES | {"backends", "changelog", "tiering", "service", "admission", "http"},
    ),
}
"""What each part of the package may import. `testing` may import everything and is not listed."""

CONTRACTS = ("contract", "entries")
"""The modules of a store's folder that other layers may import; the stores themselves are opened by `opening.py`."""

VENDORS: Mapping[str, tuple[str, ...]] = {
    "aiohttp": ("object_storage/", "backends/long_term/", "testing/"),
    "apsw": ("embedded/", "backends/high_volume/sqlite.py", "changelog/sqlite.py"),
    "asyncpg": ("postgresql/", "backends/high_volume/postgres.py", "changelog/postgres.py"),
    "botocore": ("backends/long_term/",),
    "click": ("cli/",),
    "cryptography": ("admission/keys.py", "admission/signing.py", "process/tls.py"),
    "google": ("bigtable/", "backends/high_volume/", "changelog/", "backends/long_term/"),
    "google_crc32c": ("backends/long_term/",),
    "grpc": ("bigtable/",),
    "httptools": ("http/",),
    "hypothesis": ("testing/",),
    "jwt": ("admission/signing.py",),
    "msgspec": ("config.py", "config_loading.py", "process/", "types/", "http/", "backends/", "changelog/"),
    "multidict": ("object_storage/", "backends/long_term/"),
    "orjson": ("http/", "logs.py"),
    "prometheus_client": ("telemetry.py", "embedded/", "http/", "process/", "testing/"),
    "pytest": ("testing/",),
    "python_multipart": ("http/multipart.py",),
    "psutil": ("testing/",),
    "starlette": ("http/", "build.py", "testing/"),
    "structlog": ("*",),
    "uuid_utils": ("idsource.py",),
    "uvicorn": ("http/", "process/worker.py", "testing/"),
    "uvloop": ("process/worker.py", "testing/"),
    "xxhash": ("backends/", "object_storage/"),
    "yaml": ("config_loading.py",),
    "yarl": ("object_storage/", "backends/long_term/"),
}
"""Every library from outside, and the files that may import it: a folder ends in a slash, ``*`` means all."""


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: ``tierstore.tiering.commit`` is in ``tiering``."""
    return module.split(".")[1] if "." in module else ""


def imported_modules(file: PythonFile, modules: frozenset[str]) -> Iterator[tuple[str, int]]:
    """The package's modules that a file imports, with the line."""
    for found in file.imports:
        name = found.name
        while name and name not in modules:
            name = name.rpartition(".")[0]
        if name.startswith(f"{PACKAGE}."):
            yield name, found.line


def layers(files: Sequence[PythonFile]) -> list[Violation]:
    """Imports run downward only; only `testing` imports `testing`."""
    modules = frozenset(file.module for file in files)
    violations = []
    for file in files:
        part = part_of(file.module)
        if file.in_testing or not part:
            continue
        allowed = LAYERS.get(part)
        if allowed is None:
            violations.append(file.violation(1, f"{part} has no place in the layers: give it one in this rule"))
            continue
        violations += [
            file.violation(line, f"{part} may not import {name}")
            for name, line in imported_modules(file, modules)
            if part_of(name) not in allowed
        ]
    return violations


def stores_are_built_in_one_place(files: Sequence[PythonFile]) -> list[Violation]:
    """Above a store's own folder only contracts are imported; `opening.py` alone knows the stores."""
    modules = frozenset(file.module for file in files)
    violations = []
    for file in files:
        part = part_of(file.module)
        if file.in_testing or part == "opening":
            continue
        for name, line in imported_modules(file, modules):
            store = part_of(name) in {"backends", "changelog"} and part_of(name) != part
            if store and name.rpartition(".")[2] not in CONTRACTS:
                violations.append(file.violation(line, f"{name} is a store: import its contract, opening.py opens it"))
    return violations


def cycles(files: Sequence[PythonFile]) -> list[Violation]:
    """No module imports itself, however far around; one violation for each module that is in a cycle."""
    modules = frozenset(file.module for file in files)
    graph = {file.module: {name for name, _ in imported_modules(file, modules)} for file in files}
    return [
        file.violation(1, f"{file.module} imports itself by way of its imports")
        for file in files
        if file.module in _reachable(graph, file.module)
    ]


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        if (module := todo.pop()) not in seen:
            seen.add(module)
            todo += graph.get(module, ())
    return seen


def vendors(files: Sequence[PythonFile]) -> list[Violation]:
    """A library from outside is imported in its own files only."""
    violations = []
    for file in files:
        for found in file.imports:
            library = found.name.partition(".")[0]
            if library == PACKAGE or library in sys.stdlib_module_names:
                continue
            places = VENDORS.get(library)
            if places is None:
                violations.append(file.violation(found.line, f"{library} has no place: give it one in this rule"))
            elif not in_places(file, places):
                violations.append(file.violation(found.line, f"{library} is for {', '.join(places)} only"))
    return violations


def in_places(file: PythonFile, places: Sequence[str]) -> bool:
    """Whether a file of the package is one of ``places``, or lies in one that ends in a slash; ``*`` is everywhere."""
    return any(
        file.inner_path.startswith(place) if place.endswith("/") else place in {file.inner_path, "*"}
        for place in places
    )


def relative_imports(files: Sequence[PythonFile]) -> list[Violation]:
    """Imports are written in full, so that the other rules see what they mean."""
    return [
        file.violation(node.lineno, "write the import in full")
        for file in files
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
