"""The examples, as their users run them: each as a program, called by clients and by the command, ended by a signal."""

from __future__ import annotations

import ast
import contextlib
import importlib
import logging
import os
import random
import re
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import available_timezones

import numpy as np
import pytest
from support import NOBODY, SAMEHOST, Program, needs_root, python_as, run, until

import samehost
from samehost.errors import Busy, DeadlineExceeded, InvalidArguments

EXAMPLES = Path(__file__).parents[1] / "examples"

WAIT = 20.0
"""Seconds for a server that is still starting."""


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """What clients share with a server is imported from where the server is."""
    sys.path.append(str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@contextlib.contextmanager
def running(name: str, address: Path, **environment: object) -> Iterator[Program]:
    """An example's own main, which SIGTERM has to end with nothing left."""
    with started([sys.executable, str(EXAMPLES / f"{name}.py"), str(address)], address, **environment) as server:
        yield server


@contextlib.contextmanager
def started(command: list[str], address: Path, **environment: object) -> Iterator[Program]:
    settings = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    with Program(command, env=settings, cwd=EXAMPLES, start_new_session=True) as server:
        try:
            yield server
        finally:
            server.signal(signal.SIGTERM)
        assert server.end() == 0, server.errors()
        until(lambda: not session(server.pid), "its processes are gone")
        assert not address.exists()
        assert not Path(f"{address}.lock").exists()


@contextlib.contextmanager
def serving(name: str, place: Path, *interface: type, **environment: object) -> Iterator[Any]:
    """A client of an example that runs in a directory, with its files there."""
    address = place / "service.sock"
    with (
        running(name, address, **files_in(place), **environment),
        samehost.connect(address, *interface, wait=WAIT) as client,
    ):
        yield client


def files_in(place: Path) -> dict[str, Path]:
    return {"KEY_VALUE_FILE": place / "store.db", "LOG_COLLECTOR_FILE": place / "log"}


def session(leader: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (directory / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(directory.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def as_nobody(code: str, address: object) -> Program:
    """A program of nobody's that has a client."""
    return python_as(
        NOBODY,
        f"""
client = samehost.connect(sys.argv[1])
def refusal(method, *arguments, **named):
    try:
        return client.call(method, *arguments, **named)
    except samehost.errors.Error as error:
        return f"{{type(error).__name__}} {{getattr(error, 'code', '')}}: {{error}}"
{code}
client.close()
""",
        str(address),
    )


@needs_root
def test_another_user_s_program_needs_no_import_to_call(open_place: Path) -> None:
    code = """
before = set(sys.modules)
with samehost.connect(sys.argv[1]) as client:
    print(client.query())
    try:
        client.query(timeout=1)
    except samehost.errors.InvalidArguments:
        pass
    client.describe()
async def main():
    async with await samehost.aio.connect(sys.argv[1]) as client:
        await client.query()
asyncio.run(main())
print(sorted(set(sys.modules) - before))
"""
    with serving("log_collector", open_place) as collector, python_as(NOBODY, code, collector.address) as nobody:
        assert nobody.line() == "[]"
        assert nobody.line() == "[]"
        assert nobody.end() == 0


# What their docstrings say.

SERVICES = ["camera", "clock", "data_loader", "jobs", "key_value", "log_collector", "secrets_agent", "thumbnails"]


@pytest.mark.parametrize("name", SERVICES)
def test_the_commands_in_its_docstring_do_what_they_say(name: str, place: Path) -> None:
    address = place / "service.sock"
    (place / "picture.png").write_bytes(png_file(8, 8, 1, bytes(64)))
    settings = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "error",
    }
    with running(name, address, **files_in(place)):
        samehost.connect(address, wait=WAIT).close()
        said = run(["sh", "-ec", "\n".join(documented(name, address))], cwd=place, env=settings)
    assert (said.returncode, said.stderr.decode()) == (0, "")


def documented(name: str, address: Path) -> list[str]:
    """The calls in an example's docstring, for another address."""
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text())) or ""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ") and "samehost " in line]
    assert len(lines) > 1
    if os.geteuid() != 0:
        lines = [line for line in lines if "# as root" not in line]
    if not available_timezones():
        lines = [line for line in lines if "zone=" not in line]
    return [re.sub(r"\b(samehost (?:call|describe)) \S+", rf"\1 {address}", line) for line in lines]


@pytest.mark.parametrize("name", SERVICES)
def test_the_command_serves_it_as_well(name: str, place: Path) -> None:
    address = place / "service.sock"
    with started([*SAMEHOST, "serve", name, "--address", str(address)], address, **files_in(place)) as server:
        assert server.line() == f"Serving {name.replace('_', '-')} on {address}"
        with samehost.connect(address) as client:
            assert client.describe().service == name.replace("_", "-")


# The clock.


@pytest.mark.skipif(not available_timezones(), reason="SKIPPED LOUDLY: this host knows no time zones (tzdata)")
def test_the_clock_tells_the_time_in_a_zone_and_names_one_that_is_none(place: Path) -> None:
    with serving("clock", place) as clock:
        told = datetime.fromisoformat(clock.now())
        assert abs((datetime.now(UTC) - told).total_seconds()) < 60
        assert clock.now(zone="Asia/Tokyo").endswith("+09:00")
        with pytest.raises(samehost.ServiceError, match="Mars/Olympus") as caught:
            clock.now("Mars/Olympus")
        assert caught.value.code == "clock.no_such_zone"
        with pytest.raises(InvalidArguments, match=r"^now: \$\.zone: expected str, got int$"):
            clock.now(zone=3)


@needs_root
def test_only_root_sets_the_clock(open_place: Path) -> None:
    address = open_place / "clock.sock"
    command = [*SAMEHOST, "serve", "clock:clock", "--address", str(address), "--mode", "666", "--allow", "anyone"]
    with started(command, address), samehost.connect(address, wait=WAIT) as clock:
        clock.set_time(to=datetime(2030, 1, 1, tzinfo=UTC))
        assert clock.now().startswith("2030-01-01T00:00:")
        with as_nobody("print(refusal('set_time', '2000-01-01T00:00:00Z'), flush=True)", address) as nobody:
            assert re.match(
                rf"NotPermitted : set_time: uid {NOBODY} .* may not call set_time, which admits uid 0", nobody.line()
            )
            assert nobody.end() == 0
        assert clock.now().startswith("2030-01-01T00:00:")
        with pytest.raises(InvalidArguments, match="timezone"):
            clock.set_time(to="2030-01-01T00:00:00")


def test_the_clock_ticks(place: Path) -> None:
    with serving("clock", place) as clock, clock.ticks(every=0.01) as ticks:
        told = [next(ticks) for _ in range(3)]
        assert told == sorted(told)
        assert abs((datetime.now(UTC) - told[0]).total_seconds()) < 60


# The key-value store.


def test_the_store_keeps_what_its_typed_client_puts_and_says_what_it_refuses(place: Path) -> None:
    shared = importlib.import_module("key_value_client")
    with serving("key_value", place, shared.KeyValue) as store:
        first = store.put("colour", b"blue")
        assert store.get("colour") == shared.Entry(b"blue", first, None)
        second = store.compare_and_set("colour", b"green", first)
        assert second > first
        with pytest.raises(shared.Conflict) as caught:
            store.compare_and_set("colour", b"red", first)
        assert caught.value.version == second
        assert store.get("colour").value == b"green"
        store.delete("colour")
        with pytest.raises(shared.NoSuchKey, match="there is nothing under 'colour'"):
            store.get("colour")
        assert store.compare_and_set("colour", b"red", 0) > second  # a version never comes twice
        with pytest.raises(InvalidArguments, match=r"\$\.key"):
            store.put(key="", value=b"nothing")


def test_the_store_lists_keys_by_prefix_a_page_at_a_time(place: Path) -> None:
    shared = importlib.import_module("key_value_client")
    with serving("key_value", place, shared.KeyValue) as store:
        for key in ("b/2", "a", "b/1", "b%", "b/3", "c"):
            store.put(key, b"")
        page = store.keys("b/", limit=2)
        assert page == ["b/1", "b/2"]
        assert store.keys("b/", after=page[-1], limit=2) == ["b/3"]
        assert store.keys() == ["a", "b%", "b/1", "b/2", "b/3", "c"]


def test_the_store_tells_what_changes_in_its_order(place: Path) -> None:
    shared = importlib.import_module("key_value_client")
    with serving("key_value", place, shared.KeyValue) as store, store.changes() as changes:
        first = store.put("colour", b"blue")
        with pytest.raises(shared.Conflict):
            store.compare_and_set("colour", b"red", first + 1)
        second = store.compare_and_set("colour", b"red", first)
        store.delete("colour")
        assert [next(changes) for _ in range(3)] == [
            shared.Change("colour", first),
            shared.Change("colour", second),
            shared.Change("colour", 0),
        ]


def test_the_store_forgets_what_has_expired(place: Path) -> None:
    shared = importlib.import_module("key_value_client")
    with serving("key_value", place, shared.KeyValue) as store:
        store.put("short", b"", ttl=0.05)
        store.put("long", b"", ttl=3600)
        until(lambda: store.keys() == ["long"], "the short-lived key is gone")
        with pytest.raises(shared.NoSuchKey):
            store.get("short")
        assert store.compare_and_set("short", b"new", 0)
        assert store.get("long").expires > datetime.now(UTC)


def test_what_the_store_has_answered_survives_sigkill_and_clients_find_its_successor(place: Path) -> None:
    shared = importlib.import_module("key_value_client")
    address = place / "kv.sock"
    with contextlib.ExitStack() as stack:
        with Program(
            [sys.executable, str(EXAMPLES / "key_value.py"), str(address)],
            env={**os.environ, "KEY_VALUE_FILE": str(place / "store.db")},
        ) as first:
            store = stack.enter_context(samehost.connect(address, shared.KeyValue, wait=WAIT))
            version = store.put("colour", b"blue")
            assert {file.stat().st_mode & 0o777 for file in place.glob("store.db*")} == {0o600}
            first.signal(signal.SIGKILL)
            first.end()
        with running("key_value", address, KEY_VALUE_FILE=place / "store.db"):
            assert store.get("colour") == shared.Entry(b"blue", version, None)


def test_compare_and_set_loses_no_update_among_many_threads(place: Path) -> None:
    shared = importlib.import_module("key_value_client")
    with serving("key_value", place, shared.KeyValue) as store:
        store.put("count", b"0")

        def add_five() -> None:
            added = 0
            while added < 5:
                entry = store.get("count")
                with contextlib.suppress(shared.Conflict):
                    store.compare_and_set("count", b"%d" % (int(entry.value) + 1), entry.version)
                    added += 1

        in_threads(4, add_five)
        assert store.get("count").value == b"20"


def in_threads(count: int, function: Callable[[], None]) -> None:
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)


