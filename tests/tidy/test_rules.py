"""Each rule finds a planted violation, and leaves its neighbour alone that only looks like one."""

from collections.abc import Callable, Sequence

import pytest

from tests.tidy import code, contracts, documents, imports
from tests.tidy.sources import PythonFile, TextFile, Violation

Rule = Callable[[Sequence[PythonFile]], list[Violation]]

TIERING = "src/tierstore/tiering/planted.py"
DOC = '"""Planted."""\n'

ERRORS = PythonFile("src/tierstore/errors.py", DOC)
LIMITS = PythonFile("src/tierstore/limits.py", DOC)
HIGH_VOLUME = PythonFile("src/tierstore/backends/high_volume/contract.py", DOC)
SQLITE = PythonFile("src/tierstore/backends/high_volume/sqlite.py", DOC)
ENTRIES = PythonFile("src/tierstore/changelog/entries.py", DOC)
SERVICE = PythonFile("src/tierstore/service/service.py", DOC)
CONFIG = PythonFile("src/tierstore/config.py", DOC)
FAULTS = PythonFile("src/tierstore/testing/faults.py", DOC)
NEIGHBOURS = (ERRORS, LIMITS, HIGH_VOLUME, SQLITE, ENTRIES, SERVICE, CONFIG, FAULTS)


def found(rule: Rule, path: str, text: str) -> list[int]:
    """The lines of the planted file in which the rule finds something."""
    planted = PythonFile(path, text)
    return [violation.line for violation in rule((planted, *NEIGHBOURS)) if violation.path == path]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (TIERING, "from tierstore.service.service import Service"),
        (TIERING, "import tierstore.service.service"),
        (TIERING, "from tierstore import config"),
        (TIERING, "def later():\n    from tierstore.config import Config"),
        (TIERING, "from tierstore.testing.faults import Faults"),
        ("src/tierstore/changelog/planted.py", "from tierstore.backends.high_volume.contract import Row"),
        ("src/tierstore/backends/planted.py", "from tierstore.changelog.entries import Entry"),
        ("src/tierstore/types/planted.py", "from tierstore.tiering import planted"),
        ("src/tierstore/embedded/planted.py", "from tierstore.backends.high_volume.contract import Row"),
        ("src/tierstore/http/planted.py", "from tierstore.config import Config"),
        ("src/tierstore/process/server.py", "from tierstore.testing.faults import Faults"),
        ("src/tierstore/nowhere/planted.py", "import os"),
    ],
)
def test_layers_finds(path: str, line: str) -> None:
    """An import upward, sideways, of the composition side, of testing, or from a part without a layer is found."""
    if path.startswith("src/tierstore/types"):
        planted = (PythonFile(path, line), PythonFile(TIERING, DOC))
        assert [violation.path for violation in imports.layers(planted)] == [path]
    else:
        assert len(found(imports.layers, path, line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (TIERING, "from tierstore.backends.high_volume.contract import Row"),
        (TIERING, "from tierstore.changelog.entries import Entry"),
        (TIERING, "from tierstore.errors import Conflict"),
        ("src/tierstore/http/planted.py", "from tierstore.service.service import Service"),
        ("src/tierstore/process/server.py", "from tierstore.config import Config"),
        ("src/tierstore/testing/planted.py", "from tierstore.config import Config"),
    ],
)
def test_layers_allows(path: str, line: str) -> None:
    """An import downward is fine, and testing may import everything."""
    assert found(imports.layers, path, line) == []


def test_stores_are_built_in_one_place_finds() -> None:
    """A store imported outside its folder is found; in opening.py, in its folder, and its contract, it is not."""
    rule, line = imports.stores_are_built_in_one_place, "from tierstore.backends.high_volume.sqlite import Store"
    assert found(rule, TIERING, line) == [1]
    assert found(rule, "src/tierstore/process/server.py", line) == [1]
    assert found(rule, "src/tierstore/opening.py", line) == []
    assert found(rule, "src/tierstore/backends/planted.py", line) == []
    assert found(rule, TIERING, "from tierstore.backends.high_volume.contract import Row") == []


def test_cycles_finds() -> None:
    """A cycle over three modules is found in each of them, and not in a module that only leads into it."""
    files = [
        PythonFile("src/tierstore/a.py", "from tierstore.b import x"),
        PythonFile("src/tierstore/b.py", "from tierstore import c"),
        PythonFile("src/tierstore/c.py", "def f():\n    import tierstore.a"),
        PythonFile("src/tierstore/d.py", "from tierstore.a import x"),
    ]
    assert [violation.path for violation in imports.cycles(files)] == [file.path for file in files[:3]]


def test_relative_imports_finds() -> None:
    """A relative import is found."""
    assert found(imports.relative_imports, TIERING, "from tierstore.errors import Busy\nfrom . import commit") == [2]


