"""A job runner: shell and Python commands in the background, so many at a time, each ended with the service.

Whoever may call this runs programs as its user, so the socket keeps its default mode, 0600. All state belongs to the
event loop; nothing here needs a lock. Try it from a shell::

    python examples/jobs.py &
    samehost call jobs submit 'text=for i in 25 50 75 100; do echo $i%; sleep 0.1; done'
    samehost call jobs status job=1
    samehost call jobs follow job=1
    samehost call jobs wait job=1 --timeout 60
    samehost call jobs output job=1
"""

import asyncio
import contextlib
import enum
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

import samehost
from samehost.errors import Busy

RUNNING_MAX = 4
QUEUED_MAX = 100
ENDED_MAX = 1000
"""Jobs that run, wait for their turn, and are remembered."""

OUTPUT_BYTES_MAX = 1024 * 1024
"""What is kept of a job's output, the last of it."""

GRACE_SECONDS = 2.0
"""How long a job may go on after SIGTERM."""

COMMANDS = {"shell": ("/bin/sh", "-c"), "python": (sys.executable, "-u", "-c")}
PERCENT = re.compile(rb"(\d{1,3})(?:\.\d+)?\s?%")

logger = logging.getLogger("jobs")


class State(enum.StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass
class Job:
    """A job, as callers see it.

    Attributes:
        progress: from 0 to 1, the last percentage that the job has printed; None if it has printed none.
        exit_code: negative for the signal that ended it; None while there is none.
    """

    id: int
    text: str
    state: State
    submitted: datetime
    started: datetime | None = None
    ended: datetime | None = None
    progress: float | None = None
    exit_code: int | None = None


class NoSuchJob(samehost.ServiceError):
    """There is no job of this number, or not any more."""

    code = "jobs.no_such_job"


class Entry:
    """A job, and what runs it: a task, which has a slot and then a process group of its own."""

    def __init__(self, job: Job, command: tuple[str, ...], slots: asyncio.Semaphore) -> None:
        self.job = job
        self.output = bytearray()  # the last of it
        self.printed_bytes = 0  # all of it
        self.over = asyncio.Event()
        self._news = asyncio.Event()
        self._is_cancelled = False
        self._group = 0
        self._task = asyncio.create_task(self._run(command, slots))
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """End it soon; `over` tells when it has."""
        if not self._is_cancelled and not self.over.is_set():
            self._is_cancelled = True
            if self.job.state is State.QUEUED:
                self._task.cancel()
            else:
                self._terminate()

    async def news(self) -> None:
        """Wait until it prints something, or is over."""
        if not self.over.is_set():
            await self._news.wait()

    async def _run(self, command: tuple[str, ...], slots: asyncio.Semaphore) -> None:
        async with slots:
            self.job.state, self.job.started = State.RUNNING, datetime.now(UTC)
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            self._group = process.pid
            if self._is_cancelled:  # meanwhile
                self._terminate()
            assert process.stdout is not None
            reading = asyncio.create_task(self._read(process.stdout))
            self.job.exit_code = await process.wait()
            self._kill()  # what it has left running
            # Only a process that has moved to a session of its own can hold the pipe any longer.
            await asyncio.wait([reading], timeout=GRACE_SECONDS)
            reading.cancel()

    async def _read(self, pipe: asyncio.StreamReader) -> None:
        while piece := await pipe.read(65536):
            self._keep(piece)
            if printed := PERCENT.findall(self.output[-256:]):
                self.job.progress = min(int(printed[-1]), 100) / 100

    def _keep(self, piece: bytes) -> None:
        self.output += piece
        self.printed_bytes += len(piece)
        del self.output[:-OUTPUT_BYTES_MAX]
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _terminate(self) -> None:
        if self._group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGTERM)
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._kill)

    def _kill(self) -> None:
        group, self._group = self._group, 0
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # no memory, too many processes
            self._keep(f"{error}\n".encode())
        if self._is_cancelled:
            self.job.state = State.CANCELLED
        else:
            self.job.state = State.DONE if self.job.exit_code == 0 else State.FAILED
        self.job.ended = datetime.now(UTC)
        self.over.set()
        self._tell()
        logger.info("job %d: %s", self.job.id, self.job.state)


