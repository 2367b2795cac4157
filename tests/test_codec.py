"""Values into bytes and back: what is refused, how deep values may be, and what the errors say."""

from __future__ import annotations

import array
import enum
import math
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import IO, Any, BinaryIO, NamedTuple, TextIO, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samehost
from samehost.codec import CODECS, JSON, MSGPACK, CannotDecode, CannotEncode
from samehost.extensions import BLOBS, FILES, kinds_in, travels_beside, types_in
from samehost.limits import NESTING_MAX


@pytest.fixture(params=CODECS.values(), ids=CODECS)
def codec(request):
    return request.param


class Node(msgspec.Struct):
    name: str = ""
    below: list[Node] = []


class Colour(enum.Enum):
    RED = "red"


class Even(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("Odd, and it has to be even")


class Broken(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        raise KeyError("a secret")


def arrays(depth: int, codec) -> bytes:
    """Arrays within each other, the innermost empty."""
    if codec is JSON:
        return b"[" * depth + b"]" * depth
    return b"\x91" * (depth - 1) + b"\x90"


def maps(depth: int, codec) -> bytes:
    if codec is JSON:
        return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)
    return b"\x81\xa1a" * (depth - 1) + b"\x80"


def nodes(depth: int, codec) -> bytes:
    """A map and an array for each node, so half as many."""
    value: dict[str, Any] = {"below": []}
    for _ in range(depth // 2 - 1):
        value = {"below": [value]}
    return codec.encode(value)


# Encoding.


def test_what_has_no_bytes_is_refused_with_a_reason(codec):
    with pytest.raises(CannotEncode, match="complex"):
        codec.encode(1j)
    with pytest.raises(CannotEncode, match="surrogates"):
        codec.encode("\udcff")


def test_a_value_within_itself_is_refused(codec):
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CannotEncode, match="recursion"):
        codec.encode(endless)


def test_an_integer_of_more_than_64_bits_is_refused():
    with pytest.raises(CannotEncode, match="ints"):
        MSGPACK.encode(2**64)


def test_an_error_without_a_text_is_called_by_its_name(codec):
    class Nowhere(tzinfo):
        def utcoffset(self, _: object) -> timedelta:
            raise KeyError

    with pytest.raises(CannotEncode, match=r"^KeyError$"):
        codec.encode(datetime(2026, 1, 1, tzinfo=Nowhere()))


# Decoding.


@pytest.mark.parametrize(
    ("kind", "sent", "message"),
    [
        (dict[str, str], {"zone": 5}, "$[...]: expected str, got int"),
        (list[int], [1, "2"], "$[1]: expected int, got str"),
        (Node, {"below": [{"name": 5}]}, "$.below[0].name: expected str, got int"),
        (Colour, "blue", "$: invalid enum value 'blue'"),
        (Even, {"number": 1}, "$: odd, and it has to be even"),
        (list[Even], [{"number": 2}, {"number": 1}], "$[1]: odd, and it has to be even"),
        (Broken, {"number": 1}, "$: it does not pass its type's own check (KeyError)"),
        (set[list[int]], [[1]], "$: unhashable type: 'list'"),
        (dict[str, dict[int, str]], {"a": {"x": "y"}}, "$[...], key: expected int, got str"),
        (int, "x - at `$.y`", "$: expected int, got str"),
    ],
)
def test_an_error_says_where_and_what(codec, kind, sent, message):
    with pytest.raises(CannotDecode) as caught:
        codec.decode_to(kind)(codec.encode(sent))
    assert str(caught.value) == message


def test_malformed_bytes_are_an_error_and_not_a_crash(codec):
    decode = codec.decode_to(Any)
    for malformed in (b"", b"\xc1", b"\x92\x01", b"[1,", b'"\xff"', b"\xa2\xff\xfe", b"\x91" * 70, b"[" * 70):
        with pytest.raises(CannotDecode, match=r"^\$: ."):
            decode(malformed)


def test_a_number_of_too_many_digits_is_an_error():
    with pytest.raises(CannotDecode, match=r"^\$"):
        JSON.decode_to(int)(b"9" * 5000)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_one_error(data):
    for codec in CODECS.values():
        for decode in _DECODERS[codec.name]:
            said = "$"
            try:
                decode(data)
            except CannotDecode as error:
                said = str(error)
            assert said.startswith("$")


_DECODERS = {codec.name: [codec.decode_to(kind) for kind in (Any, Node, dict[str, int])] for codec in CODECS.values()}


def test_a_type_that_cannot_be_decoded_to_is_refused_at_once(codec):
    with pytest.raises(TypeError, match="str-like"):
        codec.decode_to(str | bytes)


def test_a_context_has_text_as_keys(codec):
    assert codec.read_context(codec.encode({"trace": "00", "a.b": [1]})) == {"trace": "00", "a.b": [1]}
    with pytest.raises(CannotDecode, match=r"^\$: expected object, got array"):
        codec.read_context(codec.encode([]))


def test_bytes_that_came_in_several_reads_are_read_alike(codec):
    value = {"a": [1, {"b": "c" * 100}], "d": [[]] * 100}
    assert codec.decode_to(Any)(memoryview(codec.encode(value))) == value


def test_the_first_byte_tells_maps_from_arrays(codec):
    for count in (0, 1, 15, 16, 17, 70000):
        keys = [str(number) for number in range(count)]
        assert codec.encode(dict.fromkeys(keys))[0] in codec.first_of_map
        assert codec.encode(keys)[0] not in codec.first_of_map


# How deep.


@pytest.mark.parametrize(("kind", "nested"), [(Any, arrays), (Any, maps), (Node, nodes), (dict[str, Any], maps)])
def test_64_deep_is_taken_and_more_is_not(codec, kind, nested):
    decode = codec.decode_to(kind)
    decode(nested(NESTING_MAX, codec))
    for depth in (66, 200, 2000, 20000) if nested is nodes else (65, 100, 5000, 100_000, 1_000_000):
        data = nested(min(depth, 200), codec) if nested is nodes else nested(depth, codec)
        with pytest.raises(CannotDecode, match=r"^\$: nested more than 64 deep$"):
            decode(data)


def test_the_depth_of_keys_counts():
    def as_a_key(depth: int) -> bytes:
        return b"\x81" + b"\x91" * (depth - 1) + b"\x01\x01"

    assert isinstance(MSGPACK.decode_to(Any)(as_a_key(NESTING_MAX)), dict)
    with pytest.raises(CannotDecode, match="nested more than 64 deep"):
        MSGPACK.decode_to(Any)(as_a_key(NESTING_MAX + 1))


def test_an_undecoded_part_is_not_deeper_either(codec):
    decode = codec.decode_to(list[msgspec.Raw])
    assert len(decode(codec.encode([1, [2], {"a": 3}]))) == 3
    with pytest.raises(CannotDecode, match="nested more than 64 deep"):
        decode(arrays(65, codec))


def test_a_type_that_is_deep_itself_is_not_counted():
    kind: Any = int
    for _ in range(NESTING_MAX + 6):
        kind = list[kind]
    value: Any = 1
    for _ in range(NESTING_MAX + 6):
        value = [value]
    assert MSGPACK.decode_to(kind)(MSGPACK.encode(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        [[number] for number in range(50_000)],
        [{"a": number} for number in range(50_000)],
        list(range(200_000)),
        {str(number): [] for number in range(50_000)},
        "[" * 1_000_000,
        b"\x91" * 1_000_000,
    ],
    ids=["arrays", "maps", "numbers", "keys", "text", "binary"],
)
def test_wide_and_shallow_values_are_fast(codec, value):
    encoded = codec.encode(value)
    decode = codec.decode_to(Any)
    began = time.perf_counter()
    decoded = decode(encoded)
    assert time.perf_counter() - began < 2.0  # a tenth of it, on a slow day
    if not isinstance(value, bytes):
        assert decoded == value


# Types.


class Pair(NamedTuple):
    first: Node
    second: Node | None


class Both(TypedDict):
    pair: Pair
    colour: Colour


@dataclass
class Tree:
    left: Tree | None = None
    right: Tree | None = None


def test_the_types_within_a_type_are_each_there_once():
    found = types_in(msgspec.inspect.type_info(Both))
    classes = [part.cls for part in found if hasattr(part, "cls")]
    assert sorted(kind.__name__ for kind in classes) == ["Both", "Colour", "Node", "Pair"]
    assert len({id(part) for part in found}) == len(found)


def test_classes_that_refer_to_each_other_in_many_ways_are_read_in_no_time():
    count = 30
    names: dict[str, Any] = {"msgspec": msgspec, "__name__": __name__}
    fields = "".join(f"    to_{number}: 'Class{number} | None' = None\n" for number in range(count))
    for number in range(count):
        exec(f"class Class{number}(msgspec.Struct):\n{fields}", names)
    globals().update({name: kind for name, kind in names.items() if name.startswith("Class")})
    began = time.perf_counter()
    decode = MSGPACK.decode_to(names["Class0"])
    found = types_in(msgspec.inspect.type_info(names["Class0"]))
    assert time.perf_counter() - began < 5.0
    assert len({part.cls for part in found if hasattr(part, "cls")}) == count
    with pytest.raises(CannotDecode, match="nested more than 64 deep"):
        decode(b"\x81\xa4to_1" * 64 + b"\x80")


def test_a_recursive_dataclass_is_bounded(codec):
    value: dict[str, Any] = {"left": None, "right": None}
    for _ in range(NESTING_MAX - 1):
        value = {"left": None, "right": value}
    decode = codec.decode_to(Tree)
    assert isinstance(decode(codec.encode(value)), Tree)
    with pytest.raises(CannotDecode, match="nested more than 64 deep"):
        decode(codec.encode({"left": value}))


def test_a_class_that_is_there_twice_is_not_recursive():
    # So its own errors come first, as nothing has to be walked.
    with pytest.raises(CannotDecode, match=r"^\$\[0\]: expected object, got array$"):
        JSON.decode_to(tuple[Even, list[Even]])(b"[" * 1000)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=80,
    )
)
def test_what_is_encoded_comes_back(value):
    for codec in CODECS.values():
        assert codec.decode_to(Any)(codec.encode(value)) == value


