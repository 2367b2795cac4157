"""What both clients do alike around a call."""

from __future__ import annotations

import contextvars
import math
import os

import pytest

from samehost import Call, Peer, errors
from samehost.codec import MSGPACK
from samehost.protocol import events
from samehost.service import calling
from samehost.service.call import Progress, current_call
from samehost.service.description import MethodDescription, ParameterDescription
from samehost.service.remote import RemoteMethod

DESCRIBED = MethodDescription(
    "kv.get",
    "(key: str, default: str = '', *, fresh: bool = False) -> str",
    [
        ParameterDescription("key", {"type": "string"}),
        ParameterDescription("default", {"type": "string"}, required=False, default=""),
        ParameterDescription("fresh", {"type": "boolean"}, required=False, default=False, keyword_only=True),
    ],
    {"type": "string"},
    doc="The value of a key.",
    allow="uid 0",
    idempotent=True,
    timeout=1.5,
)


class Left:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def left(self) -> float:
        return self.seconds


def while_serving(seconds, context, function):
    """What the function returns while a call with so much time is being served."""

    def serving():
        current_call.set(Call(Peer(7, 7, (), 1), "outer", 1, Left(seconds), context, None))
        return function()

    return contextvars.copy_context().run(serving)


# Time.


def test_a_call_has_the_time_it_is_given():
    assert calling.seconds_for(1.5) == 1.5
    assert calling.seconds_for(None) == math.inf
    assert calling.seconds_for(0.0) == 0.0


@pytest.mark.parametrize(
    ("left", "timeout", "seconds"),
    [
        (2.0, 5.0, 2.0),
        (2.0, None, 2.0),
        (5.0, 2.0, 2.0),
        (math.inf, 2.0, 2.0),
        (math.inf, None, math.inf),
        (0.0, 5.0, 0.0),
    ],
)
def test_a_call_made_while_serving_another_has_no_more_time_than_that(left, timeout, seconds):
    assert while_serving(left, {}, lambda: calling.seconds_for(timeout)) == seconds


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [(math.inf, 0), (1.0, 1000), (0.0001, 1), (0.0011, 2), (1.5, 1500), (1e9, 2**32 - 1), (4294967.295, 2**32 - 1)],
)
def test_time_travels_in_milliseconds_rounded_up(seconds, milliseconds):
    assert calling.milliseconds_of(seconds) == milliseconds


def test_the_client_s_timeout_is_written_as_what_it_is():
    assert repr(calling.CLIENTS_TIMEOUT) == "the client's"


# Context.


def test_the_context_of_the_call_being_served_is_handed_on():
    assert calling.context_to_hand_on() == b""
    assert while_serving(1.0, {}, calling.context_to_hand_on) == b""
    handed = while_serving(1.0, {"trace": "00", "app.user": 5}, calling.context_to_hand_on)
    assert MSGPACK.read_context(handed) == {"trace": "00", "app.user": 5}


# What is raised.


def test_an_answered_error_is_raised_with_its_data():
    answer = events.Failure(1, "calling.unheard_of", "no key", "e1f0", MSGPACK.encode({"key": "x"}))
    error = calling.answered_error("get", answer)
    assert type(error) is errors.ServiceError
    assert (error.code, error.message) == ("calling.unheard_of", "no key")
    assert (error.data, error.error_id) == ({"key": "x"}, "e1f0")
    assert str(error).startswith("get: no key")


def test_a_timeout_among_the_arguments_is_told_where_it_belongs():
    def refused(code, message):
        return str(calling.answered_error("kv.get", events.Failure(1, code, message, "", b"")))

    told = refused("invalid_arguments", "$: object contains unknown field timeout")
    assert told == (
        "kv.get: $: object contains unknown field timeout "
        "(for the time that it may take: client.call('kv.get', …, timeout=…))"
    )
    assert refused("invalid_arguments", "$: object contains unknown field timeouts").endswith("timeouts")
    assert refused("failed", "$: object contains unknown field timeout").endswith("field timeout")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 100, b"\x92\x01"])
def test_an_error_whose_data_cannot_be_read_is_raised_without(data):
    error = calling.answered_error("get", events.Failure(1, "failed", "no", "", data))
    assert (error.message, error.data) == ("no", None)


