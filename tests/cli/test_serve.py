"""`samehost serve`: finding the service, its options, its end, and `--reload`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
from pathlib import Path

import pytest
from serving import samehost, serving
from support import DEADLINE, NOBODY, SAMEHOST, Program, children, needs_root, until

import samehost as sh
from samehost.errors import Busy, ConnectionClosed, NotPermitted, OutcomeUnknown, Unavailable

MODULE = """
import asyncio, os, samehost

clock = samehost.Service("clock")

class Group:
    inner = clock
    other = 7

group = Group()

@clock.method
def pid() -> int:
    return os.getpid()

@clock.method
async def nap(seconds: float) -> str:
    print("napping", flush=True)
    await asyncio.sleep(seconds)
    return "awake"
"""


def write(path: Path, text: str) -> None:
    """At once, as an editor does that never leaves half a file."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@pytest.fixture
def module(place: Path) -> Path:
    write(place / "clock.py", MODULE)
    return place / "clock.py"


@pytest.mark.parametrize("target", ["clock", "clock:clock", "clock:group.inner"])
def test_a_service_is_found_by_its_name(place: Path, module: Path, target: str) -> None:
    with serving(place / "s", target) as server, sh.connect(place / "s") as client:
        assert client.pid() == server.pid


@pytest.mark.parametrize("reload", [(), ("--reload",)], ids=["", "reload"])
@pytest.mark.parametrize("attribute", ["", ":clock", ":group.inner"])
def test_a_file_is_served_from_where_it_is(place: Path, module: Path, attribute: str, reload: tuple[str, ...]) -> None:
    (place / "inner").mkdir()
    module.rename(place / "inner" / "clock.py")
    with (place / "inner" / "clock.py").open("a") as file:
        file.write("import beside")
    (place / "inner" / "beside.py").write_text("")
    (place / "beside.py").write_text("1 / 0")
    with serving(place / "s", f"./inner/clock.py{attribute}", *reload), sh.connect(place / "s") as client:
        assert client.pid() > 0


def test_modules_of_packages_are_found(place: Path) -> None:
    (place / "package").mkdir()
    write(place / "package" / "part.py", MODULE)
    with serving(place / "s", "package.part:clock"):
        assert (place / "s").is_socket()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "there is no module nowhere, neither in "),
        ("clock.part", "there is no module clock.part"),
        ("nowhere.part", "there is no module nowhere, neither in "),
        ("clock:clok", "clock has no 'clok': choose clock:clock"),
        ("clock:group.x", "clock:group has no 'x': choose clock:clock"),
        ("clock:group.other", "clock:group.other is no samehost.Service, but of type int: choose clock:clock"),
        ("nowhere.py", "there is no file nowhere.py"),
        ("b/clock.py:clock", "there is no file b/clock.py"),
        ("clock.py:clok", "clock has no 'clok': choose clock:clock"),
        ("a/logging.py", "a/logging.py cannot be imported: there is another module logging, which is in use already"),
        ("a.clock.py", "a.clock.py cannot be imported: 'a.clock' is not the name of a module"),
        ("./clock", "'./clock' is not the name of a module"),
        ("", "'' is not the name of a module"),
        (":clock", "'' is not the name of a module"),
        ("two", "two has several services: choose two:a or two:b"),
        ("none", "none has no samehost.Service at its top"),
    ],
)
def test_what_is_missing_is_named(place: Path, module: Path, target: str, message: str) -> None:
    write(place / "two.py", "import samehost; a = samehost.Service('a'); b = c = samehost.Service('b'); d = b")
    for file in ("none.py", "a.clock.py", "a/logging.py"):
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_text("")
    done = samehost("serve", target, "--address", place / "s", cwd=place)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"samehost: {message}")
    assert not (place / "s").exists()


