"""The safe socket alone, in the hands of servers that are not ours, and sockets that were handed to us."""

from __future__ import annotations

import asyncio
import os
import socket
import socketserver
import threading
from pathlib import Path

import pytest
from support import DEADLINE, SAMEHOST, Program, python, run, send

import samehost
import samehost.aio

REQUEST = b"GET /hello HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


def converse(path: Path, message: bytes) -> bytes:
    """What a server that we know nothing of answers, until it closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(message)
        reply = b""
        while piece := client.recv(65536):
            reply += piece
    return reply


@pytest.mark.parametrize("module", [samehost, samehost.aio], ids=["threads", "asyncio"])
async def test_an_asyncio_server_takes_it(place: Path, module: object) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"asyncio got " + await reader.read(100))
        await writer.drain()
        writer.close()

    listener = module.listen(place / "s")
    try:
        server = await asyncio.start_unix_server(handler, sock=listener.socket)
        assert await asyncio.to_thread(converse, place / "s", b"this") == b"asyncio got this"
        server.close()
        await server.wait_closed()
    finally:
        listener.close()
    assert os.listdir(place) == []


UVICORN = """
    import samehost, signal, sys, uvicorn

    # Once it has ended well, uvicorn raises the signal again, which by default would end us before we have tidied up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})

    settings = {"lifespan": "off", "log_level": "warning"}
    with samehost.listen(sys.argv[1]) as listener:
        print("ready", flush=True)
        if sys.argv[2] == "fd":
            uvicorn.run(app, fd=listener.socket.fileno(), **settings)
        else:
            uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[listener.socket])
"""


@pytest.mark.parametrize("way", ["fd", "sockets"])
def test_a_uvicorn_takes_it(place: Path, way: str) -> None:
    with python(UVICORN, str(place / "s"), way) as program:
        assert program.line() == "ready"
        reply = converse(place / "s", REQUEST)
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert reply.endswith(b"\r\n\r\nhi")
        assert (place / "s").stat().st_mode & 0o777 == 0o600
        program.process.terminate()
        assert program.end() == 0
    assert os.listdir(place) == []


def test_a_socketserver_takes_it(place: Path) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"socketserver got " + self.rfile.readline())

    with samehost.listen(place / "s") as listener:
        server = socketserver.ThreadingUnixStreamServer(str(place / "s"), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener.socket
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        assert converse(place / "s", b"this\n") == b"socketserver got this\n"
        server.shutdown()
        thread.join(DEADLINE)
        server.server_close()
    assert os.listdir(place) == []


def test_a_plain_loop_takes_it(place: Path) -> None:
    with samehost.listen(place / "s") as listener:
        assert listener.socket.getblocking()
        client = threading.Thread(target=converse, args=(place / "s", b"hello"))
        client.start()
        connection, _ = listener.socket.accept()
        with connection:
            assert connection.recv(100) == b"hello"
            connection.sendall(b"bye")
        client.join(DEADLINE)
    assert os.listdir(place) == []


def test_an_owner_of_the_socket_alone_can_have_its_path_looked_after(place: Path) -> None:
    with samehost.listen(place / "s") as listener:
        os.unlink(place / "s")
        listener.check_path()
        with samehost.dial(place / "s"):
            pass


# The other way round: sockets that were opened by somebody else


@pytest.mark.parametrize("type", ["stream", "seqpacket", "datagram"])
def test_samehost_listens_on_a_descriptor_and_leaves_its_path(place: Path, type: str) -> None:
    with samehost.listen(place / "s", type) as listener:
        number = listener.socket.fileno()
        listen = [*SAMEHOST, "listen", f"fd:{number}", "--type", type, "--close"]
        with Program(listen, pass_fds=[number]) as server:
            assert server.line() == f"Listening on fd:{number}"
            reply = send(place / "s", "hello", "--type", type)
            assert (reply.stdout, reply.stderr, reply.returncode) == (b"Message received successfully\n", b"", 0)
            server.process.terminate()
            assert server.end() == 0
        assert sorted(os.listdir(place)) == ["s", "s.lock"]

        # It is still ours, and works on.
        client = samehost.dial(place / "s", type)
        client.sendall(b"again")
        with client, listener.receive() if type == "datagram" else listener.accept() as ours:
            assert (ours.data if type == "datagram" else ours.recv()) == b"again"


def test_clients_that_wait_at_a_handed_socket_are_left_to_its_other_holders(place: Path) -> None:
    code = """
        import samehost, sys, time
        with samehost.listen(sys.argv[1]) as listener:
            listener.stop()
            listener.serve(lambda connection: connection.sendall(b"from the child"))
    """
    with samehost.listen(place / "s") as listener, samehost.dial(place / "s") as client:
        number = listener.socket.fileno()
        with python(code, f"fd:{number}", pass_fds=[number]) as child:
            assert child.end() == 0
        with listener.accept(timeout=DEADLINE) as connection:
            connection.sendall(b"from us")
        assert client.recv(timeout=DEADLINE) == b"from us"


@pytest.mark.parametrize("type", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_samehost_talks_over_a_descriptor(type: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, type)
    name = {"SOCK_STREAM": "stream", "SOCK_SEQPACKET": "seqpacket", "SOCK_DGRAM": "datagram"}[type.name]
    with ours, theirs:
        ours.sendall(b"reply")
        if type == socket.SOCK_STREAM:
            ours.shutdown(socket.SHUT_WR)
        sent = send(f"fd:{theirs.fileno()}", "hello", "--type", name, pass_fds=[theirs.fileno()])
        assert (sent.stdout, sent.stderr, sent.returncode) == (b"reply", b"", 0)
        assert ours.recv(100) == b"hello"


@pytest.mark.parametrize("command", ["listen", "send"])
def test_a_descriptor_that_is_no_such_socket_is_refused(place: Path, command: str) -> None:
    words = ["hello"] if command == "send" else []
    with open(place / "file", "w") as file, socket.socket(socket.AF_UNIX) as fresh, socket.socket() as internet:
        for opened in (file, fresh, internet):
            refused = run([*SAMEHOST, command, f"fd:{opened.fileno()}", *words], pass_fds=[opened.fileno()])
            assert refused.returncode == 2
            assert refused.stderr.startswith(b"samehost: fd:%d is " % opened.fileno())
            assert refused.stderr.count(b"\n") == 1
    refused = run([*SAMEHOST, command, "fd:999", *words])
    assert (refused.returncode, refused.stderr) == (2, b"samehost: fd:999 is not a socket: Bad file descriptor\n")
