"""`samehost completion`: in real shells, with a real service."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import every_type
import pytest
from serving import samehost, serving
from support import DEADLINE, needs_program, run

from samehost.cli import COMMANDS
from samehost.cli.completion import SCRIPTS


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A service under its path, and in a directory for services."""
    place = tmp_path_factory.mktemp("completion")
    (place / "samehost").mkdir(mode=0o700)
    with serving(place / "samehost" / "every.sock") as server:
        (place / "bin").mkdir()
        (place / "bin" / "samehost").symlink_to(Path(sys.executable).with_name("samehost"))
        yield place / "samehost" / "every.sock"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def environment(socket: Path) -> dict[str, str]:
    place = socket.parent.parent
    return {
        **os.environ,
        "XDG_RUNTIME_DIR": str(place),
        "PATH": f"{place}/bin:{os.environ['PATH']}",
        "HOME": str(place),
    }


def complete(socket: Path, *words: object) -> list[str]:
    done = samehost("complete", "--", *words, env=environment(socket))
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


def test_commands(socket: Path) -> None:
    assert complete(socket, "") == [*COMMANDS, "--help", "--version"]
    assert complete(socket, "co") == ["completion"]
    assert complete(socket, "nowhere", "") == []
    assert complete(socket) == complete(socket, "")


def test_options(socket: Path) -> None:
    assert complete(socket, "call", "--t") == ["--timeout", "--trust"]
    assert complete(socket, "serve", "clock", "--re") == ["--reload"]
    assert complete(socket, "listen", "--type", "") == ["stream", "datagram", "seqpacket"]
    assert complete(socket, "call", "--timeout", "") == []
    assert complete(socket, "completion", "") == [*SCRIPTS]
    assert complete(socket, "completion", "bash", "") == []


def test_addresses(socket: Path) -> None:
    address = str(socket) if os.geteuid() == 0 else "every"
    for command in ("call", "bench", "describe", "stub", "send", "inspect"):
        assert address in complete(socket, command, "")
    assert complete(socket, "call", "/") == []  # a path, which the shell knows best
    assert complete(socket, "listen", "") == []


def test_methods(socket: Path) -> None:
    methods = [*every_type.every.methods, *every_type.every.topics]
    assert complete(socket, "call", socket, "") == methods
    assert complete(socket, "bench", "--rate", "5", socket, "") == methods
    assert complete(socket, "describe", "--json", "--timeout", "3", socket, "s") == [
        "shape",
        "shapes",
        "strings",
        "spell",
        "scaled",
        "sums",
    ]
    assert complete(socket, "call", socket, "mo") == ["move", "moves"]
    assert complete(socket, "stub", socket, "") == []
    assert complete(socket, "call", "/nowhere", "") == []


def test_arguments(socket: Path) -> None:
    assert complete(socket, "call", socket, "tree", "") == ["n=", "x=", "y=", "z="]
    assert complete(socket, "bench", socket, "tree", "n:={}", "") == ["x=", "y=", "z="]
    assert complete(socket, "call", socket, "tree", "n:={}", "-", "x=1", "") == ["y=", "z="]
    assert complete(socket, "call", socket, "nowhere", "") == []
    assert complete(socket, "call", socket, "scaled", "") == ["label=", "factor=", "items="]
    assert complete(socket, "call", socket, "scaled", "items=-", "") == ["label=", "factor="]
    assert complete(socket, "call", socket, "moves", "") == []
    assert complete(socket, "describe", socket, "tree", "") == []


def test_a_line_is_cut_as_a_shell_would(socket: Path) -> None:
    def of_line(line: str) -> list[str]:
        return samehost("complete", "--line", line, env=environment(socket)).stdout.decode().splitlines()

    assert of_line("samehost call --t") == ["--timeout", "--trust"]
    assert of_line(f"samehost describe '{socket}' sha") == ["shape", "shapes"]
    assert of_line(f"samehost call {socket} tree x='it ") == ["n=", "y=", "z="]
    assert of_line("") == [*COMMANDS, "--help", "--version"]