def test_vendors_finds() -> None:
    """A library outside its files, or without a place, is found; in its place, and the standard library, it is not."""
    assert found(imports.vendors, TIERING, "import apsw") == [1]
    assert found(imports.vendors, TIERING, "def f():\n    from xxhash import xxh3_128") == [2]
    assert found(imports.vendors, TIERING, "import leftpad") == [1]
    assert found(imports.vendors, "src/tierstore/embedded/database.py", "import apsw\nimport asyncio") == []


def test_module_docstrings_finds() -> None:
    """A module that begins with code, or with a comment, is found."""
    assert found(code.module_docstrings, TIERING, "x = 1") == [1]
    assert found(code.module_docstrings, TIERING, "# a comment") == [1]
    assert found(code.module_docstrings, TIERING, DOC) == []


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from time import monotonic",
        "import datetime as dt\nx = dt.datetime.now(dt.UTC)",
        "from datetime import datetime\nx = datetime.utcnow()",
        "from datetime import date\nx = date.today()",
        "import asyncio\nasync def f():\n    await asyncio.sleep(1)",
        "from asyncio import sleep",
        "import asyncio\nx = asyncio.get_running_loop().time()",
    ],
)
def test_stray_clock_finds(text: str) -> None:
    """Every way to read a clock or to sleep is found."""
    assert found(code.stray_clock, TIERING, text)


def test_stray_clock_allows() -> None:
    """Conversions of times are no clock, an injected clock is none of the machine's, and clock.py is its place."""
    text = "from datetime import UTC, datetime\nx = datetime.fromtimestamp(0, UTC)\ny = clock.now()\nz = file.time(1)"
    assert found(code.stray_clock, TIERING, text) == []
    assert found(code.stray_clock, "src/tierstore/clock.py", "import time\nx = time.time_ns()") == []


@pytest.mark.parametrize(
    "text",
    [
        "import random",
        "import secrets",
        "import os\nx = os.urandom(16)",
        "from uuid import uuid4",
        "import uuid\nx = uuid.uuid1()",
    ],
)
def test_stray_ids_finds(text: str) -> None:
    """Every way to draw an id or a random number is found."""
    assert found(code.stray_ids, TIERING, text)


@pytest.mark.parametrize(
    ("path", "text", "lines"),
    [
        (TIERING, "_log.info('x', sent=exchange.headers)", [1]),
        (TIERING, "log.warning(f'{facts.raw_query}')", [1]),
        (TIERING, "\nself._log.error('x', sent=exchange.fields.get(b'cookie'))", [2]),
        (TIERING, "audit.log.info('x', **made(exchange.query))", [1]),
        (TIERING, "_log.info('x', path=exchange.raw_path)\nuse(exchange.headers)\ncatalog.info(x.headers)", []),
        ("src/tierstore/http/request_log.py", "def fields(exchange):\n    return {'x': exchange.headers}", [2]),
        ("src/tierstore/http/request_log.py", "def fields(exchange):\n    return {'x': exchange.raw_path}", []),
    ],
)
def test_logs_are_discreet_finds(path: str, text: str, lines: list[int]) -> None:
    """Headers and queries are found in log calls, and anywhere in what makes the lines of requests."""
    assert found(code.logs_are_discreet, path, DOC + text) == [line + 1 for line in lines]


def test_stray_ids_allows() -> None:
    """A UUID that is parsed is not drawn."""
    assert found(code.stray_ids, TIERING, "from uuid import UUID\nx = UUID(int=1)\nimport os\ny = os.getpid()") == []


@pytest.mark.parametrize(
    "text",
    [
        "import asyncio\nasyncio.create_task(f())",
        "from asyncio import ensure_future",
        "import asyncio\nasync def f():\n    async with asyncio.TaskGroup():\n        g()",
        "import asyncio\nx = asyncio.get_running_loop().create_task(f())",
        "loop.run_in_executor(None, f)",
        "import asyncio\nx = asyncio.to_thread(f)",
        "from threading import Thread",
        "from concurrent.futures import ThreadPoolExecutor",
        "import subprocess",
        "import os\nos.fork()",
    ],
)
def test_stray_tasks_finds(text: str) -> None:
    """Every way to start a task, a thread or a process is found."""
    assert found(code.stray_tasks, TIERING, text)


def test_stray_tasks_allows() -> None:
    """Waiting is not starting, a lock is not a thread, and the owner of tasks starts them."""
    text = "import asyncio, threading\nx = threading.Lock()\nasync def f(t: asyncio.Task[int]): await asyncio.wait([t])"
    assert found(code.stray_tasks, TIERING, text) == []
    assert found(code.stray_tasks, "src/tierstore/tasks.py", "import asyncio\nx = loop.create_task(f())") == []


