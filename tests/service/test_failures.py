"""From what a method raises to what crosses, and from that to what the caller raises."""

from __future__ import annotations

import pickle

import pytest

from samehost import Peer, Service, allow, errors, testing
from samehost.protocol import codes
from samehost.service.failures import Failure, broken, error_of, failure_of


class NoSuchThing(errors.ServiceError):
    code = "things.no_such_thing"

    def __init__(self, shelf: int, *, place: int) -> None:
        super().__init__(f"nothing at {shelf}.{place}", data=[shelf, place])
        self.shelf = shelf


class Fussy(errors.ServiceError):
    code = "things.fussy"

    def __new__(cls, one: int, two: int) -> Fussy:  # noqa: PYI034 - it is what it is
        return super().__new__(cls, one, two)


class Forgetful(errors.ServiceError):
    code = "things.forgetful"

    def __init__(self) -> None:
        """Without that of the class above."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot be told")


# From exceptions to failures.


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errors.ServiceError("no"), Failure("failed", "no")),
        (errors.ServiceError("no", code="a.b", data={"x": 1}), Failure("a.b", "no", {"x": 1})),
        (NoSuchThing(1, place=2), Failure("things.no_such_thing", "nothing at 1.2", [1, 2])),
        (Forgetful(), Failure("things.forgetful", "")),
        (errors.ServiceError(KeyError("x")), Failure("failed", "'x'")),
        (errors.ServiceError("from afar", error_id="77", method="other"), Failure("failed", "from afar")),
    ],
    ids=str,
)
def test_a_service_error_crosses_with_its_code_message_and_data(error, failure):
    assert failure_of(error, {}) == failure


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret"),
        KeyError("secret"),
        SystemExit("secret"),
        KeyboardInterrupt(),
        MemoryError(),
        Unspeakable(),
        ExceptionGroup("secret", [errors.ServiceError("secret")]),
        errors.InternalError("secret"),
        errors.MethodNotFound("secret"),
        errors.WrongShape("secret"),
        errors.UntrustedServer("secret", None),
        errors.DeadlineExceeded("secret"),
        PermissionError("secret"),
        errors.Unsent("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_everything_else_is_internal_with_an_id_and_nothing_told(error):
    code, message, data, error_id = failure_of(error, {})
    assert (code, message, data) == ("internal", "the method failed", None)
    assert len(error_id) == 8
    assert int(error_id, 16) >= 0
    assert failure_of(error, {}).error_id != error_id


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errors.Busy("no room", data=5), Failure("busy", "no room", 5)),
        (errors.InvalidArguments("$.zone: none of ours"), Failure("invalid_arguments", "$.zone: none of ours")),
        (errors.Cancelled("never mind"), Failure("cancelled", "never mind")),
        (errors.NotPermitted("not yours"), Failure("not_permitted", "not yours")),
    ],
    ids=str,
)
def test_a_method_may_say_no_in_samehost_s_words(error, failure):
    assert failure_of(error, {}) == failure
    assert failure_of(error, {ValueError: "any", PermissionError: "any"}) == failure
    assert failure_of(raised(error), {}) == failure


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    "code",
    [
        "busy",
        "cancelled",
        "deadline_exceeded",
        "draining",
        "internal",
        "invalid_arguments",
        "method_not_found",
        "not_permitted",
        "too_large",
        "unavailable",
        "wrong_shape",
    ],
)
def test_what_another_service_has_answered_stays_here_unless_it_is_declared(code):
    received = error_of("inner", Failure(code, "secret"))
    for error in (received, pickle.loads(pickle.dumps(received))):
        assert failure_of(error, {})[:3] == ("internal", "the method failed", None)
        assert failure_of(error, {type(error): "inner.failed"}).code == "inner.failed"


@pytest.mark.parametrize("code", ["invalid_arguments", "not_permitted"])
def test_a_built_in_exception_that_is_declared_does_not_stand_for_what_another_service_has_answered(code):
    assert failure_of(error_of("inner", Failure(code, "secret")), {ValueError: "a", OSError: "b"}).code == "internal"


async def test_what_a_connection_of_the_method_s_own_has_met_is_internal():
    with pytest.raises(errors.NotPermitted, match="it admits uid 7") as caught:
        async with testing.connected(Service("inner", allow=allow(uid=7)), peer=Peer(8, 8, (), 9)):
            pass
    assert failure_of(caught.value, {}).code == "internal"
    assert failure_of(caught.value, {errors.NotPermitted: "inner.refused"}).code == "inner.refused"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("x"), "kv.key", "x"),
        (KeyError(5), "kv.key", "5"),
        (KeyError(), "kv.key", ""),
        (KeyError("x", "y"), "kv.key", "('x', 'y')"),
        (IndexError("too far"), "kv.look_up", "too far"),
        (FileNotFoundError(2, "No such file", "/x"), "os", "[Errno 2] No such file: '/x'"),
    ],
    ids=repr,
)
def test_a_declared_exception_crosses_under_the_code_of_the_nearest_class(error, code, message):
    declared = {Exception: "any", LookupError: "kv.look_up", KeyError: "kv.key", OSError: "os"}
    assert failure_of(error, declared) == Failure(code, message)


def test_a_declared_exception_does_not_stand_for_others():
    assert failure_of(ValueError("secret"), {KeyError: "kv.key"}).code == "internal"
    assert failure_of(SystemExit(), {Exception: "any"}).code == "internal"


def test_a_service_error_keeps_its_own_code_where_its_class_is_declared_otherwise():
    assert failure_of(NoSuchThing(1, place=2), {errors.ServiceError: "other"}).code == "things.no_such_thing"


def test_a_declared_exception_that_cannot_say_what_it_is_is_internal():
    assert failure_of(Unspeakable(), {Unspeakable: "kv.no"})[:2] == ("internal", "the method failed")


def test_a_service_error_whose_message_was_spoilt_is_internal():
    error = errors.ServiceError("no")
    error.message = Unspeakable()
    assert failure_of(error, {}).code == "internal"


@pytest.mark.parametrize("code", ["", "x" * 65, "\x00", "ü", 5, None])
def test_a_service_error_whose_code_was_spoilt_is_internal(code):
    error = errors.ServiceError("no")
    error.code = code
    assert failure_of(error, {}).code == "internal"


def test_what_is_broken_has_an_id_of_its_own():
    assert broken("the result cannot be sent")[:3] == ("internal", "the result cannot be sent", None)
    assert broken("").error_id != broken("").error_id


# From failures to exceptions.


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_arguments", errors.InvalidArguments),
        ("method_not_found", errors.MethodNotFound),
        ("internal", errors.InternalError),
        ("busy", errors.Busy),
        ("cancelled", errors.Cancelled),
        ("wrong_shape", errors.WrongShape),
        ("failed", errors.ServiceError),
        ("unheard.of", errors.ServiceError),
        ("things.no_such_thing", NoSuchThing),
        ("things.fussy", Fussy),
        ("things.forgetful", Forgetful),
    ],
)
def test_a_code_is_raised_as_its_class_with_all_that_came(code, kind):
    error = error_of("put", Failure(code, "why", {"x": 1}, "e1f0"))
    assert type(error) is kind
    assert (error.code, error.message, error.data, error.error_id, error.method) == (
        code,
        "why",
        {"x": 1},
        "e1f0",
        "put",
    )
    assert str(error) == "put: why (the server's log has it under e1f0)"
    assert error.args == ("why",)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("deadline_exceeded", errors.DeadlineExceeded),
        ("not_permitted", errors.NotPermitted),
        ("too_large", errors.MessageTooLarge),
        ("unavailable", errors.OutcomeUnknown),
        ("draining", errors.Unsent),
    ],
)
def test_a_code_that_is_no_answer_of_the_method_is_raised_as_what_it_is(code, kind):
    assert type(error_of("put", Failure(code, "why"))) is kind
    assert str(error_of("put", Failure(code, "why"))) == "put: why"
    assert str(error_of("put", Failure(code, ""))) == f"put: {code}"


def test_every_code_of_the_protocol_is_an_error():
    for code in codes.NUMBERS:
        assert isinstance(error_of("put", Failure(code, "why")), errors.Error)


@pytest.mark.parametrize("code", ["", "x" * 100_000, "\x1b[2J", "ü", "a\nb", "__class__\x00"])
def test_a_code_that_cannot_be_one_is_failed(code):
    error = error_of("put", Failure(code, "why", [1], "7"))
    assert type(error) is errors.ServiceError
    assert (error.code, error.message, error.data, error.error_id) == ("failed", "why", [1], "7")


def test_an_error_can_be_handed_on_by_the_next_service():
    received = error_of("put", failure_of(NoSuchThing(1, place=2), {}))
    assert isinstance(received, NoSuchThing)
    assert not hasattr(received, "shelf")  # only its author's __init__ knows of that
    assert failure_of(received, {}) == Failure("things.no_such_thing", "nothing at 1.2", [1, 2])
    assert failure_of(error_of("put", Failure("unheard.of", "why", 1)), {}) == Failure("unheard.of", "why", 1)
