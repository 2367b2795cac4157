"""The faults of a server's life, each driven for real and through the front door; a number is the fault's row."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest
from support import (
    DEADLINE,
    NOBODY,
    SAMEHOST,
    Program,
    kill,
    listening,
    needs_program,
    needs_root,
    python,
    python_as,
    run,
    send,
    until,
)

import samehost
import samehost.aio
from samehost.errors import AddressInUse, ClaimError, NotASocket, Unavailable, UntrustedServer

TYPES = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}

STRANGE_GROUP = 54321

CANNOT_CREATE = 73
NOT_PERMITTED = 77


def leave_dead_socket(path, type="stream"):
    with socket.socket(socket.AF_UNIX, TYPES[type]) as dead:
        dead.bind(str(path))


def server_of(path, **options):
    """The pid of who really answers at a path."""
    with samehost.dial(path, **options) as client:
        return client.peer.pid


def identity(path):
    """What tells a file from every other, and from itself changed; not when it was last connected to."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_ctime_ns


def refused(path, *options):
    """`samehost listen` ends at once, with the exit code for a socket that cannot be made; what it says."""
    done = run([*SAMEHOST, "listen", str(path), *options])
    assert (done.returncode, done.stdout) == (CANNOT_CREATE, b"")
    (line,) = done.stderr.decode().splitlines()
    return line.removeprefix("samehost: ")


# 1: two servers race for one path

RACER = """
import os, sys, time, samehost
from samehost.errors import AddressInUse
samehost.listen(f"{sys.argv[1]}.{os.getpid()}").close()  # what is imported late is imported now
print("ready", flush=True)
for line in sys.stdin:
    start = float(line)
    while time.monotonic() < start:
        pass
    try:
        listener = samehost.listen(sys.argv[1])
    except AddressInUse as error:
        print("lost", error, flush=True)
        sys.stdin.readline()
    else:
        print("won", flush=True)
        sys.stdin.readline()
        listener.close()
    print("done", flush=True)
"""


def test_1_of_two_racing_servers_exactly_one_wins_and_is_reachable_and_the_loser_names_it(place):
    path = place / "s"
    with python(RACER, str(path)) as one, python(RACER, str(path)) as other:
        racers = (one, other)
        assert [racer.line() for racer in racers] == ["ready", "ready"]
        for turn in range(200):
            if turn % 2:
                leave_dead_socket(path)  # so that both want to remove it
            start = time.monotonic() + 0.002
            for racer in racers:
                racer.tell(str(start))
            answers = {racer.line(): racer for racer in racers}
            winner = answers.pop("won")
            (lost,) = answers
            assert lost.startswith(f"lost {path} is held by pid {winner.pid} (python")
            assert server_of(path) == winner.pid
            for racer in racers:
                racer.tell("end")
            assert [racer.line() for racer in racers] == ["done", "done"]
            assert os.listdir(place) == []


# 2: a stale socket after SIGKILL


@contextlib.contextmanager
def forked_server(path, type):
    """A server in a forked child, which costs less than a new program, killed at the end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            samehost.listen(path, type)
            os.write(writer, b"ready")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        with open(reader, "rb", buffering=0) as file:
            assert file.read(5) == b"ready"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_2_a_killed_server_is_followed_by_the_next_one_200_times_with_nothing_cleaned_up(place):
    path = place / "s"
    for turn in range(200):
        kind = list(TYPES)[turn % 3]  # whatever the dead one was
        with forked_server(path, kind) as child, samehost.dial(path, kind) as client:
            assert client.peer.pid == child or kind == "datagram"
        assert sorted(os.listdir(place)) == ["s", "s.lock"]
    samehost.listen(path).close()
    assert os.listdir(place) == []


def test_2_the_same_with_the_command(place):
    path = place / "s"
    for _ in range(5):
        with listening(path) as server:
            assert server_of(path) == server.pid
            kill(server)
        assert sorted(os.listdir(place)) == ["s", "s.lock"]


BOUND = """
import socket, sys
server = socket.socket(socket.AF_UNIX, int(sys.argv[2]))
server.bind(sys.argv[1])
print("bound", flush=True)
sys.stdin.readline()
if int(sys.argv[2]) == socket.SOCK_DGRAM:
    print(server.recv(100), flush=True)