# Jobs.


def test_a_job_tells_its_progress_output_and_end(place: Path) -> None:
    with serving("jobs", place) as jobs:
        fifo = place / "go"
        os.mkfifo(fifo)
        number = jobs.submit(text=f"echo 40%; read line <{fifo}; echo all done; exit 3")["id"]
        until(lambda: jobs.status(number)["progress"] == 0.4, "it says how far it is")
        assert jobs.status(number)["state"] == "running"
        with pytest.raises(DeadlineExceeded):
            jobs.call("wait", number, timeout=0.05)
        fifo.write_text("\n")
        ended = jobs.wait(number)
        assert (ended["state"], ended["exit_code"]) == ("failed", 3)
        assert jobs.output(number) == b"40%\nall done\n"
        assert jobs.output(number, last=5) == b"done\n"
        assert jobs.wait(jobs.submit(text="print(6 * 7)", kind="python")["id"])["state"] == "done"
        assert jobs.output(number + 1) == b"42\n"


def test_what_a_job_prints_and_how_far_it_is_is_told_at_once(place: Path) -> None:
    with serving("jobs", place) as jobs:
        fifo = place / "go"
        os.mkfifo(fifo)
        number = jobs.submit(text=f"echo 40%; read line <{fifo}; echo all done")["id"]
        with jobs.follow(number) as printed:
            assert next(printed) == b"40%\n"
            fifo.write_text("\n")
            assert b"".join(printed) == b"all done\n"
        assert list(jobs.follow(number)) == [b"40%\nall done\n"]

        number = jobs.submit(text=f"echo 70%; read line <{fifo}")["id"]
        told = []

        def hear(progress: samehost.Progress) -> None:
            told.append((progress.done, progress.total))
            fifo.write_text("\n")

        assert jobs.call("wait", number, progress=hear)["state"] == "done"
        assert told == [(0.7, 1.0)]


