"""Addresses, from text."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from samehost import address
from samehost.address import AbstractAddress, DescriptorAddress, PathAddress, parse
from samehost.errors import AddressError

any_text = st.text(alphabet=st.characters())  # surrogates too: os.fsdecode makes some, and nothing keeps others out
file_names = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=60).filter(
    lambda name: name != "." and name != ".."
)


def test_an_absolute_path_is_taken_as_it_is():
    assert parse("/run/a.sock") == PathAddress("/run/a.sock")


def test_a_relative_path_is_made_absolute_at_once(place, monkeypatch):
    monkeypatch.chdir(place)
    there = os.getcwd()
    assert parse("./a.sock").path == f"{there}/a.sock"
    assert parse("a/b.sock").path == f"{there}/a/b.sock"
    assert parse(Path("a")).path == f"{there}/a"


def test_single_dots_and_doubled_slashes_go_but_double_dots_stay():
    # a/../b is something else than b when a is a symbolic link.
    assert parse("//run/./x//../a.sock").path == "/run/x/../a.sock"


@pytest.mark.parametrize("text", ["@name", "fd:3", "clock"])
def test_a_path_object_is_always_a_path(text):
    assert parse(Path("/") / text) == PathAddress(f"/{text}")
    assert parse(Path(text)).path == f"{os.getcwd()}/{text}"


def test_a_path_object_may_hold_bytes():
    class InBytes:
        def __fspath__(self):
            return b"/run/\xff.sock"

    assert os.fsencode(parse(InBytes()).path) == b"/run/\xff.sock"


@pytest.mark.parametrize("already", [PathAddress("/a", is_service=True), AbstractAddress(b"a"), DescriptorAddress(3)])
def test_an_address_stays_what_it_is(already):
    assert parse(already) is already


def test_an_abstract_name():
    assert parse("@name") == AbstractAddress(b"name")
    assert str(parse("@a/b")) == "@a/b"
    assert str(AbstractAddress(b"a\0b")) == "@a@b"  # as ss and /proc/net/unix write it


def test_a_descriptor():
    assert parse("fd:3") == DescriptorAddress(3)
    assert str(parse("fd:12")) == "fd:12"


def test_a_service_name_of_a_user(monkeypatch):
    monkeypatch.setattr(address.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert parse("clock") == PathAddress("/run/user/1000/samehost/clock.sock", is_service=True)


def test_a_service_name_of_root_ignores_the_environment(monkeypatch):
    monkeypatch.setattr(address.os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    assert parse("clock-2_x") == PathAddress("/run/samehost/clock-2_x.sock", is_service=True)


@pytest.mark.parametrize(("value", "said"), [(None, "it is not set"), ("", "it is not set"), ("run", "'run', not an")])
def test_a_service_name_needs_an_absolute_runtime_directory(monkeypatch, value, said):
    monkeypatch.setattr(address.os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    with pytest.raises(AddressError, match=f"needs XDG_RUNTIME_DIR.*{said}"):
        parse("clock")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "is empty"),
        (7, "not int"),
        (b"/run/a.sock", "not bytes"),
        ("@", "has no name"),
        ("@\ud800", "cannot be the name"),
        ("fd:", "names no descriptor"),
        ("fd:-1", "names no descriptor"),
        ("fd:\u0663", "names no descriptor"),  # a digit, but not one of ours
        ("fd:1234567890", "names no descriptor"),
        ("/", "ends in a directory"),
        ("/run/", "ends in a directory"),
        ("/run/.", "ends in a directory"),
        ("/run/..", "ends in a directory"),
        (Path(), "ends in a directory"),
        (Path(".."), "ends in a directory"),
        ("/run/a\0b", "holds a NUL"),
        ("/run/\ud800", "cannot be the name"),
        ("a.sock", r"write \./a\.sock"),
        ("-clock", "neither a path nor a service name"),
        ("clock\n", "neither a path nor a service name"),
    ],
)
def test_what_is_wrong_is_said(wrong, said):
    with pytest.raises(AddressError, match=said):
        parse(wrong)


@pytest.mark.parametrize(
    ("fits", "too_long", "said"),
    [
        ("@" + "n" * 107, "@" + "n" * 108, "is 108 bytes long, at most 107 fit"),
        ("@" + "é" * 53, "@" + "é" * 54, "is 108 bytes long, at most 107 fit"),
        ("/" + "n" * 255, "/" + "n" * 256, "a part of 256 bytes, at most 255"),
        ("/" + "é" * 127, "/" + "é" * 128, "a part of 256 bytes, at most 255"),
        ("/abcd" * 819, "/abcd" * 819 + "e", "is 4096 bytes long, at most 4095"),
    ],
)
def test_lengths_are_bytes_and_have_a_limit(fits, too_long, said):
    parse(fits)
    with pytest.raises(AddressError, match=said):
        parse(too_long)


def test_a_removed_working_directory_matters_to_relative_paths_alone(monkeypatch):
    gone = tempfile.mkdtemp(prefix="sh-")
    monkeypatch.chdir(gone)
    os.rmdir(gone)
    assert parse("/run/a.sock") == PathAddress("/run/a.sock")
    with pytest.raises(AddressError, match="the working directory is gone"):
        parse("./a.sock")


@given(any_text)
@example("/\ud800")
@example("@\ud800")
def test_any_text_is_an_address_or_an_address_error(text):
    with suppress(AddressError):
        assert isinstance(parse(text), PathAddress | AbstractAddress | DescriptorAddress)


@given(st.lists(st.one_of(file_names, st.sampled_from([".", ".."])), max_size=5), file_names, st.booleans())
def test_a_path_says_itself_and_is_read_again_as_the_same(directories, name, is_relative):
    parsed = parse("./" * is_relative + "/".join(["" if not is_relative else ".", *directories, name]))
    assert parsed.path.startswith("/")
    assert parse(str(parsed)) == parsed


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=26))
def test_an_abstract_name_says_itself_and_is_read_again_as_the_same(name):
    assert parse(str(parse("@" + name))) == AbstractAddress(os.fsencode(name))
