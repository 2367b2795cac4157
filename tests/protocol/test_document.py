"""PROTOCOL.md and the code say the same: examples to the byte, types, limits, codes and states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from protocol.examples import EXAMPLES, by_sender

from samehost import limits
from samehost.protocol import Limits, codes, frames, preface, states

DOCUMENT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
PRINTED = dict(re.findall(r"<!-- example: ([\w-]+) -->\n```text\n(.*?)```", DOCUMENT, re.DOTALL))


def read_bytes(printed):
    """Who sent which bytes, of an example in hexadecimal."""
    sent = []
    for line in printed.splitlines():
        who, data = line[:1], bytes.fromhex(line[1:].split(";")[0])
        if who == " ":
            sent[-1] = sent[-1][0], sent[-1][1] + data
        else:
            sent.append((who, data))
    return sent


def read_lines(printed):
    return [(line[:1], line[3:].encode() + b"\n") for line in printed.splitlines()]


def table(heading):
    """The cells of the first table after a heading whose first cell begins like this, by the first cell."""
    rows = DOCUMENT.split(f"\n| {heading}", 1)[1].split("\n\n", 1)[0].splitlines()
    header = [cell.strip() for cell in f"{heading}{rows[0]}".strip("| ").split("|")]
    cells = [[cell.strip() for cell in row.strip()[1:-1].split("|")] for row in rows[2:]]
    return header, {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in cells}


def test_every_example_is_printed_and_every_printed_one_replayed():
    assert PRINTED.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_what_the_code_sends(name):
    read = read_lines if name.startswith("lines") else read_bytes
    assert list(by_sender(read(PRINTED[name]))) == list(by_sender(EXAMPLES[name]()))


def test_frame_types():
    _, rows = table("type | name")
    lengths = frames.length_ranges(Limits())
    numbered = {int(kind, 16): row for kind, row in rows.items() if " to " not in kind}
    assert {kind: row["name"] for kind, row in numbered.items()} == states.FRAME_NAMES
    for kind, row in numbered.items():
        least, _, most = row["payload: bytes"].partition(" to ")
        most = (most or least).replace("the limit", str(limits.PAYLOAD_BYTES_MAX))
        assert (lengths.least[kind], lengths.most[kind]) == (int(least), int(most)), row
        assert (row["descriptors"] != "no") == (kind in frames.WITH_DESCRIPTORS), row
        assert row["descriptors"].startswith("2") == (kind == states.ARENA), row
        assert (row["id"] == "0") == (kind in frames.WITHOUT_CALL), row
    for kind in set(range(256)) - set(numbered):
        assert lengths.most[kind] == (65536 if kind >= frames.MAY_IGNORE_FROM else -1)


def test_who_sends_which_type():
    _, rows = table("type | name")
    for kind, row in rows.items():
        if " to " in kind or row["section"][0] in "89":
            continue
        number = int(kind, 16)
        by_caller = number in (states.CALL, states.NOTIFY) or any(
            number in steps for steps in states.CALLER_STEPS.values()
        )
        by_callee = any(number in steps for steps in states.CALLEE_STEPS.values())
        assert {"caller": (True, False), "callee": (False, True), "both": (True, True)}[row["sent by"]] == (
            by_caller,
            by_callee,
        )


@pytest.mark.parametrize(
    ("heading", "names", "steps", "after"),
    [
        ("caller |", states.CALLER_NAMES, states.CALLER_STEPS, states.CALLER_NAMES),
        ("callee |", states.CALLEE_NAMES, states.CALLEE_STEPS, (*states.CALLEE_NAMES, "ENDED")),
    ],
)
def test_the_life_of_a_call(heading, names, steps, after):
    _, rows = table(heading)
    printed = {state: {frame: to for frame, to in row.items() if to} for state, row in rows.items()}
    ours = {
        names[state]: {states.FRAME_NAMES[kind]: after[to] for kind, to in row.items()} for state, row in steps.items()
    }
    assert printed == ours


def test_the_life_of_a_connection():
    columns = {
        states.PREFACE: "preface",
        states.CALL: "CALL",
        states.NOTIFY: "NOTIFY",
        states.FRAME: "frame",
        states.GOAWAY: "GOAWAY",
        states.FINISH: "finish",
    }
    _, rows = table("end |")
    printed = {state: {step: to for step, to in row.items() if to} for state, row in rows.items()}
    ours = {
        states.END_NAMES[state]: {columns[step]: states.END_NAMES[to] for step, to in row.items()}
        for state, row in states.END_STEPS.items()
    }
    assert printed == ours


def test_codes():
    _, rows = table("code |")
    assert {code: int(row["in JSON-RPC"]) for code, row in rows.items()} == codes.NUMBERS


def test_features():
    _, rows = table("bit |")
    assert {row["name"]: int(row["value"]) for row in rows.values()} == {
        "SEALED": preface.SEALED,
        "ARENAS": preface.ARENAS,
        "FILES": preface.FILES,
    }
    assert all(1 << int(bit) == int(row["value"]) for bit, row in rows.items())


def test_limits():
    _, rows = table("limit |")
    assert {name: [int(number) for number in re.findall(r"\d+", row["value"])] for name, row in rows.items()} == {
        "preface": [limits.PREFACE_BYTES_MAX],
        "payload; line of JSON": [limits.PAYLOAD_BYTES_MAX],
        "calls of one end": [limits.CALLS_MAX],
        "window of a stream": [limits.WINDOW_ITEMS, limits.WINDOW_BYTES],
        "balance of a stream": [limits.CREDIT_MAX],
        "descriptors of a frame": [limits.FILES_PER_MESSAGE_MAX],
        "arenas of one end": [limits.ARENAS_MAX],
        "size of an arena": [limits.BLOB_BYTES_MAX],
        "length of a blob; of all the sealed ones of a message": [limits.BLOB_BYTES_MAX],
        "shares in a RELEASE": [limits.RELEASES_PER_FRAME_MAX],
        "method's name": [limits.METHOD_BYTES_MAX],
        "context": [limits.CONTEXT_BYTES_MAX],
        "note": [limits.NOTE_BYTES_MAX],
        "code; id of an error": [limits.ERROR_CODE_BYTES_MAX],
        "message of an error": [limits.ERROR_MESSAGE_BYTES_MAX],
        "nesting of a value": [limits.NESTING_MAX],
        "messages in a batch": [limits.BATCH_CALLS_MAX],
        "id in JSON": [limits.JSON_ID_BYTES_MAX],
    }


def test_numbers_in_the_text():
    assert f"at least {limits.PAYLOAD_BYTES_FLOOR}" in DOCUMENT
    assert (
        f"from {preface.PREFACE_BYTES} to {limits.PREFACE_BYTES_MAX}; {preface.PREFACE_BYTES} in version 1" in DOCUMENT
    )
    saved_up = f"neither {limits.WINDOW_ITEMS // 2} items nor {limits.WINDOW_BYTES // 2} bytes"
    text = " ".join(DOCUMENT.split())
    assert saved_up in text
    assert f"how many bytes it has, from 1 to {limits.BLOB_BYTES_MAX}" in text
    assert f"`u64` each, {limits.RELEASES_PER_FRAME_MAX} at most" in text


def test_sections_that_the_code_cites_exist():
    sections = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", DOCUMENT, re.MULTILINE))
    for module in Path(states.__file__).parent.glob("*.py"):
        for cited in re.findall(r"PROTOCOL\.md sections? ([\d.]+(?:(?:,| and| to) [\d.]+)*)", module.read_text()):
            for section in re.findall(r"\d+(?:\.\d+)?", cited):
                assert section in sections, f"{module.name} cites section {section}"
