"""Fuzz the parsers of the protocol one after the other, each for so many seconds: SECONDS [TARGET ...].

A target of `tests/protocol/fuzz.py` starts from what earlier runs kept in `tests/protocol/corpus`, from what the last
one left in `build/fuzz`, and from the examples of the protocol's document. Afterwards the corpus is what it takes to
reach again all that was reached. A finding ends its target, and in the end this program, with a status of 1.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from protocol.examples import EXAMPLES  # noqa: E402
from protocol.fuzz import ARENA_PASSED, LIMITS, TARGETS, both_ends, corpus, corpus_file, written  # noqa: E402
from protocol.joined import EMPTY, SOME  # noqa: E402

from samehost import limits, protocol  # noqa: E402
from samehost.protocol import BOTH_STREAMS  # noqa: E402

INPUT_BYTES_MAX = 4096
INPUT_SECONDS_MAX = 10
MEMORY_MEGABYTES_MAX = 512
HEADS = [bytes((size, how)) for size in (0, 11, 255) for how in (0, 1, 14, 110)]
"""What the seeds begin with, and `protocol.fuzz` takes for how they are cut and what is done about them."""


def seeds() -> set[bytes]:
    """What either end sends in each example, as one; lines as a batch too; crowds; and arenas."""
    sent = [b"".join(data for who, data in example() if who == end) for example in EXAMPLES.values() for end in "CS"]
    batches = [b"[%b]\n" % b",".join(data.splitlines()) for data in sent if data.startswith(b"{")]
    return {head + data for data in [*sent, *batches, *crowds(), arenas()] for head in HEADS}


def crowds() -> list[bytes]:
    """More calls than are taken, with more items than half a window, in either format; with a preface and without."""
    found = []
    for client in (protocol.connect(), protocol.connect_lines()):
        opening = written(client)
        for _ in range(LIMITS.calls_max + 1):
            client.send_call("m", EMPTY[client.codec], flags=BOTH_STREAMS)
        for _ in range(limits.WINDOW_ITEMS // 2 + 1):
            client.send_item(1, SOME[client.codec])
        client.send_notification("m", EMPTY[client.codec])
        client.send_end(1)
        frames = written(client)
        found += [frames, opening + frames]
    return found


def arenas() -> bytes:
    """What either end may send of them behind the prefaces, with the descriptors at its beginning."""
    client, _ = both_ends()
    client.send_arena(ARENA_PASSED + 1, limits.BLOB_BYTES_MAX, (0, 0))
    client.send_release([1, 2**64 - 1])
    client.send_retire(ARENA_PASSED)
    return written(client)


def run(target: str, *options: str) -> subprocess.CompletedProcess:
    """Run libFuzzer, and keep what it says in a file, of which the result has the text."""
    program = [sys.executable, str(ROOT / "tests/protocol/run_fuzz.py"), target, *options]
    result = subprocess.run(
        program, check=False, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    (ROOT / f"build/fuzz/{target}/log").write_text(result.stdout)
    return result


def fuzz(target: str, seconds: int) -> bool:
    """Whether all went well."""
    place = ROOT / "build/fuzz" / target
    inputs, merged = place / "inputs", place / "merged"
    inputs.mkdir(parents=True, exist_ok=True)
    for data in seeds().union(corpus(target) if corpus_file(target).exists() else ()):
        (inputs / hashlib.sha256(data).hexdigest()).write_bytes(data)
    print(f"{target}: {seconds} s", flush=True)
    result = run(
        target,
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MEGABYTES_MAX}",
        f"-artifact_prefix={place.relative_to(ROOT)}/",
        str(inputs),
    )
    if result.returncode:
        found = re.findall("Test unit written to (.+)", result.stdout) or [f"{place.relative_to(ROOT)}/log"]
        print(*result.stdout.splitlines()[-40:], f"{target}: FOUND {' '.join(found)}", sep="\n", flush=True)
        return False
    print(*(line for line in result.stdout.splitlines() if "DONE" in line or line.startswith("Done")), sep="\n")
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    if run(target, "-merge=1", str(merged), str(inputs)).returncode:
        print(f"{target}: no merge, see {place.relative_to(ROOT)}/log")
        return False
    kept = sorted((path.read_bytes() for path in merged.iterdir()), key=lambda data: (len(data), data))
    corpus_file(target).parent.mkdir(exist_ok=True)
    corpus_file(target).write_text("".join(f"{base64.b64encode(data).decode()}\n" for data in kept))
    print(f"{target}: {len(kept)} inputs of {sum(map(len, kept))} bytes kept", flush=True)
    return True


if __name__ == "__main__":
    seconds, *names = sys.argv[1:]
    results = [fuzz(target, int(seconds)) for target in names or TARGETS]
    sys.exit(not all(results))
