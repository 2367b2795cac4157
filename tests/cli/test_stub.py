"""`samehost stub`: its options; what it writes is tested beside `samehost.service.stub`."""

from __future__ import annotations

import ast
import signal
from collections.abc import Iterator
from pathlib import Path

import every_type
import pytest
from serving import samehost, serving

import samehost as sh
from samehost.codec import MSGPACK
from samehost.service.description import describe, read_description
from samehost.service.stub import source_of


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("stub")
    with serving(place / "s") as server:
        yield place / "s"
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def base_of(source: bytes, name: str) -> str:
    (found,) = (one for one in ast.parse(source).body if isinstance(one, ast.ClassDef) and one.name == name)
    return ast.unparse(found.bases[0])


def test_it_prints_a_module(socket: Path) -> None:
    done = samehost("stub", socket)
    assert (done.returncode, done.stderr) == (0, b"")
    received = read_description(MSGPACK.encode(describe(every_type.every)))
    assert done.stdout.decode() == source_of(received, "", dir(sh.Client))
    assert base_of(done.stdout, "EveryType") == "samehost.Client"


def test_a_class_for_asyncio(socket: Path) -> None:
    done = samehost("stub", socket, "--asyncio", "--name", "Other")
    assert base_of(done.stdout, "Other") == "samehost.aio.Client"
    assert b"    async def kv_get(self, " in done.stdout


def test_every_name_that_a_client_has_is_avoided(place: Path) -> None:
    names = sorted({name for kind in (sh.Client, sh.aio.Client) for name in dir(kind) if not name.startswith("_")})
    methods = "\n".join(
        f"@service.method(name={name!r})\ndef m{number}() -> int: return {number}" for number, name in enumerate(names)
    )
    (place / "service.py").write_text(f"import samehost\nservice = samehost.Service('service')\n{methods}\n")
    with serving(place / "s", "service"):
        source = samehost("stub", place / "s").stdout.decode()
        space: dict[str, type[sh.Client]] = {}
        exec(source, space)
        with sh.connect(place / "s", space["Service"]) as client:
            remote = space["Service"].remote_methods
            assert set(remote) == set(names)
            for number, name in enumerate(names):
                assert client.call(name) == number


def test_a_name_that_cannot_be_one(socket: Path) -> None:
    done = samehost("stub", socket, "--name", "a b")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"samehost: 'a b' cannot be the name of a class\n")


def test_nobody_there(place: Path) -> None:
    assert samehost("stub", place / "s").returncode == 69
