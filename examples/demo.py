"""The main jobs, visibly: a socket with a server, a client and a look between them, a service, and shared memory."""

import atexit
import os
import pty
import shlex
import signal
import subprocess
import sys
import tempfile
from zoneinfo import available_timezones

import samehost

EXAMPLES = os.path.dirname(os.path.abspath(__file__))
SAMEHOST = os.path.join(os.path.dirname(sys.executable), "samehost")
NOBODY = 65534

CLIENT = """
import sys, samehost
with samehost.dial(sys.argv[1]) as server:
    server.sendall(b"A client that stays")
    print(server.recv(), flush=True)
    sys.stdin.readline()
"""

CALLS = """
import sys, samehost

with samehost.connect(sys.argv[1]) as clock:
    for _ in range(2000):
        clock.now()
    try:
        clock.now(zone="Mars/Olympus")
    except samehost.ServiceError as error:
        print(f"{error.code}: {error.message}")
"""

# Other users may not be able to read what Python would import later, so it is all imported, by a call, before.
AS_NOBODY = f"""
import contextlib, io, os, sys, samehost.cli
with contextlib.redirect_stderr(io.StringIO()):
    samehost.cli.main(["call", sys.argv[2], "now", "zone:=0"])
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
sys.exit(samehost.cli.main(sys.argv[1:]))
"""


def show(title: str) -> None:
    print(f"\n\033[1m# {title}\033[0m" if sys.stdout.isatty() else f"\n# {title}", flush=True)


def command(*words: str, code: int = 0, uid: int | None = None) -> None:
    """Print a command as one would type it, and run it in a terminal, as one would.

    Args:
        code: the exit code that it has to end with.
        uid: of whom else to run it as; takes root.
    """
    print(f"{'$' if uid is None else 'nobody$'} samehost {shlex.join(words)}", flush=True)
    program = [SAMEHOST] if uid is None else [sys.executable, "-c", AS_NOBODY]
    status = pty.spawn([*program, *words], read)
    if (ended := os.waitstatus_to_exitcode(status)) != code:
        sys.exit(f"that ended with {ended}, not {code}")
    if code:
        print(f"exit code {code}", flush=True)


def read(terminal: int) -> bytes:
    """What a command has written, without what only a terminal needs, unless we have one."""
    written = os.read(terminal, 65536)
    return written if sys.stdout.isatty() else written.replace(b"\r\n", b"\n")


def start(*words: str) -> subprocess.Popen[bytes]:
    """Start a server, and print what it says once it is ready."""
    print(f"$ samehost {shlex.join(words)} &", flush=True)
    server = subprocess.Popen([SAMEHOST, *words], cwd=EXAMPLES, stdout=subprocess.PIPE)
    atexit.register(server.terminate)  # if the demo is cut short
    said(server)
    return server


def said(server: subprocess.Popen[bytes]) -> None:
    """Print the next line that the server says, once it does."""
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        sys.exit("the server did not stay")
    print(line.decode(), end="", flush=True)


def end(server: subprocess.Popen[bytes], directory: str) -> None:
    """End a server as init would, and see that it leaves nothing."""
    print(f"$ kill -TERM {server.pid}", flush=True)
    server.send_signal(signal.SIGTERM)
    code = server.wait(timeout=60)
    print(f"exit code {code}; left in {directory}: {os.listdir(directory) or 'nothing'}", flush=True)
    if code != 0 or os.listdir(directory):
        sys.exit("the server did not end cleanly")


def socket(directory: str) -> None:
    path = f"{directory}/example.sock"

    show("A server on a UNIX socket")
    server = start("listen", path)

    show("A client says hello, and prints the reply")
    command("send", path, "Hello UNIX socket!")
    said(server)

    show("Who holds the socket and who is connected, while a client is")
    client = subprocess.Popen([sys.executable, "-c", CLIENT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdout is not None
    client.stdout.readline()  # it has been answered, so the connection stands
    said(server)
    command("inspect", path)
    client.communicate(b"good-bye\n", timeout=30)

    show("SIGTERM ends the server")
    end(server, directory)


def show_statistics(path: str) -> None:
    print("method    calls  errors   median     99 %")
    with samehost.connect(path) as clock:
        for name, figures in clock.call("samehost.stats")["methods"].items():
            if not name.startswith("samehost."):
                median, slowest = (f"{figures[key] * 1e6:.0f} µs" for key in ("p50", "p99"))
                print(f"{name:8} {figures['calls']:6} {figures['errors']:7} {median:>8} {slowest:>8}", flush=True)


def service(directory: str) -> None:
    path = f"{directory}/clock.sock"

    show("A service: typed functions on a socket (examples/clock.py, without its imports)")
    with open(f"{EXAMPLES}/clock.py") as file:
        code = file.read()
    print(code[code.index("clock = ") : code.index("if __name__")].strip(), end="\n\n", flush=True)
    server = start("serve", "clock", "--address", path, "--mode", "666")

    show("It says what it can do")
    command("describe", path)

    show("A call from the shell")
    command("call", path, "now", "zone=Asia/Tokyo" if available_timezones() else "zone=UTC")

    show("A method that streams: a line for each item, until the reader leaves")
    command("call", path, "ticks", "every=0.2", "--count", "3")

    show("A wrong argument: the method never sees it, and the caller is told the place")
    command("call", path, "now", "zone:=3", code=1)

    show("A policy by caller, on what the kernel says of them: only root sets the clock")
    if os.geteuid() == 0:
        command("call", path, "set_time", "to=2030-01-01T00:00:00Z")
        command("call", path, "now")
    command("call", path, "set_time", "to=1970-01-01T00:00:00Z", code=77, uid=NOBODY if os.geteuid() == 0 else None)

    show("From Python: 2000 calls, and an error of the service's own")
    print(CALLS.strip(), end="\n\n", flush=True)
    subprocess.run([sys.executable, "-c", CALLS, path], check=True, timeout=60)

    show("What the server has counted")
    show_statistics(path)

    show("SIGTERM: calls in progress are finished, and it is gone")
    end(server, directory)


def pictures(directory: str) -> None:
    path = f"{directory}/camera.sock"

    show("A camera, 1920 x 1080 at 60 a second (examples/camera.py): its viewers look at its memory, nothing is copied")
    server = start("serve", "camera", "--address", path)
    print("$ python camera.py view", flush=True)
    viewer = [sys.executable, f"{EXAMPLES}/camera.py", "view", path]
    with subprocess.Popen(viewer, stdout=subprocess.PIPE) as viewing:
        said(viewing)
        viewing.send_signal(signal.SIGINT)
    end(server, directory)


def main() -> None:
    if not sys.stdout.isatty():
        os.environ["TERM"] = "dumb"  # plain text, although the commands below run in a terminal
    with tempfile.TemporaryDirectory(prefix="samehost-") as directory:
        os.chmod(directory, 0o711)  # so that another user can be refused by the service, and not by the directory
        socket(directory)
        service(directory)
        pictures(directory)


if __name__ == "__main__":
    main()