def test_the_job_runner_refuses_what_cannot_be(place: Path) -> None:
    with serving("jobs", place) as jobs:
        with pytest.raises(samehost.ServiceError) as caught:
            jobs.status(1)
        assert (caught.value.code, caught.value.message) == ("jobs.no_such_job", "there is no job 1")
        with pytest.raises(InvalidArguments, match="kind"):
            jobs.submit("true", kind="perl")
        with pytest.raises(InvalidArguments, match="text"):
            jobs.submit(text="")


def test_so_many_jobs_run_at_a_time_others_wait_and_too_many_are_refused(place: Path) -> None:
    module = importlib.import_module("jobs")
    with serving("jobs", place) as jobs:
        for _ in range(module.RUNNING_MAX):
            jobs.submit("exec sleep 1000")
        until(lambda: {job["state"] for job in jobs.list()} == {"running"}, "all of them run")
        waiting = [jobs.submit("exec sleep 1000")["id"] for _ in range(module.QUEUED_MAX)]
        with pytest.raises(Busy, match=f"{module.QUEUED_MAX} jobs wait"):
            jobs.submit("true")
        assert jobs.cancel(waiting[0])["state"] == "cancelled"
        assert jobs.status(waiting[1])["state"] == "queued"
        assert jobs.cancel(1)["exit_code"] == -signal.SIGTERM
        until(lambda: jobs.status(waiting[1])["state"] == "running", "the next one has its turn")


