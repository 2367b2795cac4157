"""Reading the values of options, each with an error that says what would be right."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, BinaryIO, NoReturn

from samehost import limits
from samehost.errors import PolicyError, UsageError
from samehost.peer import ANYONE, Policy, allow

_BYTES_MAX = 1 << 30
_TYPES = ("stream", "datagram", "seqpacket")
_CONDITION = r"(?P<key>uid|gid|user|group)=(?P<value>.+)"
_KINDS = {"uid": "users", "user": "users", "gid": "groups", "group": "groups"}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The standard one, minus its import of shutil, which takes longer than all else that argparse does."""

    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size(1).columns
        except OSError:
            columns = 100
        super().__init__(prog, width=min(columns, 120) - 2)


class Parser(argparse.ArgumentParser):
    """The arguments of one subcommand. What was typed, perhaps by a glob, is repeated only as text safe to print."""

    def __init__(self, name: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=f"samehost {name}", description=description, epilog=epilog, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with exit code 2."""
        from samehost.kernel.owners import printable

        super().error(printable(message))


class MixedParser(Parser):
    """One that takes options anywhere between the other arguments, of which there may be any number."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse them."""
        return self.parse_intermixed_args(args, namespace)


def new_parser(name: str, description: str, kind: type[Parser] = Parser) -> Parser:
    """A parser for one subcommand, with its address."""
    parser = kind(name, description)
    parser.add_argument("address", metavar="ADDRESS", help="a path, @abstract, fd:N or a service name")
    return parser


def add_type(parser: argparse.ArgumentParser) -> None:
    """The option --type."""
    parser.add_argument("--type", choices=_TYPES, default="stream", help="the kind of socket (stream)")


def add_client_options(parser: argparse.ArgumentParser, timeout: float = limits.CALL_SECONDS) -> None:
    """The options of a client: --timeout, --wait and --trust."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=timeout,
        metavar="SECONDS",
        help=f"for an answer, and for a full backlog ({timeout:g})",
    )
    parser.add_argument(
        "--wait", type=seconds, default=0.0, metavar="SECONDS", help="for a server that is not there yet (0)"
    )
    parser.add_argument(
        "--trust",
        type=policy,
        action=AddPolicy,
        metavar="POLICY",
        help="who may be serving, as in user=postgres; repeatable (this user and root, or a private path)",
    )


def seconds(text: str) -> float:
    """A time: a number of seconds, zero or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, as in 0.5 or 30")
    return value


def byte_count(text: str) -> int:
    """A positive number of bytes."""
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= _BYTES_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes from 1 to {_BYTES_MAX}")
    return int(text)


def positive(text: str) -> int:
    """A number, one or more."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def file_mode(text: str) -> int:
    """Permission bits in octal."""
    if re.fullmatch(r"(0o)?[0-7]{1,4}", text) is None or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not a file mode in octal, as in 600 or 660")
    return int(text, 8)


def group(text: str) -> str | int:
    """A group by its name, or by its number."""
    return int(text) if text.isascii() and text.isdigit() else text


def policy(text: str) -> Policy:
    """A policy: `anyone`, or conditions that must hold together, as in `user=alice` or `uid=1000,group=staff`."""
    if text == "anyone":
        return ANYONE
    conditions: dict[str, str] = {}
    for part in text.split(","):
        if (match := re.fullmatch(_CONDITION, part.strip())) is None:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not a condition: uid=N, gid=N, user=NAME or group=NAME, joined by commas; or anyone"
            )
        kind = _KINDS[match["key"]]
        if kind in (_KINDS[key] for key in conditions):
            # All conditions of a policy have to hold, and `allow` would take one of these for enough.
            raise argparse.ArgumentTypeError(f"two {kind} in one policy: repeat the option to admit either")
        conditions[match["key"]] = match["value"]
    try:
        return allow(
            uid=_number(conditions.get("uid")),
            gid=_number(conditions.get("gid")),
            user=conditions.get("user"),
            group=conditions.get("group"),
        )
    except PolicyError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number: for a name, use user= or group=")
    return int(value)


class AddPolicy(argparse.Action):
    """An option that may come several times, each time admitting more peers."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Add one more policy to those given so far."""
        assert isinstance(values, Policy)
        so_far = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if so_far is None else so_far | values)


def open_file(path: str) -> BinaryIO:
    """Open it without waiting for anybody, such as the writer of a fifo; reading it waits, as one expects.

    Raises:
        UsageError: it cannot be opened.
    """
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error
    os.set_blocking(file.fileno(), True)
    return file
