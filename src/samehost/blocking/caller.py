"""What every client for threads does beneath its methods: connecting, again when the connection is lost, and calling.

What may be done again is decided here: a call of which nothing went out always, one whose outcome is unknown only if
its method is idempotent, and neither once items of its own were sent. Sending and waiting are `link`'s.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, ClassVar

from samehost import limits
from samehost.address import Address, DescriptorAddress
from samehost.blocking.calls import Outcome, Waiting
from samehost.blocking.dial import dial
from samehost.blocking.link import Link
from samehost.codec import MSGPACK, CannotDecode
from samehost.errors import Error, InvalidResult, Unavailable
from samehost.kernel.closing import Closable
from samehost.kernel.deadline import Deadline
from samehost.protocol import codes
from samehost.protocol.events import Failure, Reply, Stream
from samehost.service.calling import (
    CLIENTS_TIMEOUT,
    ClientTimeout,
    answered_error,
    context_to_hand_on,
    lost,
    seconds_for,
    too_late,
)
from samehost.service.description import DESCRIBE, Description, read_description
from samehost.service.remote import RemoteMethod, kinds_wanted

if TYPE_CHECKING:
    from samehost.peer import Policy
    from samehost.service.call import TimeLeft

_TRIES_MAX = 5
"""How often a call is sent whose outcome is unknown each time, or to servers that end before they say a word, as one
that is being killed does."""

_CLOSED = "the client was closed"

_DESCRIBE = RemoteMethod(DESCRIBE, is_idempotent=True)
_NO_ARGUMENTS = MSGPACK.encode({})


class Caller(Closable):
    """The part of a client that does not know methods.

    A child made by fork gets a connection of its own with its first call.
    """

    remote_methods: ClassVar[dict[str, RemoteMethod]] = {}

    def __init__(
        self, address: Address, *, wait: float, timeout: float | None, trust: Policy | None, busy_wait: float
    ) -> None:
        if busy_wait:
            from samehost.kernel.spinning import check_busy_wait

            check_busy_wait(busy_wait)
        self._busy_wait = busy_wait
        self._address = address
        self._wait = wait
        self._timeout = timeout
        self._trust = trust
        self._description: tuple[Link, Description] | None = None
        self._dialling = threading.RLock()
        connection = dial(self._address, wait=wait, timeout=timeout, trust=trust)
        self._link: Link | None = Link(connection, kinds_wanted(self.remote_methods), busy_wait)
        self._links = [self._link]
        self._is_closed = False
        _callers.add(self)

    @property
    def address(self) -> str:
        """The address of the service."""
        return str(self._address)

    def close(self) -> None:
        """End the connection, and wake every thread that waits for an answer; a second time does nothing.

        Those threads, and all calls from now on, get ConnectionClosed; OutcomeUnknown, which is one, if the call went
        out.
        """
        self._is_closed = True
        self._link = None
        links, self._links = self._links, []
        for link in links:
            link.close(_CLOSED)

    def _exchange(self, remote: RemoteMethod, waiting: Waiting, link: Link | None = None) -> tuple[Link, Waiting]:
        """Send a call, again where that does no harm, until it is answered; or a notification, until it is out.

        Args:
            link: where it was made already, and not answered by a reply.

        Returns:
            The call as it was made last, whose answer is REPLY or STREAM, and where that was.
        """
        was_sent = False
        tries = 0
        pause = 0.0
        while True:
            if waiting.answer is None:
                link = self._link
                if link is None or not link.takes_calls:
                    link = self._connect_again(waiting, was_sent=was_sent)
                _make(link, waiting)
            assert link is not None
            answer = waiting.answer
            if isinstance(answer, Reply | Stream) or answer is Outcome.SENT:
                return link, waiting
            was_sent = was_sent or answer is Outcome.UNKNOWN
            tries += answer is Outcome.UNKNOWN or not link.is_greeted
            self._check_again(remote, waiting, link, was_sent=was_sent, is_last=tries >= _TRIES_MAX)
            time.sleep(min(pause, waiting.deadline.left()))
            pause = min(max(2 * pause, limits.DIAL_PAUSE_SECONDS_MIN), limits.DIAL_PAUSE_SECONDS_MAX)
            waiting = waiting.again()

    def _check_again(
        self, remote: RemoteMethod, waiting: Waiting, link: Link, *, was_sent: bool, is_last: bool
    ) -> None:
        """Raise unless a call that got no result may be made again.

        Args:
            was_sent: something of it went out, with this try or before.
            is_last: it was tried often enough.
        """
        answer = waiting.answer
        if isinstance(answer, Error):
            waiting.answer = None  # or it would keep the error alive, whose traceback keeps it alive
            raise answer
        if isinstance(answer, Failure) and (answer.code != codes.DRAINING or link.takes_calls):
            raise answered_error(waiting.method, answer)
        is_used_up = waiting.upload is not None and waiting.upload.was_pulled
        is_hopeless = self._is_closed or link.fault is not None or is_last or is_used_up
        if is_hopeless or (was_sent and not self._is_idempotent(remote, waiting.deadline)):
            raise lost(waiting.method, self.address, link.why, was_sent=was_sent) from link.fault

    def _is_idempotent(self, remote: RemoteMethod, deadline: TimeLeft) -> bool:
        """Whether a method may be called again: as the client's class says, or else the server that is there now."""
        if remote.is_idempotent is not None:
            return remote.is_idempotent
        try:
            described = self._describe(deadline.left()).methods.get(remote.name)
        except Error:
            return False
        return described is not None and described.idempotent

    def _connect_again(self, waiting: Waiting, *, was_sent: bool) -> Link:
        """A connection that takes calls; one thread makes it, and the others wait for that one.

        Args:
            was_sent: the call went out on a connection before.
        """
        left = waiting.deadline.left()
        try:
            if not self._dialling.acquire(timeout=-1 if left == math.inf else min(left, threading.TIMEOUT_MAX)):
                raise too_late(waiting.method, self.address, waiting.deadline.timeout or 0.0)
            link = self._link
            if link is not None and link.takes_calls:
                return link
            if self._is_closed:
                raise lost(waiting.method, self.address, _CLOSED, was_sent=was_sent)
            if isinstance(self._address, DescriptorAddress):
                raise lost(waiting.method, self.address, link.why if link else _CLOSED, was_sent=was_sent)
            link = self._dial(waiting.deadline)
            self._links = [*(known for known in self._links if not known.is_over), link]
            self._link = link
            if self._is_closed:  # meanwhile
                self.close()
            return link
        except Unavailable as error:
            raise lost(waiting.method, self.address, str(error), was_sent=was_sent) from error
        finally:
            with contextlib.suppress(RuntimeError):  # it is not ours, as the time was over, or we were interrupted
                self._dialling.release()

    def _dial(self, deadline: TimeLeft) -> Link:
        left = deadline.left()
        wait = min(self._wait, left)
        connection = dial(self._address, wait=wait, timeout=left - wait, trust=self._trust)
        return Link(connection, kinds_wanted(self.remote_methods), self._busy_wait)

    def _describe(self, timeout: float | ClientTimeout | None) -> Description:
        link, known = self._link, self._description
        if known is not None and known[0] is link and link.takes_calls:
            return known[1]
        seconds = seconds_for(self._timeout if timeout is CLIENTS_TIMEOUT else timeout)
        asking = Waiting(DESCRIBE, _NO_ARGUMENTS, context_to_hand_on(), Deadline(seconds))
        answering, asked = self._exchange(_DESCRIBE, asking)
        answer = asked.answer
        assert isinstance(answer, Reply)
        try:
            description: Description = answering.attachments.read(read_description, answer.result, answer.descriptors)
        except CannotDecode as error:
            raise InvalidResult(f"{self.address} does not describe itself as a service does: {error}") from error
        if link is not None and link is self._link:
            self._description = link, description
        return description

    def _after_fork(self) -> None:
        """In a child, leave the connections and the threads to the parent."""
        self._dialling = threading.RLock()
        links, self._links, self._link = self._links, [], None
        for link in links:
            link.forget()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            # Not its repr, which looks users up, and cannot when the interpreter is on its way out.
            name = f"<{type(self).__name__} of {self.address}>"
            warnings.warn(f"{name} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()


def _make(link: Link, waiting: Waiting) -> None:
    """Make a call, and do what it takes until there is an answer to it: send items, tell of progress, wait."""
    upload = waiting.upload
    if waiting.values is not None:
        link.prepare(waiting)
    if upload is None and waiting.listener is None:
        link.make(waiting)
        return
    link.begin([waiting])
    try:
        while True:
            waiting.has_news = False
            waiting.hear()
            if waiting.answer is not None:
                break
            if upload is not None:
                upload.step(link, waiting)
            else:
                link.wait_for_news(waiting)
    except BaseException:
        link.abandon(waiting)
        if upload is not None:
            upload.close()
        raise
    if upload is not None and upload.was_pulled and type(waiting.answer) is not Stream:
        upload.close()


_callers: weakref.WeakSet[Caller] = weakref.WeakSet()


def _after_fork() -> None:
    for caller in list(_callers):
        caller._after_fork()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