def test_names_that_a_shell_would_obey_are_left_out(place: Path) -> None:
    (place / "sly.py").write_text(
        "import samehost; sly = samehost.Service('sly')\n"
        "for name in ('$(touch pwned)', 'a b', '`id`', ';x', 'fine'):\n"
        "    @sly.method(name=name)\n"
        "    def method() -> None: pass\n"
    )
    with serving(place / "s", "sly"):
        done = samehost("complete", "--", "call", place / "s", "")
        assert done.stdout == b"fine\n"


@pytest.mark.parametrize("shell", [pytest.param(shell, marks=needs_program(shell)) for shell in SCRIPTS])
def test_the_script_is_one(shell: str, place: Path) -> None:
    script = samehost("completion", shell).stdout
    (place / "script").write_bytes(script)
    checked = run([shell, "-n", str(place / "script")])
    assert (checked.returncode, checked.stderr) == (0, b"")


@needs_program("bash")
def test_bash_completes(socket: Path) -> None:
    def in_bash(line: str) -> list[str]:
        program = f"""
source <(samehost completion bash)
COMP_LINE={shlex.quote(line)}
COMP_POINT=${{#COMP_LINE}}
compopt() {{ echo "option $*"; }}
_samehost
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        done = run(["bash", "--norc", "-c", program], env=environment(socket))
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().split("\n")[:-1]

    assert in_bash("samehost desc") == ["describe"]
    assert in_bash(f"samehost call {socket} ti") == ["times"]
    assert in_bash(f"samehost call {socket} tree n=1 x=2 y=3 ") == ["option -o nospace", "z="]
    assert in_bash("samehost nowhere x") == [""]


@needs_program("bash")
def test_bash_completes_as_keys_are_pressed(socket: Path) -> None:
    steps = [
        ("source <(samehost completion bash); echo rea''dy\n", "ready\n"),
        (f"samehost call {socket} sha\t\t\t", "shape   shapes"),
        ("s s=1 sp\t", "s=1 spot="),
    ]
    in_terminal(["bash", "--norc", "-i"], steps, socket)


@needs_program("zsh")
def test_zsh_completes(socket: Path) -> None:
    steps = [
        ("autoload -Uz compinit; compinit -u -D; source <(samehost completion zsh); echo rea''dy\n", "ready\n"),
        ("samehost desc\t", "samehost describe "),
        (f"{socket} tim\t", f"{socket} times "),
        (f"\x15samehost call {socket} tree n\t", f"{socket} tree n="),
    ]
    in_terminal(["zsh", "-f", "-i"], steps, socket)


@needs_program("fish")
def test_fish_completes(socket: Path) -> None:
    def in_fish(line: str) -> list[str]:
        program = f"samehost completion fish | source; complete -C {shlex.quote(line)}"
        done = run(["fish", "--no-config", "-c", program], env=environment(socket))
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().split("\n")[:-1]

    assert in_fish("samehost desc") == ["describe"]
    assert in_fish(f"samehost call {socket} ti") == ["times"]
    assert {"n=", "x=", "y=", "z="} <= {*in_fish(f"samehost call {socket} tree ")}


def in_terminal(command: list[str], steps: list[tuple[str, str]], socket: Path) -> None:
    """Type something in a shell and wait for what it should show, step by step."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment(socket), PS1="$ ", TERM="dumb")
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
        os.execvp(command[0], command)
    try:
        for typed, expected in steps:
            os.write(terminal, typed.encode())
            shown = ""
            while expected not in shown:
                ready, _, _ = select.select([terminal], [], [], DEADLINE)
                assert ready, f"{command[0]} shows {shown!r}, and not {expected!r}"
                shown += os.read(terminal, 65536).decode(errors="replace").translate({7: None, 13: None})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
