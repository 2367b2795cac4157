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
from typing import Any
from zoneinfo import available_timezones

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

SERVICES = ["clock", "jobs", "key_value", "log_collector", "secrets_agent", "thumbnails"]


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
"""
    with serving("log_collector", open_place) as collector:
        collector.notify("log", level=20, name="root", text="a secret")
        until(collector.query, "it has come")
        with as_nobody(code, collector.address) as nobody:
            assert nobody.line() == f"[({NOBODY}, 'I am root, honestly'), ({NOBODY}, 'again')]"
            assert nobody.line().startswith(f"NotPermitted : query: uid {NOBODY} ")
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
