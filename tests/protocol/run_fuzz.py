"""One target of `fuzz` under atheris: the arguments are its name, and then libFuzzer's own.

With files instead of directories only those inputs are tried, which is how a finding is looked at again.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["samehost"]):
    from protocol.fuzz import TARGETS

if __name__ == "__main__":
    program, target, *options = sys.argv
    # libFuzzer, which starts itself again to merge a corpus, has a shell read the name of the program.
    atheris.Setup([shlex.join([sys.executable, program, target]), *options], TARGETS[target])
    atheris.Fuzz()
