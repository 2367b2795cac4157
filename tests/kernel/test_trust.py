"""Whether a server may be spoken to: squatters, and servers that belong to somebody else rightly."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import NOBODY, Program, needs_root, python_as

import samehost
from samehost.errors import NotPermitted, UntrustedServer
from samehost.kernel import trust

pytestmark = needs_root  # the client is root, which trusts itself alone, and the server is nobody

SERVER = """
    name, kind = sys.argv[1], getattr(socket, sys.argv[2])
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind("\\0" + name[1:] if name.startswith("@") else name)
    if not name.startswith("@"):
        os.chmod(name, 0o666)
    if kind == socket.SOCK_DGRAM:
        print("ready", flush=True)
        sys.stdin.readline()
        server.setblocking(False)
        try:
            print(server.recv(100), flush=True)
        except BlockingIOError:
            print("nothing", flush=True)
    else:
        server.listen()
        print("ready", flush=True)
        print(server.accept()[0].recv(100) or "nothing", flush=True)
    """

KINDS = {"stream": "SOCK_STREAM", "datagram": "SOCK_DGRAM", "seqpacket": "SOCK_SEQPACKET"}


@contextmanager
def server_of_nobody(address, type="stream"):
    with python_as(NOBODY, SERVER, str(address), KINDS[type]) as server:
        assert server.line() == "ready"
        yield server


def assert_got_nothing(server, type="stream"):
    if type == "datagram":
        server.tell("look")
    assert server.line() == "nothing"
    assert server.end() == 0


@pytest.fixture
def private_place():
    """A directory of nobody's in which, and above which, only root and nobody can write, unlike in /tmp."""
    directory = Path(tempfile.mkdtemp(prefix="sh-", dir="/run"))
    os.chown(directory, NOBODY, NOBODY)
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("type", KINDS)
def test_a_squatter_in_a_shared_directory_is_refused_and_named(open_place, type):
    path = open_place / "a.sock"
    with server_of_nobody(path, type) as squatter:
        with pytest.raises(UntrustedServer) as caught:
            samehost.dial(path, type)
        assert_got_nothing(squatter, type)
    said = str(caught.value)
    assert f"{path} is served by uid {NOBODY} (nobody)" in said
    assert "others may write in /tmp" in said
    assert f"trust=samehost.allow(uid={NOBODY})" in said
    assert (caught.value.peer.uid, caught.value.peer.user) == (NOBODY, "nobody")
    assert caught.value.peer.pidfd is None  # closed, as the connection is
    if type != "datagram":  # of which the kernel tells the uid alone
        assert f"pid {squatter.pid}" in said


@pytest.mark.parametrize("type", KINDS)
def test_a_squatter_on_an_abstract_name_is_refused_and_named(type):
    name = f"@samehost-squatted-{os.getpid()}-{type}"
    with server_of_nobody(name, type) as squatter:
        with pytest.raises(
            UntrustedServer, match=rf"{name} is served by uid {NOBODY} \(nobody\).*anybody may take an abstract name"
        ):
            samehost.dial(name, type)
        assert_got_nothing(squatter, type)


@pytest.mark.parametrize("type", KINDS)
def test_trust_admits_whom_it_names(open_place, type):
    path = open_place / "a.sock"
    trusted = samehost.allow(user="nobody")
    with server_of_nobody(path, type) as server, samehost.dial(path, type, trust=trusted) as client:
        assert client.peer.uid == NOBODY
        client.send(b"hello")
        if type == "datagram":
            server.tell("look")
        assert server.line() == "b'hello'"


def test_trust_by_group(open_place):
    with (
        server_of_nobody(open_place / "a.sock"),
        samehost.dial(open_place / "a.sock", trust=samehost.allow(gid=NOBODY)) as client,
    ):
        assert client.peer.gid == NOBODY


def test_trust_keeps_out_even_ourselves(place):
    with (
        samehost.listen(place / "a.sock"),
        pytest.raises(UntrustedServer, match=r"served by uid 0 \(root\).*, and only uid 12345 is trusted"),
    ):
        samehost.dial(place / "a.sock", trust=samehost.allow(uid=12345))


def test_of_a_datagram_s_server_no_group_is_known_so_none_is_trusted(place):
    with samehost.listen(place / "a.sock", "datagram"), pytest.raises(UntrustedServer):
        samehost.dial(place / "a.sock", "datagram", trust=samehost.allow(gid=0))


