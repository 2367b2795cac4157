"""A service with a method for every kind of type that can travel; each gives back what it is given."""

# ruff: noqa: B006, B008 - defaults of every type are what this is for

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import os
import socket
import typing
import uuid
from collections.abc import AsyncIterator, Generator, Iterable, Iterator

import msgspec
import numpy as np

from samehost.kernel.blob import Blob
from samehost.kernel.files import File
from samehost.peer import allow
from samehost.service.service import Service

T = typing.TypeVar("T")


class Color(enum.Enum):
    """What it looks like."""

    RED = "red"
    GREEN = 'it\'s "green"'


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Spot(typing.NamedTuple):
    """A place."""

    x: int
    count: int = 0
    color: Color = Color.RED


class Node(msgspec.Struct):
    """A tree.

    With more than one line, and a "quotation".
    """

    value: int
    children: list[Node] = []
    parent: Node | None = None
    when: dt.datetime = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    spots: list[Spot] = msgspec.field(default_factory=lambda: [Spot(1)])
    best: Spot = Spot(7)


class Circle(msgspec.Struct, tag="circle", frozen=True):
    radius: float


class Square(msgspec.Struct, tag="square", tag_field="type", frozen=True):
    side: float
    uuid: uuid.UUID | None = None


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str = "b"


class Camel(msgspec.Struct, rename="camel", kw_only=True):
    some_name: int = 1
    class_: str = msgspec.field(name="class")


@dataclasses.dataclass
class Person:
    name: str
    born: dt.date
    tags: set[str] = dataclasses.field(default_factory=set)
    money: decimal.Decimal = decimal.Decimal("1.50")
    key: bytes = b"\x00it's"
    other: list[int] = dataclasses.field(default_factory=lambda: [1])


class Options(typing.TypedDict, total=False):
    verbose: bool
    level: typing.Required[Level]


class Pair(msgspec.Struct, typing.Generic[T]):
    left: T
    right: T


every = Service("every-type")


@every.method(idempotent=True, timeout=5.0)
def plain(a: int, b: float, c: str, d: bool, e: bytes, f: None = None) -> tuple[int, float, str, bool, bytes, None]:
    """All of them.

    In two paragraphs.
    """
    return a, b, c, d, e, f


@every.method
async def containers(
    a: list[int],
    b: dict[str, int],
    c: set[int],
    d: frozenset[str],
    e: tuple[int, ...],
    f: tuple[int, str],
    g: dict[int, str],
    h: dict[uuid.UUID, list[Node]],
) -> tuple[list[int], dict[str, int], set[int], frozenset[str], tuple[int, ...], tuple[int, str], dict[int, str]]:
    assert isinstance(d, frozenset)
    assert all(isinstance(key, uuid.UUID) for key in h)
    return a, b, c, d, e, f, g


@every.method
def times(
    a: dt.datetime,
    b: dt.date,
    c: dt.time,
    d: dt.timedelta = dt.timedelta(seconds=90),
    e: uuid.UUID = uuid.UUID(int=1),
    f: decimal.Decimal = decimal.Decimal("1.5"),
) -> tuple[dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal]:
    return a, b, c, d, e, f


@every.method
def person(
    who: Person,
    *,
    options: Options,
    mode: typing.Literal["a", "b", 1] = "a",
    color: Color = Color.GREEN,
    level: Level | None = None,
) -> tuple[Person, Options, Color]:
    return who, options, color


@every.method
def shape(s: Circle | Square) -> Circle | Square | None:
    return s


@every.method
def shapes(s: set[Circle], spot: Spot = Spot(1), row: Row = Row(1)) -> tuple[set[Circle], Spot, Row]:
    return s, spot, row


@every.method
def tree(n: Node, x: int | str | None = None, y: list[int] = [], z: typing.Any = None) -> tuple[Node, int | str | None]:
    return n, x


@every.method(name="list")
def list_(p: Pair[int], camel: Camel) -> tuple[list[Pair[int]], Camel]:
    return [p], camel


@every.method
def strings(p: Pair[str], limited: typing.Annotated[str, msgspec.Meta(max_length=3)] = "x") -> str:
    return p.left + p.right + limited


@every.method(name="kv.get", allow=allow(uid=0) | allow(uid=65534))
def kv_get(key: str, low: float = float("-inf")) -> str:
    return key


@every.method(name="close")
def close_() -> None:
    "Hides 'what' \"clients\" have \\ \x1b[31m"


# Streams


@every.method
def leaves(count: int, *, spot: Spot = Spot(1)) -> Iterator[Node]:
    """Trees without branches."""
    for number in range(count):
        yield Node(number, best=spot)


@every.method
def spell(text: str) -> Generator[str, None, int]:
    yield from text
    return len(text)


@every.method
async def scaled(label: str, items: AsyncIterator[int], factor: float = 2.0) -> AsyncIterator[tuple[str, float]]:
    async for item in items:
        yield label, item * factor


@every.method
def area(items: Iterable[Circle | Square], *, unit: Level = Level.LOW) -> float:
    return sum(one.side**2 if isinstance(one, Square) else 3 * one.radius**2 for one in items) * unit


@every.method
async def gather(first: int = 0, *, items: AsyncIterator[Spot], last: int) -> list[Spot]:
    return [Spot(first), *[item async for item in items], Spot(last)]


moves = every.topic("moves", Spot, queue=8, doc="Where it is now.")
raw = every.topic("kv.raw", bytes, queue=1, slow="disconnect", allow=allow(uid=0))


@every.method
def move(to: Spot) -> int:
    moves.publish(to)
    return moves.subscribers


# What travels beside the bytes


@every.method
def read_files(file: typing.BinaryIO, other: File | None = None, *, more: list[typing.IO[bytes]] = []) -> bytes:
    contents = [file.read(), *(one.read() for one in more)]
    return b"|".join(contents if other is None else [*contents, os.read(other.fileno(), 100)])


@every.method
def pair() -> tuple[socket.socket, File]:
    ours, theirs = socket.socketpair()
    return ours, File(theirs.detach())


@every.method
def turned(blob: Blob) -> Blob:
    return Blob(bytes(blob)[::-1])


@every.method
async def sums(items: AsyncIterator[np.ndarray]) -> AsyncIterator[np.ndarray]:
    async for item in items:
        yield item.sum(axis=0)
