"""Arrays of numpy and buffers of Arrow: all that can travel does, without a copy where it lies in the arena."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sharing_ends import ALL, Ends

import samehost
from samehost import extensions, limits
from samehost.codec import CODECS, JSON, MSGPACK, CannotDecode, CannotEncode
from samehost.extensions import ARRAY, BLOBS, ArrayParts, kinds_in, travels_beside
from samehost.kernel.arena import the_arena
from samehost.kernel.attaching import encode_attached

Ext = msgspec.msgpack.Ext
MANY = limits.BLOB_BYTES_MIN // 8


@pytest.fixture(params=[ALL, ALL & ~2, 0], ids=["arena", "sealed", "inline"])
def ends(request):
    pair = Ends(request.param)
    yield pair
    gc.collect()
    pair.close()
    assert the_arena().used_bytes == 0


ARRAYS = {
    "numbers": np.arange(10),
    "many": np.arange(MANY, dtype=float),
    "matrix": np.ones((3, 4, 5), "f4"),
    "big-endian": np.arange(5, dtype=">i4"),
    "none": np.zeros(0),
    "a side of none": np.zeros((3, 0, 2)),
    "no sides": np.array(5.5),
    "truths": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "texts": np.array(["ab", "cde"]),
    "bytes": np.array([b"ab", b"c"]),
    "times": np.array(["2026-01-02", "NaT"], "M8[us]"),
    "spans": np.array([5], "m8[s]"),
    "records": np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "<i4"), ("b", "<f8")]),
    "nested records": np.zeros(3, dtype=[("a", "<i2", (2, 3)), ("b", [("c", "u1"), ("d", "S3", 2)])]),
    "aligned records": np.zeros(2, dtype=np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "no bytes each": np.zeros(2, "S0"),
    "every other": np.arange(20)[::2],
    "backwards": np.arange(5)[::-1],
    "turned": np.arange(MANY).reshape(2, -1).T,
    "one for all": np.broadcast_to(np.array(1.5), (3, 3)),
    "read-only": np.frombuffer(b"\1\2\3", "u1"),
}


@pytest.mark.parametrize("what", ARRAYS)
@pytest.mark.parametrize("kind", [Any, np.ndarray, dict[str, NDArray[Any]], "json"], ids=str)
def test_an_array_comes_as_it_was_but_cannot_be_written(ends, what, kind):
    array = ARRAYS[what]
    if kind == "json":
        received = JSON.decode_to(np.ndarray)(JSON.encode(array))
    elif kind == dict[str, NDArray[Any]]:
        received = ends.trip({"a": array}, kind)["a"]
    else:
        received = ends.trip(array, kind)
    assert (received.dtype, received.shape) == (array.dtype, array.shape)
    assert received.tobytes() == np.ascontiguousarray(array).tobytes()
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        received.setflags(write=True) if received.size == 0 else received.fill(0)
    del received
    ends.release()


def test_an_array_in_the_arena_is_not_copied():
    ends = Ends()
    blob = samehost.allocate(8 * MANY)
    array = np.frombuffer(blob.view, float).reshape(2, -1)
    array[:] = 1.5
    used = the_arena().used_bytes
    received = ends.trip([array, array[1]], list[np.ndarray])
    assert the_arena().used_bytes == used
    array[1, 0] = 2.5
    assert (received[0][1, 0], received[1][0]) == (2.5, 2.5)
    kept = received[1][5:]
    del received, array, blob
    assert len(ends.release()) == 1
    assert the_arena().used_bytes == used
    assert kept[0] == 1.5
    del kept
    ends.release()
    assert the_arena().used_bytes == 0
    ends.close()


@pytest.mark.parametrize("array", [np.array([None, 1]), np.zeros(2, dtype=[("a", "O")])], ids=["objects", "within"])
def test_objects_do_not_travel(array):
    for codec in CODECS.values():
        with pytest.raises(CannotEncode, match="hold Python objects"):
            codec.encode(array)


def test_masked_arrays_do_not_lose_their_mask():
    with pytest.raises(CannotEncode, match="Masked arrays cannot travel"):
        MSGPACK.encode(np.ma.array([1, 2], mask=[True, False]))


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy 2 has it")
def test_texts_of_any_length_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CannotEncode):
            MSGPACK.encode(np.array(["a", "bcd"], np.dtypes.StringDType()))


def test_single_numbers_are_plain_ones():
    for codec in CODECS.values():
        values = [np.float64(1.5), np.int8(-3), np.bool_(True), np.str_("a")]
        assert codec.decode_to(Any)(codec.encode(values)) == [1.5, -3, True, "a"]


HOSTILE = {
    "objects": (["|O", [1], bytes(8)], "holds Python objects"),
    "objects within": ([[["a", "|O"]], [1], bytes(8)], "holds Python objects"),
    "no dtype": (["nonsense", [1], bytes(8)], "expected dtype, got nonsense"),
    "a number as dtype": ([5, [1], bytes(8)], "expected dtype"),
    "an empty dtype": ([[[]], [1], bytes(8)], "expected dtype"),
    "a deep dtype": ([[["a", [["a", [["a", "f8"]]]]]] * 1, [1], b"x"], "expected array of 8 bytes, got 1"),
    "negative": (["<f8", [-1], b""], "expected int >= 0"),
    "no integer": (["<f8", ["1"], bytes(8)], "expected int, got str"),
    "too few bytes": (["<f8", [2], bytes(15)], "expected array of 16 bytes, got 15"),
    "too many bytes": (["<f8", [2], bytes(17)], "expected array of 16 bytes, got 17"),
    "overflowing": (["<f8", [2**62, 2**62, 4], b""], "expected array of"),
    "sides beyond all bounds": (["u1", [1] * 100, b"x"], "."),
    "text for data": (["u1", [1], "x"], "expected the data of an array, got str"),
    "another array": (["u1", [1], Ext(ARRAY, MSGPACK.encode(["u1", [1], b"x"]))], "got another array"),
    "two parts": (["u1", [1]], "expected array of"),
    "huge and of nothing": (["S0", [2**62, 4], b""], "."),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("kind", [Any, np.ndarray])
def test_what_is_no_array_is_refused(what, kind):
    parts, message = HOSTILE[what]
    with pytest.raises(CannotDecode, match=r"^\$.*" + message):
        MSGPACK.decode_to(kind)(MSGPACK.encode(Ext(ARRAY, MSGPACK.encode(parts))))


def test_a_dtype_that_is_nested_without_end_is_refused():
    deep: Any = "f8"
    for _ in range(100):
        deep = [["a", deep]]
    for kind in (Any, np.ndarray):
        with pytest.raises(CannotDecode, match="nested more than 64 deep"):
            MSGPACK.decode_to(kind)(MSGPACK.encode(Ext(ARRAY, MSGPACK.encode([deep, [1], bytes(8)]))))
    far = MSGPACK.encode(Ext(ARRAY, b"\x93" + b"\x91" * 100_000))
    with pytest.raises(CannotDecode, match="nested more than 64 deep"):
        MSGPACK.decode_to(Any)(far)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1,2]", "expected object with dtype, shape and data, got array"),
        (b'{"dtype":"u1","shape":[1]}', "expected object with dtype, shape and data"),
        (b'{"dtype":"u1","shape":[true],"data":"AA=="}', "expected shape, got array"),
        (b'{"dtype":"u1","shape":[1],"data":"AAA="}', "expected array of 1 bytes, got 2"),
        (b'{"dtype":"O","shape":[1],"data":"AAAAAAAAAAA="}', "holds Python objects"),
        (b'{"dtype":"u1","shape":[1],"data":5}', "expected base64 text, got int"),
    ],
)
def test_what_is_no_array_in_json_is_refused(line, message):
    with pytest.raises(CannotDecode, match=message):
        JSON.decode_to(np.ndarray)(line)


def test_the_numbers_that_were_declared_are_the_ones_that_come():
    encoded = MSGPACK.encode([np.ones(2)])
    assert MSGPACK.decode_to(list[NDArray[np.float64]])(encoded)[0].tolist() == [1, 1]
    assert MSGPACK.decode_to(list[NDArray[np.floating]])(encoded)[0].tolist() == [1, 1]
    with pytest.raises(CannotDecode, match=r"^\$\[0\]: expected array of int32, got float64"):
        MSGPACK.decode_to(list[NDArray[np.int32]])(encoded)
    with pytest.raises(CannotDecode, match=r"^\$\[0\]: expected array of numbers, got int"):
        MSGPACK.decode_to(list[np.ndarray])(b"\x91\x05")


def test_arrow_s_buffers_travel_both_ways(ends):
    data = bytes(range(256)) * (limits.BLOB_BYTES_MIN // 256)
    received = ends.trip([pa.py_buffer(data)], list[pa.Buffer])[0]
    assert isinstance(received, pa.Buffer)
    assert received.to_pybytes() == data
    assert not received.is_mutable
    assert ends.trip(pa.py_buffer(b"few"), pa.Buffer).to_pybytes() == b"few"
    assert JSON.decode_to(pa.Buffer)(JSON.encode(pa.py_buffer(b"abc"))).to_pybytes() == b"abc"
    del received
    ends.release()


def test_something_else_is_no_buffer():
    with pytest.raises(CannotDecode, match="expected blob, got int"):
        MSGPACK.decode_to(pa.Buffer)(b"\x05")


def test_arrow_in_the_arena_is_not_copied():
    ends = Ends()
    table = pa.table({"a": list(range(1000))})
    size = pa.ipc.get_record_batch_size(table.to_batches()[0]) + 4096
    blob = samehost.allocate(size)
    with pa.ipc.new_stream(pa.FixedSizeBufferWriter(pa.py_buffer(blob.view)), table.schema) as writer:
        writer.write_table(table)
    used = the_arena().used_bytes
    received = ends.trip(blob, pa.Buffer)
    assert the_arena().used_bytes == used
    read = pa.ipc.open_stream(received).read_all()
    del received, blob, writer
    assert read.equals(table)
    gc.collect()
    assert ends.release() == []
    del read
    gc.collect()
    assert len(ends.release()) == 1
    ends.close()


def test_types_say_what_they_hold():
    for kind in (np.ndarray, NDArray[np.float64], list[pa.Buffer], dict[str, samehost.Blob]):
        assert kinds_in(kind) == BLOBS
    assert travels_beside(np.ndarray)
    assert travels_beside(pa.Buffer)
    for never in (np.generic, np.float64, np.ma.MaskedArray, pa.Table, int, NDArray[Any], None):
        assert not travels_beside(never)


ALONE = """
import sys
from typing import Any
import samehost, samehost.codec, samehost.kernel.attaching
from samehost.codec import MSGPACK