@pytest.mark.parametrize("type", KINDS)
def test_a_server_is_fine_where_nobody_else_could_have_put_a_socket(private_place, type):
    with server_of_nobody(private_place / "a.sock", type) as server:
        with samehost.dial(private_place / "a.sock", type) as client:
            assert client.peer.uid == NOBODY
        assert_got_nothing(server, type)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
@pytest.mark.parametrize("above", [False, True])
def test_a_directory_on_the_path_that_others_may_write_in_is_named(private_place, mode, above):
    inner = private_place / "inner"
    inner.mkdir()
    os.chown(inner, NOBODY, NOBODY)
    shared = private_place if above else inner
    with server_of_nobody(inner / "a.sock"):
        shared.chmod(mode)
        with pytest.raises(UntrustedServer, match=f"others may write in {shared}:"):
            samehost.dial(inner / "a.sock")


def test_a_directory_of_somebody_else_is_named(private_place):
    with server_of_nobody(private_place / "a.sock"):
        os.chown(private_place, 12345, 0)
        with pytest.raises(UntrustedServer, match=f"others may write in {private_place}:"):
            samehost.dial(private_place / "a.sock")


def test_links_are_followed_one_by_one_and_every_directory_on_the_way_counts(private_place, open_place):
    # /run/…/link -> OPEN/back -> ../run/…/a.sock: both ends are private, and in between anybody could turn the link.
    (open_place / "back").symlink_to("../" * 10 + str(private_place / "a.sock").lstrip("/"))
    (private_place / "link").symlink_to(open_place / "back")
    (private_place / "straight").symlink_to("../" + private_place.name + "/./a.sock")
    with server_of_nobody(private_place / "a.sock"):
        with pytest.raises(UntrustedServer, match="others may write in /tmp"):
            samehost.dial(private_place / "link")
        with pytest.raises(UntrustedServer, match="others may write in /tmp"):
            samehost.dial(open_place / ".." / ".." / str(private_place).lstrip("/") / "a.sock")
        samehost.dial(private_place / "straight").close()
        samehost.dial(private_place / ".." / private_place.name / "a.sock").close()


def test_a_path_that_has_gone_meanwhile_cannot_vouch_for_its_server(private_place, monkeypatch):
    path = private_place / "a.sock"

    def peer_of(connected):
        path.unlink()  # between connecting and looking at the path
        return plain(connected)

    with server_of_nobody(path) as server:
        plain = trust.peer_of
        monkeypatch.setattr(trust, "peer_of", peer_of)
        with pytest.raises(UntrustedServer, match="cannot be looked at any more"):
            samehost.dial(path)
        assert_got_nothing(server)


def test_our_own_server_and_root_s_are_fine_in_a_shared_directory(open_place):
    path = open_place / "a.sock"
    with samehost.listen(path, mode=0o666) as listener:
        samehost.dial(path).close()
        with python_as(NOBODY, "print(samehost.dial(sys.argv[1]).peer.uid, flush=True)", str(path)) as client:
            assert client.line() == "0"
        listener.close()
    with (
        server_of_nobody(path),
        python_as(NOBODY, "print(samehost.dial(sys.argv[1]).peer.uid, flush=True)", str(path)) as client,
    ):
        assert client.line() == str(NOBODY)


def test_a_stranger_is_refused_by_a_plain_user_too(open_place):
    with (
        server_of_nobody(open_place / "a.sock") as squatter,
        python_as(
            12345,
            """
            try:
                samehost.dial(sys.argv[1])
            except samehost.errors.UntrustedServer as error:
                print(error, flush=True)
            """,
            str(open_place / "a.sock"),
        ) as client,
    ):
        assert f"is served by uid {NOBODY} (nobody)" in client.line()
        assert_got_nothing(squatter)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="SKIPPED LOUDLY: unshare is not installed")
def test_a_datagram_server_of_whom_the_kernel_does_not_tell_is_not_talked_to(place):
    program = f"import os, socket, sys\n{textwrap.dedent(SERVER)}"
    command = ["unshare", "--net", sys.executable, "-c", program, str(place / "a.sock"), "SOCK_DGRAM"]
    with Program(command) as server:
        assert server.line() == "ready"
        with pytest.raises(NotPermitted, match="the kernel does not tell who receives datagrams"):
            samehost.dial(place / "a.sock", "datagram")
        assert_got_nothing(server, "datagram")
