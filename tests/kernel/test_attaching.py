"""Files and blobs in values: written beside the bytes, read back as what is wanted, each closed exactly once."""

from __future__ import annotations

import array
import gc
import os
import pickle
import socket
import tempfile
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import IO, Any, BinaryIO, NamedTuple

import msgspec
import pytest
from sharing_ends import ALL, Ends, passed_on
from support import descriptors

import samehost
from samehost import limits
from samehost.codec import JSON, MSGPACK, CannotDecode, CannotEncode
from samehost.errors import BadBlob
from samehost.extensions import ARENA, ARENA_BODY, FILE, SEALED, SEALED_BODY, is_large
from samehost.kernel import attaching
from samehost.kernel.arena import the_arena
from samehost.kernel.attaching import (
    FilesNotTaken,
    decode_attached,
    encode_attached,
    give_away,
    shares_in,
)
from samehost.kernel.files import File
from samehost.protocol import ARENAS, FILES
from samehost.protocol import SEALED as SEALED_BIT

Ext = msgspec.msgpack.Ext
LARGE = os.urandom(limits.BLOB_BYTES_MIN)


@pytest.fixture
def ends():
    pair = Ends()
    yield pair
    gc.collect()  # of errors that tests have looked at
    pair.close()
    assert the_arena().used_bytes == 0


@pytest.fixture(params=[ARENAS | SEALED_BIT, SEALED_BIT, 0], ids=["arena", "sealed", "inline"])
def any_ends(request):
    pair = Ends(request.param | FILES)
    yield pair
    gc.collect()
    pair.close()


@pytest.fixture
def opened(place):
    (place / "file").write_bytes(b"content")
    with open(place / "file", "rb") as file:
        yield file


# Files.


def test_a_file_anywhere_in_a_value_travels_and_stays_the_senders(ends, opened):
    received = ends.trip({"log": [opened, 1, {"again": opened}]})
    assert not opened.closed
    for file in (received["log"][0], received["log"][2]["again"]):
        assert os.path.sameopenfile(file.fileno(), opened.fileno())
        file.close()


def test_whatever_has_a_descriptor_can_be_sent(ends, opened):
    with socket.socket() as ours, tempfile.NamedTemporaryFile() as temporary, File(os.dup(0)) as file:
        encoded = ends.ship([ours, temporary, file, opened])
        files = ends.read(encoded, list[File])
        for sent, received in zip((ours, temporary, file, opened), files, strict=True):
            assert os.path.sameopenfile(sent.fileno(), received.fileno())
            received.close()


def test_a_number_that_is_used_anew_meanwhile_does_not_travel(ends, place):
    with open(place / "first", "wb") as file:
        encoded = ends.ship(file)
        number = file.fileno()
        inode = os.fstat(number).st_ino
    other = os.open(place / "second", os.O_CREAT | os.O_RDWR)
    assert other == number
    with ends.read(encoded, File) as received:
        assert os.fstat(received.fileno()).st_ino == inode
    os.close(other)


@pytest.mark.parametrize("kind", [BinaryIO, IO[bytes], IO[Any]])
def test_a_file_object_comes_with_the_mode_of_the_descriptor(ends, place, kind):
    (place / "file").write_bytes(b"content")
    for mode, can in (("rb", (True, False)), ("wb", (False, True)), ("r+b", (True, True))):
        with open(place / "file", mode) as file:
            received = ends.trip([file], list[kind])[0]
        assert (received.readable(), received.writable()) == can
        assert isinstance(received, BinaryIO)
        received.close()
    ours, theirs = socket.socketpair()
    with ours, theirs, ends.trip(theirs, kind) as both:
        ours.send(b"in")
        assert both.read(2) == b"in"
        both.write(b"out")
        both.flush()
        assert ours.recv(3) == b"out"


