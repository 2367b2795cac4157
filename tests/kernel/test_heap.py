"""Memory that is at hand for long messages."""

from __future__ import annotations

import pytest
from support import python

FAULTS = """
    import resource, sys
    from samehost.kernel.heap import keep_memory_at_hand

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def blocks():
        for _ in range(20):
            first, second = b"x" * 300_000, b"y" * 300_000

    if sys.argv[1] == "at hand":
        keep_memory_at_hand()
    blocks()
    before = faults()
    blocks()
    print(faults() - before)
"""


@pytest.mark.parametrize(("how", "is_at_hand"), [("at hand", True), ("given back", False)])
def test_blocks_are_taken_from_memory_that_is_there(how: str, is_at_hand: bool) -> None:
    with python(FAULTS, how, env={"LD_BIND_NOW": "1"}) as program:
        faults = int(program.line())
        assert program.end() == 0
    assert is_at_hand == (faults < 100)  # of some 2900 pages