@pytest.mark.parametrize(
    ("text", "error"), [("import nothing_like_this", "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError")]
)
def test_a_module_that_fails_shows_where(place: Path, text: str, error: str) -> None:
    write(place / "broken.py", f"\n{text}\n")
    done = samehost("serve", "broken", "--address", place / "s", cwd=place)
    printed = done.stderr.decode()
    assert done.returncode == 1
    assert f'broken.py", line 2, in <module>\n    {text}' in printed
    assert error in printed
    assert "importlib" not in printed
    assert "samehost: broken cannot be imported: " in printed


LIFESPANS = """
import samehost
clock = samehost.Service("clock")

@clock.lifespan
async def lifespan():
    {before}
    yield
    {after}
"""


@pytest.mark.parametrize("reload", [(), ("--reload",)], ids=["", "reload"])
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("open('/nowhere')", "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("samehost.connect('@samehost-nobody-is-there')", "Unavailable: "),
    ],
    ids=["OSError", "other", "samehost's"],
)
def test_what_a_lifespan_raises_is_the_service_s_and_shows_where(
    place: Path, raised: str, told: str, reload: tuple[str, ...]
) -> None:
    write(place / "clock.py", LIFESPANS.format(before=raised, after="pass"))
    command = [*SAMEHOST, "serve", "clock", "--address", str(place / "s"), *reload]
    with Program(command, cwd=place) as server:
        if reload:
            assert select.select([server.process.stderr], [], [], DEADLINE)[0], "the child says nothing"
            until(lambda: not children_of(server.pid), "the child has ended")
            server.signal(signal.SIGTERM)
        code = server.end()
        printed = server.errors()
    assert code == (0 if reload else 1)
    assert f'clock.py", line 7, in lifespan\n    {raised}' in printed
    assert f"samehost: the service clock failed: {told}" in printed
    assert "cannot go on" not in printed


def test_what_a_lifespan_raises_at_the_end_is_the_service_s_too(place: Path) -> None:
    write(place / "clock.py", LIFESPANS.format(before="pass", after="raise OSError('disk full')"))
    with serving(place / "s", "clock") as server:
        server.signal(signal.SIGTERM)
        assert server.end() == 1
        printed = server.errors()
    assert 'clock.py", line 9, in lifespan' in printed
    assert "samehost: the service clock failed: OSError: disk full\n" in printed
    assert not (place / "s").exists()


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_the_address_is_the_name_of_the_service_unless_one_is_given(place: Path, module: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(place)}
    name = f"clock-{os.getpid()}"
    write(module, MODULE.replace('"clock"', repr(name)))
    with Program([*SAMEHOST, "serve", "clock"], cwd=place, env=environment) as server:
        directory = "/run/samehost" if os.geteuid() == 0 else f"{place}/samehost"
        assert server.line() == f"Serving {name} on {directory}/{name}.sock"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_the_options_of_the_socket(place: Path, module: Path) -> None:
    with serving(place / "s", "clock", "--mode", "640", "--group", str(os.getegid()), "--backlog", "7") as server:
        status = (place / "s").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o640, os.getegid())
        server.signal(signal.SIGINT)
        assert server.end() == 0
        assert not (place / "s").exists()


def test_who_is_served(place: Path, module: Path) -> None:
    with serving(place / "s", "clock", "--allow", f"uid={NOBODY}", "--allow", f"uid={NOBODY - 1}") as server:
        with pytest.raises((ConnectionClosed, NotPermitted)), sh.connect(place / "s") as client:
            client.pid()
        server.signal(signal.SIGTERM)
        assert f"uid {os.geteuid()}" in server.errors()


def test_limits_that_are_given_are_kept(place: Path, module: Path) -> None:
    with (
        serving(place / "s", "clock", "--connections-max", "1", "--threads-max", "1"),
        sh.connect(place / "s") as first,
        sh.connect(place / "s", timeout=0.05) as second,
    ):
        first.pid()
        with pytest.raises((TimeoutError, Busy)):
            second.pid()


@pytest.mark.parametrize("option", ["--connections-max", "--threads-max"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "9999999999"])
def test_limits_that_cannot_be(place: Path, module: Path, option: str, value: str) -> None:
    done = samehost("serve", "clock", f"{option}={value}", cwd=place)
    assert done.returncode == 2
    assert b"is not a number from 1 up" in done.stderr