def test_what_was_written_before_is_in_the_file(ends, place):
    with open(place / "file", "w+") as file:
        file.write("said before")
        with ends.trip(file, File) as received:
            assert os.pread(received.fileno(), 100, 0) == b"said before"


def test_a_socket_comes_as_one_and_another_file_does_not(ends, opened):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, ends.trip({"to": theirs}, dict[str, socket.socket])["to"] as received:
        assert (received.family, received.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        received.send(b"through")
        assert ours.recv(100) == b"through"
    with pytest.raises(CannotDecode, match=r"\$\[\.\.\.\]: expected a socket, got another file"):
        ends.trip({"to": opened}, dict[str, socket.socket])


def test_text_files_and_directories_are_no_open_files(ends, opened, place):
    with pytest.raises(CannotDecode, match="expected an open file of str, got one of bytes"):
        ends.trip([opened], list[IO[str]])
    directory = File(os.open(place, os.O_RDONLY))
    with directory, pytest.raises(CannotDecode, match="expected an open file, got one that cannot be one"):
        ends.trip([directory], list[BinaryIO])


@pytest.mark.parametrize("kind", [File, BinaryIO, socket.socket, samehost.Blob])
def test_something_else_than_was_wanted_is_named(ends, kind):
    with pytest.raises(CannotDecode, match=r"^\$\[0\]: expected (file|blob), got int$"):
        ends.trip([5], list[kind])


def test_sixteen_files_travel_and_not_one_more(ends, opened):
    received = ends.trip([opened] * 16, list[File])
    for file in received:
        file.close()
    with pytest.raises(CannotEncode, match="More than 16 files"):
        ends.ship([opened] * 17)


def test_a_closed_file_cannot_be_sent(ends, opened):
    opened.close()
    with pytest.raises(CannotEncode, match=r"closed file|not open"):
        ends.ship([opened])


def test_files_do_not_go_to_a_peer_that_takes_none(opened):
    with pytest.raises(FilesNotTaken, match="do not travel to this peer"):
        encode_attached(MSGPACK, [opened], SEALED_BIT)
    with pytest.raises(CannotEncode, match="Files cannot travel as JSON lines"):
        encode_attached(JSON, [opened], ALL)
    with pytest.raises(CannotEncode, match="open files, which cannot be among bytes"):
        MSGPACK.encode([opened])


def test_what_a_method_gives_is_closed_once_it_is_encoded(ends, place):
    given = [open(place / name, "w") for name in "ab"]  # noqa: SIM115
    encoded = ends.ship(given, gives_away=True)
    assert [file.closed for file in given] == [True, True]
    for file in ends.read(encoded, list[File]):
        file.close()


@pytest.mark.parametrize("codec", [MSGPACK, JSON], ids=["msgpack", "json"])
def test_what_a_method_gives_is_closed_also_if_it_cannot_travel(codec, place):
    given = [open(place / "a", "w"), [1j], open(place / "b", "w")]  # noqa: SIM115
    with pytest.raises(CannotEncode):
        encode_attached(codec, [given[0], given[2]], 0 if codec is MSGPACK else ALL, gives_away=True)
    assert given[0].closed
    assert given[2].closed
    one = open(place / "a", "w")  # noqa: SIM115
    give_away({"file": [one], "blob": samehost.Blob(b"x")})
    assert one.closed


def test_files_that_nothing_refers_to_are_closed(ends, opened):
    incoming = ends.receiver.incoming(passed_on([opened, opened]))
    assert decode_attached(MSGPACK.decode_to(Any), MSGPACK.encode([1]), incoming) == [1]
    assert all(file.closed for file in incoming.files)


def test_files_of_a_value_that_cannot_be_read_are_closed(ends, opened):
    encoded = ends.ship([opened, opened, "x"])
    before = descriptors()
    for kind in (tuple[File, File, int], tuple[BinaryIO, File, int], tuple[BinaryIO, socket.socket, str]):
        with pytest.raises(CannotDecode):
            ends.read(encoded, kind)
        assert descriptors() == before


def test_a_method_s_files_can_be_closed_when_its_call_is_over(ends, opened):
    encoded = ends.ship([opened] * 3)
    incoming = ends.receiver.incoming(passed_on(encoded.descriptors))
    decode = MSGPACK.decode_to(tuple[File, File, BinaryIO])
    file, taken, reader = decode_attached(decode, encoded.payload, incoming)
    number = taken.detach()
    incoming.close()
    incoming.close()
    assert file.closed
    assert reader.closed
    os.close(number)


@pytest.mark.parametrize(
    ("refer", "why"),
    [
        ([Ext(FILE, b"\0"), Ext(FILE, b"\0")], "that another value is already"),
        ([Ext(FILE, b"\0"), Ext(SEALED, SEALED_BODY.pack(0, 0, 0, 1))], "that another value is already"),
        ([Ext(FILE, b"\x01")], "got number 1 of 1 that came"),
        ([Ext(FILE, b"")], "expected extension of 1 bytes, got 0"),
        ([Ext(FILE, b"\0\0")], "expected extension of 1 bytes, got 2"),
        ([Ext(SEALED, b"\0")], "expected extension of 24 bytes, got 1"),
        ([Ext(ARENA, b"\0")], "expected extension of 32 bytes, got 1"),
        ([Ext(5, b"\0")], "got extension 5, which is not known"),
        ([Ext(100, b"\0")], "got extension 100, which is not known"),
        ([Ext(-2, b"\0")], "got extension -2, which is not known"),
    ],
)
def test_a_file_is_referred_to_once_and_rightly(ends, opened, refer, why):
    for kind in (Any, list[Any], list[File]):
        incoming = ends.receiver.incoming(passed_on([opened]))
        with pytest.raises(CannotDecode, match=why):
            decode_attached(MSGPACK.decode_to(kind), MSGPACK.encode(refer), incoming)
        assert incoming.files[0].closed


def test_without_files_and_arenas_an_extension_is_a_value_of_the_wrong_type():
    for code, what in ((FILE, "a file that did not come"), (SEALED, "a blob that did not"), (50, "extension 50")):
        with pytest.raises(CannotDecode, match=what):
            MSGPACK.decode_to(Any)(MSGPACK.encode([Ext(code, b"\0")]))


# Blobs.


def test_large_bytes_come_as_bytes_whatever_way_they_take(any_ends):
    for value in (LARGE, bytearray(LARGE), memoryview(LARGE), [LARGE], {"a": LARGE, "b": 1}, {"a": [[{"b": LARGE}]]}):
        assert any_ends.trip(value) == MSGPACK.decode_to(Any)(MSGPACK.encode(value))
        any_ends.release()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, bytes | None, Any])
