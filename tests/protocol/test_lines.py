"""JSON-RPC 2.0, a message a line: what differs from frames."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from protocol.joined import flow, greeted, written

from samehost.errors import LocalProtocolError, MessageTooLarge
from samehost.protocol import ITEMS_WANTED, Limits, accept, connect_lines
from samehost.protocol.events import Call, Discarded, Failed, Failure, GoingAway, InputEnded, Item, Notification, Reply


def lines_of(connection):
    return [json.loads(line) for line in written(connection).splitlines()]


def errors_of(connection):
    return [
        (line["id"], line["error"]["code"], line["error"]["data"]["code"], line["error"]["message"])
        for line in lines_of(connection)
    ]


@pytest.fixture
def server():
    return accept(ord("{"), Limits(batch_calls_max=3, method_bytes_max=8, context_bytes_max=16))


def request(**members):
    return json.dumps({"jsonrpc": "2.0", "method": "m", **members}).encode() + b"\n"


def ours(method, **params):
    return request(method=method, params=params)


def test_a_request_of_another_s_hand(server):
    data = b' { "method" : "m" , "id" : "a\\u00e9" , "jsonrpc" : "2.0", "more": [1] }\r\n\n  \n'
    assert server.receive_data(data) == [Call(1, "m", b"{}", 0, b"", ITEMS_WANTED, ())]
    server.send_reply(1, b"[1]")
    assert lines_of(server) == [{"jsonrpc": "2.0", "id": "aé", "result": [1]}]
    assert server.receive_data(request(id=0, params=[1, {"a": 2}])) == [
        Call(3, "m", b'[1, {"a": 2}]', 0, b"", ITEMS_WANTED, ())
    ]


def test_options(server):
    options = {"timeout_ms": 5, "items_follow": True, "items_wanted": False, "context": {"trace": "0"}, "more": 1}
    assert server.receive_data(request(id=1, options=options)) == [Call(1, "m", b"{}", 5, b'{"trace": "0"}', 1, ())]
    assert server.receive_data(request(options=options)) == [Notification("m", b"{}", 5, b'{"trace": "0"}', ())]


UNREADABLE = {
    "not JSON": (b"nonsense\n", None, -32700, "parse_error"),
    "cut off": (b'{"jsonrpc":"2.0","id":1\n', None, -32700, "parse_error"),
    "not JSON after a wrong type": (b'{"jsonrpc":2,"id":1\n', None, -32700, "parse_error"),
    "two on a line": (request(id=1)[:-1] + request(id=2), None, -32700, "parse_error"),
    "not UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xff"}}\n', None, -32700, "parse_error"),
    "name not UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}\n', None, -32700, "parse_error"),
    "nested": (b'{"jsonrpc":"2.0","id":1,"method":"m","params":' + b"[" * 100_000 + b"\n", None, -32700, "parse_error"),
    "batch not JSON": (b"[1,\n", None, -32700, "parse_error"),
    "a number": (b"1\n", None, -32600, "invalid_request"),
    "an empty batch": (b"[]\n", None, -32600, "invalid_request"),
    "a batch too long": (b"[1,2,3,4]\n", None, -32600, "invalid_request"),
    "no version": (b'{"id":7,"method":"m"}\n', 7, -32600, "invalid_request"),
    "another version": (request(id=7, jsonrpc="1.0"), 7, -32600, "invalid_request"),
    "id null": (request(id=None), None, -32600, "invalid_request"),
    "id a fraction": (request(id=1.5), None, -32600, "invalid_request"),
    "id too long": (request(id="x" * 129), "x" * 129, -32600, "invalid_request"),
    "id too large": (request(id=2**65), 2**65, -32600, "invalid_request"),
    "no method": (b'{"jsonrpc":"2.0","id":7}\n', 7, -32600, "invalid_request"),
    "result and error": (b'{"jsonrpc":"2.0","id":7,"result":1,"error":{"code":1,"message":""}}\n', 7, -32600, None),
    "result without id": (b'{"jsonrpc":"2.0","result":1}\n', None, -32600, "invalid_request"),
    "method a number": (request(id=7, method=1), 7, -32600, "invalid_request"),
    "params a number": (request(id=7, params=1), 7, -32600, "invalid_request"),
    "params null": (request(id=7, params=None), 7, -32600, "invalid_request"),
    "no name": (request(id=7, method=""), 7, -32600, "invalid_request"),
    "name too long": (request(id=7, method="123456789"), 7, -32600, "invalid_request"),
    "context too long": (request(id=7, options={"context": "x" * 20}), 7, -32600, "invalid_request"),
    "wrong options": (request(id=7, options={"timeout_ms": -1}), 7, -32600, "invalid_request"),
    "our name as a method": (request(id=7, method="$/item"), 7, -32601, "method_not_found"),
    "our name with id null": (request(id=None, method="$/item"), None, -32600, "invalid_request"),
    "an item without id": (ours("$/item", item=1), None, -32602, "invalid_arguments"),
    "credit below zero": (ours("$/credit", id=1, items=-1), None, -32602, "invalid_arguments"),
    "a token of 33 bits": (ours("$/ping", token=2**32), None, -32602, "invalid_arguments"),
    "no params": (request(method="$/end"), None, -32602, "invalid_arguments"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_line_that_cannot_be_read_is_answered_and_the_connection_lives(server, name):
    data, json_id, number, code = UNREADABLE[name]
    assert server.receive_data(data) == []
    ((answered, answered_number, answered_code, message),) = errors_of(server)
    assert (answered, answered_number) == (json_id, number)
    assert answered_code == code or code is None
    assert message
    assert len(server.receive_data(request(id=1))) == 1


def test_a_batch_is_answered_as_one(server):
    calls = server.receive_data(
        b"[" + b",".join([request(id=1).strip(), request().strip(), request(id="b").strip()]) + b"]\n"
    )
    assert [type(event) for event in calls] == [Call, Notification, Call]
    server.send_reply(3, b"3")
    assert server.data_to_send() == []
    server.send_error(1, "app.no", "no")
    (batch,) = lines_of(server)
    assert [response["id"] for response in batch] == ["b", 1]
    assert batch[1]["error"] == {"code": -32000, "message": "no", "data": {"code": "app.no"}}


def test_a_batch_with_what_cannot_be_read(server):
    assert server.receive_data(b"[1, {}, []]\n") == []
    (batch,) = lines_of(server)
    assert [(response["id"], response["error"]["code"]) for response in batch] == [(None, -32600)] * 3


def test_a_batch_of_notifications_is_not_answered(server):
    assert len(server.receive_data(b"[" + request().strip() + b"," + request().strip() + b"]\n")) == 2
    assert server.data_to_send() == []


def test_a_batch_of_millions_is_refused_without_being_taken_apart():
    server = accept(ord("["))
    tracemalloc.start()
    try:
        assert server.receive_data(b"[" + b"1," * 1_000_000 + b"1]\n") == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000
    assert "more than 256" in errors_of(server)[0][3]


def test_a_batch_whose_answers_are_too_long(server):
    server = accept(ord("["), Limits(payload_bytes_max=65536))
    server.receive_data(b"[" + request(id=1).strip() + b"," + request(id=2).strip() + b"]\n")
    long = b'"' + b"x" * 40_000 + b'"'
    server.send_reply(1, long)
    server.send_reply(3, long)
    ((first, second),) = lines_of(server)
    assert first["result"] == "x" * 40_000
    assert second["error"]["data"]["code"] == "too_large"


def test_a_batch_too_many_is_busy():
    server = accept(ord("["), Limits(calls_max=1))
    (call,) = server.receive_data(b"[" + request(id=1).strip() + b"," + request(id=2).strip() + b"]\n")
    server.send_reply(call.call_id, b"1")
    ((busy, answered),) = lines_of(server)
    assert (busy["id"], busy["error"]["code"]) == (2, -32001)
    assert answered["result"] == 1


def test_an_id_may_be_used_again_but_not_while_its_call_is_open(server):
    for call_id in (1, 3):
        (call,) = server.receive_data(request(id="same"))
        assert call.call_id == call_id
        server.send_reply(call_id, b"1")
    written(server)
    call, failed = server.receive_data(request(id="same") + request(id="same") + request(id="other"))
    assert "id 'same', under which another one is open" in str(failed.error)
    assert failed.abandoned == (call.call_id,)
    assert lines_of(server)[0]["method"] == "$/goingAway"


def test_ids_of_another_type_are_other_ids(server):
    assert len(server.receive_data(request(id=1) + request(id="1"))) == 2


def test_a_line_too_long_ends_the_connection_before_it_is_complete():
    server = accept(ord("{"), Limits(payload_bytes_max=65536))
    assert server.receive_data(b"{" + b" " * 65535) == []
    assert server.is_mid_frame
    (failed,) = server.receive_data(b" ")
    assert failed.error.code == "too_large"
    assert not server.is_mid_frame
    assert server.receive_eof() == []


def test_a_long_line_at_once_ends_the_connection():
    server = accept(ord("{"), Limits(payload_bytes_max=65536))
    (failed,) = server.receive_data(b"{" + b" " * 65536 + b"}\n")
    assert failed.error.code == "too_large"


def test_a_last_line_without_its_line_feed(server):
    assert server.receive_data(request(id=1)[:-1]) == []
    call, ended = server.receive_eof()
    assert (call.call_id, ended) == (1, InputEnded(()))
    server.send_reply(1, b"1")
    assert server.is_finished


@pytest.mark.parametrize("rest", [b'{"jsonrpc":"2.0",', b'{"a":"\xff"}'])
def test_a_last_line_that_is_cut_off(server, rest):
    server.receive_data(rest)
    (failed,) = server.receive_eof()
    assert "middle of a line" in str(failed.error)


def test_descriptors_with_lines_end_the_connection(server):
    discarded, failed = server.receive_data(request(id=1), ("a",))
    assert discarded == Discarded(("a",))
    assert failed.error.code == "unexpected_descriptors"


def test_what_is_late_or_unknown_is_ignored(server):
    for data in (
        ours("$/cancelRequest", id="x"),
        ours("$/item", id=5, item=1),
        ours("$/credit", id=5),
        ours("$/end", id=5),
        request(method="$/unknown"),
        b'{"jsonrpc":"2.0","id":1,"result":1}\n',
        b'{"jsonrpc":"2.0","id":null,"result":1}\n',
    ):
        assert server.receive_data(data) == []
    assert server.late_frames == 6
    assert server.data_to_send() == []


def test_a_request_while_draining(server):
    server.send_going_away()
    written(server)
    assert server.receive_data(request(id=4)) == []
    assert errors_of(server)[0][:3] == (4, -32007, "draining")


def test_going_away_names_the_last_request(server):
    server.receive_data(request(id="x"))
    server.send_going_away("draining", "restart")
    assert lines_of(server)[0]["params"] == {"code": "draining", "message": "restart", "last": "x"}


def test_progress_too_long_is_a_fault():
    client, server = greeted("json", Limits(), Limits(calls_max=0, note_bytes_max=10))
    client.send_call("m", b"{}")
    flow(client, server)
    server.send_note(1, b'"0123456789"')
    with pytest.raises(MessageTooLarge):
        server.send_note(1, b"1" * 70_000)
    assert flow(server, client)[0].error.code == "too_large"


@pytest.fixture
def client():
    client = connect_lines()
    client.send_call("m", b"{}")
    written(client)
    return client


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ({"code": -32601, "message": "?"}, Failure(1, "method_not_found", "?", "", b"")),
        ({"code": 5, "message": "?", "data": 3}, Failure(1, "failed", "?", "", b"3")),
        ({"code": 5, "message": "?", "data": {"id": "x"}}, Failure(1, "failed", "?", "", b'{"id": "x"}')),
        ({"code": 5, "message": "?", "data": {"code": "a.b"}}, Failure(1, "a.b", "?", "", b"")),
    ],
)
def test_errors_of_other_servers(client, error, failure):
    assert client.receive_data(json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode() + b"\n") == [failure]


def test_an_array_of_responses_is_read(client):
    assert client.receive_data(b'[{"jsonrpc":"2.0","id":1,"result":null}]\n') == [Reply(1, b"null", ())]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"what?"}}',
            "could not read what we sent: what?",
        ),
        (b'{"jsonrpc":"2.0","id":"1","result":1}', "call '1', which was never made"),
        (b'{"jsonrpc":"2.0","id":0,"result":1}', "call 0, which was never made"),
        (b'{"jsonrpc":"2.0","id":3,"result":1}', "call 3, which was never made"),
        (b'{"jsonrpc":"2.0","id":4294967296,"result":1}', "never made"),
        (b'{"jsonrpc":"2.0","method":"m"}', "announced to take no calls"),
        (b'{"jsonrpc":"2.0","method":"$/goingAway","params":{"code":"x","last":9}}', "GOAWAY after call 9"),
        (b'{"jsonrpc":"2.0","method":"$/item","params":{"id":1,"item":1}}', "ITEM is no step"),
    ],
)
def test_faults_of_a_server(client, line, why):
    (failed,) = client.receive_data(line + b"\n")
    assert isinstance(failed, Failed)
    assert why in str(failed.error)
    assert failed.lost == (1,)


def test_a_server_that_goes_away_without_a_last_call(client):
    away = b'{"jsonrpc":"2.0","method":"$/goingAway","params":{"code":"x"}}\n'
    assert client.receive_data(away) == [GoingAway("x", "", (1,))]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda client: client.send_call("$/item", b"{}"),
        lambda client: client.send_call("m", b'{\n"a":1}'),
        lambda client: client.send_call("m", b"{}", descriptors=("a",)),
        lambda client: client.send_notification("m", b"{}", descriptors=("a",)),
    ],
)
def test_what_lines_cannot_carry(client, misuse):
    with pytest.raises(LocalProtocolError):
        misuse(client)
    assert client.data_to_send() == []


def test_items_of_a_server_with_files_cannot_travel():
    client, server = greeted("json")
    client.send_call("m", b"{}", flags=ITEMS_WANTED)
    flow(client, server)
    server.send_stream(1)
    with pytest.raises(LocalProtocolError, match="files cannot travel"):
        server.send_item(1, b"1", ("a",))
    with pytest.raises(LocalProtocolError, match="files cannot travel"):
        server.send_reply(1, b"1", ("a",))
    server.send_item(1, memoryview(b"[1]"))
    assert flow(server, client)[1:] == [Item(1, b"[1]", ())]