def test_asserts_finds() -> None:
    """An assert in the service is found; what is shipped for tests may have them."""
    assert found(code.asserts, TIERING, "x = 1\nassert x") == [2]
    assert found(code.asserts, "src/tierstore/testing/planted.py", "assert x") == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    pass",
        'def f():\n    """Said."""\n    pass',
        "async def f():\n    ...",
        "class C:\n    def f(self):\n        raise NotImplementedError",
    ],
)
def test_stubs_finds(text: str) -> None:
    """A function that only passes, or that is not built, is found."""
    assert found(code.stubs, TIERING, text)


def test_stubs_allows() -> None:
    """Overloads, protocols and methods whose docstring says why there is nothing to do are fine."""
    text = (
        "from typing import Protocol, overload\nclass P(Protocol):\n    def f(self): ...\n"
        '@overload\ndef g(): ...\ndef h():\n    """Nothing was opened."""\nclass E(Exception):\n    pass'
    )
    assert found(code.stubs, TIERING, text) == []


@pytest.mark.parametrize(
    "comment",
    ["type: ignore[arg-type]", "noqa: S311", "ruff: noqa", "pragma: no cover", "noqa  # because"],
)
def test_silenced_checks_finds(comment: str) -> None:
    """A silenced check without a reason is found, with one it is not."""
    assert found(code.silenced_checks, TIERING, f"x = 1  # {comment}") == [1]
    assert found(code.silenced_checks, TIERING, f"x = 1  # {comment}  # because it is planted") == []
    assert found(code.silenced_checks, TIERING, f'x = "# {comment}"') == []


def test_mocks_finds() -> None:
    """A mock is found."""
    assert found(code.mocks, "tests/unit/test_planted.py", "from unittest.mock import Mock") == [1]
    assert found(code.mocks, "tests/unit/test_planted.py", "import unittest") == []


def test_undescribed_tests_finds() -> None:
    """A test without a docstring is found, a helper is not."""
    text = 'def helper(): return 1\nasync def test_a():\n    """A law."""\nclass TestB:\n    def test_b(self): return 1'
    assert found(code.undescribed_tests, "tests/unit/test_planted.py", text) == [5]


ABSTRACT = "from abc import ABC, abstractmethod\nclass C(ABC):\n"


def test_abstract_methods_are_described_finds() -> None:
    """A public abstract method without a docstring is found, a private or a described one is not."""
    rule = contracts.abstract_methods_are_described
    assert found(rule, TIERING, f"{ABSTRACT}    @abstractmethod\n    def f(self): ...") == [4]
    assert found(rule, TIERING, f"{ABSTRACT}    @abstractmethod\n    async def __anext__(self): ...") == [4]
    assert found(rule, TIERING, f"{ABSTRACT}    @abstractmethod\n    def _f(self): ...") == []
    assert found(rule, TIERING, f'{ABSTRACT}    @abstractmethod\n    def f(self):\n        """Effect."""') == []


def test_contracts_have_no_bodies_finds() -> None:
    """A default body in a contract is found; elsewhere abstract classes may have them."""
    rule, contract = contracts.contracts_have_no_bodies, "src/tierstore/backends/planted/contract.py"
    concrete = f'{ABSTRACT}    def f(self):\n        """Effect."""\n        return 1'
    default = f'{ABSTRACT}    @abstractmethod\n    def f(self):\n        """Effect."""\n        return 1'
    pure = f'{ABSTRACT}    @abstractmethod\n    def f(self):\n        """Effect."""'
    assert found(rule, contract, concrete) == [3]
    assert found(rule, contract, default) == [4]
    assert found(rule, contract, pure) == []
    assert found(rule, TIERING, default) == []


def test_stores_have_laws_finds() -> None:
    """A store that no law class in tests/conformance is about is found."""
    store = PythonFile(
        "src/tierstore/backends/high_volume/planted.py",
        "from tierstore.backends.high_volume.contract import HighVolumeBackend\nclass P(HighVolumeBackend): x = 1",
    )
    imports_it = "from tierstore.backends.high_volume.planted import Planted\n"
    laws = "from tierstore.testing.laws.{} import Laws\nclass TestPlanted(Laws): x = 1"
    right = PythonFile("tests/conformance/test_planted.py", imports_it + laws.format("high_volume"))
    other_laws = PythonFile("tests/conformance/test_planted.py", imports_it + laws.format("long_term"))
    other_store = PythonFile("tests/conformance/test_planted.py", laws.format("high_volume"))
    no_class = PythonFile("tests/conformance/test_planted.py", imports_it)
    assert contracts.stores_have_laws([store], [right]) == []
    for wrong in ([], [other_laws], [other_store], [no_class]):
        assert [violation.line for violation in contracts.stores_have_laws([store], wrong)] == [2]


