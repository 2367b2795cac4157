"""The life of a call and the life of a connection, as tables that do not know which side they play.

Both ends of a connection run the same tables: what one end may send is what the other end expects. A call has a half
for its caller and a half for its callee. The product of the two is one small number, so that a step costs one lookup,
and a unary call, the common one, begins in state 0 and never takes a step before its answer ends it. PROTOCOL.md
sections 5.9 and 8.5 print the same tables, and a test compares them.
"""

from __future__ import annotations

# Frame types, PROTOCOL.md section 4.2.
CALL = 0x01
NOTIFY = 0x02
REPLY = 0x03
ERROR = 0x04
CANCEL = 0x05
STREAM = 0x06
ITEM = 0x07
END = 0x08
CREDIT = 0x09
NOTE = 0x0A
PING = 0x10
PONG = 0x11
GOAWAY = 0x12
ARENA = 0x20
RELEASE = 0x21
RETIRE = 0x22

FRAME_NAMES = {
    CALL: "CALL",
    NOTIFY: "NOTIFY",
    REPLY: "REPLY",
    ERROR: "ERROR",
    CANCEL: "CANCEL",
    STREAM: "STREAM",
    ITEM: "ITEM",
    END: "END",
    CREDIT: "CREDIT",
    NOTE: "NOTE",
    PING: "PING",
    PONG: "PONG",
    GOAWAY: "GOAWAY",
    ARENA: "ARENA",
    RELEASE: "RELEASE",
    RETIRE: "RETIRE",
}

# Flags of CALL, PROTOCOL.md section 5.2. The first two are the call's first state as well.
ITEMS_FOLLOW = 0x01
ITEMS_WANTED = 0x02
HAS_CONTEXT = 0x04
BOTH_STREAMS = ITEMS_FOLLOW | ITEMS_WANTED

# The caller's half of a call, PROTOCOL.md section 5.9.
SILENT, SENDING, SENT, CANCELLED = range(4)
CALLER_NAMES = ("SILENT", "SENDING", "SENT", "CANCELLED")

# The callee's half.
SINGLE, READY, STREAMING = range(3)
CALLEE_NAMES = ("SINGLE", "READY", "STREAMING")

ENDED = -1
"""The call is over; neither end remembers it."""

CALLER_STEPS: dict[int, dict[int, int]] = {
    SILENT: {CREDIT: SILENT, CANCEL: CANCELLED},
    SENDING: {ITEM: SENDING, END: SENT, CREDIT: SENDING, CANCEL: CANCELLED},
    SENT: {CREDIT: SENT, CANCEL: CANCELLED},
    CANCELLED: {},
}
"""What the caller may send, and what becomes of its half. CREDIT only where the callee's half is not SINGLE."""

CALLEE_STEPS: dict[int, dict[int, int]] = {
    SINGLE: {NOTE: SINGLE, CREDIT: SINGLE, REPLY: ENDED, ERROR: ENDED},
    READY: {STREAM: STREAMING, NOTE: READY, CREDIT: READY, REPLY: ENDED, ERROR: ENDED},
    STREAMING: {ITEM: STREAMING, NOTE: STREAMING, CREDIT: STREAMING, REPLY: ENDED, ERROR: ENDED},
}
"""What the callee may send, and what becomes of its half. CREDIT only where the caller's half is not SILENT."""

BY_CALLEE = 0x10
"""Added to a frame's type, it makes the callee's step of it."""

_CALLEE_HALVES = len(CALLEE_NAMES)


def state_of(caller: int, callee: int) -> int:
    """The state of a call whose halves are these."""
    return caller * _CALLEE_HALVES + callee


def halves_of(state: int) -> tuple[int, int]:
    """The two halves, the caller's first."""
    return divmod(state, _CALLEE_HALVES)


CANCELLED_FROM = state_of(CANCELLED, SINGLE)
"""This state and all above it are those of a cancelled call."""

FIRST_STATES = (
    state_of(SILENT, SINGLE),
    state_of(SENDING, SINGLE),
    state_of(SILENT, READY),
    state_of(SENDING, READY),
)
"""By the flags ITEMS_FOLLOW and ITEMS_WANTED."""


def _steps_from(caller: int, callee: int) -> dict[int, int]:
    steps = {}
    for frame, after in CALLER_STEPS[caller].items():
        if frame != CREDIT or callee != SINGLE:
            steps[frame] = state_of(after, callee)
    for frame, after in CALLEE_STEPS[callee].items():
        if frame != CREDIT or caller != SILENT:
            steps[frame | BY_CALLEE] = after if after == ENDED else state_of(caller, after)
    return steps


STEPS = tuple(_steps_from(*halves_of(state)) for state in range(len(CALLER_NAMES) * len(CALLEE_NAMES)))
"""For each state of a call, the state after each step."""


def describe(state: int) -> str:
    """Both halves, for messages."""
    caller, callee = halves_of(state)
    return f"caller {CALLER_NAMES[caller]}, callee {CALLEE_NAMES[callee]}"


# One end of a connection, PROTOCOL.md section 8.5. The order counts: below LEAVING an end opens and accepts calls.
# Steps are types of frames, and these, which no type is.
GREETING, OPEN, LEAVING, FINISHED = range(4)
END_NAMES = ("GREETING", "OPEN", "LEAVING", "FINISHED")

PREFACE = 0x00
"""The step of sending a preface; JSON lines have none, and take this step with their first byte."""

FRAME = 0x100
"""The step of sending any frame but CALL, NOTIFY and GOAWAY."""

FINISH = 0x101
"""The step of ending one's output, or of losing the connection."""

END_STEPS: dict[int, dict[int, int]] = {
    GREETING: {PREFACE: OPEN, FINISH: FINISHED},
    OPEN: {CALL: OPEN, NOTIFY: OPEN, FRAME: OPEN, GOAWAY: LEAVING, FINISH: FINISHED},
    LEAVING: {FRAME: LEAVING, GOAWAY: LEAVING, FINISH: FINISHED},
    FINISHED: {},
}
"""What an end of a connection may send, and what becomes of it."""
