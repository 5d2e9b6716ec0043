"""Rules of code: injected time, ids and tasks; no asserts, no stubs, no silenced check without a reason."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence

from tests.tidy.imports import in_places
from tests.tidy.sources import PythonFile, Violation

Places = tuple[str, ...]

CLOCK: Mapping[str, Places] = {
    r"time(\..*)?": ("clock.py", "testing/"),
    r"datetime\.(datetime\.(now|utcnow|today)|date\.today)": (),
    r"asyncio\.sleep": ("clock.py", "testing/"),
    r"os\.times": (),
}
IDS: Mapping[str, Places] = {
    r"random(\..*)?": ("idsource.py", "testing/"),
    r"secrets(\..*)?": ("idsource.py",),
    r"uuid\.(uuid[14678]|getnode)": ("idsource.py", "testing/"),
    r"os\.(urandom|getrandom)": ("idsource.py",),
}
THREADS: Places = (
    "embedded/",
    "backends/long_term/file_threads.py",
    "backends/long_term/gcs_tokens.py",
    "backends/long_term/s3_credentials.py",
    "testing/",
)
"""Beside what blocks: databases, files, and libraries that fetch credentials."""

TASKS: Mapping[str, Places] = {
    r"asyncio\.(create_task|ensure_future|TaskGroup|gather|run_coroutine_threadsafe|Task)": ("tasks.py", "testing/"),
    r"asyncio\.to_thread": ("testing/",),
    r"threading\.(Thread|Timer)": ("embedded/", "testing/"),
    r"concurrent\.futures\.(thread\.)?ThreadPoolExecutor": THREADS,
    r"concurrent\.futures\.(process\.)?ProcessPoolExecutor": (),
    r"multiprocessing(\..*)?": ("process/supervisor.py",),
    r"(subprocess|asyncio\.subprocess)(\..*)?": ("testing/",),
    r"asyncio\.create_subprocess_.*": ("testing/",),
    r"os\.(fork|forkpty|posix_spawnp?|system|popen)": (),
}
"""Patterns of full names, and the only files of the package where they may stand."""

METHODS: Mapping[str, Places] = {
    "create_task": ("tasks.py", "testing/"),
    "ensure_future": ("testing/",),
    "run_in_executor": THREADS,
}
"""The same for methods, whatever object they are taken from."""

_ANNOTATIONS = frozenset({"asyncio.Task"})
"""Names that only stand in annotations, and are as harmless as they are useful there."""

_SUPPRESSION = re.compile(r"#\s*(type:\s*ignore|(ruff:\s*)?noqa|pragma:|mypy:|nosec|isort:)")
_REASON = re.compile(r"#\s*because\s+\S+\s+\S+")


def module_docstrings(files: Sequence[PythonFile]) -> list[Violation]:
    """Every module says what it is for."""
    return [file.violation(1, "no module docstring") for file in files if not ast.get_docstring(file.tree)]


def stray_clock(files: Sequence[PythonFile]) -> list[Violation]:
    """Time comes from a `Clock`: nothing else reads one or sleeps."""
    return _names_out_of_place(files, CLOCK) + [
        file.violation(node.lineno, "a loop's time() is a clock: take a Clock")
        for file in files
        if not in_places(file, ("tasks.py", "clock.py", "testing/"))
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Call)
        and not node.args
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "time"
    ]


_LOGGERS = re.compile(r"(.+\.)?_?log(ger)?(_errors)?")
_LOG_METHODS = frozenset({"debug", "info", "warning", "error", "critical", "exception", "log", "msg"})
_NEVER_LOGGED = frozenset({"headers", "fields", "header", "query", "raw_query", "token"})
"""Attributes that hold what a client has sent besides its path: tokens, signatures, metadata."""
_LOG_OF_REQUESTS = "http/request_log.py"


def logs_are_discreet(files: Sequence[PythonFile]) -> list[Violation]:
    """What is logged is never taken from a request's headers or query; what makes the lines of requests has neither."""
    return [
        file.violation(node.lineno, f"{ast.unparse(node)} may hold a secret: it is not logged")
        for file in files
        for looked_at in ([file.tree] if file.inner_path == _LOG_OF_REQUESTS else _log_calls(file.tree))
        for node in ast.walk(looked_at)
        if isinstance(node, ast.Attribute) and node.attr in _NEVER_LOGGED
    ]


