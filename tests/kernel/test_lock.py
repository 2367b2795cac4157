"""The lock beside a socket: who gets it, who is told what, and what is never touched."""

from __future__ import annotations

import os
import socket
import stat
import threading
from contextlib import contextmanager

import pytest
from support import NOBODY, kill, needs_root, python, python_as

import samehost
from samehost.errors import AddressInUse, ClaimError
from samehost.kernel import paths
from samehost.kernel.lock import PathLock


@pytest.fixture
def directory(place):
    descriptor = os.open(place, paths.DIRECTORY_FLAGS)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def take(place, directory):
    """Take the lock of the socket `s` in `place`."""
    return lambda kind=PathLock: kind(f"{place}/s", directory, "s")


def test_one_has_it_and_the_next_one_gets_it_afterwards(place, take):
    first = take()
    assert stat.S_IMODE((place / "s.lock").stat().st_mode) == 0o600
    with pytest.raises(AddressInUse, match=rf"^{place}/s is held by pid {os.getpid()} "):
        take()
    first.release(remove=True)
    assert os.listdir(place) == []
    take().release(remove=False)
    assert os.listdir(place) == ["s.lock"]
    take().release(remove=True)
    assert os.listdir(place) == []


def test_a_lock_file_that_was_left_behind_is_no_lock(place):
    code = "import samehost, sys; l = samehost.listen(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    with python(code, f"{place}/s") as server:
        assert server.line() == "ready"
        with pytest.raises(AddressInUse):
            samehost.listen(place / "s")
        kill(server)
    assert sorted(os.listdir(place)) == ["s", "s.lock"]
    samehost.listen(place / "s").close()
    assert os.listdir(place) == []


@pytest.mark.parametrize("next_one_is_there", [False, True])
def test_a_lock_whose_file_was_removed_meanwhile_is_not_taken(place, take, next_one_is_there):
    """Between opening the file and locking it, its holder may end and take it away: what we would lock is nowhere."""
    holders = [take()]

    class Late(PathLock):
        waits = 1

        def _lock(self, descriptor):
            if self.waits:
                self.waits = 0
                holders.pop().release(remove=True)
                if next_one_is_there:
                    holders.append(take())
            super()._lock(descriptor)

    if next_one_is_there:
        with pytest.raises(AddressInUse):
            take(Late)
    else:
        holders.append(take(Late))
        with pytest.raises(AddressInUse):
            take()
    holders.pop().release(remove=True)
    assert os.listdir(place) == []


def test_a_holder_that_ends_before_it_can_be_named_is_no_holder(place, take):
    holder = take()

    class Late(PathLock):
        def _holders(self, descriptor):
            holder.release(remove=False)
            return super()._holders(descriptor)

    take(Late).release(remove=True)
    assert os.listdir(place) == []


def test_a_holder_that_cannot_be_seen_is_said_to_be_so(take, monkeypatch):
    """As one in another pid namespace, whose socket is in another network namespace."""
    monkeypatch.setattr(PathLock, "_holders", lambda *_: [])
    holder = take()
    with pytest.raises(AddressInUse, match="is held by a process that cannot be seen from here"):
        take()
    holder.release(remove=True)


def test_giving_up_a_lock_leaves_the_file_of_the_next_holder(place, take):
    first = take()
    os.unlink(place / "s.lock")
    second = take()
    first.release(remove=True)
    with pytest.raises(AddressInUse):
        take()
    second.release(remove=True)
    assert os.listdir(place) == []


def test_a_holder_that_has_not_bound_yet_is_named(place):
    code = """
        import fcntl, os, sys
        descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        print("ready", flush=True)
        sys.stdin.read()
        """
    with python(code, f"{place}/s.lock") as holder:
        assert holder.line() == "ready"
        with pytest.raises(AddressInUse, match=rf"held by pid {holder.pid} \(python"):
            samehost.listen(place / "s")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{place}/s")
        before = os.lstat(place / "s")
        with pytest.raises(AddressInUse, match=rf"held by pid {holder.pid} "):
            samehost.listen(place / "s")
        assert os.lstat(place / "s") == before


