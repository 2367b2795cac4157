"""`samehost serve --reload`: a parent that keeps the listening socket, and children that serve it, one after the other.

The parent never imports the user's module; each child is forked from it and does so afresh. Only when that went well is
the child before it told to end, and is the new one handed the socket. Clients that come in between wait in the backlog,
and if the new code cannot even be imported, the old one goes on. What a child has to say goes over a socket between the
two, and its end tells each that the other one is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from samehost import limits
from samehost.blocking.listener import Listener, listen
from samehost.blocking.waiting import READ, wait_for
from samehost.cli import serve
from samehost.errors import Error
from samehost.kernel.wake import Wake

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

logger = logging.getLogger("samehost")

_LOOK_SECONDS = 0.2
"""How often the files are looked at; less often where that takes long."""

_SKIPPED = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_READY = b"\n"


def run(arguments: argparse.Namespace) -> int:
    """Serve, anew whenever a file has changed, until a signal."""
    sys.dont_write_bytecode = True  # two changes within a second would be taken for one
    parent = _Parent(arguments)
    try:
        parent.run()
    finally:
        parent.end()
    return 0


class _Parent:
    """The process that has the address."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._listener: Listener | None = None
        self._serving: _Child | None = None
        self._is_ending = False
        self._wake = Wake()
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def run(self) -> None:
        """Start children as files change."""
        if self._arguments.address is not None:
            self._claim(self._arguments.address)
        files = _Files(self._arguments.service)
        self._begin_anew()
        while not self._is_ending:
            self._wait(files.pause)
            if self._serving is not None and not self._serving.is_alive():
                logger.error("the service has ended by itself; it is started again when a file has changed")
                self._serving.close()
                self._serving = None
            if files.have_changed() or self._has_other_socket():
                self._begin_anew()

    def _wait(self, seconds: float) -> None:
        watched = [(self._wake, READ)]
        wait_for(*watched, *([(self._serving.control, READ)] if self._serving else []), seconds=seconds)

    def _has_other_socket(self) -> bool:
        """Whether the path had to be made again, with a socket that no child has yet."""
        if self._listener is None:
            return False
        self._listener.check_path()
        return self._serving is not None and self._serving.listening is not self._listener.socket

    def _claim(self, address: str) -> None:
        options = self._arguments
        self._listener = listen(address, "stream", options.mode, options.group, options.allow, options.backlog)

    def _begin_anew(self) -> None:
        """Start a child, and once it has imported the service, let it take over."""
        child = _Child(self._arguments, self._listener)
        name = child.read_line(self._wake)
        if not name:
            self._give_up(child)
            return
        try:
            if self._listener is None:
                self._claim(name)
        except Error:
            child.end(0.0)
            raise
        self._end_serving()
        assert self._listener is not None
        child.hand_over(self._listener)
        if child.read_line(self._wake) is None:
            self._give_up(child)
            return
        self._serving = child
        print(f"Serving {name} on {self._listener.address}", flush=True)

    def _give_up(self, child: _Child) -> None:
        child.end(0.0)
        if not self._is_ending:
            also = "; the one before it goes on" if self._serving is not None else ""
            logger.error("the service did not start%s; it is tried again when a file has changed", also)

    def _end_serving(self) -> None:
        if self._serving is not None:
            self._serving.end(self._arguments.drain)
            self._serving = None

    def end(self) -> None:
        """Let nobody in any more, and let the child finish."""
        if self._listener is not None:
            self._listener.close()
        self._end_serving()
        self._wake.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending:
            if self._serving is not None:
                self._serving.kill()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._is_ending = True
        self._wake.set()