else:
    server.listen()
    print("listening", flush=True)
    print(server.accept()[0].recv(100), flush=True)
"""


@pytest.mark.parametrize("type", TYPES)
def test_2_a_server_that_is_bound_and_not_yet_listening_is_left_alone(place, type):
    path = place / "s"
    with python(BOUND, str(path), str(int(TYPES[type]))) as server:
        assert server.line() == "bound"
        before = identity(path)
        for front in (samehost, samehost.aio):
            for wanted in TYPES:
                with pytest.raises(AddressInUse, match=rf"^{path} is held by pid {server.pid} \(python"):
                    front.listen(path, wanted)
        assert identity(path) == before
        assert os.listdir(place) == ["s"]
        server.tell("go on")
        if type != "datagram":
            assert server.line() == "listening"
        with samehost.dial(path, type) as client:
            client.send(b"hello")
        assert server.line() == "b'hello'"  # the first that it hears: looking at it sent nothing


# 3: the path is something else


def make_in_the_way(place, kind):
    path = place / "s"
    (place / "file").write_text("precious")
    match kind:
        case "a file":
            path.write_text("precious")
        case "an empty file":
            path.touch()
        case "a directory":
            path.mkdir()
        case "a fifo":
            os.mkfifo(path)
        case "a link to a file":
            path.symlink_to("file")
        case "a dangling link":
            path.symlink_to("nowhere")
        case "a link to itself":
            path.symlink_to("s")
        case "a link to a dead socket":
            leave_dead_socket(place / "dead")
            path.symlink_to("dead")
        case "a link to a live socket":
            path.symlink_to("live")
    return path


def look_at(place):
    """Every entry with its inode, mode and times, its content and where it leads."""
    found = {}
    for entry in sorted(place.iterdir()):
        status = os.lstat(entry)
        content = entry.read_bytes() if stat.S_ISREG(status.st_mode) else None
        target = os.readlink(entry) if entry.is_symlink() else None
        found[entry.name] = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns, content, target)
    return found


@pytest.mark.parametrize(
    "kind",
    [
        "a file",
        "an empty file",
        "a directory",
        "a fifo",
        "a link to a file",
        "a dangling link",
        "a link to itself",
        "a link to a dead socket",
        "a link to a live socket",
    ],
)
def test_3_what_is_no_socket_is_refused_and_untouched(place, kind):
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(f"{place}/live")
        live.listen()
        path = make_in_the_way(place, kind)
        before = look_at(place)
        what = kind.replace("an empty", "a") if "link" not in kind else "a symbolic link"
        said = f"cannot create {path}: {what} is there, and it was not touched: remove it, or choose another path"
        for front in (samehost, samehost.aio):
            for wanted in TYPES:
                with pytest.raises(NotASocket, match=f"^{re.escape(said)}$"):
                    front.listen(path, wanted)
                assert look_at(place) == before
        assert refused(path) == said
        assert look_at(place) == before


FOREIGN = {
    "socat": ["socat", "-d", "-d", "UNIX-LISTEN:{path}", "STDIO"],
    "socat, forking": ["socat", "UNIX-LISTEN:{path},fork", "PIPE"],
    "nc": ["nc", "-lU", "{path}"],
    "nc for datagrams": ["nc", "-luU", "{path}"],
}


@needs_program("socat")
@needs_program("nc")
@pytest.mark.parametrize("command", FOREIGN.values(), ids=FOREIGN)
def test_3_a_server_that_is_not_ours_is_refused_and_named(place, command):
    path = place / "s"
    with Program([word.format(path=path) for word in command]) as server:
        until(path.exists, "it is bound")
        before = look_at(place)
        said = rf"{path} is held by pid {server.pid} \({command[0]}[^ ]*, user \w+\)"
        with pytest.raises(AddressInUse, match=f"^{said}$"):
            samehost.listen(path)
        assert re.fullmatch(said, refused(path))
        assert look_at(place) == before
        if command == FOREIGN["socat, forking"]:
            with samehost.dial(path, wait=DEADLINE) as client:
                client.sendall(b"still here")
                assert client.recv() == b"still here"


# 4: there is no room, or no right, to make it


def test_4_a_missing_directory_is_an_error_and_not_made(place):
    said = f"cannot create {place}/d/s: its directory {place}/d cannot be opened (No such file or directory)"
    assert refused(place / "d" / "s") == f"{said}: make it first"
    (place / "d").touch()
    with pytest.raises(ClaimError, match="Not a directory"):
        samehost.listen(place / "d" / "s")
    assert os.listdir(place) == ["d"]


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_4_a_directory_that_we_may_not_write_in_is_an_error(place, mode):
    place.chmod(mode)
    code = "import samehost.cli; sys.exit(samehost.cli.main(['listen', sys.argv[1]]))"
    with python_as(NOBODY, code, f"{place}/s") as listener:
        assert listener.end() == CANNOT_CREATE
        said = f"uid {NOBODY} may not make files in this directory: choose another one"
        assert listener.errors() == f"samehost: cannot lock {place}/s.lock: Permission denied ({said})\n"
    assert os.listdir(place) == []


@pytest.mark.parametrize("mode", [0o777, 0o703, 0o1777])
def test_4_a_directory_in_which_anybody_may_remove_files_is_refused_unless_it_is_sticky(place, mode):
    place.chmod(mode)
    if mode & stat.S_ISVTX:
        samehost.listen(place / "s").close()
    else:
        assert f"anybody may remove files in its directory {place}, whose mode is 0o{mode:o}" in refused(place / "s")
    assert os.listdir(place) == []


@contextlib.contextmanager
def small_disk(place, options):
    disk = place / "disk"
    disk.mkdir()
    done = run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)])
    if done.returncode:
        pytest.skip(f"SKIPPED LOUDLY: nothing can be mounted here: {done.stderr.decode()}")
    try:
        yield disk
    finally:
        assert run(["umount", str(disk)]).returncode == 0


@needs_root
@pytest.mark.parametrize(
    ("inodes", "leaf", "fits"),
    [
        (1, "s", False),  # the directory itself has the only one
        (2, "s", False),  # the lock fits, the socket does not
        (3, "s", True),
        (3, "s" * 200, False),  # both fit, and its second name for a while does not
        (4, "s" * 200, True),
    ],
)
def test_4_a_disk_without_inodes_is_an_error_that_leaves_nothing(place, inodes, leaf, fits):
    with small_disk(place, f"nr_inodes={inodes}") as disk:
        for front in (samehost, samehost.aio):
            if fits:
                front.listen(disk / leaf).close()
            else:
                with pytest.raises(ClaimError, match="No space left on device"):
                    front.listen(disk / leaf)
            assert os.listdir(disk) == []
        if not fits:
            assert refused(disk / leaf).endswith("No space left on device")
            assert os.listdir(disk) == []


@needs_root
def test_4_a_disk_that_is_full_of_data_has_room_for_a_socket_and_the_same_server_goes_on(place):
    """Neither the socket nor its lock holds a byte."""
    with small_disk(place, "size=64k") as disk:
        with (disk / "data").open("wb", buffering=0) as file:
            assert file.write(b"x" * 100_000) == 65536
        with samehost.listen(disk / "s") as listener, samehost.dial(disk / "s"), listener.accept():
            assert sorted(os.listdir(disk)) == ["data", "s", "s.lock"]
        assert os.listdir(disk) == ["data"]


@needs_root
def test_4_a_read_only_disk_is_an_error(place):
    with small_disk(place, "ro") as disk:
        assert refused(disk / "s") == f"cannot lock {disk}/s.lock: Read-only file system"


# 5: another user squats on the path


@needs_root
def test_5_a_squatter_in_a_shared_directory_is_refused_and_named(open_place):
    path = open_place / "s"
    squat = """
        with samehost.listen(sys.argv[1], mode=0o666, allow=samehost.ANYONE) as listener:
            print("ready", flush=True)
            for connection in listener:
                with connection:
                    print(connection.recv(), flush=True)
        """
    with python_as(NOBODY, squat, str(path)) as squatter:
        assert squatter.line() == "ready"
        with pytest.raises(UntrustedServer, match=f"{path} is served by uid {NOBODY}.*pid {squatter.pid}.*nothing was"):
            samehost.dial(path)
        assert squatter.line() == "b''"
        done = send(path, "secret")
        assert (done.returncode, done.stdout) == (NOT_PERMITTED, b"")
        assert f"uid {NOBODY}" in done.stderr.decode()
        assert f"pid {squatter.pid}" in done.stderr.decode()
        assert squatter.line() == "b''"
        with pytest.raises(AddressInUse, match=rf"held by pid {squatter.pid} |belongs to uid {NOBODY}"):
            samehost.listen(path)


# 6: no moment of a wider mode

CLAIM = "import samehost, sys; samehost.listen({path!r}, {type!r}, mode={mode}, group={group}).close()"

MODE_CALLS = "bind,fchmod,?chmod,?fchmodat,?fchmodat2,?chown,?fchown,?lchown,?fchownat,?umask,?linkat,listen,?mknodat"


def calls_of_claim(place, leaf="s", type="stream", mode="0o600", group="None"):
    """The calls that can give a file, or change, its mode and owner, in order; each with its arguments."""
    trace = place / "trace"
    code = CLAIM.format(path=f"{place}/{leaf}", type=type, mode=mode, group=group)
    done = run(["strace", "-f", "-o", str(trace), "-e", f"trace={MODE_CALLS}", sys.executable, "-c", code])
    if done.returncode == 1 and b"ptrace" in done.stderr.lower():
        pytest.skip(f"SKIPPED LOUDLY: no tracing here: {done.stderr.decode()}")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines()]
    return [line for line in lines if not line.startswith(("+++", "---"))]


def assert_calls(calls, *patterns):
    assert len(calls) == len(patterns), calls
    for call, pattern in zip(calls, patterns, strict=True):
        assert re.fullmatch(pattern + r"\s*= 0", call), (call, pattern)


FCHMOD_600 = r"fchmod\(\d+, 0600\)"
ITS_FILE = r'"/proc/self/fd/\d+"'


@needs_root
@needs_program("strace")
def test_6_strace_shows_the_mode_set_before_bind_and_widened_last(place):
    with_group = calls_of_claim(place, mode="0o660", group=str(STRANGE_GROUP))
    chown = rf"(chown\({ITS_FILE}, -1, {STRANGE_GROUP}\)|fchownat\(AT_FDCWD, {ITS_FILE}, -1, {STRANGE_GROUP}, 0\))"
    chmod = rf"(chmod\({ITS_FILE}, 0660\)|fchmodat2?\(AT_FDCWD, {ITS_FILE}, 0660(, 0)?\))"
    listen = r"listen\(\d+, \d+\)"
    bind = rf'bind\(\d+, \{{sa_family=AF_UNIX, sun_path="{place}/s"\}}, \d+\)'
    assert_calls(with_group, FCHMOD_600, bind, chown, chmod, listen)
    assert_calls(calls_of_claim(place), FCHMOD_600, bind, listen)  # as narrow as it comes: nothing to do afterwards
    assert_calls(calls_of_claim(place, type="datagram", mode="0o622"), FCHMOD_600, bind, chmod.replace("0660", "0622"))


@needs_root
@needs_program("strace")
def test_6_a_name_that_is_bound_under_another_one_is_no_wider(place):
    calls = calls_of_claim(place, "s" * 200, mode="0o660")
    bind = r'bind\(\d+, \{sa_family=AF_UNIX, sun_path="/proc/self/fd/\d+/\.[0-9a-f]{16}"\}, \d+\)'
    link = rf'linkat\(\d+, "\.[0-9a-f]{{16}}", \d+, "{"s" * 200}", 0\)'
    chmod = rf"(chmod\({ITS_FILE}, 0660\)|fchmodat2?\(AT_FDCWD, {ITS_FILE}, 0660(, 0)?\))"
    assert_calls(calls, FCHMOD_600, bind, link, chmod, r"listen\(\d+, \d+\)")


WATCHER = """
import json, os, select, sys
seen = set()
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    for _ in range(200):
        try:
            status = os.lstat(sys.argv[1])
        except FileNotFoundError:
            continue
        seen.add((status.st_mode & 0o7777, status.st_gid))