def test_large_bytes_come_as_the_type_that_is_wanted(any_ends, kind):
    received = any_ends.trip([LARGE, b"small"], list[kind])
    assert received == [LARGE, b"small"]
    if kind in (bytes, bytearray, memoryview):
        assert type(received[0]) is kind
    any_ends.release()


def test_a_blob_is_read_where_bytes_are_wanted_and_bytes_where_a_blob_is(any_ends):
    for value in (samehost.Blob(LARGE), LARGE, samehost.Blob(b"small"), b"small"):
        data = bytes(value)
        assert any_ends.trip([value], list[bytes]) == [data]
        assert bytes(any_ends.trip({"a": value}, dict[str, samehost.Blob])["a"]) == data
        any_ends.release()


@pytest.mark.parametrize("kind", [bytes, samehost.Blob, Any])
def test_bytes_that_are_just_too_short_stay_where_they_are(ends, kind):
    encoded = ends.ship(LARGE[:-1])
    assert (encoded.shares, encoded.descriptors, encoded.missing) == ({}, (), 0)
    assert len(encoded.payload) > len(LARGE) - 2
    assert bytes(ends.read(encoded, kind)) == LARGE[:-1]


def test_other_buffers_are_blobs(any_ends):
    for value in (array.array("d", [1.0] * 50_000), pickle.PickleBuffer(bytearray(LARGE))):
        assert bytes(any_ends.trip([value], list[samehost.Blob])[0]) == bytes(memoryview(value).cast("B"))
        any_ends.release()
    assert bytes(any_ends.trip(array.array("B", b"abc"), samehost.Blob)) == b"abc"