class _Child:
    """A process that serves.

    Attributes:
        control: what it says, a line at a time; at its end it is gone.
        listening: the socket that it was handed.
    """

    def __init__(self, arguments: argparse.Namespace, listener: Listener | None) -> None:
        self.control, theirs = socket.socketpair()
        self.listening: socket.socket | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the parent's handlers are not for the child
        self._pid = os.fork()
        if self._pid == 0:
            self.control.close()
            if listener is not None:
                listener.close()  # our copy of it
            _be_child(arguments, theirs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()

    def read_line(self, wake: Wake) -> str | None:
        """Wait for it to say something; None if it ended instead, or if a signal came."""
        said = b""
        while not said.endswith(_READY):
            ready = wait_for((wake, READ), (self.control, READ), seconds=float("inf"))
            if wake.fileno() in ready:
                return None
            piece = self.control.recv(4096)
            if not piece:
                return None
            said += piece
        return said.decode().strip() or _READY.decode()

    def hand_over(self, listener: Listener) -> None:
        """Give it the socket."""
        self.listening = listener.socket
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the line that it does not send will tell
            socket.send_fds(self.control, [_READY], [listener.socket.fileno()])

    def is_alive(self) -> bool:
        """Whether it goes on."""
        return not wait_for((self.control, READ), seconds=0.0)

    def end(self, drain: float) -> None:
        """Tell it to end, wait for that, and kill it if it takes much longer than its drain time."""
        os.kill(self._pid, signal.SIGTERM)
        wait_for((self.control, READ), seconds=drain + 2 * limits.DRAIN_CUT_SECONDS)
        self.close()

    def kill(self) -> None:
        """End it at once."""
        os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Wait for a child that has ended, or has to."""
        deadline = time.monotonic() + limits.DRAIN_CUT_SECONDS
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(limits.DIAL_PAUSE_SECONDS_MIN)
        self.control.close()


def _be_child(arguments: argparse.Namespace, control: socket.socket) -> NoReturn:
    """Serve in this process, and end it."""
    code = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C is the parent's to hear
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        code = _serve(arguments, control)
    except Error as error:
        logger.error("%s", error)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _serve(arguments: argparse.Namespace, control: socket.socket) -> int:
    importlib.invalidate_caches()
    service = serve.load(arguments.service)
    control.sendall(service.name.encode() + _READY)
    _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not descriptors:
        return 0  # the parent is gone, or does without us

    def end() -> None:
        asyncio.get_running_loop().remove_reader(control)
        os.kill(os.getpid(), signal.SIGTERM)

    def ready() -> None:
        control.sendall(_READY)
        asyncio.get_running_loop().add_reader(control, end)

    serve.serve(service, f"fd:{descriptors[0]}", arguments, ready, mode=0o600, group=None, backlog=None)
    return 0


class _Files:
    """The .py files that the service may be made of: those below its module's directory, and below this one.

    Attributes:
        pause: seconds until they should be looked at again.
    """

    def __init__(self, target: str) -> None:
        self.pause = _LOOK_SECONDS
        self._roots = _roots_of(target.partition(":")[0].partition(".")[0])
        self._seen = self._look()

    def have_changed(self) -> bool:
        """Whether they are others than at the last time."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> dict[str, tuple[int, int]]:
        begun = time.monotonic()
        found = {path: identity for root in self._roots for path, identity in _modules_below(root)}
        self.pause = max(_LOOK_SECONDS, 10 * (time.monotonic() - begun))
        return found


def _roots_of(module: str) -> list[str]:
    """The directories to watch, none of which is in another one."""
    found = [Path.cwd()]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations is not None:
        found += [Path(place) for place in spec.submodule_search_locations]
    elif spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent)
    found = [path.resolve() for path in found]
    return [str(one) for one in found if not any(other in one.parents for other in found)]


def _modules_below(directory: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each .py file, and what changes when it does; no hidden directory, no virtual environment."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _SKIPPED:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if not os.path.exists(f"{entry.path}/pyvenv.cfg"):
                        yield from _modules_below(entry.path)
                elif entry.name.endswith(".py"):
                    status = entry.stat()
                    yield entry.path, (status.st_mtime_ns, status.st_size)
    except OSError:  # gone meanwhile, or not ours to read
        return
