"""What a report says of sockets of our own, in every state that one can be in."""

from __future__ import annotations

import json
import os
import socket

import pytest

from samehost.errors import AddressError, Error, NotPermitted, Unavailable
from samehost.inspect import inspect, snapshot
from samehost.kernel import processes, sock_diag


def inode_of(one):
    return os.fstat(one.fileno()).st_ino


def pids(one):
    return [holder.pid for holder in one.holders]


def only(sequence):
    (one,) = sequence
    return one


def test_both_ends_of_a_connection_are_named(directory, worker):
    path = f"{directory}/a.sock"
    server, client = worker(), worker()
    server.listen(path, backlog=7)
    client.connect(path)
    server.do("a, _ = s.accept()")
    server.do("a.send(b'x' * 10)")
    os.chmod(path, 0o640)
    report = inspect(path)
    assert (report.address, report.state) == (path, "listening")
    assert report.file == only(report.sockets).file
    assert (report.file.path, report.file.mode) == (path, 0o640)
    assert (report.file.uid, report.file.gid) == (os.geteuid(), os.getegid())
    listener = only(report.sockets)
    assert (listener.kind, listener.type, listener.place) == ("path", "stream", "present")
    assert (listener.backlog_waiting, listener.backlog_limit) == (0, 7)
    assert (listener.receive_queue, listener.send_queue) == (None, None)
    assert pids(listener) == [server.pid]
    connection = only(report.connections)
    assert connection.state == "connected"
    assert pids(connection.near) == [server.pid]
    assert pids(connection.far) == [client.pid]
    assert connection.far.holders[0].command.startswith("python")
    assert connection.far.holders[0].uid == os.geteuid()
    assert connection.near.address == path
    assert connection.near.inode != listener.inode
    assert (connection.far.kind, connection.far.address) == ("unnamed", None)
    assert connection.far.receive_queue == 10
    assert connection.near.send_queue > 0
    assert connection.near.network_namespace == connection.far.network_namespace == "this"


def test_a_socket_held_by_several(directory, sockets, worker):
    path = f"{directory}/a.sock"
    listener = sockets(bind=path)
    listener.listen()
    other = worker(pass_fds=[listener.fileno()])
    copy = sockets()
    copy_number = copy.fileno()
    os.dup2(listener.fileno(), copy_number)
    held = only(inspect(path).sockets).holders
    assert [(holder.pid, holder.descriptor) for holder in held] == sorted(
        [
            (os.getpid(), listener.fileno()),
            (os.getpid(), copy_number),
            (other.pid, listener.fileno()),
        ]
    )


def test_clients_in_the_backlog(directory, worker, sockets):
    path = f"{directory}/a.sock"
    server = worker()
    server.listen(path)
    first = sockets(connect=path)
    second = sockets(connect=path)
    sockets(connect=path).close()
    report = inspect(path)
    assert only(report.sockets).backlog_waiting == 3
    waiting = [one for one in report.connections if one.state == "waiting"]
    assert [one.far.inode for one in waiting] == [inode_of(first), inode_of(second)]
    assert [pids(one.far) for one in waiting] == [[os.getpid()], [os.getpid()]]
    assert all(one.near == only(report.sockets) for one in waiting)
    gone = only(one for one in report.connections if one.state == "closed")
    assert (gone.near, gone.far) == (only(report.sockets), None)


def test_a_client_that_waits_knows_for_whom(directory, worker, sockets):
    path = f"{directory}/a.sock"
    server = worker()
    server.listen(path)
    client = sockets(connect=path)
    connection = only(inspect(f"fd:{client.fileno()}").connections)
    assert connection.state == "waiting"
    assert connection.near.inode == inode_of(client)
    assert (connection.far.state, connection.far.address) == ("listening", path)
    assert pids(connection.far) == [server.pid]


def test_a_backlog_that_the_kernel_will_not_list(directory, sockets, monkeypatch):
    path = f"{directory}/a.sock"
    listener = sockets(bind=path)
    listener.listen()
    client = sockets(connect=path)
    monkeypatch.setattr(sock_diag, "_pending", lambda *_: ())
    assert only(inspect(path).sockets).backlog_waiting == 1
    connection = only(inspect(f"fd:{client.fileno()}").connections)
    assert (connection.state, connection.far) == ("waiting", None)


