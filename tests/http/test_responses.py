"""Errors to answers."""

import inspect

import orjson
import pytest

from tierstore import errors
from tierstore.http.responses import STATUS_BY_ERROR, error_response, status_of

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.TierstoreError) and kind.__module__ == errors.__name__
]
LEAVES = [kind for kind in TREE if not kind.__subclasses__()]


def made(kind: type[errors.TierstoreError]) -> errors.TierstoreError:
    """An error of this kind."""
    if kind is errors.MethodNotAllowed:
        return errors.MethodNotAllowed(("GET", "PUT"))
    if kind is errors.RangeNotSatisfiable:
        return errors.RangeNotSatisfiable(12)
    if kind is errors.OffsetMismatch:
        return errors.OffsetMismatch(12)
    return kind("a sentence for a person")


def content_of(payload: bytes) -> dict[str, object]:
    """The JSON object that an answer holds."""
    content = orjson.loads(payload)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_a_row(kind: type[errors.TierstoreError]) -> None:
    """The table names every error of the tree itself, so that a new one is given its status on purpose."""
    assert kind in STATUS_BY_ERROR


def test_the_table_is_the_tree_of_the_errors_page() -> None:
    """Each status in the docstring of `tierstore.errors` is the one in the table."""
    drawn = {
        words[0]: int(words[-1])
        for line in (errors.__doc__ or "").splitlines()
        if len(words := line.strip("│├└─ ").split()) > 1 and words[-1].isdigit()
    }
    assert len(drawn) > 15
    assert {kind.__name__: STATUS_BY_ERROR[kind] for kind in TREE if kind.__name__ in drawn} == drawn
    assert {kind.__name__ for kind in LEAVES} - set(drawn) == {"ConfigError"}


@pytest.mark.parametrize("kind", LEAVES)
def test_answers_are_json_with_a_detail(kind: type[errors.TierstoreError]) -> None:
    """Every answer says in one sentence what is wrong; a fault of ours names the request and nothing else."""
    error = made(kind)
    status, headers, payload = error_response(error, "the-id")
    content = content_of(payload)
    fields = dict(headers)
    assert status == STATUS_BY_ERROR[kind]
    assert fields[b"content-type"] == b"application/json"
    assert fields[b"content-length"] == str(len(payload)).encode()
    assert "causes" not in content
    if status == 500:
        assert str(error) not in str(content["detail"])
        assert "the-id" in str(content["detail"])
    else:
        assert content["detail"] == str(error)


@pytest.mark.parametrize("error", [RuntimeError("secret"), errors.CorruptObject("secret"), KeyError("secret")])
def test_internals_stay_inside(error: Exception) -> None:
    """The text of a fault of ours, or of anything unexpected, does not reach a client."""
    status, _, payload = error_response(error, "id")
    assert status == status_of(error) == 500
    assert b"secret" not in payload


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (errors.Busy, b"retry-after", b"1"),
        (errors.Unavailable, b"retry-after", b"1"),
        (errors.OutcomeUnknown, b"retry-after", b"1"),
        (errors.GivenUp, b"retry-after", b"1"),
        (errors.StorageFull, b"retry-after", b"30"),
        (errors.MethodNotAllowed, b"allow", b"GET, PUT"),
        (errors.RangeNotSatisfiable, b"content-range", b"bytes */12"),
        (errors.Unauthenticated, b"www-authenticate", b"Bearer"),
    ],
)
def test_statuses_carry_their_headers(kind: type[errors.TierstoreError], name: bytes, value: bytes) -> None:
    """What RFC 9110 wants with a status."""
    assert dict(error_response(made(kind), "id")[1])[name] == value


def test_a_new_kind_takes_the_status_of_its_base() -> None:
    """An error of a backend outside this repository is answered like the error it refines."""

    class Throttled(errors.Busy):
        pass

    assert status_of(Throttled("slow down")) == 429


def test_causes_are_our_own_errors_only() -> None:
    """Causes are listed nearest first, up to the first one that is internal."""

    def caused(error: BaseException, cause: BaseException) -> BaseException:
        error.__cause__ = cause
        return error

    chain = caused(errors.Unavailable("b"), caused(errors.Busy("c"), caused(errors.Broken("d"), errors.Busy("e"))))
    _, _, payload = error_response(caused(errors.Unavailable("a"), chain), "id")
    assert content_of(payload) == {"detail": "a", "causes": ["b", "c"]}


def test_endless_causes_end() -> None:
    """A chain of causes is cut at a bound, even one that bites its tail."""
    error = errors.Unavailable("a")
    error.__cause__ = error
    causes = content_of(error_response(error, "id")[2])["causes"]
    assert isinstance(causes, list)
    assert len(causes) == 8


def test_words_for_operators_are_not_for_clients() -> None:
    """An error that names an engine's address has other words for clients, also as the cause of another one."""
    lost = errors.private(
        errors.Unavailable("PostgreSQL at 10.0.0.7/objects cannot be reached"), "the database cannot be reached"
    )
    failed = errors.OutcomeUnknown("the write may have happened")
    failed.__cause__ = lost
    for error, told in ((lost, "the database cannot be reached"), (failed, "the write may have happened")):
        status, _, payload = error_response(error, "request")
        assert (status, orjson.loads(payload)["detail"]) == (503, told)
        assert b"10.0.0.7" not in payload
    assert orjson.loads(error_response(failed, "request")[2])["causes"] == ["the database cannot be reached"]
