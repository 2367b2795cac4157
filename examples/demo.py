"""The main job, visibly: a server, a client, a look at the socket between them, and a clean end."""

import atexit
import os
import pty
import shlex
import signal
import subprocess
import sys
import tempfile

SAMEHOST = os.path.join(os.path.dirname(sys.executable), "samehost")

CLIENT = """
import sys, samehost
with samehost.dial(sys.argv[1]) as server:
    server.sendall(b"A client that stays")
    print(server.recv(), flush=True)
    sys.stdin.readline()
"""


def show(title: str) -> None:
    print(f"\n\033[1m# {title}\033[0m" if sys.stdout.isatty() else f"\n# {title}", flush=True)


def command(*words: str) -> None:
    """Print a command as one would type it, and run it in a terminal, as one would."""
    print(f"$ samehost {shlex.join(words)}", flush=True)
    if pty.spawn([SAMEHOST, *words]) != 0:
        sys.exit("that failed")


def said(server: subprocess.Popen[bytes]) -> None:
    """Print the next line that the server says, once it does."""
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        sys.exit("the server did not stay")
    print(line.decode(), end="", flush=True)


def main() -> None:
    if not sys.stdout.isatty():
        os.environ["TERM"] = "dumb"  # plain text, although the commands below run in a terminal
    with tempfile.TemporaryDirectory(prefix="samehost-") as directory:
        path = f"{directory}/example.sock"

        show("A server on a UNIX socket")
        print(f"$ samehost listen {path} &", flush=True)
        server = subprocess.Popen([SAMEHOST, "listen", path], stdout=subprocess.PIPE)
        atexit.register(server.terminate)  # if the demo is cut short
        said(server)

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
        print(f"$ kill -TERM {server.pid}", flush=True)
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
        print(f"exit code {code}; left in {directory}: {os.listdir(directory) or 'nothing'}", flush=True)
        if code != 0 or os.listdir(directory):
            sys.exit("the server did not end cleanly")


if __name__ == "__main__":
    main()
