"""The command `samehost` as a whole: its help, its names for things, and that no input whatever brings a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import DEADLINE, NOBODY, SAMEHOST, Program, listening, needs_root, python, python_as, run, send, until

from samehost import __version__
from samehost.cli import COMMANDS


def test_it_tells_what_it_is(place: Path) -> None:
    for words, code in ((["--help"], 0), (["-h"], 0), (["help"], 0), ([], 2)):
        told = run([*SAMEHOST, *words])
        assert (told.returncode, told.stderr) == (code, b"")
        for command in COMMANDS:
            assert f"\n  {command} ".encode() in told.stdout
    assert run([*SAMEHOST, "--version"]).stdout.decode() == f"samehost {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_explains_itself(command: str) -> None:
    told = run([*SAMEHOST, command, "--help"])
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout.startswith(f"usage: samehost {command} ".encode())


INSTALLED = Path(sys.executable).with_name("samehost")


@pytest.mark.skipif(not INSTALLED.exists(), reason="SKIPPED LOUDLY: the package is not installed")
def test_the_installed_command_is_the_same() -> None:
    assert run([str(INSTALLED), "--help"]).stdout == run([*SAMEHOST, "--help"]).stdout


def test_an_unknown_command_is_told_the_known_ones() -> None:
    told = run([*SAMEHOST, "lissten", "x"])
    assert told.returncode == 2
    assert told.stderr.decode() == f"samehost: there is no command 'lissten': choose one of {', '.join(COMMANDS)}\n"


# Addresses


def test_an_abstract_name_is_an_address() -> None:
    name = f"@samehost-test-{os.getpid()}"
    with listening(name, "--echo"):
        assert send(name, "hello").stdout == b"hello"


@needs_root
@pytest.mark.parametrize("admitted", [True, False])
def test_an_abstract_name_admits_this_user_and_root_unless_told_otherwise(admitted: bool) -> None:
    name = f"@samehost-test-{os.getpid()}"
    client = """
        try:
            with samehost.dial(sys.argv[1]) as connection:
                connection.sendall(b"hello")
                print(connection.recv().decode() or "refused")
        except ConnectionError:
            print("refused")
    """
    options = ["--echo", "--allow", "anyone"] if admitted else ["--echo"]
    with listening(name, *options), python_as(NOBODY, client, name) as program:
        assert program.line() == ("hello" if admitted else "refused")


@needs_root
def test_a_bare_name_is_a_service_in_the_runtime_directory(open_place: Path) -> None:
    # As another user, because for root it is /run/samehost, which may be in use on this host.
    code = """
        os.environ["XDG_RUNTIME_DIR"] = sys.argv[1]
        sys.exit(samehost.cli.main(sys.argv[2:]))
    """
    with python_as(NOBODY, code, str(open_place), "listen", "clock", "--echo") as server:
        assert server.line() == f"Listening on {open_place}/samehost/clock.sock"
        assert (open_place / "samehost").stat().st_mode & 0o7777 == 0o700
        with python_as(NOBODY, code, str(open_place), "send", "clock", "hello") as client:
            assert client.process.stdout.read() == b"hello"
            assert client.end() == 0


@needs_root
def test_a_bare_name_without_a_runtime_directory_says_what_is_missing() -> None:
    code = """
        os.environ.pop("XDG_RUNTIME_DIR", None)
        sys.exit(samehost.cli.main(["listen", "clock"]))
    """
    with python_as(NOBODY, code) as server:
        assert server.end() == 2
        assert "the service name 'clock' needs XDG_RUNTIME_DIR, and it is not set" in server.errors()


@needs_root
def test_for_root_a_bare_name_is_in_run() -> None:
    name = f"samehost-test-{os.getpid()}"
    with Program([*SAMEHOST, "listen", name, "--echo"]) as server:
        assert server.line() == f"Listening on /run/samehost/{name}.sock"
        assert send(name, "hello").stdout == b"hello"
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert not os.path.exists(f"/run/samehost/{name}.sock")


def test_a_relative_path_is_an_address(place: Path) -> None:
    with Program([*SAMEHOST, "listen", "./s", "--echo"], cwd=place) as server:
        assert server.line() == f"Listening on {place}/s"
        assert run([*SAMEHOST, "send", "./s", "hello"], cwd=place).stdout == b"hello"


# Odd input


ODD = [
    "",
    "@",
    "fd:",
    "fd:x",
    "fd:99999999999",
    "fd:0",
    ".",
    "/",
    "a b",
    "-",
    "é",
    "x\udcff",
    "\udcff/s",
    "@\udcff\x1b[31m",
]


@pytest.mark.parametrize("address", [*ODD, "/" + "x" * 300, "@" + "x" * 200, "/x/" * 2000 + "s", "/proc/self/s"])
def test_an_odd_address_is_an_error_of_one_line(address: str) -> None:
    for command in (["send", "--", address, "hello"], ["inspect", "--", address]):
        ended = run([*SAMEHOST, *command])
        assert ended.returncode in (2, 69, 77), ended
        assert b"Traceback" not in ended.stderr
        assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("address", [address for address in ODD if not address.startswith(("@\udcff", "\udcff/"))])
def test_an_odd_place_to_listen_is_an_error_of_one_line(address: str) -> None:
    ended = run([*SAMEHOST, "listen", "--", address])
    assert ended.returncode in (2, 73), ended
    assert b"Traceback" not in ended.stderr
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "utf-8:surrogateescape"])
def test_a_path_that_is_no_text_can_be_served_and_shown(place: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    path = os.fsencode(place) + b"/\xff\xc3\xbc.sock"
    with Program([*SAMEHOST, "listen", path, "--echo"], env=environment) as server:
        assert server.line().startswith(f"Listening on {place}/")
        sent = run([*SAMEHOST, "send", path, b"\xff\xc3\xbc"], env=environment)
        assert (sent.stdout, sent.returncode) == (b"\xff\xc3\xbc", 0)
        assert server.line() in ("Received: \\xffü", "Received: \\xff\\xfc")
        shown = run([*SAMEHOST, "inspect", path], env=environment)
        assert (shown.returncode, shown.stderr) == (0, b"")
        refused = run([*SAMEHOST, "listen", path], env=environment)
        assert refused.returncode == 73
        assert b"Traceback" not in refused.stderr


@pytest.mark.parametrize("words", [["help"], ["--version"], ["listen", "--help"], ["send", "--help"]])
def test_a_reader_that_leaves_is_no_traceback(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([*SAMEHOST, *words], stdout=writer, stderr=subprocess.PIPE, timeout=DEADLINE, check=False)
    os.close(writer)
    assert ended.returncode in (0, 1)
    assert ended.stderr == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "code"), [(["send", "/no/such", "x"], 69), (["send"], 2), (["listen", "fd:99"], 2), (["lissten"], 2)]
)
def test_the_exit_code_tells_although_standard_error_is_full(words: list[str], code: int, unbuffered: str) -> None:
    command = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *SAMEHOST, *words]
    assert run(command, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}).returncode == code


def test_an_interrupt_while_a_command_is_imported_is_no_traceback() -> None:
    code = """
        import sys
        from samehost.cli import main

        class Interrupt:
            def find_spec(self, name, path, target=None):
                if name == "samehost.cli.send":
                    raise KeyboardInterrupt

        sys.meta_path.insert(0, Interrupt())
        sys.exit(main(["send", "/x", "y"]))
    """
    with python(code) as program:
        assert (program.end(), program.errors()) == (130, "")


@pytest.mark.parametrize("descriptors", [6, 7, 8, 9])
def test_too_few_descriptors_are_an_error_without_traceback(place: Path, descriptors: int) -> None:
    """Not one of us can be sure that it can still open a file."""
    limited = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *SAMEHOST]
    with listening(place / "s", "--echo"):
        sent = run([*limited, "send", str(place / "s"), "hello"])
        assert (sent.returncode, sent.stdout) == (0, b"hello") or sent.returncode in (1, 69)
        assert b"Traceback" not in sent.stderr
    with Program([*limited, "listen", str(place / "t")]) as server:
        until(lambda: (place / "t").exists() or server.process.poll() is not None, "it serves or ends")
        server.signal(signal.SIGTERM)
        server.end()
        assert "Traceback" not in server.errors()
    assert not (place / "t").exists()


@pytest.mark.parametrize(
    "words", [["inspect", "/none/\x1b[31mvil"], ["send", "a\x1b[31m"], ["listen", "./s", "\x1b[31m"], ["\x1b[31m"]]
)
def test_what_was_typed_cannot_steer_the_terminal(words):
    done = run([*SAMEHOST, *words])
    assert done.returncode in (2, 69)
    assert b"\x1b" not in done.stderr
    assert b"\\x1b[31m" in done.stderr


def test_garbage_is_looked_for_again_after_a_command_that_cannot_be_imported() -> None:
    code = """
        import gc
        from samehost import cli

        cli.COMMANDS["nowhere"] = "is in no module"
        try:
            cli.main(["nowhere"])
        except ModuleNotFoundError:
            print(gc.isenabled(), flush=True)
    """
    with python(code) as program:
        assert program.line() == "True"
        assert program.end() == 0