def test_json_has_no_infinity_and_messagepack_has():
    assert MSGPACK.decode_to(float)(MSGPACK.encode(math.inf)) == math.inf
    assert JSON.encode(math.inf) == b"null"


# What travels beside the bytes.


class Unknown:
    """A class that msgspec does not know, and nobody else does."""


def test_types_that_travel_beside_the_bytes_are_told_from_those_that_do_not():
    for kind in (samehost.File, samehost.Blob, socket.socket, BinaryIO, IO):
        assert travels_beside(kind)
    for kind in (Unknown, str, TextIO, samehost.Peer, IO[bytes], None, "File"):
        assert not travels_beside(kind)


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        (int, 0),
        (dict[str, list[datetime]], 0),
        (Unknown, 0),
        (Node, 0),
        (bytes, BLOBS),
        (list[bytearray | None], BLOBS),
        (memoryview, BLOBS),
        (Any, BLOBS),
        (list, BLOBS),
        (msgspec.Raw, BLOBS),
        (samehost.Blob, BLOBS),
        (dict[str, samehost.File], FILES),
        (BinaryIO, FILES),
        (IO[bytes] | None, FILES),
        (tuple[socket.socket, samehost.Blob], FILES | BLOBS),
    ],
)
def test_types_say_whether_their_values_can_hold_files_or_blobs(kind, kinds):
    assert kinds_in(kind) == kinds


