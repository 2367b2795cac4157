"""The codes of errors, and their numbers in JSON-RPC: PROTOCOL.md section 12.

A code is a short name. A service may use names of its own; those travel to JSON-RPC under the number of `failed`, with
the name beside it, so that nothing is lost.
"""

from __future__ import annotations

PARSE_ERROR = "parse_error"
INVALID_REQUEST = "invalid_request"
METHOD_NOT_FOUND = "method_not_found"
INVALID_ARGUMENTS = "invalid_arguments"
INTERNAL = "internal"
FAILED = "failed"
BUSY = "busy"
CANCELLED = "cancelled"
DEADLINE_EXCEEDED = "deadline_exceeded"
NOT_PERMITTED = "not_permitted"
TOO_LARGE = "too_large"
UNAVAILABLE = "unavailable"
DRAINING = "draining"
WRONG_SHAPE = "wrong_shape"
PROTOCOL_ERROR = "protocol_error"
UNEXPECTED_DESCRIPTORS = "unexpected_descriptors"
BAD_BLOB = "bad_blob"
TOO_SLOW = "too_slow"
VERSION_REFUSED = "version_refused"

NUMBERS = {
    PARSE_ERROR: -32700,
    INVALID_REQUEST: -32600,
    METHOD_NOT_FOUND: -32601,
    INVALID_ARGUMENTS: -32602,
    INTERNAL: -32603,
    FAILED: -32000,
    BUSY: -32001,
    CANCELLED: -32002,
    DEADLINE_EXCEEDED: -32003,
    NOT_PERMITTED: -32004,
    TOO_LARGE: -32005,
    UNAVAILABLE: -32006,
    DRAINING: -32007,
    WRONG_SHAPE: -32008,
    PROTOCOL_ERROR: -32009,
    UNEXPECTED_DESCRIPTORS: -32010,
    BAD_BLOB: -32011,
    TOO_SLOW: -32012,
    VERSION_REFUSED: -32013,
}

NAMES = {number: name for name, number in NUMBERS.items()}


def number_of(code: str) -> int:
    """The number in JSON-RPC."""
    return NUMBERS.get(code, NUMBERS[FAILED])


def name_of(number: int) -> str:
    """The name of a number; `failed` for one that is not ours."""
    return NAMES.get(number, FAILED)
