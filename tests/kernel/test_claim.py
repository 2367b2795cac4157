"""Claiming an address: each step, what undoes it when a later one fails, and what is refused."""

from __future__ import annotations

import contextlib
import grp
import os
import resource
import socket
import stat
import sys
import tempfile
import threading

import pytest
from support import NOBODY, descriptors, needs_program, needs_root, python, python_as, run

import samehost
import samehost.aio
from samehost.address import parse
from samehost.errors import AddressError, AddressInUse, ClaimError, UsageError
from samehost.kernel import claim as claiming
from samehost.kernel import handed
from samehost.kernel.claim import Hold, Request, claim

TYPES = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}

STRANGE_GROUP = 54321


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def leave_dead_socket(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# What is made


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000, 0o777])
def test_the_mode_is_the_one_asked_for_whatever_the_umask(place, type, mask, mode):
    with umask(mask), samehost.listen(place / "s", type, mode=mode):
        assert mode_of(place / "s") == mode
        assert mode_of(place / "s.lock") == 0o600
        assert os.umask(mask) == mask  # never ours to change: it belongs to the whole process
    assert os.listdir(place) == []


@needs_root
@pytest.mark.parametrize("group", [STRANGE_GROUP, "by name"])
def test_the_file_is_handed_to_its_group(place, group):
    entry = next(entry for entry in grp.getgrall() if entry.gr_gid != os.getegid())
    wanted = group if group == STRANGE_GROUP else entry.gr_gid
    with samehost.listen(place / "s", mode=0o660, group=group if group == STRANGE_GROUP else entry.gr_name):
        assert (os.lstat(place / "s").st_gid, mode_of(place / "s")) == (wanted, 0o660)


def test_the_backlog_is_the_one_asked_for(place):
    with (
        samehost.listen(place / "s", backlog=0),
        samehost.dial(place / "s"),
        socket.socket(socket.AF_UNIX) as second,
    ):
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.connect(f"{place}/s")


def test_descriptors_are_close_on_exec(place):
    with samehost.listen(place / "s"):
        ours = [number for number, name in descriptors().items() if str(place) in name or "socket:" in name]
        assert len(ours) >= 3  # the directory, the lock and the socket
        numbers = [number for number in ours if number > 2]
        code = "import os, sys; print([n for n in map(int, sys.argv[1:]) if os.path.exists(f'/proc/self/fd/{n}')])"
        with python(code, *map(str, numbers), close_fds=False) as child:
            assert child.line() == "[]"


# Giving it back


def test_a_claim_is_given_back_once(place):
    held = claim(Request(parse(place / "s"), "stream", 0o600, None, None))
    assert held.hold() is Hold.HELD
    held.release()
    with samehost.listen(place / "s"):  # by now it belongs to somebody else
        held.release()
        assert held.hold() is Hold.HELD
        samehost.dial(place / "s").close()


def test_a_path_can_be_given_back_before_its_socket(place):
    """As a server does that drains: the next one can have the address while old conversations go on."""
    held = claim(Request(parse(place / "s"), "stream", 0o600, None, None))
    held.release_path()
    assert os.listdir(place) == []
    assert held.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    with samehost.listen(place / "s"):
        held.release()
        samehost.dial(place / "s").close()


@pytest.mark.parametrize("what", ["removed", "replaced", "directory moved", "directory replaced"])
def test_hold_tells_what_became_of_the_path(place, what):
    directory = place / "d"
    directory.mkdir()
    held = claim(Request(parse(directory / "s"), "stream", 0o600, None, None))
    assert held.hold() is Hold.HELD
    match what:
        case "removed":
            os.unlink(directory / "s")
        case "replaced":
            leave_dead_socket(directory / "other")
            os.rename(directory / "other", directory / "s")
        case "directory moved":
            directory.rename(place / "moved")
        case "directory replaced":
            directory.rename(place / "moved")
            directory.mkdir()
            leave_dead_socket(directory / "s")
    assert held.hold() is (Hold.REPLACED if "replaced" in what else Hold.REMOVED)
    held.release()
    assert ("s" in os.listdir(directory) if directory.exists() else False) == ("replaced" in what)
    if (place / "moved").exists():
        assert os.listdir(place / "moved") == []  # ours is taken away wherever its directory went


