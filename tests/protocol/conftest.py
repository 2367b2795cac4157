"""The profile that `make fuzz` asks for, with `--hypothesis-profile=fuzz`: the state machines do over a million steps.

Those are counted, and pytest says at its end how many they were. A step is one rule of a machine, after which its
invariants are checked; they are checked once more when it is new.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine

# For each of the two state machines, whose examples take some ninety steps each.
settings.register_profile("fuzz", max_examples=7000, deadline=None, print_blob=True)
counts: Counter[str] = Counter()


def is_asked_for(config: pytest.Config) -> bool:
    return config.getoption("--hypothesis-profile") == "fuzz"


def count_calls(name: str) -> None:
    method = getattr(RuleBasedStateMachine, name)

    def counted(*arguments):
        counts[name] += 1
        return method(*arguments)

    setattr(RuleBasedStateMachine, name, counted)


def pytest_configure(config):
    if is_asked_for(config):
        count_calls("__init__")
        count_calls("check_invariants")


def pytest_collection_modifyitems(config, items):
    """Let every test take as long as that takes."""
    if is_asked_for(config):
        for item in items:
            item.add_marker(pytest.mark.timeout(0), append=False)


def pytest_terminal_summary(terminalreporter, config):
    if is_asked_for(config):
        machines = counts["__init__"]
        terminalreporter.write_line(f"{counts['check_invariants'] - machines} steps of {machines} state machines")