@pytest.mark.parametrize(("type", "name"), [("SOCK_STREAM", "stream"), ("SOCK_SEQPACKET", "seqpacket")])
def test_an_end_that_is_gone(directory, worker, sockets, type, name):
    path = f"{directory}/a.sock"
    server = worker()
    server.listen(path, type)
    client = sockets(getattr(socket, type), connect=path)
    server.do("a, _ = s.accept()")
    client.close()
    connection = only(inspect(path).connections)
    assert (connection.state, connection.far) == ("closed", None)
    assert connection.near.type == name
    assert pids(connection.near) == [server.pid]


def test_half_closed(directory, worker, sockets):
    path = f"{directory}/a.sock"
    server = worker()
    server.listen(path)
    client = sockets(connect=path)
    server.do("a, _ = s.accept()")
    client.shutdown(socket.SHUT_WR)
    connection = only(inspect(path).connections)
    assert connection.state == "half-closed"
    assert (connection.far.sending_shut, connection.far.receiving_shut) == (True, False)
    assert (connection.near.sending_shut, connection.near.receiving_shut) == (False, True)


def test_bound_and_not_yet_listening(directory, sockets):
    path = f"{directory}/a.sock"
    sockets(bind=path)
    report = inspect(path)
    assert (report.state, only(report.sockets).state) == ("bound", "bound")
    assert only(report.sockets).backlog_limit is None


def test_dead(directory, sockets):
    path = f"{directory}/a.sock"
    sockets(bind=path).close()
    report = inspect(path)
    assert (report.state, report.sockets, report.connections) == ("dead", (), ())
    assert report.file.path == path


def test_a_listener_that_ended_before_its_connections(directory, worker, sockets):
    path = f"{directory}/a.sock"
    server = worker()
    server.listen(path)
    client = sockets(connect=path)
    server.do("a, _ = s.accept(); s.close()")
    report = inspect(path)
    assert (report.state, report.sockets) == ("dead", ())
    connection = only(report.connections)
    assert (pids(connection.near), pids(connection.far)) == ([server.pid], [os.getpid()])
    assert connection.far.inode == inode_of(client)


def test_a_client_that_is_bound(directory, worker, sockets):
    server = worker()
    server.listen(f"{directory}/s.sock")
    name = f"{directory}/c.sock"
    client = sockets(bind=name, connect=f"{directory}/s.sock")
    server.do("a, _ = s.accept()")
    report = inspect(name)
    assert report.state == "connected"
    assert only(report.sockets).inode == inode_of(client)
    connection = only(report.connections)
    assert connection.near.inode == inode_of(client)
    assert connection.far.address == f"{directory}/s.sock"
    connection = only(inspect(f"{directory}/s.sock").connections)
    assert connection.far.address == name
    assert connection.near.address == f"{directory}/s.sock"


def test_senders_of_datagrams(directory, worker, sockets):
    path = f"{directory}/a.sock"
    receiver = worker()
    receiver.listen(path, "SOCK_DGRAM")
    first = sockets(socket.SOCK_DGRAM, connect=path)
    second = sockets(socket.SOCK_DGRAM, bind=f"{directory}/b.sock", connect=path)
    first.send(b"hello")
    report = inspect(path)
    assert (report.state, only(report.sockets).type) == ("bound", "datagram")
    assert only(report.sockets).receive_queue == 5
    assert {one.far.inode for one in report.connections} == {inode_of(first), inode_of(second)}
    assert {one.state for one in report.connections} == {"sending"}
    assert {one.near for one in report.connections} == set(report.sockets)
    # Connected back, it is one connection, not two.
    receiver.do(f"s.connect({directory + '/b.sock'!r})")
    states = {one.far.inode: one.state for one in inspect(path).connections}
    assert states == {inode_of(first): "sending", inode_of(second): "connected"}
    connection = only(inspect(f"fd:{first.fileno()}").connections)
    assert (connection.state, connection.far.address) == ("sending", path)


def test_a_receiver_of_datagrams_that_is_gone(sockets):
    receiver = sockets(socket.SOCK_DGRAM, bind=b"\0gone soon")
    sender = sockets(socket.SOCK_DGRAM, connect=b"\0gone soon")
    receiver.close()
    connection = only(inspect(f"fd:{sender.fileno()}").connections)
    assert (connection.state, connection.far) == ("closed", None)