# Who may not


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"type": "raw"}, "type='raw' is not one of"),
        ({"mode": 0o1777}, "not a set of permission bits"),
        ({"mode": -1}, "not a set of permission bits"),
        ({"mode": "600"}, "not a set of permission bits"),
        ({"backlog": -1}, "out of range"),
        ({"backlog": 2**31}, "out of range"),
        ({"group": -1}, "group=-1 is not an id"),  # to chown(2) it means: leave it
        ({"group": 2**32 - 1}, "is not an id"),
        ({"group": "no such group"}, "there is no group 'no such group'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(place, settings, said):
    for listen in (samehost.listen, samehost.aio.listen):
        with pytest.raises(UsageError, match=said):
            listen(place / "s", **settings)
    assert os.listdir(place) == []


@pytest.mark.parametrize("type", TYPES)
def test_two_claims_in_one_process_are_one_too_many(place, type):
    for listen in (samehost.listen, samehost.aio.listen):
        with samehost.listen(place / "s", type):
            for other in TYPES:
                with pytest.raises(AddressInUse, match=rf"held by pid {os.getpid()} "):
                    listen(place / "s", other)
            assert sorted(os.listdir(place)) == ["s", "s.lock"]
    assert os.listdir(place) == []


def test_two_threads_race_and_one_wins(place):
    def contend(start, outcomes):
        start.wait()
        try:
            outcomes.append(samehost.listen(place / "s"))
        except AddressInUse as error:
            outcomes.append(error)

    for turn in range(40):
        if turn % 2:
            leave_dead_socket(place / "s")
        start, outcomes = threading.Barrier(2), []
        threads = [threading.Thread(target=contend, args=(start, outcomes)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, samehost.Listener)]
        (loser,) = [outcome for outcome in outcomes if outcome is not winner]
        assert f"held by pid {os.getpid()} " in str(loser)
        with winner, samehost.dial(place / "s"):
            pass
    assert os.listdir(place) == []


@needs_root
@pytest.mark.parametrize("state", ["dead", "alive"])
def test_the_socket_of_another_user_is_not_touched(open_place, state):
    """A plain user may neither connect to a socket of mode 0600 nor remove it from a sticky directory."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{open_place}/s")
        os.chmod(open_place / "s", 0o600)
        if state == "dead":
            other.close()
        before = os.lstat(open_place / "s")
        code = """
            try:
                samehost.listen(sys.argv[1])
            except samehost.errors.ClaimError as error:
                print(error)
            """
        with python_as(NOBODY, code, f"{open_place}/s") as claimer:
            said = (
                f"cannot tell whether the socket {open_place}/s of uid 0 is alive: uid {NOBODY} may not connect to it"
            )
            assert claimer.line() == f"{said}; it was not touched"
            assert claimer.end() == 0
        os.chmod(open_place / "s", 0o666)
        with python_as(NOBODY, code, f"{open_place}/s") as claimer:
            said = {
                "dead": f"cannot remove the dead socket {open_place}/s of uid 0: Operation not permitted",
                "alive": f"{open_place}/s is held by uid 0",
            }
            assert claimer.line() == said[state]
            assert claimer.end() == 0
        assert os.lstat(open_place / "s").st_ino == before.st_ino
    assert os.listdir(open_place) == ["s"]


@needs_root
def test_a_group_that_is_not_ours_to_give_is_an_error_that_leaves_nothing(place):
    os.chown(place, NOBODY, NOBODY)
    code = """
        try:
            samehost.listen(sys.argv[1], mode=0o660, group=0)
        except samehost.errors.ClaimError as error:
            print(error)
        print(os.listdir(os.path.dirname(sys.argv[1])))
        """
    with python_as(NOBODY, code, f"{place}/s") as claimer:
        assert claimer.line() == f"cannot create {place}/s: Operation not permitted"
        assert claimer.line() == "[]"


# Abstract names


def test_an_abstract_name_has_one_holder_who_is_named(place):
    name = f"@{place}".ljust(108, "x")  # with @ for the NUL, as long as can be
    with samehost.listen(name) as listener, samehost.dial(name) as client, listener.accept() as server:
        client.sendall(b"hello")
        assert server.recv() == b"hello"
        with pytest.raises(AddressInUse, match=rf"is held by pid {os.getpid()} "):
            samehost.listen(name)
    samehost.listen(name).close()
    with pytest.raises(AddressError, match="108 bytes long, at most 107 fit"):
        samehost.listen(name + "x")


def test_an_abstract_name_of_another_process_is_left_alone(place):
    code = """
        import socket, sys
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\\0" + sys.argv[1])
        print("ready", flush=True)
        sys.stdin.read()
        """
    with python(code, str(place)) as holder:
        assert holder.line() == "ready"
        with pytest.raises(AddressInUse, match=rf"^@{place} is held by pid {holder.pid} \(python"):
            samehost.listen(f"@{place}")


def test_an_abstract_name_has_no_group(place):
    with pytest.raises(UsageError, match="has no file, so no group: pass a policy"):
        samehost.listen(f"@{place}", group=0)


# Descriptors that were handed in


@pytest.mark.parametrize("type", TYPES)
def test_a_handed_socket_is_served_and_its_path_stays(place, type):
    ours = socket.socket(socket.AF_UNIX, TYPES[type])
    ours.bind(f"{place}/s")
    if type != "datagram":
        ours.listen()
    number = ours.detach()
    os.set_inheritable(number, True)
    with samehost.listen(f"fd:{number}", type) as listener:
        assert not os.get_inheritable(number)
        assert listener.address == f"fd:{number}"
        samehost.dial(place / "s", type).close()
    assert os.listdir(place) == ["s"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def pair():
    one, other = socket.socketpair()
    other.close()
    return one


@pytest.mark.parametrize(
    ("make", "type", "said"),
    [
        (lambda: socket.socket(socket.AF_UNIX), "stream", "not a listening socket"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "datagram", "not a bound socket"),
        (lambda: socket.socket(socket.AF_UNIX), "seqpacket", r"another kind \(AF_UNIX SOCK_STREAM\)"),
        (lambda: socket.socket(socket.AF_INET), "stream", r"another kind \(AF_INET SOCK_STREAM\)"),
        (pair, "stream", "not a listening socket"),
        (tempfile.TemporaryFile, "stream", "is not a socket"),
    ],
)
def test_a_handed_descriptor_of_another_kind_is_refused_and_stays_open(make, type, said):
    with make() as file:
        number = file.fileno()
        with pytest.raises(AddressError, match=said):
            samehost.listen(f"fd:{number}", type)
        os.fstat(number)


def test_a_descriptor_that_is_not_open_is_refused():
    with pytest.raises(AddressError, match="fd:999999 is not a socket: Bad file descriptor"):
        samehost.listen("fd:999999")


def test_a_handed_socket_keeps_the_group_that_it_has():
    with pytest.raises(UsageError, match="decided about its group"):
        samehost.listen("fd:0", group=0)


def test_the_types_are_those_of_the_table():
    assert handed.SOCKET_TYPES == TYPES


# The runtime directory of service names


RUNTIME = """
    os.environ["XDG_RUNTIME_DIR"] = sys.argv[1]
    path = os.path.join(sys.argv[1], "samehost")
    try:
        with samehost.listen("clock") as listener:
            status = os.lstat(path)
            print(listener.address, oct(status.st_mode & 0o7777), status.st_uid, sorted(os.listdir(path)))
        print(os.listdir(path))
    except samehost.errors.ClaimError as error:
        print(error)
    """


@pytest.fixture
def runtime(place):
    """An XDG_RUNTIME_DIR of nobody's."""
    os.chown(place, NOBODY, NOBODY)
    return place


def answer_of_nobody(runtime, lines=1):
    with python_as(NOBODY, RUNTIME, str(runtime)) as program:
        said = [program.line() for _ in range(lines)]
        assert program.end() == 0
    return said


@needs_root
def test_the_runtime_directory_is_made_for_its_user_alone(runtime):
    for _ in range(2):  # the first makes it, the second finds it
        address = f"{runtime}/samehost/clock.sock"
        made = f"{address} 0o700 {NOBODY} ['clock.sock', 'clock.sock.lock']"
        with umask(0):
            assert answer_of_nobody(runtime, lines=2) == [made, "[]"]


@needs_root
@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "directory of root"])
def test_a_runtime_directory_that_is_not_ours_is_refused(runtime, kind):
    path = runtime / "samehost"
    match kind:
        case "link":
            (runtime / "mine").mkdir()
            os.chown(runtime / "mine", NOBODY, NOBODY)
            path.symlink_to("mine")
        case "dangling link":
            path.symlink_to("nowhere")
        case "file":
            path.touch()
            os.chown(path, NOBODY, NOBODY)
        case "directory of root":
            path.mkdir(0o777)
            path.chmod(0o777)
    before = os.lstat(path)
    assert answer_of_nobody(runtime) == [
        f"the runtime directory {path} is no directory of uid {NOBODY}: remove it, it was not made by us"
    ]
    assert os.lstat(path) == before
    assert not (runtime / "nowhere").exists()
    assert not any((runtime / name).is_dir() and os.listdir(runtime / name) for name in os.listdir(runtime))


