"""Names that lead elsewhere: removed, replaced, relative, in other roots and namespaces."""

from __future__ import annotations

import os
import socket

import pytest

from samehost.errors import Unavailable
from samehost.inspect import inspect, names, snapshot


def inode_of(one):
    return os.fstat(one.fileno()).st_ino


def pids(one):
    return [holder.pid for holder in one.holders]


def only(sequence):
    (one,) = sequence
    return one


def listener_of(pid):
    """The listener of a process, in the report of the whole host."""
    return only(one for one in inspect().sockets if pid in pids(one) and one.state == "listening")


def test_a_file_that_was_removed(directory, worker):
    path = f"{directory}/a.sock"
    server = worker()
    server.listen(path)
    os.unlink(path)
    one = listener_of(server.pid)
    assert (one.address, one.place, one.file) == (path, "deleted", None)
    with pytest.raises(Unavailable, match=rf"no such file here, though pid {server.pid} \(python"):
        inspect(path)


def test_a_file_that_was_replaced(directory, worker):
    path = f"{directory}/a.sock"
    old, new = worker(), worker()
    old.listen(path)
    os.unlink(path)
    new.listen(path)
    report = inspect(path)
    assert pids(only(report.sockets)) == [new.pid]
    namesake = only(report.namesakes)
    assert (pids(namesake), namesake.place, namesake.file) == ([old.pid], "replaced", None)
    assert listener_of(new.pid).place == "present"


def test_a_file_that_was_renamed(directory, worker):
    server = worker()
    server.listen(f"{directory}/temporary.sock")
    os.rename(f"{directory}/temporary.sock", f"{directory}/a.sock")
    report = inspect(f"{directory}/a.sock")
    assert report.state == "listening"
    assert report.file.path == f"{directory}/a.sock"
    one = only(report.sockets)
    assert (one.address, one.place) == (f"{directory}/temporary.sock", "deleted")


def test_a_relative_name(directory, worker):
    server = worker(cwd=directory)
    server.listen("a.sock")
    path = f"{directory}/a.sock"
    one = only(inspect(path).sockets)
    assert (one.address, one.place, one.file.path) == (path, "present", path)
    assert bytes.fromhex(one.name_hex) == b"a.sock"
    assert listener_of(server.pid) == one
    server.do("os.chdir('/')")
    one = only(inspect(path).sockets)
    assert (one.address, one.place, one.file) == ("a.sock", "unknown", None)
    # A file of this name in the new directory is not taken for it.
    server.do(f"os.mkdir({directory + '/other'!r}); os.chdir({directory + '/other'!r})")
    server.do("open('a.sock', 'w').close()")
    assert listener_of(server.pid).place == "unknown"


def test_a_name_through_a_descriptor(directory, worker):
    server = worker()
    server.do(f"d = os.open({directory!r}, os.O_PATH); n = f'/proc/self/fd/{{d}}/a.sock'")
    server.do("s = socket.socket(socket.AF_UNIX); s.bind(n); s.listen()")
    path = f"{directory}/a.sock"
    one = only(inspect(path).sockets)
    assert (one.address, one.place) == (path, "present")
    server.do("os.close(d)")
    one = only(inspect(path).sockets)
    assert (one.place, one.file) == ("unknown", None)
    assert one.address.startswith("/proc/self/fd/")


def test_another_root(directory, worker, need_root):
    server = worker()
    os.mkdir(f"{directory}/run")
    os.mkdir(f"{directory}/var")
    os.symlink("/run", f"{directory}/var/run")
    server.do(f"os.chroot({directory!r}); os.chdir('/')")
    server.listen("/var/run/a.sock")
    path = f"{directory}/run/a.sock"
    one = only(inspect(path).sockets)
    assert (one.address, one.place, one.file.path) == (path, "present", path)
    server.do("os.unlink('/run/a.sock')")
    assert listener_of(server.pid).place == "deleted"
    server.do("open('/run/a.sock', 'w').close()")
    assert listener_of(server.pid).place == "replaced"