def test_no_process_of_a_job_outlives_it_or_the_runner(place: Path) -> None:
    with serving("jobs", place) as jobs:
        jobs.submit("sleep 1000 & echo $!")  # over at once, but for what it has started
        assert jobs.wait(1)["state"] == "done"
        orphan = int(jobs.output(1))
        until(lambda: not is_alive(orphan), "what a job leaves running is ended with it")
        jobs.submit("sleep 1000 & echo $$ $!; wait")
        until(lambda: jobs.output(2).endswith(b"\n"), "it runs")
        pids = [int(pid) for pid in jobs.output(2).split()]
        assert all(map(is_alive, pids))
    until(lambda: not any(map(is_alive, pids)), "they end with the runner")


# The log collector.


def test_records_come_in_order_with_who_sent_them(place: Path) -> None:
    module = importlib.import_module("log_collector")
    with serving("log_collector", place) as collector, handler(module, collector.address) as logger:
        for number in range(200):
            logger.info("record %d", number)
        logger.error("the last one")
        until(lambda: collector.query(level=logging.ERROR), "the last one has come")
        found = collector.query(limit=400)
        assert texts(found) == [*(f"record {n}" for n in range(200)), "the last one"]
        assert {(record["uid"], record["pid"], record["name"]) for record in found} == {
            (os.geteuid(), os.getpid(), "test_examples")
        }
        assert texts(collector.query(level=logging.ERROR)) == ["the last one"]
        assert collector.query(since=datetime.now(UTC)) == collector.query(until=found[0]["received"]) == []
        assert collector.query(limit=1) == found[-1:]


def test_records_are_told_as_they_come(place: Path) -> None:
    with serving("log_collector", place) as collector, collector.subscribe("tail") as tail:
        collector.notify("log", level=20, name="test", text="one")
        collector.notify("log", level=20, name="test", text="two")
        assert texts([next(tail), next(tail)]) == ["one", "two"]


@contextlib.contextmanager
def handler(module: Any, address: object) -> Iterator[logging.Logger]:
    """A logger that sends to the collector."""
    logger = logging.getLogger("test_examples")
    to_collector = module.CollectorHandler(str(address))
    logger.addHandler(to_collector)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.removeHandler(to_collector)
    to_collector.close()


def test_a_program_goes_on_without_its_collector(place: Path) -> None:
    module = importlib.import_module("log_collector")
    with handler(module, place / "service.sock") as logger:
        logger.error("nobody is there")
        assert logger.handlers[-1].dropped == 1
        with serving("log_collector", place) as collector:
            logger.error("somebody is there")
            until(collector.query, "the record has come")
        logger.error("nobody is there any more")
        assert logger.handlers[-1].dropped == 2


def test_the_file_is_rotated_and_found_again(place: Path) -> None:
    module = importlib.import_module("log_collector")
    with (
        serving("log_collector", place, LOG_COLLECTOR_FILE_BYTES=1000) as collector,
        handler(module, collector.address) as logger,
    ):
        for number in range(100):
            logger.info("record %d", number)
        until(lambda: texts(collector.query())[-1:] == ["record 99"], "all have come")
        kept = texts(collector.query())
        assert kept == [f"record {number}" for number in range(100 - len(kept), 100)]
        assert 10 < len(kept) < 50
    assert sorted(os.listdir(place)) == ["log", "log.1", "log.2", "log.3"]
    assert all(file.stat().st_size < 1300 for file in place.iterdir())
    assert {file.stat().st_mode & 0o777 for file in place.iterdir()} == {0o600}


