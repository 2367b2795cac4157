"""What one sendmsg(2) may take of the output of a connection, and what is left of it afterwards.

Descriptors have to travel with the first byte of their frame (PROTOCOL.md section 7), so a message begins at a chunk
that has some, and never reaches the next such chunk. How output is kept, and when it is sent, is up to its owners.
"""

from __future__ import annotations

import array
import socket
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque

    from samehost.protocol import Chunk, Payload

    Control = list[tuple[int, int, array.array[int]]]


def next_message(queue: deque[Chunk], pieces_max: int) -> tuple[list[Payload], Control]:
    """The bytes and the control data of the message to send next; the descriptors stay the queue's."""
    pieces: list[Payload] = []
    for data, descriptors in islice(queue, pieces_max):
        if descriptors and pieces:
            break
        pieces.append(data)
    descriptors = queue[0][1]
    if not descriptors:
        return pieces, []
    numbers = array.array("i", [descriptor.fileno() for descriptor in descriptors])
    return pieces, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]


def remove_sent(queue: deque[Chunk], sent: int) -> None:
    """Take off the queue what the kernel has taken; descriptors are dropped with the first byte of their chunk."""
    while queue and sent >= len(queue[0][0]):
        sent -= len(queue.popleft()[0])
    if sent:
        queue[0] = memoryview(queue[0][0])[sent:], ()


def refused_for(seconds: float) -> str:
    """What to say when the kernel has refused to send files for so long (ETOOMANYREFS, unix(7))."""
    return (
        f"for {seconds:g} s too many files of this user were on their way through sockets (RLIMIT_NOFILE), so that "
        "none could be sent"
    )