def test_an_address_that_somebody_has(place: Path, module: Path) -> None:
    with serving(place / "s", "clock") as server:
        for more in ((), ("--reload",)):
            done = samehost("serve", "clock", "--address", place / "s", *more, cwd=place)
            assert (done.returncode, done.stdout) == (73, b"")
            assert str(server.pid) in done.stderr.decode()


@pytest.mark.parametrize("reload", [(), ("--reload",)], ids=["plain", "reload"])
def test_calls_in_progress_may_finish(place: Path, module: Path, reload: tuple[str, ...]) -> None:
    with serving(place / "s", "clock", *reload) as server:
        with Program([*SAMEHOST, "call", str(place / "s"), "nap", "seconds=0.3"]) as caller:
            assert server.line() == "napping"
            server.signal(signal.SIGTERM)
            assert caller.line() == "awake"
        assert server.end() == 0
        assert not (place / "s").exists()


@pytest.mark.parametrize("reload", [(), ("--reload",)], ids=["plain", "reload"])
def test_calls_that_take_longer_than_the_drain_time_are_cut(place: Path, module: Path, reload: tuple[str, ...]) -> None:
    with serving(place / "s", "clock", "--drain", "0.1", *reload) as server:
        with Program([*SAMEHOST, "call", str(place / "s"), "nap", "seconds=60"]) as caller:
            assert server.line() == "napping"
            server.signal(signal.SIGTERM)
            assert caller.end() != 0
        assert server.end() == 0


# --reload


def value_of(client: sh.blocking.client.AnyClient) -> int | None:  # type: ignore[name-defined]
    with contextlib.suppress(OutcomeUnknown):
        return client.value()
    return None


VALUE = """
import os, samehost
from package.constant import VALUE

service = samehost.Service("reloaded")

@service.method(idempotent=True)
async def value() -> int:
    return VALUE

@service.method(idempotent=True)
async def pid() -> int:
    return os.getpid()

@service.method
async def end() -> None:
    os._exit(3)
"""


@pytest.fixture
def package(place: Path) -> Path:
    (place / "package").mkdir()
    write(place / "package" / "service.py", VALUE)
    write(place / "package" / "constant.py", "VALUE = 1")
    return place / "package"


def test_a_change_is_served_and_no_client_is_refused(place: Path, package: Path) -> None:
    with serving(place / "s", "package.service", "--reload") as server, sh.connect(place / "s") as client:
        assert client.value() == 1
        inode = (place / "s").stat().st_ino
        for value in range(2, 5):
            write(package / "constant.py", f"VALUE = {value}")
            while client.value() != value:  # an error of any kind fails this
                with sh.connect(place / "s") as another:
                    assert another.value() in (value - 1, value)
            assert server.line() == f"Serving reloaded on {place}/s"
        assert (place / "s").stat().st_ino == inode
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_code_that_cannot_be_imported_leaves_the_old_one_serving(place: Path, package: Path) -> None:
    with (
        open(place / "log", "wb") as log,
        serving(place / "s", "package.service", "--reload", stderr=log) as server,
        sh.connect(place / "s") as client,
    ):
        pid = client.pid()
        write(package / "constant.py", "VALUE = (")
        until(lambda: "the one before it goes on" in (place / "log").read_text(), "the failure is told")
        assert "SyntaxError: '(' was never closed" in (place / "log").read_text()
        assert (client.value(), client.pid()) == (1, pid)
        write(package / "constant.py", "VALUE = 2")
        assert server.line() == f"Serving reloaded on {place}/s"
        assert client.value() == 2