print(json.dumps(sorted(seen)), flush=True)
"""


@needs_root
def test_6_another_process_never_sees_a_wider_mode(place):
    path = place / "s"
    before = os.umask(0)  # the worst case
    try:
        with python(WATCHER, str(path)) as watcher:
            assert watcher.line() == "ready"
            end = time.monotonic() + 0.7
            while time.monotonic() < end:
                samehost.listen(path, mode=0o660, group=STRANGE_GROUP).close()
            watcher.tell("stop")
            seen = {tuple(pair) for pair in json.loads(watcher.line())}
    finally:
        os.umask(before)
    assert seen
    assert seen <= {(0o600, os.getegid()), (0o600, STRANGE_GROUP), (0o660, STRANGE_GROUP)}


# 7: the path is removed or replaced while it is served

AIO_SERVER = """
import asyncio, logging, sys, samehost.aio
logging.basicConfig(format="samehost: %(message)s")

async def echo(connection):
    while data := await connection.recv():
        await connection.sendall(data)

async def main():
    async with samehost.aio.listen(sys.argv[1]) as listener:
        print(f"Listening on {listener.address}", flush=True)
        await listener.serve(echo)

asyncio.run(main())
"""


@contextlib.contextmanager
def started(place, name, front):
    """A server at NAME/s in the place, ours to talk to, that writes its diagnostics to a file."""
    (place / name).mkdir()
    command = [*SAMEHOST, "listen", f"{place}/{name}/s", "--echo"]
    if front == "aio":
        command = [sys.executable, "-c", AIO_SERVER, f"{place}/{name}/s"]
    with (place / f"{name}.log").open("wb") as log, Program(command, stderr=log) as server:
        assert server.line() == f"Listening on {place}/{name}/s"
        server.log = (place / f"{name}.log").read_text
        yield server


def assert_echoes(path, server):
    with samehost.dial(path) as client:
        assert client.peer.pid == server.pid
        client.sendall(b"hello")
        assert client.recv(timeout=DEADLINE) == b"hello"


@pytest.mark.parametrize("front", ["blocking", "aio"])
def test_7_a_path_that_is_removed_or_replaced_is_noticed_within_5_seconds(place, front):
    """All at once, so that the waiting is done only once."""
    names = ("removed", "with its lock", "replaced", "directory gone")
    with contextlib.ExitStack() as stack, socket.socket(socket.AF_UNIX) as other:
        servers = {name: stack.enter_context(started(place, name, front)) for name in names}
        paths = {name: place / name / "s" for name in names}
        connected = {name: stack.enter_context(samehost.dial(path)) for name, path in paths.items()}
        other.bind(f"{place}/replaced/other")
        other.listen()

        os.unlink(paths["removed"])
        os.unlink(paths["with its lock"])
        os.unlink(f"{paths['with its lock']}.lock")
        os.rename(place / "replaced" / "other", paths["replaced"])
        (place / "directory gone").rename(place / "moved")
        end = time.monotonic() + 5

        def noticed(name, what):
            line = f"samehost: {paths[name]} {what}"
            until(lambda: line in servers[name].log(), line, end - time.monotonic())

        for name in ("removed", "with its lock"):
            noticed(name, "was removed while it was served: it was made again\n")
            assert_echoes(paths[name], servers[name])
            assert sorted(os.listdir(place / name)) == ["s", "s.lock"]
        noticed("replaced", "was replaced while it was served: new clients no longer reach this server\n")
        noticed("directory gone", "was removed while it was served, and cannot be made again: ")

        (place / "directory gone").mkdir()
        end = time.monotonic() + 5
        noticed("directory gone", "was removed while it was served: it was made again\n")
        assert_echoes(paths["directory gone"], servers["directory gone"])
        assert os.listdir(place / "moved") == []

        for name, client in connected.items():  # who was there before has noticed nothing
            client.sendall(name.encode())
            assert client.recv(timeout=DEADLINE) == name.encode()
            client.close()
        assert server_of(paths["replaced"]) == os.getpid()
        for server in servers.values():
            server.signal(signal.SIGTERM)
        for name, server in servers.items():
            assert server.end() == 0
            assert os.listdir(place / name) == (["s"] if name == "replaced" else [])
        assert server_of(paths["replaced"]) == os.getpid()


# 8: an old server ends after a new one has come


@pytest.mark.parametrize("way", ["removed", "renamed over"])
def test_8_the_old_server_s_end_leaves_the_new_one_s_socket(place, way):
    path = place / "s"
    with listening(path) as old:
        if way == "removed":
            os.unlink(path)
            os.unlink(f"{path}.lock")
            new = samehost.listen(path)
        else:
            new = samehost.listen(place / "new")
            os.rename(place / "new", path)
        with new:
            there = identity(path)
            old.signal(signal.SIGTERM)
            assert old.end() == 0
            assert identity(path) == there
            with samehost.dial(path) as client, new.accept(timeout=DEADLINE):
                assert client.peer.pid == os.getpid()
            if way == "removed":
                assert refused(path).startswith(f"{path} is held by pid {os.getpid()} ")
    assert os.listdir(place) == (["s"] if way == "renamed over" else [])


def test_8_a_new_server_may_come_while_the_old_one_drains(place):
    path = place / "s"
    os.mkfifo(place / "reply")
    with listening(path, "--exec", f"cat {place}/reply") as old, samehost.dial(path) as client:
        client.sendall(b"take your time")
        assert old.line() == "Received: take your time"
        old.signal(signal.SIGTERM)
        until(lambda: not path.exists(), "the old server gives its path up")
        with listening(path) as new:
            (place / "reply").write_text("at last")
            assert client.recv(timeout=DEADLINE) == b"at last"
            client.close()
            assert old.end() == 0
            assert server_of(path) == new.pid
            assert sorted(os.listdir(place)) == ["reply", "s", "s.lock"]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_8_the_path_of_an_inherited_descriptor_is_never_removed(place, type, number):
    path = place / "s"
    with socket.socket(socket.AF_UNIX, TYPES[type]) as ours:
        ours.bind(str(path))
        if type != "datagram":
            ours.listen()
        there = identity(path)
        inherited = [f"fd:{ours.fileno()}", "--type", type]
        with Program([*SAMEHOST, "listen", *inherited], pass_fds=[ours.fileno()]) as server:
            assert server.line() == f"Listening on fd:{ours.fileno()}"
            assert send(path, "hello", "--type", type).stdout == b"Message received successfully\n"
            server.signal(number)
            assert server.end() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert identity(path) == there
        assert os.listdir(place) == ["s"]
        samehost.dial(path, type).close()  # our copy of the socket is as alive as before


# 9: long paths, and names without a path


@pytest.mark.parametrize("length", [107, 108, 300])
@pytest.mark.parametrize("type", TYPES)
def test_9_a_long_path_works(place, length, type):
    directory = Path(place, *["d" * 60] * 5)
    while len(f"{directory}/s") > length:
        directory = directory.parent
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "s".ljust(length - len(f"{directory}/"), "s")
    assert len(str(path)) == length
    with listening(path, "--type", type) as server:
        assert send(path, "hello", "--type", type).stdout == b"Message received successfully\n"
        assert server.line() == "Received: hello"
        assert refused(path).startswith(f"{path} is held by pid {server.pid} ")
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert os.listdir(directory) == []


@needs_root
def test_9_an_abstract_name_needs_a_policy_and_admits_this_user_and_root_without(place):
    name = f"@{place}"
    client = """
        trusted = samehost.allow(uid=0)
        with samehost.dial(sys.argv[1], trust=trusted) as client:
            try:
                client.sendall(b"hello")
                print(client.recv(), flush=True)
            except samehost.errors.Error as error:
                print(type(error).__name__, flush=True)
        """
    with listening(name, "--echo") as server:
        with samehost.dial(name) as ours:
            ours.sendall(b"hello")
            assert ours.recv() == b"hello"
        with python_as(NOBODY, client, name) as stranger:
            assert stranger.line() in ("b''", "ConnectionClosed")
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert re.search(rf"refused uid {NOBODY}.*pid {stranger.pid}: it admits uid 0\n", server.errors())
    with listening(name, "--echo", "--allow", f"uid={NOBODY}"), python_as(NOBODY, client, name) as guest:
        assert guest.line() == "b'hello'"


# 10: the claiming process dies while a forked child lives

PARENT = """
import os, signal, sys, samehost
listener = samehost.listen(sys.argv[1])
if child := os.fork():
    print(child, flush=True)
    signal.pause()
