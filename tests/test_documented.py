"""What users can reach is written down: every command, option, exit code and public name. And what is written runs."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from support import SAMEHOST, Program, needs_program, run

import samehost
from samehost.cli import _EXIT_CODES, COMMANDS

ROOT = Path(__file__).parent.parent
COMMAND_PAGE = (ROOT / "docs" / "command.md").read_text()


def options_of(name: str) -> set[str]:
    actions = import_module(f"samehost.cli.{name}").parser()._actions
    return {option for action in actions for option in action.option_strings if option.startswith("--")} - {"--help"}


def section(name: str) -> str:
    found = re.search(rf"^## samehost {name}$(.*?)(?=^## |\Z)", COMMAND_PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/command.md has no section for samehost {name}"
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name):
    for option in options_of(name):
        assert f"`{option}" in section(name), f"samehost {name} {option} is not in docs/command.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_documented_option_exists(name):
    assert set(re.findall(r"^\| `(--[a-z-]+)", section(name), re.MULTILINE)) <= options_of(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert f"`samehost {name} " in (ROOT / "README.md").read_text()


def test_every_exit_code_is_documented():
    cells = re.findall(r"^\| ([\d, ]+) \|", COMMAND_PAGE, re.MULTILINE)
    documented = {int(number) for cell in cells for number in cell.split(",")}
    assert {code for _, code in _EXIT_CODES} | {0} <= documented


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "reference.md").read_text()
    for name in samehost.__all__:
        assert re.search(rf":: (samehost\.)?{name}\b", reference), f"{name} is not in docs/reference.md"


# Pages whose code runs, as a reader would try it: the blocks that begin with the name of a file are that file, which is
# served; then all others are run in their order, each as a program, and say what the block of text behind them has.


class Block(NamedTuple):
    """A block of code of a page, and the line where it begins."""

    language: str
    code: str
    line: int


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    fences = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in fences]


def is_of_file(block: Block, name: str) -> bool:
    return block.language == "python" and block.code.startswith(f"# {name}.py")


def commands_in(block: Block) -> list[tuple[str, str]]:
    """What is typed at the prompts of a block, and what is printed after each."""
    parts = re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]
    return [(command, said) for command, _, said in (part.partition("\n") for part in parts)]


@needs_program("nc")
@pytest.mark.parametrize(("page", "name"), [("streams", "lab"), ("files_and_blobs", "depot")])
def test_the_code_of_a_page_does_what_the_page_says(page: str, name: str, place: Path) -> None:
    address = place / f"{name}.sock"
    blocks = blocks_of(page)
    (place / f"{name}.py").write_text("\n\n".join(block.code for block in blocks if is_of_file(block, name)))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with Program([*SAMEHOST, "serve", name, "--address", str(address)], cwd=place) as server:
        assert server.line() == f"Serving {name} on {address}"
        for block, following in pairwise([*blocks, Block("", "", 0)]):
            where = f"docs/{page}.md, line {block.line}"
            if block.language == "python" and not is_of_file(block, name):
                said = run_as_written([sys.executable, "-Werror", "-c"], block.code, name, address, environment)
                assert said == (following.code if following.language == "text" else ""), where
            for command, output in commands_in(block) if block.language == "console" else []:
                assert run_as_written(["sh", "-c"], command, name, address, environment) == output, where
        server.signal(signal.SIGTERM)
        assert server.end() == 0, server.errors()
        assert "ERROR" not in server.errors()


def run_as_written(program: list[str], code: str, name: str, address: Path, environment: dict[str, str]) -> str:
    """What code says on standard output and standard error, with a service's name replaced by where it is served."""
    here = re.sub(rf'(connect\("){name}(?=")', rf"\1{address}", code)
    here = re.sub(rf"(samehost (?:call|describe)(?: --?\w+(?: \d+)?)*) {name}\b", rf"\1 {address}", here)
    here = here.replace(f"$XDG_RUNTIME_DIR/samehost/{name}.sock", str(address))
    assert str(address) in here
    ended = run([*program, here], cwd=address.parent, env=environment)
    said: str = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == 0, said
    return said
