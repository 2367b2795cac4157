"""Keeping an address while it is served: a path that is removed, replaced, or out of our hands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import threading

import pytest
from support import DEADLINE, NOBODY, needs_root, python, until

import samehost
import samehost.aio
from samehost import limits
from samehost.address import parse
from samehost.errors import ListenerClosed, UsageError
from samehost.kernel.acceptor import Acceptor
from samehost.kernel.claim import Request
from samehost.kernel.keeper import handlers_that_fit

FRONTS = pytest.mark.parametrize("front", [samehost, samehost.aio], ids=["blocking", "aio"])

AGAIN = "was removed while it was served: it was made again"
REPLACED = "was replaced while it was served: new clients no longer reach this server"


@contextlib.contextmanager
def listening(front, address, type="stream", **settings):
    listener = front.listen(address, type, **settings)
    try:
        yield listener
    finally:
        listener.close()


def said(caplog):
    """What was logged since the last call."""
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


# The path is removed


@FRONTS
@pytest.mark.parametrize("type", ["stream", "datagram", "seqpacket"])
@pytest.mark.parametrize("lock_as_well", [False, True])
def test_a_removed_path_is_made_again(front, place, caplog, type, lock_as_well):
    path = place / "s"
    with listening(front, path, type, mode=0o640) as listener:
        listener.check_path()
        assert said(caplog) == []
        os.unlink(path)
        if lock_as_well:
            os.unlink(place / "s.lock")
        listener.check_path()
        assert said(caplog) == [f"{path} {AGAIN}"]
        assert sorted(os.listdir(place)) == ["s", "s.lock"]
        assert os.lstat(path).st_mode & 0o777 == 0o640
        samehost.dial(path, type).close()
        listener.check_path()
        assert said(caplog) == []
    assert os.listdir(place) == []


def test_clients_of_every_socket_that_lost_its_path_are_served(place):
    path = place / "s"
    with samehost.listen(path) as listener, samehost.dial(path) as first:
        os.unlink(path)
        listener.check_path()
        with samehost.dial(path) as second:
            os.unlink(path)
            listener.check_path()
            with samehost.dial(path) as third:
                for client in (first, second, third):
                    with listener.accept(timeout=DEADLINE) as server:
                        client.sendall(b"hello")
                        assert server.recv() == b"hello"


def test_datagrams_of_before_and_after_are_received(place):
    path = place / "s"
    with samehost.listen(path, "datagram") as listener, samehost.dial(path, "datagram") as before:
        before.send(b"before")
        os.unlink(path)
        listener.check_path()
        with samehost.dial(path, "datagram") as after:
            after.send(b"after")
            received = [listener.receive(timeout=DEADLINE) for _ in range(2)]
            assert [datagram.data for datagram in received] == [b"before", b"after"]


async def test_who_waits_notices_by_itself(place, monkeypatch, caplog):
    monkeypatch.setattr(limits, "PATH_CHECK_SECONDS", 0.01)
    for name in ("blocking", "aio"):
        path = place / name
        if name == "aio":
            listener = samehost.aio.listen(path)
            waiting = asyncio.create_task(listener.accept())
        else:
            listener = samehost.listen(path)
            waiting = asyncio.create_task(asyncio.to_thread(listener.accept))
        for _ in range(3):
            await asyncio.sleep(0)
            os.unlink(path)
            await asyncio.to_thread(until, path.exists, "the path is made again")
        with samehost.dial(path, wait=DEADLINE):
            (await waiting).close()
        listener.close()
        assert said(caplog) == [f"{path} {AGAIN}"] * 3


def test_many_threads_accept_while_the_path_goes_again_and_again(place, monkeypatch):
    """None of them is left in an accept that blocks, on a socket that another one has let go, or with an error."""
    monkeypatch.setattr(limits, "PATH_CHECK_SECONDS", 0.001)
    path = place / "s"
    ends = []

    def accept(listener):
        try:
            while True:
                listener.accept().close()
        except Exception as error:
            ends.append(type(error))

    for _ in range(5):
        with samehost.listen(path) as listener:
            threads = [threading.Thread(target=accept, args=(listener,), daemon=True) for _ in range(6)]
            for thread in threads:
                thread.start()
            for _ in range(10):
                os.unlink(path)
                samehost.dial(path, wait=DEADLINE).close()
            assert ends == []
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)
        assert ends == [ListenerClosed] * len(threads)
        ends.clear()
    assert os.listdir(place) == []


@FRONTS
def test_a_directory_that_goes_is_said_once_and_the_path_made_again_when_it_is_back(front, place, caplog):
    directory = place / "d"
    directory.mkdir()
    path = directory / "s"
    with listening(front, path) as listener:
        directory.rename(place / "moved")
        for _ in range(3):
            listener.check_path()
        (message,) = said(caplog)
        assert message.startswith(f"{path} was removed while it was served, and cannot be made again: ")
        assert "No such file or directory" in message
        assert os.listdir(place / "moved") == []
        directory.mkdir()
        listener.check_path()
        assert said(caplog) == [f"{path} {AGAIN}"]
        samehost.dial(path).close()
    assert os.listdir(directory) == []


@FRONTS
def test_who_was_quicker_keeps_the_path_until_it_ends(front, place, caplog):
    directory = place / "d"
    directory.mkdir()
    path = directory / "s"
    with listening(front, path) as listener:
        directory.rename(place / "moved")
        listener.check_path()
        directory.mkdir()
        with samehost.listen(path) as quicker:
            said(caplog)
            listener.check_path()
            with samehost.dial(path) as client, quicker.accept(timeout=DEADLINE):
                assert client.peer.pid == os.getpid()
        listener.check_path()
        assert said(caplog) == [f"{path} {AGAIN}"]
        samehost.dial(path).close()


# The path is replaced


@FRONTS
@pytest.mark.parametrize("kind", ["socket", "file", "directory of another server"])
def test_a_replaced_path_is_said_once_and_left_alone(front, place, caplog, kind):
    directory = place / "d"
    directory.mkdir()
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as other, listening(front, path) as listener:
        match kind:
            case "socket":
                other.bind(f"{directory}/other")
                os.rename(directory / "other", path)
            case "file":
                (directory / "other").write_text("mine")
                os.rename(directory / "other", path)
            case "directory of another server":
                directory.rename(place / "moved")
                directory.mkdir()
                other.bind(str(path))
        there = os.lstat(path)
        for _ in range(3):
            listener.check_path()
        assert said(caplog) == [f"{path} {REPLACED}"]
        assert os.lstat(path) == there
        listener.close()
        assert os.lstat(path) == there
    assert os.listdir(directory) == ["s"]


def test_once_the_replacement_is_gone_the_path_is_ours_again(place, caplog):
    path = place / "s"
    with samehost.listen(path) as listener:
        (place / "other").touch()
        os.rename(place / "other", path)
        listener.check_path()
        os.unlink(path)
        listener.check_path()
        assert said(caplog) == [f"{path} {REPLACED}", f"{path} {AGAIN}"]
        samehost.dial(path).close()


# The process has changed


def test_a_forked_child_says_it_and_makes_nothing_again(place):
    """Only the process that claimed the path has the right to: two of them would race."""
    path = place / "s"
    code = """
        import logging, os, sys, samehost
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        listener = samehost.listen(sys.argv[1])
        if os.fork() == 0:
            os.unlink(sys.argv[1])
            listener.check_path()
            listener.check_path()
            listener.close()
            print(os.listdir(os.path.dirname(sys.argv[1])), flush=True)
            os._exit(0)
        os.wait()
        listener.check_path()
        listener.close()
        """
    with python(code, str(path)) as program:
        assert program.line() == f"{path} was removed while it was served: new clients no longer reach this server"
        assert program.line() == "['s.lock']"
        assert program.line() == f"{path} {AGAIN}"
        assert program.end() == 0
    assert os.listdir(place) == []


def test_a_forked_child_that_closes_removes_nothing(place):
    path = place / "s"
    with samehost.listen(path) as listener:
        child = os.fork()
        if child == 0:
            listener.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert sorted(os.listdir(place)) == ["s", "s.lock"]
        with samehost.dial(path), listener.accept(timeout=DEADLINE):
            pass


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700])
@pytest.mark.parametrize("end", ["close", "serve", "aio"])
def test_a_server_that_gave_up_its_privileges_serves_and_ends_well(place, mode, end):
    """It may no longer remove what it made, nor look at it with mode 0700: a warning, and the next server does it."""
    place.chmod(mode)
    code = """
        import asyncio, logging, os, signal, sys, samehost, samehost.aio
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        path, end, nobody = sys.argv[1], sys.argv[2], int(sys.argv[3])
        samehost.limits.PATH_CHECK_SECONDS = 0.01
        listener = (samehost.aio if end == "aio" else samehost).listen(path)
        os.setgroups([]), os.setgid(nobody), os.setuid(nobody)
        if end == "close":
            try:
                listener.accept(timeout=0.1)  # several looks at the path
            except samehost.errors.DeadlineExceeded:
                listener.close()
        else:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            asyncio.run(listener.serve(print)) if end == "aio" else listener.serve(print)
        print("ended")
        """
    with python(code, f"{place}/s", end, str(NOBODY)) as program:
        assert program.line() == f"{place}/s or its lock file could not be removed: Permission denied"
        assert program.line() == "ended"
        assert (program.end(), program.errors()) == (0, "")
    assert sorted(os.listdir(place)) == ["s", "s.lock"]
    samehost.listen(place / "s").close()
    assert os.listdir(place) == []


# Ending


def acceptor(address):
    return Acceptor(Request(parse(address), "stream", 0o600, None, None), None)


def test_stopping_frees_the_address_at_once_and_keeps_who_has_come(place):
    old = acceptor(place / "s")
    with samehost.dial(place / "s") as client:
        assert old.stop() is True
        assert os.listdir(place) == []
        with samehost.listen(place / "s") as new:
            accepted, peer = old.accept_now()
            with accepted:
                assert peer.pid == os.getpid()
                client.sendall(b"still here")
                assert accepted.recv(100) == b"still here"
            with pytest.raises(BlockingIOError):
                old.accept_now()
            with samehost.dial(place / "s"), new.accept(timeout=DEADLINE):
                pass
            old.release()
            with samehost.dial(place / "s"), new.accept(timeout=DEADLINE):
                pass


def test_stopping_leaves_to_other_holders_what_waits_there(place):
    with socket.socket(socket.AF_UNIX) as handed:
        handed.bind(f"{place}/s")
        handed.listen()
        number = os.dup(handed.fileno())
        kept = acceptor(f"fd:{number}")
        assert kept.stop() is False
        kept.release()
        with samehost.dial(place / "s"):  # for whoever handed it to us, nothing has changed
            handed.accept()[0].close()


def test_stopping_in_a_forked_child_leaves_the_parent_s_listener_working(place):
    kept = acceptor(place / "s")
    child = os.fork()
    if child == 0:
        os._exit(int(kept.stop()))
    assert os.waitpid(child, 0)[1] == 0
    with samehost.dial(place / "s"):
        accepted, _ = kept.accept_now()
        accepted.close()
    kept.release()
    assert os.listdir(place) == []


# Who is served, and how many


def test_an_abstract_address_admits_this_user_and_root_unless_told_otherwise(place):
    with samehost.listen(f"@{place}") as listener:
        assert listener._keeper.policy == samehost.allow(uid={os.geteuid(), 0})
    with samehost.listen(f"@{place}", allow=samehost.ANYONE) as listener:
        assert listener._keeper.policy is samehost.ANYONE
    with samehost.listen(place / "s") as listener:
        assert listener._keeper.policy is None  # the file's mode decides
    handed = socket.socket(socket.AF_UNIX)
    handed.bind(f"\0{place}")
    handed.listen()
    with samehost.listen(f"fd:{handed.detach()}") as listener:
        assert listener._keeper.policy == samehost.allow(uid={os.geteuid(), 0})


def test_no_more_handlers_than_descriptors_allow():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        assert handlers_that_fit(1024) == 75
        assert handlers_that_fit(10) == 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(UsageError, match="not 0"):
        handlers_that_fit(0)
