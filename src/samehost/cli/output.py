"""Text for people: whatever others sent or named, made safe to print; and a log that holds nobody up."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from samehost.blocking.waiting import WRITE, wait_for
from samehost.kernel.owners import printable


def one_line(text: bytes | str) -> str:
    r"""The text on one line, with control characters written as escapes, so that no sender can steer a terminal.

    Bytes that are no UTF-8 are written as `\\xNN`. A newline at the end is left out.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return printable(text.removesuffix("\n").removesuffix("\r"))


class Diagnostics(logging.StreamHandler[TextIO]):
    """The log, on standard error. Where nobody takes it, as in a full pipe, it is lost rather than waited for."""

    _PATIENCE_SECONDS = 1.0

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._patience = self._PATIENCE_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless there is no room for it; the first time, wait a moment for some."""
        if wait_for((self.stream, WRITE), seconds=self._patience):
            self._patience = self._PATIENCE_SECONDS
            super().emit(record)
        else:
            self._patience = 0.0
