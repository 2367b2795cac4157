"""Other people's programs: whatever speaks over a UNIX domain socket speaks with ours, in both directions.

The programs are a tutorial's: a server that reads once, up to 1 KB, prints that, replies once and closes; and a client
that writes a greeting and reads once. Here they are in three languages, as raw sockets.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import DEADLINE, SAMEHOST, Program, listening, needs_program, run, send

HELLO = "Hello UNIX socket!"
REPLY = "Message received successfully"

# Each program is told what to be and the path: `server PATH` or `client PATH`.

PYTHON = r"""
import socket, sys
role, path = sys.argv[1:]
here = socket.socket(socket.AF_UNIX)
if role == "server":
    here.bind(path)
    here.listen()
    while True:
        connection, _ = here.accept()
        print(connection.recv(1024).decode(), end="", flush=True)
        connection.send(b"Message received successfully\n")
        connection.close()
else:
    here.connect(path)
    here.send(b"Hello UNIX socket!\n")
    print(here.recv(1024).decode(), end="", flush=True)
"""

NODE = r"""
const net = require('net');
const [role, path] = process.argv.slice(2);
if (role === 'server') {
  net.createServer((connection) => {
    connection.once('data', (data) => {
      process.stdout.write(data.subarray(0, 1024));
      connection.end('Message received successfully\n');
    });
  }).listen(path);
} else {
  const connection = net.connect(path, () => connection.write('Hello UNIX socket!\n'));
  connection.once('data', (data) => {
    process.stdout.write(data);
    connection.destroy();
  });
}
"""

C = r"""
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argc;
    char buffer[1024];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[2], sizeof(address.sun_path) - 1);
    int here = socket(AF_UNIX, SOCK_STREAM, 0);
    if (strcmp(argv[1], "server") == 0) {
        if (bind(here, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(here, 5) != 0) return 1;
        for (;;) {
            int connection = accept(here, NULL, NULL);
            ssize_t count = read(connection, buffer, sizeof(buffer));
            if (write(1, buffer, count) != count) return 2;
            const char *reply = "Message received successfully\n";
            if (write(connection, reply, strlen(reply)) < 0) return 3;
            close(connection);
        }
    }
    if (connect(here, (struct sockaddr *)&address, sizeof(address)) != 0) return 4;
    const char *hello = "Hello UNIX socket!\n";
    if (write(here, hello, strlen(hello)) < 0) return 5;
    ssize_t count = read(here, buffer, sizeof(buffer));
    return write(1, buffer, count) == count ? 0 : 6;
}
"""


@pytest.fixture(
    params=[
        pytest.param("python"),
        pytest.param("node", marks=needs_program("node")),
        pytest.param("c", marks=needs_program("cc")),
    ]
)
def tutorial(request: pytest.FixtureRequest, place: Path) -> list[str]:
    """The tutorial's program in one language, as a command that takes a role and a path."""
    if request.param == "python":
        return [sys.executable, "-c", PYTHON]
    if request.param == "node":
        (place / "tutorial.js").write_text(NODE)
        return ["node", str(place / "tutorial.js")]
    (place / "tutorial.c").write_text(C)
    subprocess.run(["cc", "-Wall", "-Werror", "-o", place / "tutorial", place / "tutorial.c"], check=True)
    return [str(place / "tutorial")]


def test_our_client_speaks_with_the_tutorials_server(place: Path, tutorial: list[str]) -> None:
    with Program([*tutorial, "server", str(place / "s")]) as server:
        for _ in range(2):
            sent = send(place / "s", HELLO + "\n", "--wait", str(DEADLINE))
            assert (sent.stdout.decode(), sent.stderr, sent.returncode) == (REPLY + "\n", b"", 0)
            assert server.line() == HELLO


def test_the_tutorials_client_speaks_with_our_server(place: Path, tutorial: list[str]) -> None:
    with listening(place / "s") as server:
        for _ in range(2):
            client = run([*tutorial, "client", str(place / "s")])
            assert (client.stdout.decode(), client.stderr, client.returncode) == (REPLY + "\n", b"", 0)
            assert server.line() == f"Received: {HELLO}"


# nc

nc = needs_program("nc")


@nc
def test_nc_that_ends_its_side_speaks_with_our_server(place: Path) -> None:
    with listening(place / "s") as server:
        client = run(["nc", "-N", "-U", str(place / "s")], HELLO.encode() + b"\n")
        assert (client.stdout.decode(), client.returncode) == (REPLY + "\n", 0)
        assert server.line() == f"Received: {HELLO}"


@nc
def test_nc_that_goes_on_has_a_conversation_with_our_server(place: Path) -> None:
    with listening(place / "s") as server, Program(["nc", "-U", str(place / "s")]) as client:
        for message in (HELLO, "again"):
            client.tell(message)
            assert (server.line(), client.line()) == (f"Received: {message}", REPLY)
        client.process.terminate()


@nc
def test_nc_is_ended_by_a_server_that_closes(place: Path) -> None:
    with listening(place / "s", "--close"):
        client = run(["nc", "-U", str(place / "s")], HELLO.encode() + b"\n")
        assert client.stdout.decode() == REPLY + "\n"


@nc
@pytest.mark.parametrize("options", [["-N"], []], ids=["-N", "without -N"])
def test_our_client_speaks_with_nc(place: Path, options: list[str]) -> None:
    with Program(["nc", *options, "-l", "-U", str(place / "s")]) as server:
        server.tell(REPLY)
        server.process.stdin.close()
        sent = send(place / "s", HELLO + "\n", "--wait", str(DEADLINE))
        assert (sent.stdout.decode(), sent.returncode) == (REPLY + "\n", 0)
        assert (server.line(), server.end()) == (HELLO, 0)