def test_an_abstract_name_with_nul_and_control_characters(worker, sockets):
    server = worker()
    server.listen("\0we\0ird\n\x1b[31m")
    sockets(connect=b"\0we\0ird\n\x1b[31m")
    server.do("a, _ = s.accept()")
    report = inspect("@we\0ird\n\x1b[31m")
    assert (report.address, report.state, report.file) == ("@we@ird\n\x1b[31m", "listening", None)
    listener = only(report.sockets)
    assert listener.address == "@we@ird\n\x1b[31m"
    assert bytes.fromhex(listener.name_hex) == b"\0we\0ird\n\x1b[31m"
    assert (listener.kind, listener.place, listener.file) == ("abstract", None, None)
    assert pids(listener) == [server.pid]
    assert pids(only(report.connections).far) == [os.getpid()]
    with pytest.raises(Unavailable):
        inspect("@we@ird\n\x1b[31m")


def test_an_abstract_name_whose_listener_ended(worker, sockets):
    server = worker()
    server.listen("\0ended early")
    sockets(connect=b"\0ended early")
    server.do("a, _ = s.accept(); s.close()")
    report = inspect("@ended early")
    assert (report.state, report.sockets) == ("dead", ())
    assert pids(only(report.connections).near) == [server.pid]


def test_an_abstract_name_of_a_client(worker, sockets):
    server = worker()
    server.listen("\0the server")
    client = sockets(bind=b"\0the client", connect=b"\0the server")
    server.do("a, _ = s.accept()")
    report = inspect("@the client")
    assert (report.state, only(report.sockets).inode) == ("connected", inode_of(client))
    # Without the listener nothing tells which of the two was accepted.
    server.do("s.close()")
    assert inspect("@the client").state == inspect("@the server").state == "unknown"
    assert len(inspect("@the client").connections) == 1


def test_a_name_that_is_not_utf8(directory, sockets):
    path = os.fsencode(directory) + b"/\xff.sock"
    sockets(bind=path)
    report = inspect(os.fsdecode(path))
    assert report.address == only(report.sockets).address == f"{directory}/\\xff.sock"
    assert bytes.fromhex(only(report.sockets).name_hex) == path


def test_descriptors(sockets):
    one = sockets()
    report = inspect(f"fd:{one.fileno()}")
    assert (report.state, only(report.sockets).inode) == ("unconnected", inode_of(one))
    left, right = socket.socketpair()
    with left, right:
        report = inspect(f"fd:{left.fileno()}")
        assert report.state == "connected"
        connection = only(report.connections)
        assert connection.near.inode == inode_of(left)
        assert connection.far.inode == inode_of(right)


def test_what_is_no_socket(directory, sockets):
    for make, what in (
        (lambda path: open(path, "w").close(), "a file"),
        (os.mkdir, "a directory"),
        (os.mkfifo, "a fifo"),
    ):
        path = f"{directory}/{what.replace(' ', '-')}"
        make(path)
        with pytest.raises(match=f"{path} is {what}, not a socket"):
            inspect(path)
    with pytest.raises(match="a device"):
        inspect("/dev/null")
    with socket.socket(socket.AF_INET) as inet, pytest.raises(match="another family"):
        inspect(f"fd:{inet.fileno()}")
    with open(os.devnull) as file, pytest.raises(match="a device"):
        inspect(f"fd:{file.fileno()}")


def test_what_is_no_address(directory):
    with pytest.raises(AddressError, match="not open"):
        inspect("fd:999999")
    with pytest.raises(AddressError):
        inspect("")
    with pytest.raises(Unavailable, match=f"{directory}/a.sock: there is no such file$"):
        inspect(f"{directory}/a.sock")
    with pytest.raises(Unavailable, match="no such file"):
        inspect("/dev/null/a.sock")
    with pytest.raises(Unavailable, match="@nobody ever"):
        inspect("@nobody ever")
    os.symlink("loop", f"{directory}/loop")
    with pytest.raises(AddressError, match="symbolic links"):
        inspect(f"{directory}/loop")


def test_a_symbolic_link_to_a_socket(directory, worker):
    server = worker()
    server.listen(f"{directory}/a.sock")
    os.symlink("a.sock", f"{directory}/link")
    report = inspect(f"{directory}/link")
    assert report.address == f"{directory}/link"
    assert pids(only(report.sockets)) == [server.pid]
    assert only(report.sockets).address == f"{directory}/a.sock"