@needs_root
def test_a_runtime_directory_that_others_may_write_in_is_refused(runtime):
    (runtime / "samehost").mkdir()
    os.chown(runtime / "samehost", NOBODY, NOBODY)
    (runtime / "samehost").chmod(0o777)
    (said,) = answer_of_nobody(runtime)
    assert "anybody may remove files in its directory" in said


@needs_root
def test_without_its_parent_the_runtime_directory_is_not_made(runtime):
    (said,) = answer_of_nobody(runtime / "missing")
    assert said.endswith("cannot be opened (No such file or directory): make it first")


@needs_root
@needs_program("unshare")
def test_root_has_a_runtime_directory_of_its_own():
    """In a mount namespace, so that the host's /run stays as it is."""
    code = """if True:
        import os, samehost, subprocess, sys
        if subprocess.run(["mount", "-t", "tmpfs", "none", "/run"]).returncode:
            sys.exit(77)
        with samehost.listen("clock") as listener:
            mode = oct(os.lstat("/run/samehost").st_mode & 0o7777)
            print(listener.address, mode, sorted(os.listdir("/run/samehost")))
        """
    done = run(["unshare", "-m", sys.executable, "-c", code])
    if done.returncode in (1, 77) and b"samehost" not in done.stderr:
        pytest.skip(f"SKIPPED LOUDLY: no mount namespace to be had here: {done.stderr.decode()}")
    said = "/run/samehost/clock.sock 0o700 ['clock.sock', 'clock.sock.lock']\n"
    assert (done.stdout.decode(), done.stderr) == (said, b"")


