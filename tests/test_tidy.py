"""The structure of the repository, as a test: each rule, applied to the files that are there.

The rules are in `tests.tidy`; that each of them finds what it is for is shown in ``tests/tidy/test_rules.py``.
"""

from collections.abc import Sequence

from tests.tidy import code, contracts, documents, imports
from tests.tidy.sources import PythonFile, Violation, python_files, repository_paths, source_files, text_files


def report(violations: Sequence[Violation]) -> None:
    """Fail with one line for each violation."""
    assert not violations, "\n" + "\n".join(sorted(map(str, violations)))


def files_in(*folders: str) -> Sequence[PythonFile]:
    """The Python files below the folders."""
    return [file for file in python_files() if file.path.startswith(folders)]


def test_the_rules_see_the_repository() -> None:
    """A rule that looks at nothing finds nothing: the files are there."""
    assert "src/tierstore/tiering/tiered.py" in repository_paths()
    assert any(file.inner_path == "limits.py" for file in source_files())
    assert any(file.path == "README.md" for file in text_files())


def test_layers() -> None:
    """Imports run downward only: http, admission, service, tiering, then backends or changelog."""
    report(imports.layers(source_files()))


def test_stores_are_built_in_one_place() -> None:
    """Other layers know the stores' contracts; the composition root alone knows the stores."""
    report(imports.stores_are_built_in_one_place(source_files()))


def test_no_cycles() -> None:
    """No module imports itself, however far around."""
    report(imports.cycles(source_files()))


def test_imports_are_written_in_full() -> None:
    """There are no relative imports."""
    report(imports.relative_imports(python_files()))


def test_vendors_stay_in_their_files() -> None:
    """A library from outside is imported only where it has its place."""
    report(imports.vendors(source_files()))


def test_logs_are_discreet() -> None:
    """No log line is made of a request's headers or query."""
    report(code.logs_are_discreet(source_files()))


def test_modules_say_what_they_are_for() -> None:
    """Every module has a docstring."""
    report(code.module_docstrings(python_files()))


def test_tests_say_what_they_check() -> None:
    """Every test has a docstring: the law it checks."""
    report(code.undescribed_tests(files_in("tests/")))


def test_no_stray_clock() -> None:
    """Nothing reads a clock or sleeps but `tierstore.clock`."""
    report(code.stray_clock(source_files()))


def test_no_stray_ids() -> None:
    """Nothing makes UUIDs or random numbers but `tierstore.idsource`."""
    report(code.stray_ids(source_files()))


def test_no_stray_tasks() -> None:
    """Tasks are started by `tierstore.tasks`; threads only beside the blocking stores; processes nowhere."""
    report(code.stray_tasks(source_files()))


def test_no_asserts() -> None:
    """The service has no ``assert``."""
    report(code.asserts(source_files()))


def test_no_stubs() -> None:
    """No function of the package, the tests or the benchmark does nothing."""
    report(code.stubs(python_files()))


def test_silenced_checks_have_a_reason() -> None:
    """``type: ignore``, ``noqa``, ``pragma`` and the like say ``# because …``."""
    report(code.silenced_checks(python_files()))


def test_no_mocks() -> None:
    """Nothing is mocked."""
    report(code.mocks(python_files()))


def test_abstract_methods_are_described() -> None:
    """Every public abstract method has a docstring."""
    report(contracts.abstract_methods_are_described(source_files()))


def test_contracts_have_no_bodies() -> None:
    """A contract's class has abstract methods only, without default bodies."""
    report(contracts.contracts_have_no_bodies(source_files()))


def test_stores_have_laws() -> None:
    """Every implementation of a contract is put under its laws in tests/conformance."""
    report(contracts.stores_have_laws(source_files(), files_in("tests/conformance/")))


def test_links_resolve() -> None:
    """Relative links and anchors in Markdown lead somewhere."""
    report(documents.links(text_files(), repository_paths()))


def test_named_paths_exist() -> None:
    """Paths that Markdown names in backticks exist."""
    report(documents.named_paths(text_files(), repository_paths()))


def test_no_machine_traces() -> None:
    """No file names a path of one machine, or a registry's host."""
    report(documents.machine_traces(text_files()))


def test_changelog_is_kept() -> None:
    """The changelog begins with what is unreleased."""
    report(documents.changelog_is_kept(text_files()))


def test_unit_tests_mirror_the_source() -> None:
    """A unit test stands where its subject stands."""
    report(documents.unit_tests_mirror_the_source(source_files(), files_in("tests/unit/")))


def test_locks_fit() -> None:
    """The lock files are those of pyproject.toml, with hashes, and agree with each other."""
    files = {file.path: file for file in text_files()}
    report(
        documents.locks_fit(
            files["pyproject.toml"],
            files["requirements.lock"],
            files["requirements-engines.lock"],
            files["requirements-dev.lock"],
        ),
    )