def test_another_user_sees_what_the_kernel_tells_everybody(directory, worker, as_nobody):
    path = f"{directory}/a.sock"
    server, client = worker(), worker()
    server.listen(path)
    client.connect(path)
    server.do("a, _ = s.accept()")
    report = as_nobody(lambda: inspect(path))
    assert report.state == "listening"
    listener = only(report.sockets)
    assert (listener.holders, listener.uid) == ((), 0)
    assert (listener.place, listener.file) == ("present", report.file)
    connection = only(report.connections)
    assert connection.state == "connected"
    assert (connection.near.holders, connection.far.holders) == ((), ())
    assert connection.far.inode != 0
    assert report.unreadable_processes >= 2
    assert inspect(path).unreadable_processes <= report.unreadable_processes - 2


def test_another_user_may_not_look_everywhere(directory, as_nobody, sockets):
    os.mkdir(f"{directory}/private", 0o700)
    sockets(bind=f"{directory}/private/a.sock")
    with pytest.raises(NotPermitted, match="Permission denied"):
        as_nobody(lambda: inspect(f"{directory}/private/a.sock"))
    # In the report of the whole host it is there, but not what its path leads to.
    report = as_nobody(inspect)
    one = only(one for one in report.sockets if one.address == f"{directory}/private/a.sock")
    assert (one.place, one.file) == ("unknown", None)


def test_another_user_cannot_tell_a_dead_socket_without_permission(directory, sockets, as_nobody):
    path = f"{directory}/a.sock"
    sockets(bind=path).close()
    os.chmod(path, 0o600)
    assert as_nobody(lambda: inspect(path)).state == "unknown"
    os.chmod(path, 0o666)
    assert as_nobody(lambda: inspect(path)).state == "dead"


def test_the_whole_host(directory, worker, sockets):
    path = f"{directory}/a.sock"
    server, client = worker(), worker()
    server.listen(path)
    client.connect(path)
    server.do("a, _ = s.accept()")
    idle = sockets()
    left, right = socket.socketpair()
    with left, right:
        report = inspect()
    assert (report.address, report.state, report.file, report.namesakes) == (None, None, None, ())
    one = only(one for one in report.sockets if one.address == path)
    assert (one.state, pids(one)) == ("listening", [server.pid])
    assert inode_of(idle) in {one.inode for one in report.sockets if one.state == "unconnected"}
    connection = only(one for one in report.connections if one.near.address == path)
    assert (pids(connection.near), pids(connection.far)) == ([server.pid], [client.pid])
    ends = [
        end.inode
        for one in report.connections
        for end in (one.near, one.far)
        if end is not None and one.state in ("connected", "half-closed")
    ]
    assert len(ends) == len(set(ends)), "each pair once"
    pairs = {frozenset((one.near.inode, one.far.inode)) for one in report.connections if one.far is not None}
    assert len([pair for pair in pairs if len(pair) == 2]) == len(pairs)


def test_a_pair_of_datagram_sockets_is_not_idle():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        report = inspect()
        assert not {inode_of(left), inode_of(right)} & {one.inode for one in report.sockets}
        connection = only(one for one in report.connections if one.near.inode in (inode_of(left), inode_of(right)))
        assert (connection.state, connection.bound_inode) == ("connected", None)


def test_sockets_that_come_and_go_meanwhile(directory, worker):
    path = f"{directory}/a.sock"
    server, storm = worker(), worker()
    server.listen(path, backlog=64)
    server.do("import threading")
    server.do("threading.Thread(target=lambda: [s.accept()[0].close() for _ in iter(int, 1)], daemon=True).start()")
    storm.do("import threading; go = threading.Event()")
    connect = f"(lambda k: (k.connect({path!r}), k.close()))(socket.socket(socket.AF_UNIX))"
    storm.do(f"t = threading.Thread(target=lambda: [{connect} for _ in iter(go.is_set, True)]); t.start()")
    for _ in range(30):
        report = inspect(path)
        assert report.state == "listening"
        assert pids(only(report.sockets)) == [server.pid]
        for one in report.connections:
            assert one.near.network_namespace == "this"
            assert one.far is None or one.far.network_namespace != "another"
    storm.do("go.set(); t.join()")