def test_being_too_late_says_how_long_it_took():
    error = calling.too_late("get", "/run/kv.sock", 0.25)
    assert type(error) is errors.DeadlineExceeded
    assert str(error) == "get on /run/kv.sock: no answer within 0.25 s"


def test_a_lost_call_is_unsent_or_unknown():
    unsent = calling.lost("get", "@kv", "the server closed the connection", was_sent=False)
    assert type(unsent) is errors.Unsent
    assert str(unsent) == "get on @kv was not sent: the server closed the connection"
    unknown = calling.lost("get", "@kv", "the server closed the connection", was_sent=True)
    assert type(unknown) is errors.OutcomeUnknown
    assert "before the answer came, so it may or may not have been done" in str(unknown)


def test_a_server_that_closed_without_a_word_may_not_admit_us():
    assert calling.closed_by_server(True) == "the server closed the connection"
    assert f"it may not admit uid {os.geteuid()}" in calling.closed_by_server(False)


# What a server tells of its methods.


def test_a_described_method_is_known_here():
    remote = calling.remote_of(DESCRIBED)
    assert (remote.name, remote.is_idempotent) == ("kv.get", True)
    assert remote.signature.text == DESCRIBED.signature
    assert remote.arguments(("a",), {"fresh": True}) == {"key": "a", "fresh": True}
    with pytest.raises(errors.UsageError, match="too many arguments"):
        remote.arguments(("a", "b", True), {"key": "c"})
    assert remote.result(MSGPACK.encode([1])) == [1]  # of any type


def test_the_documentation_tells_signature_text_and_rules():
    assert calling.documentation_of(DESCRIBED) == (
        "kv.get(key: str, default: str = '', *, fresh: bool = False) -> str\n\n"
        "The value of a key.\n\n"
        "May be called by: uid 0.\n"
        "Takes 1.5 s at most.\n"
        "Idempotent: made again by itself when an answer got lost."
    )
    assert calling.documentation_of(MethodDescription("now", "()", [], {})) == "now()"
    told = calling.documentation_of(MethodDescription("now", "()", [], {}, errors=["a.b", "c"]))
    assert told == "now()\n\nErrors: a.b, c."
    size = ParameterDescription("size", {"type": "integer", "minimum": 1})
    told = calling.documentation_of(MethodDescription("now", "(size: int)", [size], {}))
    assert told == "now(size: int)\n\nLimits: size >= 1."


def test_a_remote_function_calls_and_tells_of_itself():
    made = []

    def call(remote, positional, by_name):
        made.append((remote.name, positional, by_name))
        return "result"

    function = calling.RemoteFunction(
        RemoteMethod("kv.get"), call, lambda name: DESCRIBED if name == "kv.get" else None
    )
    assert function("a", fresh=True) == "result"
    assert made == [("kv.get", ("a",), {"fresh": True})]
    assert function(self=1) == "result"
    assert made[1] == ("kv.get", (), {"self": 1})
    assert function.__name__ == "kv.get"
    assert function.__doc__ == calling.documentation_of(DESCRIBED)
    assert repr(function) == f"<remote function kv.get{DESCRIBED.signature}>"


def test_a_remote_function_of_a_server_that_cannot_be_asked_says_so():
    function = calling.RemoteFunction(RemoteMethod("now"), lambda *_: None, lambda _: None)
    assert repr(function) == "<remote function now>"
    assert function.__doc__ == "now: what the server says of it is not known"


def test_a_note_tells_how_far_a_call_has_come_if_it_can_be_read():
    assert calling.read_progress(MSGPACK.encode({"done": 1, "total": 4})) == Progress(1.0, 4.0)
    assert calling.read_progress(MSGPACK.encode({"dropped": 3, "unknown": []})) == Progress(dropped=3)
    for note in (b"\x05", b"\xc1", MSGPACK.encode({"done": "half"})):
        assert calling.read_progress(note) is None


def test_what_was_to_come_in_time_is_said():
    assert str(calling.too_late("now", "/s", 0.5)) == "now on /s: no answer within 0.5 s"
    assert str(calling.too_late("ticks", "/s", 0.5, "no end")) == "ticks on /s: no end within 0.5 s"
    assert str(calling.no_stream("now")) == "now: it answers with a value, and not with a stream"