def test_code_that_cannot_be_imported_at_first_is_tried_again(place: Path, package: Path) -> None:
    write(package / "constant.py", "")
    with open(place / "log", "wb") as log:
        command = [*SAMEHOST, "serve", "package.service", "--reload", "--address", str(place / "s")]
        with Program(command, cwd=place, stderr=log) as server:
            until(lambda: "tried again when a file has changed" in (place / "log").read_text(), "the failure is told")
            with Program([*SAMEHOST, "call", str(place / "s"), "value"]) as caller:
                write(package / "constant.py", "VALUE = 7")
                assert caller.line() == "7"
            assert server.line() == f"Serving reloaded on {place}/s"


def test_a_service_that_ends_by_itself_is_started_again_with_the_next_change(place: Path, package: Path) -> None:
    with (
        open(place / "log", "wb") as log,
        serving(place / "s", "package.service", "--reload", stderr=log) as server,
        sh.connect(place / "s") as client,
    ):
        with pytest.raises(OutcomeUnknown):
            client.call("end", timeout=0.3)
        until(lambda: "has ended by itself" in (place / "log").read_text(), "its end is told")
        write(package / "constant.py", "VALUE = 2")
        assert client.value() == 2
        assert server.line() == f"Serving reloaded on {place}/s"


def test_a_path_that_is_removed_is_made_again(place: Path, package: Path) -> None:
    with serving(place / "s", "package.service", "--reload") as server:
        (place / "s").unlink()
        assert server.line() == f"Serving reloaded on {place}/s"
        with sh.connect(place / "s") as client:
            assert client.value() == 1


def test_a_child_whose_parent_is_killed_ends(place: Path, package: Path) -> None:
    with serving(place / "s", "package.service", "--reload") as server, sh.connect(place / "s") as client:
        pid = client.pid()
        assert pid != server.pid
        server.signal(signal.SIGKILL)
        server.end()
        until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid), "the child is gone")


def is_zombie(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_second_signal_ends_both_at_once(place: Path, module: Path) -> None:
    with serving(place / "s", "clock", "--reload") as server, sh.connect(place / "s") as client:
        pid = client.pid()
        with Program([*SAMEHOST, "call", str(place / "s"), "nap", "seconds=60"]) as caller:
            assert server.line() == "napping"
            server.signal(signal.SIGINT)
            until(lambda: not (place / "s").exists(), "the first one was heard")
            server.signal(signal.SIGINT)
            assert server.end() == -signal.SIGINT
            assert caller.end() == 1
        until(lambda: is_zombie(pid), "the child is gone")


def test_the_name_of_the_service_is_the_address_when_reloading_too(place: Path, package: Path) -> None:
    name = f"reloaded-{os.getpid()}"
    write(package / "service.py", VALUE.replace('"reloaded"', repr(name)))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(place)}
    with Program([*SAMEHOST, "serve", "package.service", "--reload"], cwd=place, env=environment) as server:
        directory = "/run/samehost" if os.geteuid() == 0 else f"{place}/samehost"
        assert server.line() == f"Serving {name} on {directory}/{name}.sock"
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert not Path(f"{directory}/{name}.sock").exists()


@needs_root
def test_a_policy_holds_when_reloading(place: Path, module: Path) -> None:
    with (
        serving(place / "s", "clock", "--reload", "--allow", f"uid={NOBODY}"),
        pytest.raises((ConnectionClosed, NotPermitted, Unavailable)),
        sh.connect(place / "s") as client,
    ):
        client.pid()


def test_hidden_directories_and_environments_are_not_watched(place: Path, package: Path) -> None:
    for name in (".git", "venv", "__pycache__"):
        (place / name).mkdir()
    (place / "venv" / "pyvenv.cfg").touch()
    with serving(place / "s", "package.service", "--reload") as server, sh.connect(place / "s") as client:
        pid = client.pid()
        for name in (".git", "venv", "__pycache__"):
            write(place / name / "new.py", "")
        write(place / "text.txt", "")
        write(place / "noticed.py", "")
        assert server.line() == f"Serving reloaded on {place}/s"
        after = client.pid()
        assert after != pid
        write(place / "venv" / "newer.py", "")
        write(package / "constant.py", "VALUE = 2")
        assert server.line() == f"Serving reloaded on {place}/s"
        assert client.pid() != after
    assert not children()
