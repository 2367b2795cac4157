"""What a connection has to send, cut so that each descriptor travels with the first byte of its frame.

PROTOCOL.md section 7: the receiver knows which frame descriptors belong to because a sendmsg(2) that carries some
begins with that frame. So a frame with descriptors begins a chunk; frames without any follow in the same chunk, joined
into one piece of bytes unless they are long, since copying a long one costs more than another element of the vector.
"""

from __future__ import annotations

from typing import TypeAlias

from samehost import limits
from samehost.protocol.events import Descriptors, Payload

Chunk: TypeAlias = tuple[Payload, Descriptors]
"""Bytes to send, and the descriptors that go with the first of them.

Chunks may be sent together with one sendmsg(2) as long as only the first has descriptors. When a part of one went out,
its descriptors went with it, and the rest is sent without them.
"""


class Output:
    """Frames in the order in which they were written.

    Attributes:
        pieces: the bytes of the last chunk; writers of frames without descriptors, and with nothing long, append here.
        chunks: those before it. While both are empty, and they stay the same lists, nothing waits to be sent.
    """

    __slots__ = ("_descriptors", "chunks", "pieces")

    def __init__(self) -> None:
        self.pieces: list[Payload] = []
        self.chunks: list[Chunk] = []
        self._descriptors: Descriptors = ()

    def write(self, frame: tuple[Payload, ...], descriptors: Descriptors) -> None:
        """Append a frame that has descriptors, or may be long."""
        if descriptors:
            self._close_chunk()
            self._descriptors = descriptors
        for piece in frame:
            if len(piece) > limits.JOIN_BYTES_MAX:
                self._close_chunk()
                self.chunks.append((piece, ()))
            else:
                self.pieces.append(piece)

    def take(self) -> list[Chunk]:
        """Everything that was written since the last time."""
        pieces = self.pieces
        if not self.chunks:
            if not pieces:
                return []
            chunk = b"".join(pieces), self._descriptors
            pieces.clear()
            self._descriptors = ()
            return [chunk]
        self._close_chunk()
        chunks = self.chunks.copy()
        self.chunks.clear()
        return chunks

    def _close_chunk(self) -> None:
        if self.pieces:
            self.chunks.append((b"".join(self.pieces), self._descriptors))
            self.pieces.clear()
            self._descriptors = ()
