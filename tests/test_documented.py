"""What users can reach is written down: every command, option, exit code and public name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

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