def test_a_socket_that_appears_after_the_first_look(directory, sockets, monkeypatch):
    path = f"{directory}/a.sock"
    bound = sockets(bind=path)
    real, taken = snapshot.take, []

    def take():
        one = real()
        taken.append(one)
        if len(taken) == 1:
            del one.rows[inode_of(bound)]
        return one

    monkeypatch.setattr(snapshot, "take", take)
    assert inspect(path).state == "bound"
    assert len(taken) == 2


def test_an_abstract_name_that_the_first_look_passed_over(sockets, monkeypatch):
    bound = sockets(bind=b"\0passed over")
    real, taken = snapshot.take, []

    def take():
        one = real()
        taken.append(one)
        if len(taken) == 1:
            del one.rows[inode_of(bound)]
        return one

    monkeypatch.setattr(snapshot, "take", take)
    assert inspect("@passed over").state == "bound"
    assert len(taken) == 2


def test_what_ends_between_two_looks_is_left_out(sockets, monkeypatch):
    ended = sockets(bind=b"\0ended between")
    inode = inode_of(ended)
    real = processes.holders

    def holders():
        ended.close()
        return real()

    monkeypatch.setattr(processes, "holders", holders)
    assert inode not in snapshot.take().rows


def test_what_begins_between_two_looks_is_complete(monkeypatch):
    left, right = socket.socketpair()
    with left, right:
        real_dump, real_holders, calls = sock_diag.dump, processes.holders, []

        def dump(namespace=None):
            calls.append(namespace)
            rows = real_dump(namespace)
            return [row for row in rows if row.inode != inode_of(right) or len(calls) > 1]

        def holders():
            found, unreadable = real_holders()
            if len(calls) == 1:
                del found[inode_of(left)]
            return found, unreadable

        monkeypatch.setattr(snapshot, "_network_namespaces", list)
        monkeypatch.setattr(sock_diag, "dump", dump)
        monkeypatch.setattr(processes, "holders", holders)
        taken = snapshot.take()
        assert {inode_of(left), inode_of(right)} <= taken.rows.keys() & taken.holders.keys()


def test_bound_by_what_cannot_be_seen(directory, sockets, monkeypatch):
    path = f"{directory}/a.sock"
    bound = sockets(bind=path)
    real = snapshot.take

    def take():
        one = real()
        del one.rows[inode_of(bound)]
        return one

    monkeypatch.setattr(snapshot, "take", take)
    report = inspect(path)
    assert (report.state, report.sockets) == ("unseen", ())
    assert inspect(f"fd:{bound.fileno()}").state == "unseen"


def test_without_the_kernels_table(monkeypatch):
    def fail(*_):
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(sock_diag, "dump", fail)
    with pytest.raises(Error, match="does not tell"):
        inspect()


def test_the_shape_of_the_dictionary(directory, sockets):
    path = f"{directory}/a.sock"
    listener = sockets(bind=path)
    listener.listen(3)
    os.chmod(path, 0o600)
    plain = inspect(path).as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == [
        "address",
        "state",
        "file",
        "sockets",
        "connections",
        "namesakes",
        "unreadable_processes",
        "unreadable_network_namespaces",
    ]
    assert list(plain["file"]) == [
        "path",
        "mode",
        "uid",
        "user",
        "gid",
        "group",
        "device",
        "inode",
    ]
    assert plain["file"]["mode"] == "0600"
    assert list(only(plain["sockets"])) == [
        "inode",
        "address",
        "name_hex",
        "kind",
        "place",
        "file",
        "type",
        "state",
        "network_namespace",
        "holders",
        "uid",
        "receive_queue",
        "send_queue",
        "backlog_waiting",
        "backlog_limit",
        "receiving_shut",
        "sending_shut",
    ]
    holder = only(plain["sockets"][0]["holders"])
    assert list(holder) == ["pid", "command", "uid", "user", "descriptor"]
    assert (holder["pid"], holder["descriptor"]) == (os.getpid(), listener.fileno())
    sockets(connect=path)
    connection = only(inspect(path).as_dict()["connections"])
    assert list(connection) == ["state", "near", "far", "bound_inode"]
    assert connection["bound_inode"] == inode_of(listener)
    assert list(connection["far"]) == list(plain["sockets"][0])