# Every step fails in turn


@contextlib.contextmanager
def room_for(count):
    """Let this process open so many descriptors and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 64, hard))
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def nothing(place):
    return contextlib.nullcontext()


def dead_socket(place):
    leave_dead_socket(place / "s")
    return contextlib.nullcontext()


def live_socket(place):
    live = socket.socket(socket.AF_UNIX)
    live.bind(f"{place}/s")
    return live


def lock_without_socket(place):
    """Somebody who has the lock and no socket, so that /proc/locks has to be asked."""
    listener = samehost.listen(place / "s")
    os.unlink(place / "s")
    return listener


def live_name(place):
    live = socket.socket(socket.AF_UNIX)
    live.bind(f"\0{place}")
    return live


CLAIMABLE = {
    "a path": (nothing, "{place}/s", {}),
    "a path with a group": (nothing, "{place}/s", {"mode": 0o660, "group": STRANGE_GROUP}),
    "a long name": (nothing, "{place}/" + "s" * 200, {}),
    "a dead socket": (dead_socket, "{place}/s", {}),
    "datagrams": (nothing, "{place}/s", {"type": "datagram"}),
    "an abstract name": (nothing, "@{place}", {}),
}

IN_USE = {
    "a live socket": (live_socket, "{place}/s"),
    "a lock": (lock_without_socket, "{place}/s"),
    "an abstract name": (live_name, "@{place}"),
}


@needs_root
@pytest.mark.parametrize("front", [samehost, samehost.aio], ids=["blocking", "aio"])
@pytest.mark.parametrize(("prepare", "address", "settings"), CLAIMABLE.values(), ids=CLAIMABLE)
def test_out_of_descriptors_at_any_step_leaves_nothing(place, front, prepare, address, settings):
    address = address.format(place=place)
    front.listen(place / "warm", **settings).close()  # what is imported late takes descriptors as well
    failures = 0
    for room in range(20):
        with prepare(place):
            before = os.listdir(place), descriptors()
            with room_for(room):
                try:
                    listener = front.listen(address, **settings)
                except ClaimError as error:
                    listener, said = None, str(error)
            if listener is not None:
                listener.close()
                break
            failures += 1
            assert "Too many open files" in said
            assert (os.listdir(place), descriptors()) == before
            for name in os.listdir(place):
                os.unlink(place / name)
    else:
        pytest.fail("it never worked")
    assert failures >= (1 if address.startswith("@") else 5)
    assert os.listdir(place) == []


@pytest.mark.parametrize(("prepare", "address"), IN_USE.values(), ids=IN_USE)
def test_out_of_descriptors_while_looking_for_the_holder_is_an_error_all_the_same(place, prepare, address):
    address = address.format(place=place)
    with prepare(place):
        with pytest.raises(AddressInUse):
            samehost.listen(address)
        before = os.listdir(place), descriptors()
        said = []
        for room in range(12):
            with room_for(room), pytest.raises(ClaimError) as caught:
                samehost.listen(address)
            said.append(str(caught.value))
            assert (os.listdir(place), descriptors()) == before
        assert "Too many open files" in said[0]
        assert f"held by pid {os.getpid()} " in said[-1]


CLAIM = """if True:
    import samehost, sys
    path, mode, group = sys.argv[1], int(sys.argv[2], 8), int(sys.argv[3])
    import samehost.blocking.listener
    try:
        samehost.listen(path, mode=mode, group=group).close()
    except samehost.errors.ClaimError as error:
        print(error)
    """

INJECTIONS = {
    # What the kernel may answer to each call on the way, and the file name for which the call is made.
    "socket": ("socket:error=ENOBUFS", "s", "No buffer space available"),
    "fchmod": ("fchmod:error=EPERM", "s", "Operation not permitted"),
    "bind": ("bind:error=ENOSPC", "s", "No space left on device"),
    "bind, quicker": ("bind:error=EADDRINUSE", "s", "was taken by somebody else just now: try again"),
    "link": ("?link,?linkat:error=EMLINK", "s" * 200, "Too many links"),
    "chown": ("?chown,?fchownat:error=EDQUOT", "s", "Disk quota exceeded"),
    "chmod": ("?chmod,?fchmodat,?fchmodat2:error=EROFS", "s", "Read-only file system"),
    "listen": ("listen:error=EADDRINUSE", "s", "was taken by somebody else just now"),
    "eventfd": ("eventfd2:error=ENFILE", "s", "Too many open files in system"),
}


@needs_root
@needs_program("strace")
@pytest.mark.parametrize(("injection", "leaf", "said"), INJECTIONS.values(), ids=INJECTIONS)
def test_whichever_call_fails_all_of_it_is_undone(place, injection, leaf, said):
    claim_with(injection, f"{place}/{leaf}", said)
    assert os.listdir(place) == []


@needs_root
@needs_program("strace")
def test_a_lock_that_cannot_be_taken_is_said_and_its_file_stays(place):
    """Some network filesystems have no locks. Without it the file may be somebody else's, so it is not removed."""
    claim_with("flock:error=ENOLCK", f"{place}/s", "No locks available")
    assert os.listdir(place) == ["s.lock"]


