"""Datagrams: who sent them, and where a reply may go."""

from __future__ import annotations

import logging
import os
import socket
import sys

import pytest
from support import DEADLINE, NOBODY, needs_program, needs_root, python_as, run

import samehost
from samehost.errors import ConnectionClosed, DeadlineExceeded, NotPermitted

# A sender that is bound to a path of its own, and says hello again and again as told.
SENDER = """
path, server = sys.argv[1:]
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.bind(path)
sender.connect(server)
for line in sys.stdin:
    sender.send(b"hello")
    print("sent", flush=True)
    if line == "reply\\n":
        print(sender.recv(100), flush=True)
"""


@needs_root
def test_a_sender_is_answered_at_its_path(place):
    with (
        samehost.listen(place / "d", "datagram") as listener,
        python_as(0, SENDER, f"{place}/p", f"{place}/d") as sender,
    ):
        sender.tell("reply")
        with listener.receive(timeout=DEADLINE) as datagram:
            assert datagram.sender == f"{place}/p"
            datagram.reply(b"welcome")
        assert sender.line() == "sent"
        assert sender.line() == "b'welcome'"


@needs_root
def test_a_reply_is_not_led_to_a_socket_that_the_sender_may_not_write_to(open_place):
    secret = open_place / "secret"
    mine = open_place / "mine"
    with (
        samehost.listen(open_place / "d", "datagram", mode=0o666) as listener,
        samehost.listen(secret, "datagram") as root_only,
        python_as(NOBODY, SENDER, str(mine), str(open_place / "d")) as sender,
    ):
        sender.tell("hello")
        assert sender.line() == "sent"
        with listener.receive(timeout=DEADLINE) as datagram:
            mine.unlink()
            mine.symlink_to(secret)
            with pytest.raises(NotPermitted, match=rf"no socket of its sender \(uid {NOBODY}"):
                datagram.reply(b"READY=1")
            mine.unlink()
            os.link(secret, mine)
            with pytest.raises(NotPermitted, match=rf"no socket of its sender \(uid {NOBODY}"):
                datagram.reply(b"READY=1")
            mine.unlink()
            with pytest.raises(ConnectionClosed, match="No such file"):
                datagram.reply(b"READY=1")
        with pytest.raises(DeadlineExceeded):
            root_only.receive(timeout=0)


def test_a_relative_address_is_not_looked_for_in_our_directory(place, monkeypatch):
    monkeypatch.chdir(place)
    with (
        samehost.listen(place / "d", "datagram") as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        sender.bind("relative")
        sender.sendto(b"hello", str(place / "d"))
        with listener.receive(timeout=DEADLINE) as datagram, pytest.raises(NotPermitted, match="relative address"):
            datagram.reply(b"hello")


@needs_program("strace")
def test_senders_are_told_from_the_first_moment_on_and_no_stranger_comes_before_the_server(place):
    code = f"""if True:
        import samehost
        with samehost.listen("{place}/d", "datagram"), samehost.dial("{place}/d", "datagram"):
            pass
    """
    trace = place / "trace"
    calls = "trace=setsockopt,bind,connect"
    assert run(["strace", "-o", str(trace), "-e", calls, sys.executable, "-c", code]).returncode == 0
    lines = [line for line in trace.read_text().splitlines() if "PASSCRED" in line or "AF_UNIX" in line]
    names = [line.split("(")[0] for line in lines]
    assert names == ["setsockopt", "bind", "connect", "bind"]


def test_what_came_before_credentials_were_asked_for_is_from_nobody(place, caplog):
    handed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    handed.bind(str(place / "d"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(place / "d"))
        sender.send(b"early")
        with samehost.listen(f"fd:{handed.detach()}", "datagram") as listener:
            sender.send(b"late")
            with caplog.at_level(logging.WARNING), listener.receive(timeout=DEADLINE) as datagram:
                assert (datagram.data, datagram.peer.uid) == (b"late", os.geteuid())
            assert listener.dropped == 1
            assert "an unknown sender" in caplog.text
