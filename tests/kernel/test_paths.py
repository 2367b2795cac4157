"""Paths of any length, and the directories that decide where a path leads."""

from __future__ import annotations

import os
import socket

import pytest

import samehost
from samehost.errors import AddressError
from samehost.kernel import paths


def path_of(place, length):
    """A path of exactly so many bytes, in directories of up to 100 bytes each."""
    directory = str(place)
    while length - len(directory) - 1 > 100:
        directory += "/" + "d" * min(98, length - len(directory) - 3)
    os.makedirs(directory, exist_ok=True)
    return directory + "/" + "s" * (length - len(directory) - 1)


def assert_serves(path):
    """The path leads to the listener, for us and for a client that knows nothing of long paths."""
    with samehost.listen(path) as listener, samehost.dial(path) as client:
        directory, leaf = os.path.split(path)
        assert sorted(os.listdir(directory)) == [leaf, leaf + ".lock"]
        with listener.accept() as server:
            client.sendall(b"hello")
            assert server.recv() == b"hello"
        here = os.open(directory, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as plain:
            os.symlink(leaf, "short", dir_fd=here)
            plain.connect(f"/proc/self/fd/{here}/short")
            os.unlink("short", dir_fd=here)
        os.close(here)
    assert os.listdir(directory) == []


@pytest.mark.parametrize("length", [106, 107, 108, 300, 4095])
def test_a_path_of_any_length_is_served(place, length):
    path = path_of(place, length)
    assert len(path) == length
    assert_serves(path)


@pytest.mark.parametrize("length", [90, 91, 92, 200, 250])
def test_a_file_name_of_any_length_is_served(place, length):
    assert_serves(f"{place}/{'s' * length}")


def test_a_path_is_measured_in_bytes_not_characters(place):
    text = str(path_of(place, 105))
    assert_serves(text[:-3] + "éé€")  # 105 characters, 109 bytes


def test_a_file_name_that_leaves_no_room_for_the_lock_is_refused(place):
    with pytest.raises(AddressError, match="251 bytes long, at most 250 leave room for its lock"):
        samehost.listen(place / ("s" * 251))
    with pytest.raises(AddressError, match="256 bytes"):
        samehost.listen(place / ("s" * 256))
    assert os.listdir(place) == []


def test_a_path_of_4096_bytes_is_refused(place):
    with pytest.raises(AddressError, match="4096 bytes long, at most 4095"):
        samehost.listen(f"{place}/{'d/' * 2100}"[:4095] + "s")


def test_a_relative_path_deep_down_stays_what_it_was(place, monkeypatch):
    deep = place / ("a" * 100) / ("b" * 100) / ("c" * 100)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    with samehost.listen("../../x.sock") as listener:
        assert listener.address == f"{deep}/../../x.sock"
        monkeypatch.chdir("/")
        listener.check_path()
        samehost.dial(place / ("a" * 100) / "x.sock").close()
    assert os.listdir(place / ("a" * 100)) == ["b" * 100]


@pytest.mark.parametrize("leaf", ["s", "s" * 92, "s" * 200])
def test_what_comes_in_between_is_never_bound_over(place, leaf):
    """Between the look at the path and bind, somebody may be quicker: bind says so, and leaves nothing."""
    long = place / ("d" * 100)
    long.mkdir()
    for directory in (place, long):
        (directory / leaf).write_text("mine")
        descriptor = os.open(directory, paths.DIRECTORY_FLAGS)
        with socket.socket(socket.AF_UNIX) as unbound, pytest.raises(OSError, match=r"in use|exists"):
            paths.bind_at(unbound, f"{directory}/{leaf}", descriptor, leaf)
        os.close(descriptor)
        assert (directory / leaf).read_text() == "mine"
        assert set(os.listdir(directory)) - {long.name} == {leaf}


def test_the_directories_on_a_path_are_those_its_links_lead_through(place):
    (place / "real" / "deep").mkdir(parents=True)
    (place / "far").symlink_to("real/deep")
    (place / "again").symlink_to(f"{place}/far")
    (place / "real" / "deep" / "s").touch()
    found = [path for path, _ in paths.directories_on(f"{place}/again/../deep/./s")]
    above = [*reversed([str(parent) for parent in place.parents]), str(place)]
    assert found[: len(above)] == above
    assert found[-3:] == [f"{place}/real", f"{place}/real/deep", f"{place}/real/deep"]


def test_links_in_a_circle_are_an_error_not_a_loop(place):
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises(OSError, match="more than 40 symbolic links"):
        list(paths.directories_on(f"{place}/a/s"))
