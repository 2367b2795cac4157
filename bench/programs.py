"""The peers that are not in Python: built here, once a run, by the compilers that are found."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
BUILT = Path("build/bench/programs")


class Missing(Exception):
    """A row cannot be measured; the reason, for people."""


@cache
def _built(name: str) -> str | Missing:
    target = BUILT.resolve() / name
    if name == "net_rpc":
        source, compiler, reason = HERE / "peers/net_rpc.go", shutil.which("go"), "no Go compiler was found"
        command = [str(compiler), "build", "-o", str(target), str(source)]
    else:
        source, compiler, reason = HERE / f"peers/{name}.c", shutil.which("cc"), "no C compiler was found"
        command = [str(compiler), "-O2", "-o", str(target), str(source)]
    if compiler is None:
        return Missing(reason)
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return str(target) if not done.returncode else Missing(f"not built: {done.stderr.strip()}")


def program(name: str) -> str:
    """Where the program of this name is.

    Raises:
        Missing: it cannot be built here.
    """
    built = _built(name)
    if isinstance(built, Missing):
        raise built
    return built