def test_a_buffer_within_a_blob_of_ours_is_not_copied(ends):
    data = LARGE + bytes(100)
    blob = samehost.allocate(len(data))
    blob.view[:] = data
    used = the_arena().used_bytes
    encoded = ends.ship([blob, blob.view, pickle.PickleBuffer(blob.view[100:]), blob.view[7:].toreadonly()])
    assert the_arena().used_bytes == used
    assert len(encoded.payload) < 300
    assert list(map(bytes, ends.read(encoded, list[samehost.Blob]))) == [data, data, data[100:], data[7:]]


def test_files_beside_blobs_that_are_wanted_as_bytes_come_once(any_ends, opened):
    file, reader, data = any_ends.trip([opened, opened, samehost.Blob(LARGE)], tuple[File, BinaryIO, bytes])
    assert data == LARGE
    with file, reader:
        assert os.path.sameopenfile(file.fileno(), reader.fileno())
    any_ends.release()


def test_blobs_in_structs_and_unions_and_keys(any_ends):
    class Frame(msgspec.Struct, array_like=True, tag=True):
        data: samehost.Blob
        at: float

    class Nothing(msgspec.Struct, array_like=True, tag=True):
        pass

    received = any_ends.trip([Frame(samehost.Blob(LARGE), 1.5), Nothing()], list[Frame | Nothing])
    assert (bytes(received[0].data), received[0].at, received[1]) == (LARGE, 1.5, Nothing())


def test_when_the_arena_is_full_a_copy_goes_out(ends, monkeypatch):
    monkeypatch.setattr(limits, "ARENA_BYTES_MAX", 0)
    encoded = ends.ship(LARGE)
    assert (encoded.shares, len(encoded.descriptors)) == ({}, 1)
    assert ends.read(encoded, bytes) == LARGE
    assert len(encode_attached(MSGPACK, LARGE, ARENAS, arena_allowed=True).payload) > len(LARGE)


def test_more_blobs_than_descriptors_are_among_the_bytes(opened):
    value = [opened] * 10 + [samehost.Blob(LARGE)] * 8
    ends = Ends(SEALED_BIT | FILES)
    encoded = ends.ship(value)
    assert len(encoded.descriptors) == 16
    received = ends.read(encoded)
    assert [bytes(blob) for blob in received[10:]] == [LARGE] * 8
    for file in received[:10]:
        file.close()


def test_what_a_peer_has_not_offered_yet_is_told():
    assert encode_attached(MSGPACK, LARGE, 0).missing == ARENAS | SEALED_BIT
    assert encode_attached(MSGPACK, b"small", 0).missing == 0


def test_an_empty_sealed_blob_is_one(ends, opened):
    payload = MSGPACK.encode([Ext(SEALED, SEALED_BODY.pack(0, 0, 0, 0))])
    incoming = ends.receiver.incoming(passed_on([opened]))
    assert bytes(decode_attached(MSGPACK.decode_to(list[samehost.Blob]), payload, incoming)[0]) == b""


