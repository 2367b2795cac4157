"""What `import samehost` offers, and what it costs."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import msgspec
import pytest
from support import run

import samehost

SOURCES = [str(Path(package.__file__).parent.parent) for package in (samehost, msgspec)]

# What takes long to import, and what only some programs need.
HEAVY = {"asyncio", "logging", "socket", "selectors", "threading", "subprocess", "rich", "ctypes", "typing"}


def loaded_after(statement):
    program = f"import sys; before = set(sys.modules); {statement}; import json; print(json.dumps(list(sys.modules)))"
    # -S and -I: nothing but what the statement itself brings.
    done = run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {SOURCES!r}; {program}"])
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", samehost.__all__)
def test_every_public_name_is_there(name):
    assert getattr(samehost, name) is not None
    assert name in dir(samehost)
    assert getattr(samehost, name) is vars(samehost)[name]  # kept, so that the second look-up is a plain one


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'lsten'"):
        samehost.lsten  # noqa: B018


def test_every_name_has_its_home_and_is_the_same_there():
    for name, home in samehost._HOMES.items():
        assert getattr(importlib.import_module(home), name) is getattr(samehost, name)
        assert name in samehost.__all__


def test_importing_samehost_loads_nothing_but_names():
    loaded = loaded_after("import samehost")
    assert {name for name in loaded if name.startswith("samehost")} == {"samehost"}
    assert not loaded & (HEAVY - {"typing"})


def test_the_pure_layers_load_no_socket_and_no_loop():
    assert not loaded_after("import samehost.address, samehost.peer, samehost.errors, samehost.limits") & (
        HEAVY - {"typing"}
    )
    assert not loaded_after("import samehost; samehost.Service") & {"asyncio", "logging", "socket", "selectors"}


def test_dialling_loads_no_loop_and_no_log():
    loaded = loaded_after("import samehost; samehost.dial")
    assert "samehost.blocking.dial" in loaded
    assert not loaded & {"asyncio", "logging", "rich", "ctypes", "subprocess"}


def test_connecting_to_a_service_loads_no_loop_and_no_log():
    loaded = loaded_after("import samehost; samehost.connect")
    assert "samehost.blocking.client" in loaded
    assert not loaded & {"asyncio", "logging", "rich", "ctypes", "subprocess"}


def test_the_types_ship_with_it():
    assert os.path.exists(f"{samehost.__path__[0]}/py.typed")


@pytest.mark.parametrize("front", [samehost, samehost.aio])
def test_a_connection_has_the_names_of_the_guide_and_no_others(front):
    assert {name for name in dir(front.Connection) if not name.startswith("_")} == {
        "close",
        "closed",
        "recv",
        "recv_with_files",
        "send",
        "sendall",
        "shutdown",
    }


@pytest.mark.parametrize("front", [samehost, samehost.aio])
def test_listeners_have_the_names_of_the_guide_and_no_others(front):
    both = {"address", "check_path", "close", "serve", "socket", "stop"}
    assert {name for name in dir(front.Listener) if not name.startswith("_")} == {*both, "accept"}
    assert {name for name in dir(front.DatagramListener) if not name.startswith("_")} == {*both, "receive", "dropped"}
    assert {name for name in dir(front.Datagram) if not name.startswith("_")} == {"close", "reply"}
