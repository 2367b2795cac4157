"""Where bytes lie, and objects that stand for the bytes at an address: what the buffer protocol has no words for.

A `memoryview` tells nobody when it is gone, and one that is made of another one crashes the garbage collector of Python
before 3.13 if it finds both in a cycle. An array of ctypes has neither fault: it can be given what tells of its end, as
`blob` does, and each view, slice, array of numpy or buffer of Arrow that is made of it keeps it alive.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pickle import PickleBuffer
from typing import Any


@cache
def _ctypes() -> Any:
    import ctypes  # which many programs never need

    return ctypes


@cache
def _buffer_class() -> Any:
    """Py_buffer, of which only the first field is looked at."""
    ctypes = _ctypes()
    fields = [("address", ctypes.c_void_p), ("rest", ctypes.c_byte * 256)]
    return type("Buffer", (ctypes.Structure,), {"_fields_": fields})


def address_of(data: Any) -> int:
    """The address of the first byte of a buffer."""
    ctypes, buffer = _ctypes(), _buffer_class()()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(data), ctypes.byref(buffer), 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return buffer.address or 0


@lru_cache(maxsize=64)
def _array_of(length: int) -> Any:
    return _ctypes().c_ubyte * length  # a class for each length, which costs more than all the rest


def root_at(address: int, length: int, memory: object) -> Any:
    """An object for these bytes.

    Args:
        memory: what keeps them where they are; kept for as long.
    """
    root = _array_of(length).from_address(address)
    root.memory = memory
    return root


def view_of(root: Any) -> memoryview:
    """The bytes that a root is for; whatever is made of this keeps the root alive."""
    return PickleBuffer(root).raw()