def texts(records: list[dict[str, Any]]) -> list[str]:
    return [record["text"] for record in records]


@needs_root
def test_users_read_what_they_have_logged_and_root_reads_everything(open_place: Path) -> None:
    code = """
client.notify("log", level=40, name="sshd", text="I am root, honestly")
client.notify("log", level=40, name="sshd", text="again")
while len(client.query()) < 2: pass
print([(record["uid"], record["text"]) for record in client.query()], flush=True)
print(refusal("query", uid=0), flush=True)
print(refusal("tail"), flush=True)
"""
    with serving("log_collector", open_place) as collector:
        collector.notify("log", level=20, name="root", text="a secret")
        until(collector.query, "it has come")
        with as_nobody(code, collector.address) as nobody:
            assert nobody.line() == f"[({NOBODY}, 'I am root, honestly'), ({NOBODY}, 'again')]"
            assert nobody.line().startswith(f"NotPermitted : query: uid {NOBODY} ")
            assert nobody.line().startswith(f"NotPermitted : tail: uid {NOBODY} ")
            assert nobody.end() == 0
        assert [record["uid"] for record in collector.query()] == [0, NOBODY, NOBODY]


# The secrets agent.


def test_secrets_are_given_listed_locked_and_forgotten(place: Path) -> None:
    with serving("secrets_agent", place) as agent:
        agent.put("database", "hunter2")
        assert agent.get("database") == "hunter2"
        assert agent.names() == {"database": f"uid {os.geteuid()}"}
        agent.lock("please")
        for refused in (
            lambda: agent.get("database"),
            agent.names,
            lambda: agent.put("x", "y"),
            lambda: agent.lock("z"),
        ):
            assert code_of(refused) == "secrets.locked"
        assert code_of(lambda: agent.unlock("guess")) == "secrets.wrong_passphrase"
        with pytest.raises(DeadlineExceeded):  # one guess a second, right or wrong
            agent.call("unlock", "please", timeout=0.2)
        agent.unlock("please")
        agent.forget("database")
        assert code_of(lambda: agent.get("database")) == "secrets.no_such_secret"
        assert code_of(lambda: agent.put("x", "y", groups=["no such group"])) == "secrets.no_such_reader"
        audit = [(record["method"], record["granted"]) for record in agent.audit()]
        assert audit == [
            ("put", True),
            ("get", True),
            ("lock", True),
            ("get", False),
            ("unlock", False),
            ("unlock", True),
            ("forget", True),
            ("get", False),
        ]
    assert os.listdir(place) == []


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(samehost.ServiceError) as caught:
        call()
    return caught.value.code


@needs_root
def test_a_secret_goes_to_whom_its_owner_names_and_does_not_exist_for_others(open_place: Path) -> None:
    code = """
print(refusal("get", "shared", owner=0), flush=True)
print(refusal("get", "private", owner=0), flush=True)
print(refusal("get", "no such", owner=0), flush=True)
print(refusal("audit"), flush=True)
client.put("own", "mine")
"""
    with serving("secrets_agent", open_place) as agent:
        agent.put("shared", "hunter2", users=["nobody"])
        agent.put("private", "hunter3")
        with as_nobody(code, agent.address) as nobody:
            assert nobody.line() == "hunter2"
            private, missing = nobody.line(), nobody.line()
            assert private == "ServiceError secrets.no_such_secret: get: uid 0 has no secret 'private' for you"
            assert missing == private.replace("private", "no such")
            assert nobody.line().startswith(f"NotPermitted : audit: uid {NOBODY}")
            assert nobody.end() == 0
        assert code_of(lambda: agent.get("own", owner=NOBODY)) == "secrets.no_such_secret"  # not even root
        refused = [(record["uid"], record["subject"]) for record in agent.audit() if not record["granted"]]
        assert refused == [(NOBODY, "0/private"), (NOBODY, "0/no such"), (0, f"{NOBODY}/own")]


# Thumbnails.