class Jobs:
    """All jobs."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._last = 0
        self._slots = asyncio.Semaphore(RUNNING_MAX)

    def submit(self, text: str, kind: str) -> Job:
        if sum(entry.job.state is State.QUEUED for entry in self._entries.values()) >= QUEUED_MAX:
            raise Busy(f"{QUEUED_MAX} jobs wait for their turn already")
        self._forget_oldest()
        self._last += 1
        job = Job(self._last, text, State.QUEUED, datetime.now(UTC))
        self._entries[job.id] = Entry(job, (*COMMANDS[kind], text), self._slots)
        return job

    def get(self, job: int) -> Entry:
        try:
            return self._entries[job]
        except KeyError:
            raise NoSuchJob(f"there is no job {job}") from None

    def all(self) -> list[Job]:
        return [entry.job for entry in self._entries.values()]

    async def end(self) -> None:
        """Cancel every job, and wait until no process is left."""
        for entry in self._entries.values():
            entry.cancel()
        for entry in self._entries.values():
            await entry.over.wait()

    def _forget_oldest(self) -> None:
        over = [number for number, entry in self._entries.items() if entry.over.is_set()]
        for number in over[: max(0, len(over) - ENDED_MAX + 1)]:
            del self._entries[number]


jobs = samehost.Service("jobs")


@jobs.lifespan
async def no_job_outlives_us() -> AsyncIterator[Jobs]:
    """End what still runs when the service ends."""
    all_jobs = Jobs()
    try:
        yield all_jobs
    finally:
        await all_jobs.end()


@jobs.method
async def submit(
    text: Annotated[str, msgspec.Meta(min_length=1)], call: samehost.Call, kind: Literal["shell", "python"] = "shell"
) -> Job:
    """Run a shell command or a Python program, as soon as there is room."""
    all_jobs: Jobs = call.state
    job = all_jobs.submit(text, kind)
    logger.info("job %d, for %s: %s", job.id, call.peer, text)
    return job


@jobs.method(inline=True, idempotent=True)
def status(job: int, call: samehost.Call) -> Job:
    """How far a job is."""
    entry: Entry = call.state.get(job)
    return entry.job


@jobs.method(name="list", inline=True, idempotent=True)
def list_jobs(call: samehost.Call) -> list[Job]:
    """All jobs that are remembered, the oldest first."""
    all_jobs: Jobs = call.state
    return all_jobs.all()


@jobs.method(idempotent=True)
async def wait(job: int, call: samehost.Call) -> Job:
    """Wait until a job is over, for as long as the call's deadline allows. The job goes on if it passes."""
    entry: Entry = call.state.get(job)
    while not entry.over.is_set():
        if entry.job.progress is not None:
            call.progress(entry.job.progress, 1.0)
        await entry.news()
    return entry.job


@jobs.method(idempotent=True)
async def cancel(job: int, call: samehost.Call) -> Job:
    """End a job, if it is not over, and wait until it is."""
    entry: Entry = call.state.get(job)
    entry.cancel()
    await entry.over.wait()
    return entry.job


@jobs.method(inline=True, idempotent=True)
def output(job: int, call: samehost.Call, last: Annotated[int, msgspec.Meta(ge=1)] = OUTPUT_BYTES_MAX) -> bytes:
    """What a job has printed until now, the last so many bytes of it."""
    entry: Entry = call.state.get(job)
    return bytes(entry.output[-last:])


@jobs.method
async def follow(job: int, call: samehost.Call) -> AsyncIterator[bytes]:
    """What a job has printed, and then what it prints, until it is over."""
    entry: Entry = call.state.get(job)
    given = 0
    while given < entry.printed_bytes or not entry.over.is_set():
        new = entry.printed_bytes - given
        given = entry.printed_bytes
        if new:
            yield bytes(entry.output[-new:])
        else:
            await entry.news()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    samehost.serve(jobs, *sys.argv[1:2], drain=5.0)  # somebody may be waiting for a job that goes on for hours