@contextmanager
def untouched(path):
    """What is there, and behind a link, stays as it is, inode and times included."""

    def look():
        found = [os.lstat(path), *([os.stat(path)] if path.exists() else [])]
        content = path.read_text() if path.is_file() else None
        return [(one.st_ino, one.st_mode, one.st_mtime_ns, one.st_ctime_ns) for one in found], content

    before = look()
    yield
    assert look() == before


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("link", "it is a symbolic link"),
        ("dangling link", "it is a symbolic link"),
        ("directory", "it is not a plain file"),
        ("fifo", "it is not a plain file"),
        ("socket", "it is not a plain file"),
    ],
)
def test_what_is_no_lock_file_is_refused_and_not_touched(place, kind, said):
    path = place / "s.lock"
    (place / "precious").write_text("precious")
    match kind:
        case "link":
            path.symlink_to("precious")
        case "dangling link":
            path.symlink_to("nowhere")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
    with untouched(path), pytest.raises(ClaimError, match=f"^cannot lock {path}: {said}") as caught:
        samehost.listen(place / "s")
    assert not isinstance(caught.value, AddressInUse)
    assert sorted(os.listdir(place)) == ["precious", "s.lock"]


CLAIM = """
    try:
        with samehost.listen(sys.argv[1]):
            print("claimed")
    except samehost.errors.ClaimError as error:
        print(error)
    """


@needs_root
def test_a_lock_file_of_another_user_in_a_sticky_directory_is_refused_and_its_owner_named(open_place):
    (open_place / "s.lock").touch(0o600)
    with untouched(open_place / "s.lock"), python_as(NOBODY, CLAIM, f"{open_place}/s") as claimer:
        said = f"cannot lock {open_place}/s.lock: Permission denied (it belongs to uid {os.geteuid()})"
        assert claimer.line() == said
        assert claimer.end() == 0
    assert os.listdir(open_place) == ["s.lock"]


@needs_root
def test_a_lock_held_by_another_user_names_the_uid(open_place):
    """A squatter can keep an address from us, as in any shared directory, but not without being named."""
    squat = """
        import fcntl
        os.umask(0)
        descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        print("ready", flush=True)
        sys.stdin.read()
        """
    with python_as(NOBODY, squat, f"{open_place}/s.lock") as squatter:
        assert squatter.line() == "ready"
        # Where fs.protected_regular is on, the kernel does not even let us open it.
        said = rf"held by pid {squatter.pid} .*(user nobody|uid {NOBODY})|belongs to uid {NOBODY}"
        with untouched(open_place / "s.lock"), pytest.raises(ClaimError, match=said):
            samehost.listen(open_place / "s")


@needs_root
def test_a_lock_made_under_a_wide_umask_does_not_keep_its_user_out_later(place):
    """A killed server leaves its lock file: the next one has to be able to open it, whatever the first one's umask."""
    os.chown(place, NOBODY, NOBODY)
    code = """
        os.umask(0o777)
        listener = samehost.listen(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.read()
        """
    with python_as(NOBODY, code, f"{place}/s") as server:
        assert server.line() == "ready"
        assert stat.S_IMODE(os.lstat(place / "s.lock").st_mode) == 0o600
        kill(server)
    with python_as(NOBODY, CLAIM, f"{place}/s") as claimer:
        assert (claimer.line(), claimer.end()) == ("claimed", 0)


def test_a_forked_child_that_gives_up_its_copy_frees_nothing(take, place):
    held = take()
    child = os.fork()
    if child == 0:
        held.release(remove=False)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(AddressInUse):
        take()
    held.release(remove=True)


def test_of_many_threads_exactly_one_gets_it(place, take):
    def contend(start, outcomes):
        start.wait()
        try:
            outcomes.append(take())
        except AddressInUse as error:
            outcomes.append(error)

    for _ in range(20):
        start, outcomes = threading.Barrier(4), []
        threads = [threading.Thread(target=contend, args=(start, outcomes)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, PathLock)]
        assert all(f"pid {os.getpid()} " in str(error) for error in outcomes if error is not winner)
        winner.release(remove=True)
    assert os.listdir(place) == []