def test_a_class_that_nobody_knows_is_neither_written_nor_read(codec):
    with pytest.raises(CannotEncode, match="Encoding objects of type Unknown is unsupported"):
        codec.encode([Unknown()])
    with pytest.raises(CannotDecode, match=r"^\$\[0\]: type Unknown is unsupported$"):
        codec.decode_to(list[Unknown])(codec.encode([1]))


def test_blobs_and_other_buffers_are_among_the_bytes_where_nothing_is_beside_them(codec):
    for value in (samehost.Blob(b"abc"), array.array("B", b"abc"), pickle.PickleBuffer(b"abc")):
        assert codec.decode_to(list[bytes])(codec.encode([value])) == [b"abc"]
        assert bytes(codec.decode_to(samehost.Blob)(codec.encode(value))) == b"abc"


def test_a_type_with_a_blob_in_it_is_not_searched_for_depth():
    data = MSGPACK.encode([samehost.Blob(b"\x91" * 1000)])
    assert bytes(MSGPACK.decode_to(list[samehost.Blob])(data)[0]) == b"\x91" * 1000


def test_a_service_with_files_and_blobs_imports_nothing_of_the_kernel_before_it_is_declared():
    code = """
import sys
import samehost.extensions
from samehost.codec import MSGPACK
assert not [name for name in sys.modules if name.startswith("samehost.kernel")]
import socket
from typing import BinaryIO
for kind in (BinaryIO, socket.socket):
    MSGPACK.decode_to(list[kind])
    assert samehost.extensions.kinds_in(list[kind]) == samehost.extensions.FILES
assert "numpy" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
