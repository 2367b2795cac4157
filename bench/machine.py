"""What a run was on: a report's reader has to know it before any figure of it means something."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.harness import chosen_cores

PACKAGES = (
    "samehost",
    "msgspec",
    "uvloop",
    "pyzmq",
    "pynng",
    "grpcio",
    "aiohttp",
    "uvicorn",
    "httptools",
    "rpyc",
    "matplotlib",
)


def facts(others: dict[str, str]) -> dict[str, str]:
    """Names and values, in the order in which people read them.

    Args:
        others: further interpreters that have samehost, by their labels.
    """
    first, second = chosen_cores()
    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpu, re.MULTILINE)
    return {
        "Begun": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "Kernel": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Processor": f"{model[1] if model else 'unknown'}, {os.cpu_count()} cores"
        + (", a virtual machine" if re.search(r"^flags.* hypervisor", cpu, re.MULTILINE) else ""),
        "Cores used": f"one core: {first} for both sides; a core each: {first} for clients, "
        + (f"{second} for servers" if second is not None else "which needs a second one"),
        "Load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()) + " (1, 5 and 15 minutes)",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}",
        "samehost": _samehost(sys.executable),
        **{f"samehost, {label}": _samehost(python) for label, python in others.items()},
        "Packages": ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
        "C compiler": _said("cc", "--version"),
        "Go compiler": _said("go", "version"),
    }


def _samehost(python: str) -> str:
    done = subprocess.run([python, "-m", "bench.own.echo"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or f"cannot be run: {done.stderr.strip().splitlines()[-1]}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def _said(program: str, *words: str) -> str:
    if shutil.which(program) is None:
        return "none was found"
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0]
