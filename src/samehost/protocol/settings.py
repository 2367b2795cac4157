"""The bounds of one connection: the defaults of `samehost.limits`, for those who need others."""

from __future__ import annotations

import msgspec

from samehost import limits
from samehost.errors import UsageError

_U32_MAX = 2**32 - 1


class Limits(msgspec.Struct, frozen=True):
    """What one end of a connection takes, PROTOCOL.md section 11.

    Attributes:
        payload_bytes_max: longest payload of a frame, longest line of JSON.
        calls_max: calls of the peer's that may be open; 0 to take none.
        descriptors_per_frame_max: files that may come with one frame.
        method_bytes_max: longest name of a method.
        context_bytes_max: longest context of a call.
        note_bytes_max: longest note.
        batch_calls_max: requests in one JSON-RPC batch.
    """

    payload_bytes_max: int = limits.PAYLOAD_BYTES_MAX
    calls_max: int = limits.CALLS_MAX
    descriptors_per_frame_max: int = limits.FILES_PER_MESSAGE_MAX
    method_bytes_max: int = limits.METHOD_BYTES_MAX
    context_bytes_max: int = limits.CONTEXT_BYTES_MAX
    note_bytes_max: int = limits.NOTE_BYTES_MAX
    batch_calls_max: int = limits.BATCH_CALLS_MAX

    def __post_init__(self) -> None:
        for name, least, most in (
            ("payload_bytes_max", limits.PAYLOAD_BYTES_FLOOR, _U32_MAX),
            ("calls_max", 0, _U32_MAX),
            ("descriptors_per_frame_max", 0, limits.FILES_PER_MESSAGE_MAX),
            ("method_bytes_max", 1, limits.METHOD_BYTES_MAX),
            ("context_bytes_max", 0, limits.CONTEXT_BYTES_MAX),
            ("note_bytes_max", 1, limits.NOTE_BYTES_MAX),
            ("batch_calls_max", 1, limits.BATCH_CALLS_MAX),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"{name}={value}: from {least} to {most}")