@pytest.fixture
def hidden(directory, worker, need_root):
    """A worker in a mount namespace of its own, and a directory that has other files there."""
    os.mkdir(f"{directory}/sub")
    made = worker("unshare", "-m")
    made.do("import subprocess")
    made.do(f"subprocess.run(['mount', '-t', 'tmpfs', 'none', {directory + '/sub'!r}], check=True)")
    assert os.stat(f"/proc/{made.pid}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
    return made


def test_another_mount_namespace(directory, hidden, worker, sockets):
    path = f"{directory}/sub/a.sock"
    hidden.listen(path)
    one = listener_of(hidden.pid)
    assert (one.address, one.place, one.file) == (path, "elsewhere", None)
    with pytest.raises(Unavailable, match=rf"pid {hidden.pid} .*in another mount namespace"):
        inspect(path)
    # A dead socket of ours under the same name does not become alive by it.
    sockets(bind=path).close()
    report = inspect(path)
    assert (report.state, report.sockets) == ("dead", ())
    assert (only(report.namesakes).inode, only(report.namesakes).place) == (one.inode, "elsewhere")
    # Nor do the two servers get mixed up.
    os.unlink(path)
    here = worker()
    here.listen(path)
    report = inspect(path)
    assert pids(only(report.sockets)) == [here.pid]
    assert pids(only(report.namesakes)) == [hidden.pid]
    hidden.do(f"os.unlink({path!r})")
    assert listener_of(hidden.pid).place == "deleted"


def test_another_mount_namespace_with_the_same_file(directory, worker, need_root):
    # A namespace of its own need not mean another file.
    server = worker("unshare", "-m")
    path = f"{directory}/a.sock"
    server.listen(path)
    one = only(inspect(path).sockets)
    assert (one.address, one.place) == (path, "present")


def test_absolute_links_of_another_mount_namespace(directory, hidden):
    sub = f"{directory}/sub"
    hidden.do(f"os.mkdir({sub + '/real'!r}); os.symlink({sub + '/real'!r}, {sub + '/link'!r})")
    hidden.listen(f"{sub}/link/a.sock")
    assert listener_of(hidden.pid).place == "elsewhere"
    hidden.do(f"os.unlink({sub + '/link'!r}); os.symlink('link', {sub + '/link'!r})")
    assert listener_of(hidden.pid).place == "unknown"


def test_who_may_not_look_does_not_guess(directory, hidden, as_nobody):
    path = f"{directory}/sub/a.sock"
    hidden.listen(path)
    report = as_nobody(inspect)
    one = only(one for one in report.sockets if one.address == path)
    assert (one.place, one.file, one.holders, one.uid) == ("unknown", None, (), 0)


def test_another_network_namespace(directory, worker, sockets, need_root):
    path = f"{directory}/a.sock"
    server = worker("unshare", "-n")
    server.listen(path, backlog=3)
    client = sockets(connect=path)
    server.do("a, _ = s.accept()")
    report = inspect(path)
    assert (report.state, report.unreadable_network_namespaces) == ("listening", 0)
    one = only(report.sockets)
    assert (one.network_namespace, pids(one), one.backlog_limit) == ("another", [server.pid], 3)
    # The kernel makes accepted sockets in the network namespace of the client.
    connection = only(report.connections)
    assert (connection.near.network_namespace, pids(connection.near)) == ("this", [server.pid])
    assert (connection.far.network_namespace, connection.far.inode) == ("this", inode_of(client))


def test_connections_are_counted_where_they_were_accepted(directory, worker, sockets, need_root):
    # The same name three times: two whose file is gone, and one whose client is in another network namespace.
    path = f"{directory}/a.sock"
    servers = [worker(), worker(), worker()]
    inodes = []
    for number, server in enumerate(servers, 1):
        if os.path.exists(path):
            os.unlink(path)
        server.listen(path)
        inodes.append(listener_of(server.pid).inode)
        clients = [worker("unshare", "-n")] if number == 3 else [worker() for _ in range(number)]
        for client in clients:
            client.connect(path)
        server.do(f"a = [s.accept() for _ in range({len(clients)})]")
    found = [one.bound_inode for one in inspect().connections if one.near.address == path]
    assert sorted(found) == sorted([inodes[0], inodes[1], inodes[1], inodes[2]])


def test_abstract_names_of_two_other_network_namespaces(worker, need_root):
    busy, quiet = worker("unshare", "-n"), worker("unshare", "-n")
    for server in (busy, quiet):
        server.listen("\0the same")
    busy.connect("\0the same")
    busy.do("a, _ = s.accept()")
    connection = only(one for one in inspect().connections if one.near.address == "@the same")
    assert connection.bound_inode == listener_of(busy.pid).inode != listener_of(quiet.pid).inode


def test_a_peer_in_another_network_namespace(directory, worker, sockets, need_root, monkeypatch):
    path = f"{directory}/a.sock"
    server = worker("unshare", "-n")
    server.listen(path, "SOCK_DGRAM")
    client = sockets(socket.SOCK_DGRAM, connect=path)
    connection = only(inspect(f"fd:{client.fileno()}").connections)
    assert connection.state == "sending"
    assert (connection.far.network_namespace, connection.far.address) == ("another", path)
    assert only(inspect(path).connections).far.inode == inode_of(client)
    # The same where it may not be entered.
    monkeypatch.setattr(snapshot, "_network_namespaces", list)
    connection = only(inspect(f"fd:{client.fileno()}").connections)
    far = connection.far
    assert (far.network_namespace, far.state, far.address) == ("another", "unknown", None)
    assert (pids(far), far.type) == ([server.pid], "datagram")
    report = inspect(path)
    assert (report.state, report.sockets, report.connections) == ("unseen", (), ())


def test_a_listener_that_cannot_be_seen_is_not_mistaken_for_its_connections(
    directory, worker, sockets, need_root, monkeypatch
):
    path = f"{directory}/a.sock"
    server = worker("unshare", "-n")
    server.listen(path)
    sockets(bind=f"{directory}/client.sock", connect=path)
    server.do("a, _ = s.accept()")
    monkeypatch.setattr(snapshot, "_network_namespaces", list)
    report = inspect(path)
    assert (report.state, report.sockets) == ("unseen", ())
    connection = only(report.connections)
    assert (pids(connection.near), pids(connection.far)) == ([server.pid], [os.getpid()])


def test_a_network_namespace_and_no_permission(directory, worker, need_root, as_nobody):
    path = f"{directory}/a.sock"
    server = worker("unshare", "-n")
    server.listen(path, backlog=3)
    os.chmod(path, 0o666)

    def look():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            return inspect(path), inspect(f"fd:{client.fileno()}")

    report, ours = as_nobody(look)
    assert (report.state, report.sockets) == ("unseen", ())
    connection = only(ours.connections)
    assert (connection.state, connection.far) == ("waiting", None)


def test_a_namespace_that_may_not_be_entered_is_counted(worker, need_root, monkeypatch):
    worker("unshare", "-n")
    real = snapshot.sock_diag.dump

    def dump(namespace=None):
        if namespace is not None:
            raise PermissionError(1, "Operation not permitted")
        return real()

    monkeypatch.setattr(snapshot.sock_diag, "dump", dump)
    assert inspect().unreadable_network_namespaces >= 1


def test_abstract_names_are_of_one_network_namespace(worker, need_root):
    server = worker("unshare", "-n")
    server.listen("\0over there")
    with pytest.raises(Unavailable):
        inspect("@over there")
    here = worker()
    here.listen("\0over there")
    assert pids(only(inspect("@over there").sockets)) == [here.pid]
    everywhere = [one for one in inspect().sockets if one.address == "@over there"]
    assert {one.network_namespace for one in everywhere} == {"this", "another"}


def test_a_path_below_another_root(directory):
    root = os.fsencode(directory)
    os.makedirs(f"{directory}/a/b")
    os.symlink("/a", f"{directory}/absolute")
    os.symlink("../absolute/b", f"{directory}/a/relative")
    os.symlink("../../../../a", f"{directory}/out")
    inside = names._inside
    assert inside(root, b"/absolute/b/x") == root + b"/a/b/x"
    assert inside(root, b"/a/relative/./x") == root + b"/a/b/x"
    assert inside(root, b"/out/b") == root + b"/a/b"
    assert inside(root, b"/../../a//b") == root + b"/a/b"
    assert inside(root, b"/missing/x") == root + b"/missing/x"
    os.symlink("loop", f"{directory}/loop")
    with pytest.raises(OSError, match="symbolic links"):
        inside(root, b"/loop")


def test_an_overlay_as_containers_have_it(directory, worker, need_root):
    server = worker("unshare", "-m")
    server.do("import subprocess")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{directory}/{name}")
    server.do(f"subprocess.run(['mount', '-t', 'tmpfs', 'none', {directory!r}])")
    server.do(f"[os.mkdir({directory!r} + '/' + n) for n in ('lower', 'upper', 'work', 'merged')]")
    options = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
    server.do(
        "r = subprocess.run(['mount', '-t', 'overlay', 'none', '-o',"
        f" {options!r}, {directory + '/merged'!r}], capture_output=True).returncode"
    )
    server.do(f"r and open({directory + '/failed'!r}, 'w')")
    if os.path.exists(f"/proc/{server.pid}/root{directory}/failed"):
        pytest.skip("overlayfs cannot be mounted here")
    server.listen(f"{directory}/merged/a.sock")
    assert listener_of(server.pid).place == "elsewhere"