@samehost.Service("s").method
def method(blob: samehost.Blob, anything: Any) -> bytes:
    return b""

encoded = MSGPACK.encode([samehost.Blob(b"x"), b"y", bytearray(b"z")])
MSGPACK.decode_to(Any)(encoded)
assert not {"numpy", "pyarrow"} & set(sys.modules)
sys.modules["numpy"] = None  # as if it were not installed
array = bytes.fromhex("c70b0493a37c75319102c4026162")
assert MSGPACK.decode_to(list[Any])(b"\\x91" + array) == [{"dtype": "|u1", "shape": (2,), "data": b"ab"}]
"""


def test_nothing_is_imported_for_nothing_and_without_numpy_arrays_come_in_parts():
    assert MSGPACK.encode(np.frombuffer(b"ab", "u1")).hex() == "c70b0493a37c75319102c4026162"
    ended = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


def test_small_arrays_stay_among_the_bytes():
    encoded = encode_attached(MSGPACK, np.arange(10), ALL, arena_allowed=True)
    assert (encoded.descriptors, encoded.shares) == ((), {})


def test_an_array_of_too_many_dimensions_is_refused_before_they_are_multiplied():
    parts = ArrayParts("<f8", (2**63,) * 1_000_000, b"")
    with pytest.raises(ValueError, match="at most 64 dimensions, got 1000000"):
        extensions.read(np.ndarray, parts)