for line in sys.stdin:
    if line == "accept\\n":
        with listener.accept() as connection:
            connection.sendall(b"the child")
    if line == "close\\n":
        listener.close()
        print("closed", flush=True)
os._exit(0)
"""


@pytest.fixture
def orphan(place):
    """The pid of a child that has the listener from its dead parent, and that parent, whose pipes are the child's."""
    with python(PARENT, f"{place}/s") as parent:
        child = int(parent.line())
        kill(parent)
        yield child, parent
        parent.process.stdin.close()  # which ends the child
        assert parent.process.stdout.read() == b""


def test_10_a_second_server_is_told_of_the_child_that_has_the_address(place, orphan):
    child, parent = orphan
    path = place / "s"
    with pytest.raises(AddressInUse, match=rf"^{path} is held by pid {child} \(python") as caught:
        samehost.listen(path)
    assert f"pid {parent.pid} " not in str(caught.value)
    assert refused(path).startswith(f"{path} is held by pid {child} ")
    parent.tell("accept")
    with samehost.dial(path) as client:
        assert client.recv(timeout=DEADLINE) == b"the child"
    kill_orphan(child, parent)
    samehost.listen(path).close()
    assert os.listdir(place) == []


def kill_orphan(child, parent):
    os.kill(child, signal.SIGKILL)
    assert parent.process.stdout.read() == b""  # the child had the other end


def test_10_the_child_s_close_removes_nothing_and_frees_the_address(place, orphan):
    _, parent = orphan
    path = place / "s"
    there = identity(path)
    parent.tell("close")
    assert parent.line() == "closed"
    assert identity(path) == there
    with pytest.raises(Unavailable):
        samehost.dial(path)
    with samehost.listen(path):
        assert server_of(path) == os.getpid()
