"""What a session says to its client: the answers to calls, and what goes beside them, until it is on the connection.

Answers are gathered, and go out together when what has come was begun. The one answer to the one call of a client that
waits for it takes a shorter way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Any

from samehost import limits
from samehost.aio.enclosures import Enclosures
from samehost.aio.outflow import Outflow
from samehost.codec import CODECS, CannotEncode
from samehost.errors import LocalProtocolError, MessageTooLarge
from samehost.extensions import is_large
from samehost.kernel.attaching import Encoded, give_away
from samehost.kernel.closing import Closable
from samehost.protocol import codes
from samehost.service.failures import Failure, broken, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from samehost import protocol
    from samehost.aio.runner import Account, Ready, Runner
    from samehost.aio.wire import Wire
    from samehost.peer import Peer
    from samehost.service.call import Progress
    from samehost.service.statistics import MethodStatistics

logger = logging.getLogger("samehost")

NOTIFICATION = 0
"""The id of a call that nobody waits for."""

CANCELLED = Failure(codes.CANCELLED, "the call was cancelled")
"""What a caller gets who has cancelled, which is no error of the method's."""


class Answering(Closable):
    """The half of a session that speaks.

    Args:
        runner: the run of the service.
        account: what the client's user has in use; this connection is counted there.
        peer: the client.
        new_wire: makes the wire to the client, whose owner this is, and who takes open files or not.

    Attributes:
        runner, account, peer: as above.
        closed: done once the connection is closed.
        has_arenas: whether what comes may refer to memory of the client's.
    """

    __slots__ = (
        "_codec",
        "_enclosures",
        "_features",
        "_is_alone",
        "_is_flush_due",
        "_is_leaving",
        "_outflow",
        "_owed_until",
        "_pending_bytes",
        "_protocol",
        "_unsent_bytes",
        "_unsettled",
        "_wire",
        "account",
        "closed",
        "has_arenas",
        "peer",
        "runner",
    )

    def __init__(self, runner: Runner, account: Account, peer: Peer, new_wire: Callable[[Self, bool], Wire]) -> None:
        self.runner = runner
        self.account = account
        self.peer = peer
        self.closed: asyncio.Future[None] = runner.loop.create_future()
        self.has_arenas = False
        self._features = runner.features_for(peer)
        self._wire = new_wire(self, bool(self._features))
        self._protocol: protocol.Connection | None = None
        self._codec = CODECS["msgpack"]
        self._outflow: Outflow | None = None
        self._enclosures: Enclosures | None = None
        self._owed_until = 0  # how much output, since the beginning, has something else than items in it
        self._is_alone = False  # a call is being begun that is all that has come, and was not answered yet
        self._is_leaving = False
        self._is_flush_due = False
        self._unsent_bytes = 0  # of results, since the last flush
        self._pending_bytes = 0  # as it is on the account
        self._unsettled: list[MethodStatistics] = []

    @abstractmethod
    def _hold_if_needed(self) -> None:
        """Begin nothing more, if too much output is pending."""

    @abstractmethod
    def _close_if_over(self) -> bool:
        """Close if there is nothing more to be said in either direction."""

    def reply(self, call_id: int, ready: Ready, result: Any) -> None:
        """Answer a call with its result."""
        statistics = ready.statistics
        if not statistics.unsettled:
            self._unsettled.append(statistics)
        statistics.unsettled += 1
        if call_id == NOTIFICATION:
            self.drop(ready, result)
            return
        assert self._protocol is not None
        if ready.gives_blobs and is_large(result):
            self._reply_enclosed(call_id, ready, result)
            return
        try:
            encoded = self._codec.encode_raw(result)
            if self._is_alone and (frame := self._protocol.send_reply_alone(call_id, encoded)):
                self._is_alone = False
                self._wire.send([(frame, ())])
                if self._wire.pending_bytes:
                    self._owe()
                return
            length = len(encoded)
            is_long = length > limits.JOIN_BYTES_MAX
            if is_long and length >= limits.BLOB_BYTES_MIN and ready.gives_blobs and self._protocol.peer_features:
                self._reply_enclosed(call_id, ready, result)
                return
            if self.account.used_bytes + length > limits.UID_BYTES_MAX:
                raise MessageTooLarge(f"uid {self.peer.uid} does not read its answers, so this one was dropped")
            self._protocol.send_reply(call_id, encoded)
            self._unsent_bytes += length
            if is_long or self._unsent_bytes > limits.OUTPUT_BYTES_MAX:
                self.flush()
        except MessageTooLarge as error:
            self._send_failure(call_id, ready, Failure(codes.TOO_LARGE, f"the result: {error}"))
        except Exception:  # whatever msgspec raises for what it cannot encode by itself
            self._reply_enclosed(call_id, ready, result)

    def _reply_enclosed(self, call_id: int, ready: Ready, result: Any) -> None:
        """Answer a call with a result that has files or blobs, or cannot be sent at all."""
        try:
            encoded = self.enclosures.encode(result)
        except Exception as error:
            self._cannot_send(call_id, ready, error)
        else:
            self._send_enclosed(call_id, ready, encoded)

    def reply_encoded(self, call_id: int, ready: Ready, encoded: bytes | Encoded | CannotEncode) -> None:
        """Answer a call with a result that was encoded in a thread, or could not be."""
        if isinstance(encoded, CannotEncode):
            self._cannot_send(call_id, ready, encoded)
            return
        if isinstance(encoded, bytes):
            encoded = Encoded(encoded, (), {}, 0)
        self._send_enclosed(call_id, ready, encoded)

    def _send_enclosed(self, call_id: int, ready: Ready, encoded: Encoded) -> None:
        assert self._protocol is not None
        try:
            if self.account.used_bytes + len(encoded.payload) > limits.UID_BYTES_MAX:
                raise MessageTooLarge(f"uid {self.peer.uid} does not read its answers, so this one was dropped")
            self.enclosures.write(encoded, self._protocol.send_reply, call_id)
            self._unsent_bytes += len(encoded.payload)
        except MessageTooLarge as error:
            self._send_failure(call_id, ready, Failure(codes.TOO_LARGE, f"the result: {error}"))
        except Exception as error:
            self._cannot_send(call_id, ready, error)

    def _cannot_send(self, call_id: int, ready: Ready, error: Exception) -> None:
        failure = broken("the method's result cannot be sent")
        self.log_failure(ready, error, failure.error_id)
        self._send_failure(call_id, ready, failure)

    @staticmethod
    def drop(ready: Ready, result: Any) -> None:
        """Close the files of a result that nobody gets."""
        if ready.kinds_out and result is not None and not is_large(result):
            give_away(result)

    def settle(self, began: float) -> None:
        """Note how long what was answered just now has taken.

        Args:
            began: when it came, in seconds of the monotonic clock.
        """
        if self._unsettled:
            seconds = monotonic() - began
            for statistics in self._unsettled:
                if statistics.unsettled == 1:
                    statistics.latencies.note(seconds)
                else:
                    statistics.latencies.add(int(seconds * 1e9), statistics.unsettled)
                statistics.unsettled = 0
            self._unsettled.clear()

    def fail_with(self, call_id: int, ready: Ready, error: BaseException) -> None:
        """Answer a call whose method raised this."""
        if isinstance(error, asyncio.CancelledError):
            failure = Failure(codes.CANCELLED, "the method was cancelled")
        else:
            try:
                failure = failure_of(error, ready.method.errors)
            except Exception:  # its own text cannot be had
                failure = broken("the method failed")
        if failure.error_id:
            self.log_failure(ready, error, failure.error_id)
        self.fail(call_id, ready, failure)

    def fail(self, call_id: int, ready: Ready, failure: Failure) -> None:
        """Answer a call with an error."""
        if not ready.statistics.unsettled:
            self._unsettled.append(ready.statistics)
        ready.statistics.unsettled += 1
        if call_id == NOTIFICATION:
            ready.statistics.errors += 1
            logger.warning("%s: a notification failed: %s: %s", ready.method.name, failure.code, failure.message)
        else:
            self._send_failure(call_id, ready, failure)

    def _send_failure(self, call_id: int, ready: Ready, failure: Failure) -> None:
        assert self._protocol is not None
        if failure is not CANCELLED:
            ready.statistics.errors += 1
        self._unsent_bytes += 1
        data = b""
        if failure.data is not None:
            try:
                data = self._codec.encode(failure.data)
            except CannotEncode as error:
                self.log_failure(ready, error, failure.error_id)
        try:
            self._protocol.send_error(call_id, failure.code, failure.message, failure.error_id, data)
        except MessageTooLarge:
            self._protocol.send_error(call_id, failure.code, failure.message, failure.error_id)
        except (LocalProtocolError, AttributeError, TypeError) as error:  # a code or a message that is none
            failure = broken("the method's error cannot be sent")
            self.log_failure(ready, error, failure.error_id)
            self._protocol.send_error(call_id, failure.code, failure.message, failure.error_id)

    def _refuse(self, call_id: int, method: str, code: str, message: str) -> None:
        """Answer a call that is for no method."""
        if call_id == NOTIFICATION:
            logger.info("%s: a notification for %r: %s", self.runner.service.name, method, message)
        else:
            assert self._protocol is not None
            self._unsent_bytes += 1
            self._protocol.send_error(call_id, code, message)

    def log_failure(self, ready: Ready, error: BaseException, error_id: str = "") -> None:
        """Log what the caller is not told."""
        logger.error(
            "%s: %s failed%s, called by %s",
            self.runner.service.name,
            ready.method.name,
            f" [{error_id}]" if error_id else "",
            self.peer,
            exc_info=error,
        )

    # What goes beside answers.

    @property
    def enclosures(self) -> Enclosures:
        """The files and blobs of this connection, made for the first of them."""
        if self._enclosures is None:
            assert self._protocol is not None
            self._enclosures = Enclosures(self, self._protocol, self._codec, self._features)
        return self._enclosures

    def let_go(self, event: Any) -> None:
        """Close the files, and release the memory, that came with what nobody looks at."""
        if self._enclosures is not None or getattr(event, "descriptors", None):
            self.enclosures.discard(event)

    def _way_out(self) -> Outflow:
        """The way out for items and notes, made for the first of them."""
        if self._outflow is None:
            assert self._protocol is not None
            self._outflow = Outflow(self, self._protocol, self._wire, self._codec)
        return self._outflow

    def note(self, call_id: int, progress: Progress) -> None:
        """Tell the caller how far its call has come; from any thread.

        Raises:
            UsageError: that cannot travel.
        """
        if call_id == NOTIFICATION:
            return
        if self._outflow is None and not self.runner.is_here:  # from a thread of the method's own
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self.runner.loop.call_soon_threadsafe(self.note, call_id, progress)
        else:
            self._way_out().report(call_id, progress)

    # To the connection.

    def flush_soon(self) -> None:
        """Send what has come together by the loop's next turn."""
        if not self._is_flush_due and not self.closed.done():
            self._is_flush_due = True
            self.runner.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is."""
        self._is_flush_due = False
        if self._outflow is not None:
            self._outflow.batches.write()
        # What is neither an answer nor an item is an answer to pings, or credit.
        is_owed = self._unsent_bytes > 0 or self._outflow is None or not self._outflow.has_unsent
        self._unsent_bytes = 0
        if self._protocol is None or self.closed.done():
            return
        if self.has_arenas:
            self.enclosures.write_releases()
        chunks = self._protocol.data_to_send()
        if chunks:
            self._wire.send(chunks)
            if self._wire.pending_bytes:
                if is_owed:
                    self._owe()
                else:
                    self._account_output()
                self._hold_if_needed()
        if self._outflow is not None:
            self._outflow.flushed()
        if self._is_leaving:
            self._close_if_over()

    def _owe(self) -> None:
        """Take note that there are answers in the output that is pending."""
        self._account_output()
        self._owed_until = self._wire.sent_bytes + self._wire.pending_bytes

    def _account_output(self) -> None:
        pending = self._wire.pending_bytes
        self.account.used_bytes += pending - self._pending_bytes
        self._pending_bytes = pending
