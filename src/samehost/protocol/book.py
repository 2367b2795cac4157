"""The book of the calls that are open on a connection: their ids, how far each is, and its streams' credit.

Both ends keep one, from the same frames, and by the same tables. The calls of either direction are in one dictionary
each, from an id to the number of its state, so that a unary call costs one insertion and one removal. Ids and their
order are PROTOCOL.md section 5.1; which steps there are is `states`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost.errors import LocalProtocolError, RemoteProtocolError
from samehost.limits import WINDOW_BYTES, WINDOW_ITEMS
from samehost.protocol.states import (
    BY_CALLEE,
    CANCELLED_FROM,
    ENDED,
    FRAME_NAMES,
    ITEM,
    STEPS,
    describe,
)
from samehost.protocol.streams import StreamCredit

if TYPE_CHECKING:
    from samehost.protocol.settings import Limits

ID_MAX = 2**32 - 1
_HALF = 2**31
_CALLER_SENDS_ITEMS = tuple(ITEM in steps for steps in STEPS)
_CALLEE_SENDS_ITEMS = tuple(ITEM | BY_CALLEE in steps and state < CANCELLED_FROM for state, steps in enumerate(STEPS))
"""Whether the caller, or the callee, may send an item, by the state of the call."""


class CallBook:
    """The calls of one connection.

    Attributes:
        limits: what this end takes.
        last_call_made: the id of our last call.
        late_frames: frames for calls that had ended, and notifications that came after we left; all were ignored.
        refused_calls: calls answered with `busy` or `draining` before anybody saw them.
    """

    __slots__ = (
        "_last_taken",
        "_made",
        "_parity",
        "_streams",
        "_taken",
        "last_call_made",
        "late_frames",
        "limits",
        "refused_calls",
    )

    def __init__(self, is_client: bool, limits: Limits) -> None:
        self.limits = limits
        self.late_frames = 0
        self.refused_calls = 0
        self._parity = 1 if is_client else 0
        self._made: dict[int, int] = {}
        self._taken: dict[int, int] = {}
        self._streams: dict[int, StreamCredit] = {}
        # Each one below the first id of its side, which 2 is added to.
        self.last_call_made = -1 if is_client else 0
        self._last_taken = 0 if is_client else -1

    @property
    def calls_made(self) -> int:
        """Calls of ours that the peer has not ended, cancelled ones among them."""
        return len(self._made)

    @property
    def calls_taken(self) -> int:
        """Calls of the peer's that we have not ended, cancelled ones among them."""
        return len(self._taken)

    def is_open(self, call_id: int) -> bool:
        """Whether a call, of either direction, has not ended; one that was cancelled has not."""
        return call_id in self._made or call_id in self._taken

    def is_cancelled(self, call_id: int) -> bool:
        """Whether a call that is open was cancelled."""
        return self._side_of(call_id).get(call_id, 0) >= CANCELLED_FROM

    def may_send_item(self, call_id: int) -> bool:
        """Whether `send_item` is allowed now: the call streams in our direction, lives, and the peer gave credit."""
        if call_id & 1 == self._parity:
            state, sends_items = self._made.get(call_id, CANCELLED_FROM), _CALLER_SENDS_ITEMS
        else:
            state, sends_items = self._taken.get(call_id, CANCELLED_FROM), _CALLEE_SENDS_ITEMS
        if not sends_items[state]:
            return False
        credit = self._streams.get(call_id)
        return credit is None or (credit.items_out > 0 and credit.bytes_out > 0)

    def items_left(self, call_id: int) -> int:
        """How many items `send_item` takes now, as long as they are short; 0 if it takes none."""
        if not self.may_send_item(call_id):
            return 0
        credit = self._streams.get(call_id)
        return WINDOW_ITEMS if credit is None else credit.items_out

    def bytes_left(self, call_id: int) -> int:
        """How many bytes of items the peer takes now; an item may be longer."""
        credit = self._streams.get(call_id)
        return WINDOW_BYTES if credit is None else credit.bytes_out

    def may_save_up(self, call_id: int) -> tuple[int, int]:
        """After how many more items, and how many bytes of them, `took_item` has to hear of what a reader took."""
        credit = self._streams.get(call_id)
        return (WINDOW_ITEMS // 2, WINDOW_BYTES // 2) if credit is None else credit.may_save_up()

    def items_widened(self, call_id: int) -> int:
        """How many items the peer has added to the window of this stream, PROTOCOL.md section 6.5."""
        credit = self._streams.get(call_id)
        return 0 if credit is None else credit.widened_out

    def _side_of(self, call_id: int) -> dict[int, int]:
        return self._made if call_id & 1 == self._parity else self._taken

    def _step_of(self, call_id: int, frame: int, sending: bool) -> int:
        is_ours = call_id & 1 == self._parity
        return frame if is_ours == sending else frame | BY_CALLEE

    def _credit_of(self, call_id: int) -> StreamCredit:
        credit = self._streams.get(call_id)
        if credit is None:
            credit = self._streams[call_id] = StreamCredit()
        return credit

    def _free_id_after(self, call_id: int, calls: dict[int, int]) -> int:
        """The next id of the same side that none of these calls has; after the last there is 1 or 2 again."""
        while True:
            call_id += 2
            if call_id > ID_MAX:
                call_id = 2 - (call_id & 1)
            if call_id not in calls:
                return call_id

    def _check_new_id(self, call_id: int) -> None:
        """Refuse an id that the peer may not give to a new call."""
        if call_id & 1 == self._parity or not call_id:
            raise RemoteProtocolError(f"CALL with id {call_id}, which is not one that this peer gives")
        if call_id in self._taken or _is_behind(call_id, self._last_taken):
            raise RemoteProtocolError(
                f"CALL with id {call_id}, which was used before; the last one was {self._last_taken}"
            )

    def _step_out(self, call_id: int, frame: int) -> tuple[dict[int, int], int]:
        """See that we may send this frame now; what to `_move` once it is written.

        Raises:
            LocalProtocolError: we may not.
        """
        calls = self._side_of(call_id)
        state = calls.get(call_id)
        if state is None:
            raise LocalProtocolError(f"{FRAME_NAMES[frame]} for call {call_id}, which is not open")
        after = STEPS[state].get(self._step_of(call_id, frame, sending=True))
        if after is None:
            raise LocalProtocolError(f"{FRAME_NAMES[frame]} is no step of call {call_id} ({describe(state)})")
        return calls, after

    def _step_in(self, call_id: int, frame: int) -> int | None:
        """Take the step of a frame that came in.

        Returns:
            The state before it; None if the call had ended.

        Raises:
            RemoteProtocolError: the peer may not send this frame now.
        """
        calls = self._side_of(call_id)
        state = calls.get(call_id)
        if state is None:
            self._count_late(call_id, frame)
            return None
        after = STEPS[state].get(self._step_of(call_id, frame, sending=False))
        if after is None:
            raise RemoteProtocolError(f"{FRAME_NAMES[frame]} is no step of call {call_id} ({describe(state)})")
        if after != state:
            self._move(calls, call_id, after)
        return state

    def _move(self, calls: dict[int, int], call_id: int, after: int) -> None:
        if after == ENDED:
            del calls[call_id]
            self._streams.pop(call_id, None)
        else:
            calls[call_id] = after

    def _count_late(self, call_id: int, frame: int) -> None:
        """Count a frame for a call that has ended; refuse one for a call that never was."""
        last = self.last_call_made if call_id & 1 == self._parity else self._last_taken
        if not _is_behind(call_id, last):
            raise RemoteProtocolError(f"{FRAME_NAMES[frame]} for call {call_id}, which was never made")
        self.late_frames += 1

    def _unsent_after(self, last_call: int) -> tuple[int, ...]:
        """Our calls that the peer did not accept, if this is the last one that it did; 0 for none."""
        if last_call and (last_call & 1 != self._parity or not _is_behind(last_call, self.last_call_made)):
            raise RemoteProtocolError(f"GOAWAY after call {last_call}, which was never made")
        return tuple(call_id for call_id in self._made if not _is_behind(call_id, last_call))

    def _forget_calls(self, calls: dict[int, int]) -> tuple[int, ...]:
        """Drop calls that end with the connection; those of them that nobody was told about yet."""
        alive = tuple(call_id for call_id, state in calls.items() if state < CANCELLED_FROM)
        for call_id in calls:
            self._streams.pop(call_id, None)
        calls.clear()
        return alive


def _is_behind(call_id: int, last: int) -> bool:
    """Whether an id is the last one or was given before it; ids go round, so half of them are always behind."""
    return (last - call_id) & ID_MAX < _HALF
