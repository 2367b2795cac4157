"""`samehost serve`: serves a Service that a module of the user's has."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from samehost import limits
from samehost.address import parse
from samehost.cli.arguments import AddPolicy, Parser, file_mode, group, policy, positive, seconds
from samehost.cli.output import Diagnostics
from samehost.errors import Error, UsageError
from samehost.service.service import Service

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

DESCRIPTION = """\
Import MODULE, from the working directory first, and serve its Service ATTR, which may be left out if there is only one.
MODULE may be a file as well, as in examples/clock.py:clock; then its directory is the first.
Once clients are served it prints `Serving NAME on ADDRESS`.

The first SIGINT or SIGTERM ends it gracefully: the socket is removed and calls in progress may finish."""


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost serve`."""
    parser = Parser("serve", DESCRIPTION)
    parser.add_argument(
        "service", metavar="MODULE:ATTR", help="what to serve, as in clock:clock, package.module or ./clock.py"
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", help="a path, @abstract, fd:N or a service name (the name of the service)"
    )
    parser.add_argument(
        "--mode", type=file_mode, default=0o600, metavar="OCTAL", help="permissions of the socket (600)"
    )
    parser.add_argument(
        "--group", type=group, metavar="GROUP", help="hand the socket to this group, as in --mode 660 --group staff"
    )
    parser.add_argument(
        "--allow",
        type=policy,
        action=AddPolicy,
        metavar="POLICY",
        help="serve only these peers, as in user=alice; repeatable (what the service says)",
    )
    parser.add_argument(
        "--backlog", type=int, metavar="N", help="clients that may wait to be accepted (net.core.somaxconn)"
    )
    parser.add_argument(
        "--drain",
        type=seconds,
        default=limits.DRAIN_SECONDS,
        metavar="SECONDS",
        help=f"how long calls in progress may go on after the first signal ({limits.DRAIN_SECONDS:g})",
    )
    parser.add_argument(
        "--connections-max",
        type=positive,
        default=limits.CONNECTIONS_MAX,
        metavar="N",
        help=f"connections served at a time ({limits.CONNECTIONS_MAX})",
    )
    parser.add_argument(
        "--threads-max",
        type=positive,
        default=limits.THREADS_MAX,
        metavar="N",
        help=f"threads that run def methods ({limits.THREADS_MAX})",
    )
    parser.add_argument(
        "--busy-wait",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help=f"look for the next call before sleeping, up to {limits.BUSY_WAIT_SECONDS_MAX:g}, at a core's expense (0)",
    )
    parser.add_argument("--reload", action="store_true", help="serve anew whenever a .py file has changed")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Raises the errors of `samehost.serve`."""
    logging.basicConfig(format="samehost: %(message)s", level=logging.INFO, handlers=[Diagnostics()])
    _find_modules_in(os.getcwd())
    arguments.service = _module_of_file(arguments.service)
    if arguments.reload:
        from samehost.cli.reloading import run as run_reloading

        return run_reloading(arguments)
    service = load(arguments.service)
    address = parse(service.name if arguments.address is None else arguments.address)
    serve(service, address, arguments, lambda: print(f"Serving {service.name} on {address}", flush=True))
    return 0


def serve(
    service: Service, address: Any, arguments: argparse.Namespace, ready: Callable[[], object], **socket: Any
) -> None:
    """Serve as the options say.

    Args:
        ready: called once clients are served.
        socket: other options of the socket than those that were given.
    """
    from samehost.aio.main import serve

    options = {"mode": arguments.mode, "group": arguments.group, "backlog": arguments.backlog, **socket}
    try:
        serve(
            service,
            address,
            allow=arguments.allow,
            drain=arguments.drain,
            connections_max=arguments.connections_max,
            threads_max=arguments.threads_max,
            busy_wait=arguments.busy_wait,
            ready=ready,
            **options,
        )
    except Exception as error:
        if service.lifespan_note not in getattr(error, "__notes__", ()):
            raise
        _print_traceback(error)
        raise Error(f"the service {service.name} failed: {type(error).__name__}: {error}") from error


def _find_modules_in(directory: str) -> None:
    """Import from a directory before all others, as `python -m` does from the working directory."""
    if directory not in sys.path[:1]:
        sys.path.insert(0, directory)


def _module_of_file(target: str) -> str:
    """The target with the name of a module in the place of a file's, whose directory is where modules are found first.

    Raises:
        UsageError: there is no such file, or nothing can import it.
    """
    head, separator, attribute = target.rpartition(".py:")
    if not separator and not target.endswith(".py"):
        return target
    file = f"{head}.py" if separator else target
    if not os.path.isfile(file):
        raise UsageError(f"there is no file {file}")
    directory, name = os.path.split(os.path.abspath(file).removesuffix(".py"))
    if not name.isidentifier():
        raise UsageError(f"{file} cannot be imported: {name!r} is not the name of a module")
    _find_modules_in(directory)
    if name in sys.modules or name in sys.builtin_module_names:
        raise UsageError(f"{file} cannot be imported: there is another module {name}, which is in use already")
    return f"{name}:{attribute}" if separator else name


def load(target: str) -> Service:
    """The service that MODULE:ATTR names.

    Raises:
        UsageError: there is none; the message says what is missing.
        Error: the module cannot be imported, for a reason that was printed.
    """
    name, _, path = target.partition(":")
    module = _import(name)
    if not path:
        return _only_service_of(module)
    found: Any = module
    so_far = name
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{so_far} has no {part!r}{_advice(module)}")
        found = getattr(found, part)
        so_far = f"{so_far}{':' if so_far == name else '.'}{part}"
    if not isinstance(found, Service):
        raise UsageError(f"{so_far} is no samehost.Service, but of type {type(found).__name__}{_advice(module)}")
    return found


def _import(name: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is not the name of a module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"there is no module {error.name}, neither in {os.getcwd()} nor installed") from error
        _print_traceback(error)
        raise Error(f"{name} cannot be imported: {error}") from error
    except Exception as error:
        _print_traceback(error)
        raise Error(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _print_traceback(error: Exception) -> None:
    """With no more of the machinery that imports than can be helped."""
    frame = error.__traceback__
    while frame is not None and (
        frame.tb_frame.f_code.co_filename in (__file__, importlib.__file__) or _is_frozen(frame)
    ):
        frame = frame.tb_next
    traceback.print_exception(type(error), error, frame or error.__traceback__)


def _is_frozen(frame: Any) -> bool:
    return bool(frame.tb_frame.f_code.co_filename.startswith("<frozen importlib"))


def _services_of(module: Any) -> dict[str, Service]:
    """The services of a module, each under the first name that it has there."""
    found: dict[int, tuple[str, Service]] = {}
    for name, value in vars(module).items():
        if isinstance(value, Service):
            found.setdefault(id(value), (name, value))
    return dict(found.values())


def _only_service_of(module: Any) -> Service:
    services = _services_of(module)
    if len(services) == 1:
        return next(iter(services.values()))
    if services:
        raise UsageError(f"{module.__name__} has several services{_advice(module)}")
    raise UsageError(
        f"{module.__name__} has no samehost.Service at its top: make one, or name it, as in MODULE:object.service"
    )


def _advice(module: Any) -> str:
    choices = [f"{module.__name__}:{name}" for name in _services_of(module)]
    return f": choose {' or '.join(choices)}" if choices else ""
