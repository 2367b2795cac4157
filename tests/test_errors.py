"""The tree of errors: one root, and the built-in that people already catch."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Self

import pytest

from samehost import Peer, errors
from samehost.protocol import codes


def test_everything_is_under_one_root():
    raised = [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__]
    assert len(raised) > 10
    assert all(issubclass(one, errors.Error) for one in raised)


@pytest.mark.parametrize(
    ("ours", "built_in"),
    [
        (errors.AddressError, ValueError),
        (errors.PolicyError, ValueError),
        (errors.MessageTooLarge, ValueError),
        (errors.AddressInUse, OSError),
        (errors.NotASocket, OSError),
        (errors.Unavailable, ConnectionError),
        (errors.ConnectionClosed, ConnectionError),
        (errors.NotPermitted, PermissionError),
        (errors.DeadlineExceeded, TimeoutError),
    ],
)
def test_the_built_in_catches_it_and_the_message_is_ours(ours, built_in):
    with pytest.raises(built_in, match=r"^who, what and which limit$"):
        raise ours("who, what and which limit")


def test_a_peer_s_mistake_is_not_ours():
    for theirs in (errors.UnexpectedFiles, errors.ForbiddenMessage):
        assert issubclass(theirs, errors.PeerError)
        assert not issubclass(theirs, errors.UsageError)


def test_an_untrusted_server_is_named():
    server = Peer(7, 7, (), 1)
    error = errors.UntrustedServer("somebody else", server)
    assert error.peer is server
    assert str(error) == "somebody else"
    assert isinstance(error, errors.NotPermitted)


# Errors of calls.


class NoSuchKey(errors.ServiceError):
    code = "kv.no_such_key"


class NoSuchRow(errors.ServiceError):
    code = "kv.no_such_row"

    def __init__(self, table: str, row: int) -> None:
        super().__init__(f"{table} has no row {row}", data={"table": table, "row": row})
        self.row = row


class Forgetful(errors.ServiceError):
    """Its author forgot `super().__init__()`."""

    code = "kv.forgetful"

    def __init__(self, key: str) -> None:
        self.key = key


class Strict(errors.ServiceError):
    code = "kv.strict"

    def __new__(cls, key: str, value: int) -> Self:
        return super().__new__(cls, key, value)

    def __init__(self, key: str, value: int) -> None:
        super().__init__(f"{key} is {value}")


def test_a_service_error_has_a_code_a_message_and_data():
    error = errors.ServiceError("no key 'x'", code="kv.missing", data={"key": "x"})
    assert (error.code, error.message, error.data, error.error_id, error.method) == (
        "kv.missing",
        "no key 'x'",
        {"key": "x"},
        "",
        "",
    )
    assert str(error) == "no key 'x'"


def test_a_service_error_without_anything_says_its_code():
    assert str(errors.ServiceError()) == errors.ServiceError().code == "failed"
    assert str(NoSuchKey()) == "kv.no_such_key"
    assert NoSuchKey("x", code="kv.other").code == "kv.other"


def test_an_exception_given_as_the_message_is_its_text():
    error = errors.ServiceError(OSError(2, "No such file"))
    assert str(error) == error.message == "[Errno 2] No such file"


def test_an_error_at_the_caller_names_the_method_and_where_the_log_has_it():
    error = errors.InternalError("the method failed", error_id="e1f0", method="now")
    assert str(error) == "now: the method failed (the server's log has it under e1f0)"
    assert error.code == "internal"
    assert isinstance(error, errors.CallError)
    assert not isinstance(error, errors.ServiceError)


@pytest.mark.parametrize(
    "error",
    [
        NoSuchKey("no key", data=[1], error_id="7", method="get"),
        NoSuchRow("users", 3),
        Strict("x", 5),
        errors.ServiceError("no", code="kv.other"),
        errors.InvalidArguments("$.zone: expected str, got int", method="now"),
        errors.Busy("too many", method="now"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy])
def test_an_error_survives_pickling_and_copying(error, copied):
    error.add_note("seen by the caller")
    twin = copied(error)
    assert type(twin) is type(error)
    assert twin is not error
    assert vars(twin) == vars(error)
    assert twin.args == error.args
    assert str(twin) == str(error)
    assert "seen by the caller" in twin.__notes__


def test_an_error_whose_init_forgot_ours_can_still_be_read_and_pickled():
    error = Forgetful("x")
    assert (error.code, error.message, error.data, str(error)) == ("kv.forgetful", "", None, "kv.forgetful")
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.key, twin.args) == ("x", ("x",))


def test_an_error_is_made_blank_without_its_own_arguments():
    assert type(errors.blank(Strict)) is Strict
    assert str(errors.blank(NoSuchRow)) == "kv.no_such_row"


def test_subclasses_are_found_by_their_code():
    assert errors.service_errors["kv.no_such_key"] is NoSuchKey

    class Inherits(NoSuchKey):
        pass

    assert Inherits.code == "kv.no_such_key"
    assert errors.service_errors["kv.no_such_key"] is NoSuchKey


def test_a_code_belongs_to_one_class():
    with pytest.raises(errors.UsageError, match=r"Another: the code 'kv\.no_such_key' is NoSuchKey's$"):

        class Another(errors.ServiceError):
            code = "kv.no_such_key"

    assert errors.service_errors["kv.no_such_key"] is NoSuchKey


def test_a_module_that_is_loaded_again_takes_its_codes_over():
    def load() -> type[errors.ServiceError]:
        class Again(errors.ServiceError):
            code = "kv.again"

        return Again

    first, second = load(), load()
    assert first is not second
    assert errors.service_errors["kv.again"] is second


@pytest.mark.parametrize("code", ["", "x" * 65, "schlüssel", "two\nlines", "\x00", None, 5])
def test_a_code_is_short_printable_ascii(code):
    with pytest.raises(errors.UsageError, match="a code has from 1 to 64 printable ASCII characters"):
        errors.check_code(code)
    with pytest.raises(errors.UsageError, match="a code has from 1 to 64 printable ASCII characters"):
        type("Bad", (errors.ServiceError,), {"code": code})
    if code:
        with pytest.raises(errors.UsageError, match="printable ASCII"):
            errors.ServiceError(code=code)
    assert code not in errors.service_errors


def test_a_code_of_64_characters_is_one():
    assert errors.ServiceError(code="x" * 64).code == "x" * 64


@pytest.mark.parametrize("code", codes.NUMBERS)
def test_the_protocol_s_codes_are_no_class_s(code):
    # Callers would never see it: they raise what samehost has for this code.
    with pytest.raises(errors.UsageError, match="is samehost's own"):
        type("Mine", (errors.ServiceError,), {"code": code})
    assert code not in errors.service_errors


def test_samehost_knows_its_own_codes():
    assert codes.NUMBERS.keys() == errors._SAMEHOSTS_CODES
    ours = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.CallError) and kind.__module__ == errors.__name__
    ]
    assert len(ours) == 8
    assert {kind.code for kind in ours} <= codes.NUMBERS.keys()


@pytest.mark.parametrize(
    ("ours", "built_in"),
    [
        (errors.Unsent, ConnectionError),
        (errors.OutcomeUnknown, ConnectionError),
        (errors.InvalidArguments, ValueError),
        (errors.SignatureError, ValueError),
    ],
)
def test_an_error_of_a_call_is_caught_as_a_built_in(ours, built_in):
    with pytest.raises(built_in, match=r"^why$"):
        raise ours("why")


def test_what_was_not_done_is_told_from_what_may_have_been():
    assert not issubclass(errors.Unsent, errors.OutcomeUnknown)
    assert not issubclass(errors.OutcomeUnknown, errors.Unsent)
    assert issubclass(errors.InvalidResult, errors.PeerError)


def test_a_fault_of_the_peer_has_a_code():
    assert errors.RemoteProtocolError("what").code == "protocol_error"
    assert errors.RemoteProtocolError("what", "too_slow").code == "too_slow"
