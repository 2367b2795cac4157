"""A log collector: records from every process of the host in one file, each tagged with who the kernel says sent it.

Clients notify, so logging costs them one system call and no answer. Everybody may log and read what they have logged;
root, and the user that the collector runs as, read everything. Try it from a shell::

    LOG_COLLECTOR_FILE=/tmp/collected.jsonl python examples/log_collector.py &
    samehost call log-collector log level=30 name=backup 'text=the disk is full' --notify
    samehost call log-collector query level=30

For root, and for that user, `samehost call log-collector tail` prints the records that come from now on, until Ctrl-C.
What Python programs take from here is `CollectorHandler`, as in
`logging.basicConfig(handlers=[logging.StreamHandler(), CollectorHandler()])`.
"""

import contextlib
import io
import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Annotated

import msgspec

import samehost

FILE_BYTES_MAX = int(os.environ.get("LOG_COLLECTOR_FILE_BYTES", "16777216"))
FILES_MAX = 4
"""A file longer than this is rotated, and so many are kept."""

QUEUED_MAX = 10_000
"""Records that may wait for the disk; further ones are dropped, and counted."""

WRITTEN_SECONDS = 5.0
"""How long a query waits for the disk."""

logger = logging.getLogger("log-collector")

ADMINS = samehost.allow(uid={0, os.geteuid()})

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Text = Annotated[str, msgspec.Meta(max_length=8192)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=400)]  # so many of the longest records fit one message


class CollectorHandler(logging.Handler):
    """Sends records to the collector; for clients.

    A program must not fail or wait because its log cannot be kept: what cannot be sent at once is counted, and dropped.

    Attributes:
        dropped: how many records were.
    """

    def __init__(self, address: str = "log-collector", level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.dropped = 0
        self._address = address
        self._client: samehost.Client | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._client is None:
                self._client = samehost.connect(self._address, timeout=0.1)
            text = self.format(record)[:8192]
            created = datetime.fromtimestamp(record.created, UTC)
            self._client.notify("log", record.levelno, record.name, text, created)
        except samehost.errors.Error:
            self.dropped += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        super().close()


class Record(msgspec.Struct):
    """A record that was kept.

    Attributes:
        created: as the sender says.
        received: as we say.
        uid: of the sender, as the kernel says.
        pid: likewise; it may belong to another process by now.
    """

    level: int
    name: str
    text: str
    created: datetime
    received: datetime
    uid: int
    pid: int


class DiskTooSlow(samehost.ServiceError):
    """The records to look through are not on disk yet."""

    code = "log_collector.disk_too_slow"


class Collector:
    """The files, and the thread that writes them, so that no disk holds up the event loop."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = self._open()
        self._queue: queue.Queue[Record | threading.Event | None] = queue.Queue(QUEUED_MAX)
        self._refused = 0
        self._rotating = threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name="log-writer")
        self._thread.start()

    def take(self, record: Record) -> None:
        """Keep a record, or count it if the disk is that far behind. Never waits."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._refused += 1

    def read_all(self) -> Iterator[Record]:
        """What is kept, the oldest first, and with it all that was taken until now."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._queue.put(written, timeout=WRITTEN_SECONDS)
        if not written.wait(WRITTEN_SECONDS):
            raise DiskTooSlow("the disk is too far behind")
        with self._rotating:
            for name in reversed(self._names()):
                if os.path.exists(name):
                    with open(name, "rb") as file:
                        yield from filter(None, map(read, file))

    def close(self) -> None:
        """Write what was taken, and end."""
        self._queue.put(None)
        self._thread.join()
        self._file.close()

    def _write_all(self) -> None:
        reported = 0
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                self._file.write(msgspec.json.encode(item) + b"\n")
                if self._file.tell() > FILE_BYTES_MAX:
                    self._rotate()
            except OSError as error:  # the disk is full: it may not be for ever
                logger.error("a record is lost: %s", error)
            if self._refused > reported and self._queue.empty():
                reported = self._refused
                logger.error("the disk was too slow: %d records are lost by now", reported)

    def _rotate(self) -> None:
        names = self._names()
        with self._rotating:
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                if os.path.exists(newer):
                    os.replace(newer, older)
            self._file.close()
            self._file = self._open()

    def _open(self) -> io.FileIO:
        # For our user alone: others are to read what the policy lets them.
        return open(self._path, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600))

    def _names(self) -> list[str]:
        return [self._path, *(f"{self._path}.{number}" for number in range(1, FILES_MAX))]


def read(line: bytes) -> Record | None:
    try:
        return msgspec.json.decode(line, type=Record)
    except msgspec.DecodeError:
        return None  # cut short, when the disk was full or the power went


collector = samehost.Service("log-collector", allow=samehost.ANYONE)
tail = collector.topic("tail", Record, queue=1000, allow=ADMINS, doc="Every record as it comes.")


@collector.lifespan
async def open_files() -> AsyncIterator[Collector]:
    """Open the file before the first call; write what is left and close it after the last."""
    opened = Collector(os.environ.get("LOG_COLLECTOR_FILE", "collected.jsonl"))
    try:
        yield opened
    finally:
        opened.close()


@collector.method(inline=True)  # keeps the order of a client's records, which threads would not
def log(call: samehost.Call, level: int, name: str, text: Text, created: Moment | None = None) -> None:
    """Keep a record. To be notified, not called."""
    files: Collector = call.state
    received = datetime.now(UTC)
    record = Record(level, name, text, created or received, received, call.peer.uid, call.peer.pid)
    files.take(record)
    tail.publish(record)


@collector.method(idempotent=True, timeout=20.0, errors={PermissionError: "not_permitted"})
def query(
    call: samehost.Call,
    *,
    level: int = logging.NOTSET,
    since: Moment | None = None,
    until: Moment | None = None,
    uid: int | None = None,
    limit: Limit = 100,
) -> list[Record]:
    """The last records of at least this level, received in this time; one's own, and everybody's for root."""
    if not ADMINS.admits(call.peer):
        if uid not in (None, call.peer.uid):
            raise PermissionError(f"{call.peer} may not read what uid {uid} has logged")
        uid = call.peer.uid
    files: Collector = call.state
    found: deque[Record] = deque(maxlen=limit)
    for record in files.read_all():
        if call.is_cancelled:
            break
        is_in_time = (since is None or record.received >= since) and (until is None or record.received < until)
        if is_in_time and record.level >= level and uid in (None, record.uid):
            found.append(record)
    return list(found)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    samehost.serve(collector, *sys.argv[1:2], mode=0o666)  # everybody may connect
