"""Rules of the repository's files: links, traces of a machine, the changelog, mirrored tests, lock files."""

import posixpath
import re
import tomllib
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tidy.sources import PythonFile, TextFile, Violation

_FENCE = re.compile(r"^\s*(```|~~~)")
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\s*\[[^\]]+\]:\s*<?(\S+?)>?\s*$")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$")
_NAMED_PATH = re.compile(r"`((?:src|tests|docs|bench)/[\w./-]+)`")
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)

_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s;]+)")

_MACHINE_PATH = re.compile("(?:^|[^A-Za-z0-9_.])/(?:root|home/[a-z]+|work|Users/[A-Za-z]+)/")
_REGISTRY = re.compile("https?://[a-z0-9.-]*(?:pypi|npmjs|pythonhosted|debian|crates|proxy[.]golang)[.]")


def links(files: Sequence[TextFile], paths: Sequence[str]) -> list[Violation]:
    """Every relative link in a Markdown file leads to a file of the repository, and every anchor to a heading."""
    documents = {file.path: file for file in files if file.path.endswith(".md")}
    known = _with_folders(paths)
    violations = []
    for file in documents.values():
        for target, line in _links(file):
            if _ELSEWHERE.match(target):
                continue
            relative, _, anchor = target.partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), relative)) if relative else file.path
            if path not in known:
                violations.append(file.violation(line, f"{target} leads nowhere"))
            elif anchor and path in documents and anchor not in _anchors(documents[path]):
                violations.append(file.violation(line, f"{target}: no such heading"))
    return violations


def named_paths(files: Sequence[TextFile], paths: Sequence[str]) -> list[Violation]:
    """A path of the repository that the documentation, or the source, names in backticks exists."""
    known = _with_folders(paths)
    return [
        file.violation(line, f"{path} does not exist")
        for file in files
        if file.path.endswith(".md") or (file.path.startswith("src/") and file.path.endswith(".py"))
        for line, text in _prose(file)
        for path in _NAMED_PATH.findall(text)
        if path.rstrip("/") not in known
    ]


def _with_folders(paths: Sequence[str]) -> set[str]:
    known = set(paths)
    for path in paths:
        while path := posixpath.dirname(path):
            known.add(path)
    return known | {"."}


def _prose(file: TextFile) -> Iterator[tuple[int, str]]:
    """The lines of a Markdown file outside fenced code."""
    fenced = False
    for number, line in enumerate(file.text.splitlines(), start=1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def _links(file: TextFile) -> Iterator[tuple[str, int]]:
    for number, line in _prose(file):
        for inline, reference in _LINK.findall(_INLINE_CODE.sub("", line)):
            yield inline or reference, number


def _anchors(file: TextFile) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    anchors: set[str] = set()
    for _, line in _prose(file):
        if match := _HEADING.match(line):
            slug = re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-")
            count = 0
            while (anchor := f"{slug}-{count}" if count else slug) in anchors:
                count += 1
            anchors.add(anchor)
    return anchors


def machine_traces(files: Sequence[TextFile]) -> list[Violation]:
    """No file names a path of somebody's machine, or the host of a package registry."""
    return [
        file.violation(number, f"{what}: {match[0].strip()}")
        for file in files
        for number, line in enumerate(file.text.splitlines(), start=1)
        for pattern, what in ((_MACHINE_PATH, "a path of one machine"), (_REGISTRY, "a registry's host"))
        if (match := pattern.search(line))
    ]


def changelog_is_kept(files: Sequence[TextFile]) -> list[Violation]:
    """CHANGELOG.md begins with an Unreleased section."""
    found = [file for file in files if file.path == "CHANGELOG.md"]
    if not found:
        return [Violation("CHANGELOG.md", 1, "there is no changelog")]
    headings = [line for line in found[0].text.splitlines() if line.startswith("## ")]
    if not headings or headings[0] != "## [Unreleased]":
        return [found[0].violation(1, "its first section is not ## [Unreleased]")]
    return []


def unit_tests_mirror_the_source(sources: Sequence[PythonFile], tests: Sequence[PythonFile]) -> list[Violation]:
    """``tests/unit/x/test_y.py``, and ``test_y_more.py``, test ``src/tierstore/x/y.py`` (or the folder ``x/y/``).

    So do those of a table or a helper ``y.py`` that lies beside them.
    """
    modules = {file.inner_path.removesuffix(".py").removesuffix("/__init__") for file in sources}
    modules |= {file.path.removeprefix("tests/unit/").removesuffix(".py") for file in tests}
    return [
        file.violation(1, f"there is no src/tierstore/{subject}.py")
        for file in tests
        if (match := re.fullmatch(r"tests/unit/((?:.*/)?)test_(\w+)\.py", file.path))
        if (subject := match[1] + match[2]) not in modules
        and not any(subject.startswith(f"{module}_") for module in modules)
    ]


def locks_fit(project: TextFile, runtime: TextFile, engines: TextFile, development: TextFile) -> list[Violation]:
    """The lock files pin, with hashes, what pyproject.toml asks for, and each agrees with the one that it builds on."""
    declared = tomllib.loads(project.text)
    pins = {file.path: _pins(file) for file in (runtime, engines, development)}
    violations = [
        larger.violation(1, f"{name} is {pins[larger.path].get(name)} here and {version} in {smaller.path}")
        for smaller, larger in ((runtime, engines), (engines, development))
        for name, version in pins[smaller.path].items()
        if pins[larger.path].get(name) != version
    ]
    extras = declared["project"].get("optional-dependencies", {}).values()
    needed = (
        (runtime, declared["project"]["dependencies"]),
        (development, declared["dependency-groups"]["dev"]),
        *((engines, texts) for texts in extras),
    )
    for file, texts in needed:
        for requirement in map(Requirement, texts):
            version = pins[file.path].get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(version):
                violations.append(file.violation(1, f"{requirement} is asked for, and {version} is pinned: make lock"))
        violations += [
            file.violation(number, "a pin without a hash")
            for number, line in enumerate(file.text.splitlines(), start=1)
            if _PIN.match(line) and not line.endswith("\\")
        ]
    return violations


def _pins(file: TextFile) -> dict[str, str]:
    found = (_PIN.match(line) for line in file.text.splitlines())
    return {canonicalize_name(match[1]): match[2] for match in found if match}
