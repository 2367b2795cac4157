"""The responses of one JSON-RPC batch, which travel together once all of them are there: PROTOCOL.md section 10.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost.protocol import codes, envelopes

if TYPE_CHECKING:
    from samehost.protocol.envelopes import JsonId


class Batch:
    """One batch of requests, from the first that is read to the last that is answered."""

    __slots__ = ("_bytes_left", "_responses", "_waiting")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_left = bytes_max
        self._responses: list[bytes] = []
        self._waiting = 1  # for the reading itself

    def expect(self) -> None:
        """Wait for one answer more."""
        self._waiting += 1

    def add(self, json_id: JsonId | None, response: bytes) -> None:
        """Add an answer; if all of them together became too long, an error stands for it."""
        if len(response) > self._bytes_left:
            why = "the answers of this batch are longer than one line may be; call it outside of a batch"
            response = envelopes.error_response(json_id, codes.TOO_LARGE, why)
        self._bytes_left -= len(response)
        self._responses.append(response)

    def arrived(self) -> bytes:
        """Wait for one thing less; the line to send if it was the last, and there is anything to say."""
        self._waiting -= 1
        if self._waiting or not self._responses:
            return b""
        return b"[%b]" % b",".join(self._responses)
