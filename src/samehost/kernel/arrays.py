"""Arrays of numpy and buffers of Arrow, over the memory that they came in.

Neither is imported unless a program has such a value, a method is declared to take one, or one comes to somebody who
takes anything.
"""

from __future__ import annotations

import math
import typing
from typing import TYPE_CHECKING, Any

from samehost import extensions, limits
from samehost.extensions import ArrayParts, Parcel, mismatch
from samehost.kernel.blob import Blob
from samehost.kernel.travelling import bytes_of_text

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa  # type: ignore[import-untyped]  # it has no types


_DIMENSIONS_MAX = 64
"""As numpy has it."""


def _write_array(value: np.ndarray[Any, Any], parcel: Parcel) -> Any:
    import numpy as np

    if value.dtype.hasobject:
        raise TypeError(f"Arrays of dtype {value.dtype} hold Python objects, which cannot travel")
    descr = np.lib.format.dtype_to_descr(value.dtype)
    if np.lib.format.descr_to_dtype(descr) != value.dtype:
        raise TypeError(f"Arrays of dtype {value.dtype} cannot travel")
    data = value if value.flags.c_contiguous else np.ascontiguousarray(value)
    # As bytes: the buffers of some types, such as times, can be had in no other way.
    flat = data.reshape(-1).view(np.uint8) if data.dtype.itemsize else np.empty(0, np.uint8)
    return parcel.array(descr, value.shape, flat)


def _refuse_masked(value: Any, parcel: Parcel) -> Any:
    raise TypeError("Masked arrays cannot travel: fill them, or send the mask beside the data")


def _write_number(value: np.generic, parcel: Parcel) -> Any:
    return value.item()


def _read_array(kind: Any, value: Any) -> Any:
    """An array over what was received, that cannot be written.

    Whoever takes anything gets an array too, or where numpy is not installed what JSON would have.
    """
    try:
        import numpy as np
    except ImportError:
        if kind is not Any or not isinstance(value, ArrayParts):
            raise
        return {"dtype": value.dtype, "shape": value.shape, "data": value.data}
    array = _array_of(np, value) if isinstance(value, ArrayParts) else value
    if not isinstance(array, np.ndarray):
        raise mismatch("array of numbers", value)
    wanted = _dtype_wanted(kind)
    if wanted is not None and not issubclass(array.dtype.type, wanted):
        raise ValueError(f"Expected array of {wanted.__name__}, got {array.dtype}")
    return array


def _dtype_wanted(kind: Any) -> Any:
    """The class of numbers in `NDArray[numpy.float64]`; None if it is not said."""
    for argument in typing.get_args(kind)[1:]:
        (number,) = typing.get_args(argument) or (Any,)
        return number if isinstance(number, type) and number is not Any else None
    return None


def _array_of(np: Any, parts: ArrayParts) -> Any:
    data = parts.data.view if isinstance(parts.data, Blob) else parts.data
    if not isinstance(data, bytes | bytearray | memoryview):
        raise mismatch("the data of an array", data)
    try:
        dtype = np.lib.format.descr_to_dtype(_as_tuples(parts.dtype))
    except Exception as error:  # it is not written for what strangers send
        raise ValueError(f"Expected dtype, got {str(parts.dtype)[:100]}") from error
    if dtype.hasobject:
        raise ValueError(f"Expected numbers, got an array of dtype {dtype}, which holds Python objects")
    if len(parts.shape) > _DIMENSIONS_MAX:  # before they are multiplied, which takes minutes for a hundred thousand
        raise ValueError(f"Expected array of at most {_DIMENSIONS_MAX} dimensions, got {len(parts.shape)}")
    count = math.prod(parts.shape)
    if count > limits.BLOB_BYTES_MAX:  # of an array of texts without a character, whose bytes are no bound
        raise ValueError(f"Expected array of at most {limits.BLOB_BYTES_MAX} elements, got {count}")
    size = count * dtype.itemsize
    if size != len(data):
        raise ValueError(f"Expected array of {size} bytes, got {len(data)}")
    return np.ndarray(parts.shape, dtype, buffer=memoryview(data).toreadonly())


def _as_tuples(dtype: Any) -> Any:
    """The description of a dtype with the tuples that it had before it was encoded: fields, and shapes within them."""
    if not isinstance(dtype, list):
        return dtype
    return [tuple(_field_part(part) for part in field) if isinstance(field, list) else field for field in dtype]


def _field_part(part: Any) -> Any:
    if isinstance(part, list) and not all(isinstance(inner, int | str) for inner in part):
        return _as_tuples(part)
    return tuple(part) if isinstance(part, list) else part


def _read_array_json(kind: Any, value: Any) -> Any:
    if not (isinstance(value, dict) and value.keys() == {"dtype", "shape", "data"}):
        raise mismatch("object with dtype, shape and data", value)
    shape = value["shape"]
    if not (isinstance(shape, list) and all(type(length) is int and length >= 0 for length in shape)):
        raise mismatch("shape", shape)
    return _read_array(kind, ArrayParts(value["dtype"], tuple(shape), bytes_of_text(value["data"])))


def _write_buffer(value: pa.Buffer, parcel: Parcel) -> Any:
    return parcel.blob(value, is_small_inline=False)


def _read_buffer(kind: Any, value: Any) -> Any:
    import pyarrow as pa

    if not isinstance(value, Blob | bytes):
        raise mismatch("blob", value)
    return pa.py_buffer(value.view if isinstance(value, Blob) else value)


def _read_buffer_json(kind: Any, value: Any) -> Any:
    return _read_buffer(kind, bytes_of_text(value))


extensions.ways |= {
    "numpy.ndarray": extensions.Way(extensions.BLOBS, _write_array, _read_array, _read_array_json),
    "numpy.ma.MaskedArray": extensions.Way(0, _refuse_masked, _read_array),
    "numpy.ma.core.MaskedArray": extensions.Way(0, _refuse_masked, _read_array),
    "numpy.generic": extensions.Way(0, _write_number, _read_array),
    "pyarrow.lib.Buffer": extensions.Way(extensions.BLOBS, _write_buffer, _read_buffer, _read_buffer_json),
}