@nc
def test_nc_speaks_with_our_server_in_datagrams(place: Path) -> None:
    with (
        listening(place / "d", "--type", "datagram") as server,
        Program(["nc", "-u", "-U", str(place / "d")]) as client,
    ):
        client.tell(HELLO)
        assert (server.line(), client.line()) == (f"Received: {HELLO}", REPLY)
        client.process.terminate()


@nc
def test_our_client_speaks_with_nc_in_datagrams(place: Path) -> None:
    words = [HELLO + "\n", "--type", "datagram", "--wait", str(DEADLINE)]
    with Program(["nc", "-l", "-u", "-U", str(place / "d")]) as server:
        with Program([*SAMEHOST, "send", str(place / "d"), *words]) as client:
            assert server.line() == HELLO
            server.tell(REPLY)
            assert (client.line(), client.end()) == (REPLY, 0)
        server.process.terminate()


# socat

socat = needs_program("socat")


@socat
@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_socat_speaks_with_our_server(place: Path, type: str) -> None:
    number = {"stream": 1, "seqpacket": 5}[type]  # bits/socket_type.h
    with listening(place / "s", "--type", type) as server:
        client = run(["socat", "-", f"UNIX-CONNECT:{place}/s,type={number}"], HELLO.encode() + b"\n")
        assert (client.stdout.decode(), client.returncode) == (REPLY + "\n", 0)
        assert server.line() == f"Received: {HELLO}"


@socat
@pytest.mark.parametrize("type", ["stream", "seqpacket"])
def test_our_client_speaks_with_socat(place: Path, type: str) -> None:
    number = {"stream": 1, "seqpacket": 5}[type]
    command = ["socat", f"UNIX-LISTEN:{place}/s,type={number}", "SYSTEM:read line; echo got $line"]
    with Program(command):
        sent = send(place / "s", HELLO + "\n", "--type", type, "--wait", str(DEADLINE))
        assert (sent.stdout.decode(), sent.stderr, sent.returncode) == (f"got {HELLO}\n", b"", 0)


@socat
def test_socat_speaks_with_our_server_in_datagrams(place: Path) -> None:
    with listening(place / "d", "--type", "datagram") as server:
        command = ["socat", "-", f"UNIX-SENDTO:{place}/d,bind={place}/back"]
        with Program(command) as client:
            client.tell(HELLO)
            assert (server.line(), client.line()) == (f"Received: {HELLO}", REPLY)
            client.process.terminate()


@socat
def test_our_client_speaks_with_socat_in_datagrams(place: Path) -> None:
    # A datagram may come from an abstract name, as ours do; socat answers it all the same.
    with Program(["socat", f"UNIX-RECVFROM:{place}/d,fork", "SYSTEM:read line; echo got $line"]):
        sent = send(place / "d", HELLO + "\n", "--type", "datagram", "--wait", str(DEADLINE))
        assert (sent.stdout.decode(), sent.stderr, sent.returncode) == (f"got {HELLO}\n", b"", 0)


@socat
def test_socat_finds_our_abstract_names_and_we_find_its(place: Path) -> None:
    name = f"samehost-interop-{os.getpid()}"
    with listening(f"@{name}"):
        client = run(["socat", "-", f"ABSTRACT-CONNECT:{name}"], HELLO.encode())
        assert client.stdout.decode() == REPLY + "\n"
    with Program(["socat", f"ABSTRACT-LISTEN:{name}-2", "SYSTEM:read line; echo got $line"]):
        sent = send(f"@{name}-2", "this\n", "--wait", str(DEADLINE))
        assert sent.stdout == b"got this\n"


# Plain Python sockets, of every type


@pytest.mark.parametrize("type", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_plain_sockets_speak_with_our_server(place: Path, type: socket.SocketKind) -> None:
    name = {"SOCK_STREAM": "stream", "SOCK_SEQPACKET": "seqpacket", "SOCK_DGRAM": "datagram"}[type.name]
    with listening(place / "s", "--type", name) as server, socket.socket(socket.AF_UNIX, type) as client:
        client.settimeout(DEADLINE)
        if type == socket.SOCK_DGRAM:
            client.bind(str(place / "back"))
        client.connect(str(place / "s"))
        for _ in range(2):
            client.send(HELLO.encode())
            assert client.recv(1024).decode() == REPLY + "\n"
            assert server.line() == f"Received: {HELLO}"


@pytest.mark.parametrize("type", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_our_client_speaks_with_plain_sockets(place: Path, type: socket.SocketKind) -> None:
    name = {"SOCK_STREAM": "stream", "SOCK_SEQPACKET": "seqpacket", "SOCK_DGRAM": "datagram"}[type.name]
    with socket.socket(socket.AF_UNIX, type) as bound:
        bound.settimeout(DEADLINE)
        bound.bind(str(place / "s"))
        if type != socket.SOCK_DGRAM:
            bound.listen()
        with Program([*SAMEHOST, "send", str(place / "s"), HELLO, "--type", name]) as client:
            if type == socket.SOCK_DGRAM:
                message, sender = bound.recvfrom(1024)
                bound.sendto(REPLY.encode(), sender)
            else:
                connection, _ = bound.accept()
                with connection:
                    message = connection.recv(1024)
                    connection.send(REPLY.encode())
            assert message.decode() == HELLO
            assert client.process.stdout.read().decode() == REPLY
            assert client.end() == 0
