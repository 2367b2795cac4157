"""Many at a time: a hundred conversations when the signal comes, a thousand clients at once, nothing left of them."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import DEADLINE, SAMEHOST, Program, listening, until

import samehost

CLIENTS = 1000
REPLY = b"Message received successfully\n"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for the thousand clients in this process, and in the server that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 2 * CLIENTS:
        pytest.skip(f"SKIPPED LOUDLY: at most {hard} descriptors are allowed here, and {2 * CLIENTS} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 0 else min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def replies_of(clients: list[samehost.Connection], reply: bytes) -> None:
    """Wait for this reply on each, close each once it is there."""
    poll = select.poll()
    missing = {client.socket.fileno(): client for client in clients}
    for descriptor in missing:
        poll.register(descriptor, select.POLLIN)
    end = time.monotonic() + DEADLINE
    while missing:
        ready = poll.poll(DEADLINE * 1000)
        assert ready, f"{len(missing)} of {len(clients)} have no reply"
        assert time.monotonic() < end
        for descriptor, _ in ready:
            client = missing.pop(descriptor)
            assert client.recv() == reply
            poll.unregister(descriptor)
            client.close()


def status(server: Program, name: str) -> int:
    """A number of /proc/PID/status."""
    [line] = [line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])


def descriptors(server: Program) -> list[str]:
    """What the server has open, without the numbers that differ from one socket to the next."""
    directory = Path(f"/proc/{server.pid}/fd")
    return sorted(os.readlink(entry).split(":")[0] for entry in directory.iterdir())


def test_a_hundred_conversations_are_drained(place: Path) -> None:
    # Each message names a fifo, and the command replies with what is written to it.
    with listening(place / "s", "--exec", "cat $(cat)") as server:
        clients = [samehost.dial(place / "s") for _ in range(100)]
        busy, idle = clients[:50], clients[50:]
        fifos = []
        for number, client in enumerate(busy):
            path = place / f"fifo{number}"
            os.mkfifo(path)
            client.sendall(bytes(path))
            fifos.append(os.open(path, os.O_WRONLY))  # waits for its command, so it is in flight from here on
            path.unlink()
        server.signal(signal.SIGTERM)
        until(lambda: os.listdir(place) == [], "socket and lock are removed")
        with pytest.raises(samehost.errors.Unavailable):
            samehost.dial(place / "s")
        for client in idle:
            with client:
                assert client.recv(timeout=DEADLINE) == b""  # ended, while the others are in flight
        for number, fifo in enumerate(fifos):
            os.write(fifo, b"reply %d" % number)
            os.close(fifo)
        for number, client in enumerate(busy):
            with client:
                assert client.recv(timeout=DEADLINE) == b"reply %d" % number
                assert client.recv(timeout=DEADLINE) == b""
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        pids = children.read_text().split()  # those commands of which the end is still to be noticed
        assert server.end() == 0
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        errors = server.errors()
        assert errors.startswith("samehost: SIGTERM: draining")
        assert errors.count("\n") == 1


def test_a_thousand_clients_are_answered_and_leave_nothing_behind(place: Path, many_descriptors: None) -> None:
    message = b"Hello UNIX socket!\n"
    with Program([*SAMEHOST, "listen", str(place / "s")], stdout=subprocess.DEVNULL) as server:

        def a_round() -> int:
            """All connect, then all send, then all get their reply; gives the server's memory afterwards, in KiB."""
            clients = [samehost.dial(place / "s") for _ in range(CLIENTS)]
            until(lambda: status(server, "Threads") == CLIENTS + 1, "all are being served")
            for client in clients:
                client.sendall(message)
            replies_of(clients, REPLY)
            until(lambda: status(server, "Threads") == 1, "all have ended")
            return status(server, "VmRSS")

        samehost.dial(place / "s", wait=DEADLINE).close()
        for _ in range(2):
            a_round()  # these warm up what Python and malloc keep for good
        before, opened = a_round(), descriptors(server)
        after = [a_round() for _ in range(5)]
        assert max(after) < before * 1.1, (before, after)  # a KiB more for each client would be too much
        until(lambda: descriptors(server) == opened, "descriptors are as before")
        server.signal(signal.SIGTERM)
        assert server.end() == 0