@pytest.mark.parametrize(
    "extension",
    [
        Ext(SEALED, SEALED_BODY.pack(0, 0, 0, 1)),
        Ext(SEALED, SEALED_BODY.pack(0, 0, 2**63, 1)),
        Ext(SEALED, SEALED_BODY.pack(0, 1, 0, 2**64 - 1)),
        Ext(ARENA, ARENA_BODY.pack(77, 0, 0, 1, 1)),
        Ext(ARENA, ARENA_BODY.pack(77, 1, 0, 1, 1)),
    ],
)
@pytest.mark.parametrize("kind", [Any, list[samehost.Blob], list[bytes]])
def test_bad_memory_is_told_apart_from_bad_values_and_closed(ends, opened, extension, kind):
    incoming = ends.receiver.incoming(passed_on([opened]))
    with pytest.raises(BadBlob) as caught:
        decode_attached(MSGPACK.decode_to(kind), MSGPACK.encode([extension]), incoming)
    assert caught.value.code == "bad_blob"
    assert incoming.files[0].closed


def test_memory_that_cannot_be_mapped_is_bad_as_well(monkeypatch):
    ends = Ends(SEALED_BIT)

    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    encoded = ends.ship(LARGE)
    monkeypatch.setattr(attaching.memory, "map_sealed", refuse)
    with pytest.raises(BadBlob, match="Cannot allocate memory"):
        ends.read(encoded, samehost.Blob)


def test_shares_are_found_as_far_as_a_payload_can_be_read():
    body = ARENA_BODY.pack(1, 0, 0, 1, 9)
    array_of = Ext(4, MSGPACK.encode(["<f8", [1], Ext(ARENA, body)]))
    assert shares_in(MSGPACK.encode({"a": [Ext(ARENA, body)]})) == {9}
    assert shares_in(MSGPACK.encode([array_of])) == {9}
    assert shares_in(MSGPACK.encode([Ext(ARENA, body), 1])[:-1]) == {9}


def test_what_is_large():
    assert is_large(memoryview(LARGE).cast("B", (2, len(LARGE) // 2)))
    assert not is_large(memoryview(b"x").cast("B", ()))
    for large in (LARGE, bytearray(LARGE), memoryview(LARGE)):
        assert is_large(large)
    for small in (LARGE[:-1], "x" * len(LARGE), [LARGE], None, 5):
        assert not is_large(small)


# Values that have both large bytes and other things: read as without them.


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


class Everything(msgspec.Struct, rename="camel"):
    data: bytes
    when: datetime
    naive: datetime
    day: date
    span: timedelta
    number: Decimal
    key: uuid.UUID
    colour: Colour
    point: Point
    by_number: dict[int, str]
    by_pair: dict[tuple[int, int], str]
    names: set[str]
    anything: Any
    maybe: int | None = None


def test_types_beside_large_bytes_are_read_as_they_are_without(any_ends):
    def everything(data):
        return Everything(
            data,
            datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc),  # noqa: UP017
            datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001
            date(2026, 1, 2),
            timedelta(hours=5),
            Decimal("1.50"),
            uuid.UUID(int=5),
            Colour.RED,
            Point(1, 2.0),
            {1: "a"},
            {(1, 2): "b"},
            {"c"},
            [1, {"d": None}],
        )

    small = MSGPACK.decode_to(Everything)(MSGPACK.encode(everything(b"small")))
    assert small == everything(b"small")
    assert any_ends.trip(everything(LARGE), Everything) == everything(LARGE)
    assert any_ends.trip([everything(LARGE)], list[Everything]) == [everything(LARGE)]
    any_ends.release()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"data": LARGE, "number": "five"}, "$.number: expected int, got str"),
        ({"data": LARGE}, "$: object missing required field number"),
        ({"data": LARGE, "number": LARGE}, "$.number: expected int, got "),
        ({"data": 5, "number": 5}, "$.data: expected bytes, got int"),
        ({"data": LARGE, "number": 5, "more": 1}, "$: object contains unknown field more"),
    ],
)
def test_errors_beside_large_bytes_say_the_same(any_ends, sent, message):
    class Wanted(msgspec.Struct, forbid_unknown_fields=True):
        data: bytes
        number: int

    with pytest.raises(CannotDecode) as caught:
        any_ends.trip(sent, Wanted)
    assert str(caught.value).startswith(message)
    any_ends.release()