def png_file(width: int, height: int, channels: int, pixels: bytes, filters: tuple[int, ...] = (0,)) -> bytes:
    """A PNG picture, its rows filtered by each of these in turn (PNG specification, section 9)."""
    step = width * channels
    above = bytes(step)
    rows = b""
    for y in range(height):
        row = pixels[y * step : (y + 1) * step]
        left, corner = bytes(channels) + row[:-channels], bytes(channels) + above[:-channels]
        predicted = {
            0: bytes(step),
            1: left,
            2: above,
            3: bytes((a + b) // 2 for a, b in zip(left, above, strict=False)),
            4: bytes(paeth(*three) for three in zip(left, above, corner, strict=False)),
        }
        kind = filters[y % len(filters)]
        rows += bytes([kind, *((a - b) & 255 for a, b in zip(row, predicted[kind], strict=False))])
        above = row
    return packed(width, height, channels, rows)


def paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda candidate: abs(guess - candidate))


def packed(width: int, height: int, channels: int, rows: bytes) -> bytes:
    """A PNG picture of rows that are filtered already, each behind the number of its filter."""
    header = struct.pack(">II5B", width, height, 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def pixels_of(unfiltered: bytes, width: int) -> bytes:
    """The pixels of a PNG picture whose rows are not filtered, as the server writes them; `width` in bytes."""
    (length,) = struct.unpack_from(">I", unfiltered, unfiltered.index(b"IDAT") - 4)
    start = unfiltered.index(b"IDAT") + 4
    packed = zlib.decompress(unfiltered[start : start + length])
    return b"".join(packed[at + 1 : at + 1 + width] for at in range(0, len(packed), 1 + width))


def test_a_picture_is_made_smaller_whatever_filters_it_was_written_with(place: Path) -> None:
    with serving("thumbnails", place) as thumbnails:
        for channels in (1, 2, 3, 4):
            pixels = random.Random(channels).randbytes(30 * 20 * channels)
            picture = png_file(30, 20, channels, pixels, (0, 1, 2, 3, 4))
            assert thumbnails.measure(picture) == {"width": 30, "height": 20}
            small = thumbnails.thumbnail(picture, size=15)
            assert thumbnails.measure(small) == {"width": 15, "height": 10}
            first = bytes(sum(pixels[at * channels + c] for at in (0, 1, 30, 31)) // 4 for c in range(channels))
            assert pixels_of(small, 15 * channels)[:channels] == first
            assert pixels_of(thumbnails.thumbnail(picture, size=512), 30 * channels) == pixels  # never larger


def test_what_is_no_picture_is_refused_before_it_is_unpacked(place: Path) -> None:
    picture = png_file(4, 4, 1, bytes(16))
    bad = [
        ("this is no PNG picture", b"GIF89a"),
        ("this is no PNG picture", b""),
        ("the picture is damaged", picture[:20]),
        ("the picture is damaged", picture[:43] + b"\xff" + picture[44:]),
        ("4000001 x 1 pixels", packed(4_000_001, 1, 1, bytes(20))),
        ("0 x 4 pixels", packed(0, 4, 1, bytes(20))),
        ("the picture is cut short", packed(4, 4, 1, bytes(19))),
    ]
    with serving("thumbnails", place) as thumbnails:
        for why, refused in bad:
            with pytest.raises(samehost.ServiceError, match=why) as caught:
                thumbnails.thumbnail(refused)
            assert caught.value.code == "thumbnails.not_a_picture"
        with pytest.raises(InvalidArguments, match="size"):
            thumbnails.thumbnail(picture=picture, size=0)


def test_an_overloaded_image_server_says_so_until_it_has_caught_up(place: Path) -> None:
    side = 1000
    slow = packed(side, side, 1, (b"\4" + bytes(side)) * side)
    quick = png_file(4, 4, 1, bytes(16))
    with serving("thumbnails", place, THUMBNAILS_PENDING_MAX=1) as thumbnails:
        caller = threading.Thread(target=thumbnails.thumbnail, args=(slow,))
        caller.start()
        until(lambda: statistics(thumbnails).get("thumbnail", {}).get("in_flight"), "it is at work")
        with pytest.raises(Busy, match="1 pictures are pending already"):
            thumbnails.thumbnail(quick)
        assert thumbnails.measure(slow) == {"width": side, "height": side}
        caller.join(WAIT)
        until(lambda: answers(thumbnails, quick), "there is room again")


def statistics(client: samehost.Client) -> dict[str, Any]:
    return client.call("samehost.stats")["methods"]


def answers(thumbnails: samehost.Client, picture: bytes) -> bool:
    try:
        return bool(thumbnails.call("thumbnail", picture))
    except (Busy, samehost.ServiceError):  # a process has died
        return False


def test_when_a_process_dies_pictures_that_are_cached_and_new_ones_are_still_served(place: Path) -> None:
    with serving("thumbnails", place) as thumbnails:
        cached = png_file(4, 4, 1, bytes(16))
        small = thumbnails.thumbnail(cached)
        for pid in workers(thumbnails.peer.pid):
            os.kill(pid, signal.SIGKILL)
        assert thumbnails.thumbnail(cached) == small
        until(lambda: answers(thumbnails, png_file(4, 4, 1, bytes([9] * 16))), "new processes work")


def workers(server: int) -> list[int]:
    """The processes of a pool, without the one that Python has to track what they share."""
    found = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    found += [pid for task in Path(f"/proc/{server}/task").iterdir() for pid in (task / "children").read_text().split()]
    return [int(pid) for pid in set(found) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# The camera.

SECONDS = int(os.environ.get("SAMEHOST_TEST_SECONDS", "8"))
"""How long is looked at the camera; a minute tells more."""

SAID = re.compile(r"(\d+) pictures, at most ([\d.]+) ms old, (\d+) missed so far")


class Seen(NamedTuple):
    """What a viewer says of a second; of several, together."""

    pictures: int
    oldest: float
    missed: int


class Usage(NamedTuple):
    """What a process uses: seconds of CPU so far, KiB of memory."""

    cpu: float
    rss: int
    pss: int
    anonymous: int


def usage(pid: int) -> Usage:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    memory = dict(re.findall(r"^(\w+): +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Usage(cpu, int(memory["Rss"]), int(memory["Pss"]), int(memory["Pss_Anon"]))


class Mapping(NamedTuple):
    """Memory that a process sees: proc_pid_maps(5)."""

    begin: int
    end: int
    rights: str
    inode: int
    name: str


def mappings(pid: int | str) -> list[Mapping]:
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        (begin, end), rights, _, _, inode, *name = line.split()[0].split("-"), *line.split(maxsplit=5)[1:]
        found.append(Mapping(int(begin, 16), int(end, 16), rights, int(inode), "".join(name)))
    return found


def arenas(pid: int | str) -> dict[int, Mapping]:
    """The segments of arenas that a process sees, its own and others', by inode."""
    return {found.inode: found for found in mappings(pid) if found.name.startswith("/memfd:samehost-arena")}


def segment_of(array: Any) -> Mapping:
    """The segment that an array, or any bytes, lies in; there must be one, which cannot be written here."""
    flat = np.frombuffer(array, np.uint8)
    begin = flat.__array_interface__["data"][0]
    (segment,) = [arena for arena in arenas("self").values() if arena.begin <= begin and begin + len(flat) <= arena.end]
    assert segment.rights == "r--s"
    return segment


@contextlib.contextmanager
def viewing(address: Path) -> Iterator[Program]:
    """A viewer, from its first word on."""
    with Program([sys.executable, str(EXAMPLES / "camera.py"), "view", str(address)]) as viewer:
        look(viewer)
        yield viewer
        viewer.signal(signal.SIGINT)
        assert viewer.end() == 0, viewer.errors()


def look(viewer: Program) -> Seen:
    """What a viewer says next, once a second is over."""
    said = SAID.fullmatch(viewer.line())
    assert said is not None
    return Seen(int(said[1]), float(said[2]), int(said[3]))


def look_for(seconds: int, viewers: list[Program]) -> list[Seen]:
    """What each of them says of some seconds."""
    said = list(zip(*[[look(viewer) for viewer in viewers] for _ in range(seconds)], strict=True))
    return [Seen(sum(s.pictures for s in each), max(s.oldest for s in each), each[-1].missed) for each in said]


@pytest.mark.timeout(60 + 2 * SECONDS)
def test_60_large_pictures_a_second_for_three_viewers_cost_the_same_all_the_time(place: Path) -> None:
    address = place / "service.sock"
    with running("camera", address) as camera, contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(viewing(address)) for _ in range(3)]
        look_for(1, viewers)
        processes = {"camera": camera, **{f"viewer {number}": viewer for number, viewer in enumerate(viewers, 1)}}
        usages, memory, seen = [], [], []
        for _ in range(2):
            usages.append({name: usage(process.pid) for name, process in processes.items()})
            memory.append(set(arenas(camera.pid)))
            seen.append(look_for(SECONDS // 2, viewers))
        usages.append({name: usage(process.pid) for name, process in processes.items()})
        memory.append(set(arenas(camera.pid)))
        for viewer in viewers:
            seen_arenas = arenas(viewer.pid)
            assert set(seen_arenas) <= memory[-1]
            assert {arena.rights for arena in seen_arenas.values()} == {"r--s"}
    tell(usages, seen, memory)
    for each in zip(*seen, strict=True):
        assert sum(part.pictures for part in each) > 0.5 * 60 * SECONDS
    assert len(memory[-1]) <= 8, "a machine that is busy makes viewers late, but that is two pictures in each"
    for name in processes:
        first, middle, last = (each[name] for each in usages)
        assert last.anonymous - first.anonymous < 4096, f"{name} grows"
        assert last.cpu - middle.cpu < 1.5 * (middle.cpu - first.cpu) + 0.2, f"{name} costs more and more"


def tell(usages: list[dict[str, Usage]], seen: list[list[Seen]], memory: list[set[int]]) -> None:
    """Print what there was to be seen, for `pytest -rP`."""
    for name in usages[0]:
        cpu, *kib = zip(*(each[name] for each in usages), strict=True)
        print(f"{name}: {(cpu[-1] - cpu[0]) / SECONDS:.3f} s of CPU a second")
        for what, values in zip(("RSS", "PSS", "anonymous"), kib, strict=True):
            print(f"{name}: {what} {', '.join(map(str, values))} KiB, at the begin, in the middle and at the end")
    for number, halves in enumerate(zip(*seen, strict=True), 1):
        print(f"viewer {number}, in each half: {halves}")
    print(f"segments of the arena: {', '.join(str(len(inodes)) for inodes in memory)}")


def test_a_picture_is_the_camera_s_own_memory(place: Path) -> None:
    module = importlib.import_module("camera")
    address = place / "service.sock"
    with (
        running("camera", address) as camera,
        samehost.connect(address, wait=WAIT) as client,
        client.subscribe("frames", module.Frame) as frames,
    ):
        for _ in range(30):
            frame = next(frames)
            assert module.row_of_bar(frame) == frame.number % module.HEIGHT
            assert segment_of(frame.pixels.view).inode in arenas(camera.pid)
        del frame


def test_a_viewer_that_is_stopped_and_then_killed_costs_the_others_nothing(place: Path) -> None:
    address = place / "service.sock"

    def of_frames(what: str) -> int:
        figures: dict[str, int] = client.call("samehost.stats")["topics"]["frames"]
        return figures[what]

    with (
        running("camera", address) as camera,
        samehost.connect(address, wait=WAIT) as client,
        viewing(address) as first,
        viewing(address) as second,
    ):
        others = [first, second]
        with Program([sys.executable, str(EXAMPLES / "camera.py"), "view", str(address)]) as third:
            look(third)
            before = look_for(1, others)
            third.signal(signal.SIGSTOP)
            until(lambda: of_frames("dropped") >= 60, "it misses pictures for a second")
            segments = len(arenas(camera.pid))
            assert segments <= 8
            third.signal(signal.SIGKILL)
            third.end()
        until(lambda: of_frames("subscribers") == 2, "it is forgotten")
        for was, seen in zip(before, look_for(3, others), strict=True):
            assert seen.pictures > 60
            assert seen.missed <= was.missed + 5
        assert len(arenas(camera.pid)) <= segments + 1


# The data loader.


def test_batches_are_the_loader_s_own_memory(place: Path) -> None:
    module = importlib.import_module("data_loader")
    with serving("data_loader", place, module.Loader) as loader:
        batches = loader.batches(20, size=16, seed=3)
        for batch in batches:
            for array in (batch.pictures, batch.labels):
                assert segment_of(array).inode in arenas(loader.peer.pid)
            assert (batch.pictures[:, 0].argmax(axis=1) == batch.labels).all()
        assert batches.progress.total == 20
        assert (
            next(loader.batches(1, size=16, seed=3)).labels == next(loader.batches(1, size=16, seed=3)).labels
        ).all()
        del batch, array


def test_a_trainer_learns_from_the_loader(place: Path) -> None:
    address = place / "service.sock"
    with running("data_loader", address):
        trained = run([sys.executable, str(EXAMPLES / "data_loader.py"), "train", str(address)])
    assert trained.returncode == 0, trained.stderr.decode()
    print(trained.stdout.decode())
    assert re.fullmatch(r"100 batches, 25600 of 25600 pictures recognised, \d+ MB a second\n", trained.stdout.decode())