@pytest.mark.parametrize(
    ("target", "resolves"),
    [
        ("b.md", True),
        ("../README.md", True),
        ("b.md#two-words-here", True),
        ("#own", True),
        ("../docs", True),
        ("https://example.org/none", True),
        ("c.md", False),
        ("b.md#absent", False),
        ("#absent", False),
        ("/README.md", False),
    ],
)
def test_links_finds(target: str, resolves: bool) -> None:
    """A link to a file or a heading that is not there is found; code is not read as links."""
    files = [
        TextFile("docs/a.md", f"# Own\n\nSee [it]({target}).\n\n```\n[x](absent.md)\n```\n`[y](absent.md)`\n"),
        TextFile("docs/b.md", "# Two `words`, here\n"),
        TextFile("README.md", "# Read\n"),
    ]
    found_lines = [violation.line for violation in documents.links(files, [file.path for file in files])]
    assert found_lines == ([] if resolves else [3])


def test_named_paths_finds() -> None:
    """A path in backticks that does not exist is found; a folder that holds files exists."""
    files = [TextFile("docs/a.md", "`src/tierstore/x.py` `src/tierstore/` `src/tierstore/y.py` and `other/z.py`")]
    assert len(documents.named_paths(files, ["docs/a.md", "src/tierstore/x.py"])) == 1


@pytest.mark.parametrize("planted", ["/" + "root/x", 'path = "/' + 'home/ann/x"', "https://" + "pypi" + ".org/simple"])
def test_machine_traces_finds(planted: str) -> None:
    """A path of one machine, or a registry's host, is found in any text."""
    assert len(documents.machine_traces([TextFile("a.txt", f"first\n{planted}\n")])) == 1


def test_machine_traces_allows() -> None:
    """Addresses of the service and paths inside the repository are fine."""
    text = "http://localhost:8888/v1/objects/x\ndocs/work/x\n/var/lib/tierstore\nhttps://keepachangelog.com/en/1.1.0/"
    assert documents.machine_traces([TextFile("a.txt", text)]) == []


def test_changelog_is_kept_finds() -> None:
    """A changelog that is absent, or does not begin with what is unreleased, is found."""
    assert documents.changelog_is_kept([])
    assert documents.changelog_is_kept([TextFile("CHANGELOG.md", "# Changelog\n\n## [1.0.0]\n")])
    assert not documents.changelog_is_kept([TextFile("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n")])


def test_unit_tests_mirror_the_source_finds() -> None:
    """A unit test whose subject stands elsewhere is found; several files about one subject are fine."""
    sources = [PythonFile("src/tierstore/types/ids.py", DOC), PythonFile("src/tierstore/types/__init__.py", DOC)]

    def lines(path: str) -> int:
        return len(documents.unit_tests_mirror_the_source(sources, [PythonFile(path, DOC)]))

    assert lines("tests/unit/types/test_ids.py") == 0
    assert lines("tests/unit/types/test_ids_hostile.py") == 0
    assert lines("tests/unit/test_types.py") == 0
    assert lines("tests/unit/test_ids.py") == 1
    assert lines("tests/unit/types/test_absent.py") == 1


PROJECT = TextFile(
    "pyproject.toml",
    '[project]\ndependencies = ["A_b>=2"]\n[project.optional-dependencies]\nmore = ["extra>=1"]\n'
    '[dependency-groups]\ndev = ["tool>=1,<2"]\n',
)
PINNED = "a-b==2.1 \\\n    --hash=sha256:00\n"
EXTRA = "extra==1.1 \\\n    --hash=sha256:00\n"
TOOL = "tool==1.5 ; python_version < '4' \\\n    --hash=sha256:00\n"
ENGINES = PINNED + EXTRA


@pytest.mark.parametrize(
    ("runtime", "engines", "development", "violations"),
    [
        (PINNED, ENGINES, ENGINES + TOOL, 0),
        ("", ENGINES, ENGINES + TOOL, 1),
        (PINNED, EXTRA, ENGINES + TOOL, 1),
        (PINNED, ENGINES, EXTRA + TOOL, 1),
        (PINNED, PINNED, ENGINES + TOOL, 1),
        (PINNED, ENGINES, PINNED + TOOL, 1),
        (PINNED, ENGINES, ENGINES.replace("2.1", "2.2") + TOOL, 1),
        (PINNED, ENGINES, ENGINES + TOOL.replace("1.5", "2.0"), 1),
        ("a-b==2.1\n", ENGINES, ENGINES + TOOL, 1),
    ],
)
def test_locks_fit_finds(runtime: str, engines: str, development: str, violations: int) -> None:
    """What is not pinned, pinned out of range, pinned twice differently, or pinned without a hash, is found."""
    locks = (
        TextFile("requirements.lock", runtime),
        TextFile("requirements-engines.lock", engines),
        TextFile("requirements-dev.lock", development),
    )
    assert len(documents.locks_fit(PROJECT, *locks)) == violations