def _log_calls(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _LOG_METHODS
            and _LOGGERS.fullmatch(ast.unparse(node.func.value))
        ):
            yield node


def stray_ids(files: Sequence[PythonFile]) -> list[Violation]:
    """Ids and random numbers are drawn from an `IdSource`."""
    return _names_out_of_place(files, IDS)


def stray_tasks(files: Sequence[PythonFile]) -> list[Violation]:
    """Tasks, threads and processes are started only where they have an owner."""
    return _names_out_of_place(files, TASKS) + [
        file.violation(line, f".{name}() is for {', '.join(METHODS[name]) or 'no file'} only")
        for file in files
        for name, line in file.attributes
        if name in METHODS and not in_places(file, METHODS[name])
    ]


def _names_out_of_place(files: Sequence[PythonFile], names: Mapping[str, Places]) -> list[Violation]:
    patterns = [(re.compile(pattern), places) for pattern, places in names.items()]
    found = set()
    for file in files:
        imported = [(one.name, one.line) for one in file.imports]
        for name, line in [*imported, *file.names]:
            for pattern, places in patterns:
                if name not in _ANNOTATIONS and pattern.fullmatch(name) and not in_places(file, places):
                    found.add((file.path, line, f"{name} is for {', '.join(places) or 'no file'} only"))
    return [Violation(*one) for one in sorted(found)]


def asserts(files: Sequence[PythonFile]) -> list[Violation]:
    """``assert`` vanishes under ``python -O``: the service uses `invariant`."""
    return [
        file.violation(node.lineno, "assert: use invariant()")
        for file in files
        if not file.in_testing
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Assert)
    ]


def stubs(files: Sequence[PythonFile]) -> list[Violation]:
    """No function does nothing: ``pass`` or ``...`` for a body, or `NotImplementedError`."""
    violations = []
    for file in files:
        violations += [
            file.violation(function.lineno, f"{function.name} has no body")
            for function in file.functions
            if _is_empty(function) and not _may_be_empty(file, function)
        ]
        violations += [
            file.violation(node.lineno, "NotImplementedError: build it, or leave it out")
            for node in ast.walk(file.tree)
            if isinstance(node, ast.Name) and node.id == "NotImplementedError"
        ]
    return violations


def _is_empty(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return bool(body) and all(
        isinstance(statement, ast.Pass)
        or (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and statement.value.value is ...
        )
        for statement in body
    )


def _may_be_empty(file: PythonFile, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    if any(file.full_name(decorator) == "typing.overload" for decorator in function.decorator_list):
        return True
    return any(
        function in owner.body and any(file.full_name(base) == "typing.Protocol" for base in owner.bases)
        for owner in file.classes
    )


def silenced_checks(files: Sequence[PythonFile]) -> list[Violation]:
    """A comment that silences a check says why: ``# noqa: S311  # because …``."""
    return [
        file.violation(line, f"say why: {comment}  # because …")
        for file in files
        for comment, line in file.comments
        if _SUPPRESSION.search(comment) and not _REASON.search(comment)
    ]


def mocks(files: Sequence[PythonFile]) -> list[Violation]:
    """Tests run the real parts, or fakes that pass the same laws, never mocks."""
    return [
        file.violation(found.line, "mocks prove nothing: use the real part, or one that passes its laws")
        for file in files
        for found in file.imports
        if found.name.startswith(("unittest.mock", "mock", "pytest_mock"))
    ]


def undescribed_tests(files: Sequence[PythonFile]) -> list[Violation]:
    """A test's docstring is the law it checks."""
    return [
        file.violation(function.lineno, f"{function.name} does not say which law it checks")
        for file in files
        for function in file.functions
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