# JSON lines.


def test_blobs_are_base64_text_in_json():
    assert JSON.encode({"a": samehost.Blob(b"abc")}) == b'{"a":"YWJj"}'
    assert bytes(JSON.decode_to(dict[str, samehost.Blob])(b'{"a":"YWJj"}')["a"]) == b"abc"
    encoded = encode_attached(JSON, [LARGE, samehost.Blob(LARGE)], ALL, arena_allowed=True)
    assert (encoded.descriptors, encoded.shares) == ((), {})
    assert JSON.decode_to(list[bytes])(encoded.payload) == [LARGE, LARGE]


@pytest.mark.parametrize("line", [b"5", b'"YWJ"', b'"YW Jj"', b'"\xc3\xa4"', b"null"])
def test_what_is_no_base64_text_is_refused(line):
    with pytest.raises(CannotDecode, match="expected base64 text, got"):
        JSON.decode_to(samehost.Blob)(line)


def test_files_cannot_come_in_json():
    for kind in (File, BinaryIO, socket.socket):
        with pytest.raises(CannotDecode, match=r"^\$\[0\]: files cannot travel as JSON lines$"):
            JSON.decode_to(list[kind])(b"[0]")


# What was found by review.


class Times(msgspec.Struct):
    data: bytes
    when: datetime
    other: Any = None
    raw: msgspec.Raw = msgspec.Raw(b"\xc0")


def test_times_and_raw_values_beside_bytes_in_memory_are_what_they_would_be_without(any_ends):
    aware = datetime(2020, 1, 2, tzinfo=UTC)
    value = {"data": LARGE, "when": datetime(2020, 1, 2), "other": [aware, "text"], "raw": [1, aware]}  # noqa: DTZ001
    found = any_ends.trip(value, Times)
    assert found == MSGPACK.decode_to(Times)(MSGPACK.encode(value))
    assert found.other == [aware, "text"]


def test_a_time_is_no_text_beside_bytes_in_memory(any_ends):
    with pytest.raises(CannotDecode, match=r"\$\[1\]: expected str, got ext"):
        any_ends.trip([LARGE, datetime.now(UTC)], tuple[bytes, str])


def test_a_raw_value_stays_one_deep_beside_large_bytes(any_ends):
    value = {"raw": msgspec.Raw(MSGPACK.encode([1, {"a": 2}])), "data": [[LARGE]]}
    assert any_ends.trip(value) == {"raw": [1, {"a": 2}], "data": [[LARGE]]}


def test_what_is_made_of_a_file_is_made_once_though_the_message_is_read_twice(any_ends):
    class Message(msgspec.Struct):
        file: BinaryIO
        data: bytes
        when: datetime

    with tempfile.TemporaryFile() as file:
        found = any_ends.trip({"file": file, "data": LARGE, "when": datetime(2020, 1, 2)}, Message)  # noqa: DTZ001
        found.file.close()


def test_a_file_of_no_mode_is_refused_and_closed(ends, tmp_path):
    (tmp_path / "f").touch()
    descriptor = os.open(tmp_path / "f", os.O_WRONLY | os.O_RDWR)  # for ioctl(2) alone, see open(2)
    with File(descriptor) as file:
        encoded = ends.ship([file])
        before = descriptors()
        with pytest.raises(CannotDecode, match="expected an open file, got one that cannot be one"):
            ends.read(encoded, list[BinaryIO])
        gc.collect()
        assert descriptors() == before


def test_bytes_that_look_like_many_large_ones_are_not_looked_at_one_by_one(ends):
    value = [b"\xc6" * (limits.BLOB_BYTES_MIN - 1)] * 3
    assert sum(1 for _ in attaching._LARGE_BYTES.finditer(MSGPACK.encode(value))) > attaching._CANDIDATES_MAX
    assert ends.trip(value) == value