def claim_with(injection, path, said):
    """Claim in a process one of whose calls fails: strace makes the kernel answer so."""
    calls = injection.partition(":")[0]
    trace = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={injection}"]
    done = run([*trace, sys.executable, "-W", "error", "-c", CLAIM, path, "660", str(STRANGE_GROUP)])
    if b"ptrace" in done.stderr.lower():
        pytest.skip(f"SKIPPED LOUDLY: no tracing here: {done.stderr.decode()}")
    assert said in done.stdout.decode(), done.stderr.decode()
    assert done.stderr == b""  # neither a traceback nor a warning of something unclosed


def test_an_interrupt_in_the_middle_undoes_all_of_it(place, monkeypatch):
    """Ctrl-C is no ClaimError, and leaves no more behind."""

    def interrupted(*_):
        raise KeyboardInterrupt

    before = descriptors()
    monkeypatch.setattr(os, "chmod", interrupted)
    with pytest.raises(KeyboardInterrupt):
        samehost.listen(place / "s", mode=0o660)
    assert os.listdir(place) == []
    assert descriptors() == before


def test_an_interrupt_right_after_bind_leaves_nothing(place, monkeypatch):
    def interrupted(*_):
        assert (place / "s").is_socket()
        raise KeyboardInterrupt

    monkeypatch.setattr(claiming, "_own", interrupted)
    with pytest.raises(KeyboardInterrupt):
        samehost.listen(place / "s")
    assert os.listdir(place) == []


def test_a_mode_narrower_than_the_usual_one_is_never_wider(place, monkeypatch):
    own = claiming._own
    seen = []
    monkeypatch.setattr(
        claiming, "_own", lambda *arguments: (seen.append((place / "s").stat().st_mode), own(*arguments))
    )
    with samehost.listen(place / "s", mode=0o060):
        assert stat.S_IMODE((place / "s").stat().st_mode) == 0o060
    assert [stat.S_IMODE(mode) for mode in seen] == [0]


@pytest.mark.parametrize(
    ("address", "options", "said"),
    [
        ("@sh-test", {"mode": 0o666}, "mode=0o666: @sh-test has no file"),
        ("./s", {"backlog": "5"}, "backlog='5'"),
        ("./s", {"group": 1.5}, "group=1.5"),
        ("./s", {"type": ["stream"]}, "type="),
        ("./s", {"allow": "root"}, "allow='root' is not a policy"),
        ("./s", {"mode": "600"}, "mode='600'"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_before_anything_is_done(place, monkeypatch, address, options, said):
    monkeypatch.chdir(place)
    with pytest.raises(UsageError, match=f"^{said}"):
        samehost.listen(address, **options)
    assert os.listdir(place) == []
