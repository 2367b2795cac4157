"""A key-value store that survives its end: SQLite in WAL mode behind typed methods.

Its contract is `key_value_client.KeyValue`; a method that does not match it is refused when this module is loaded.
Methods are plain functions that run in threads, as SQLite blocks. Try it from a shell::

    KEY_VALUE_FILE=/tmp/store.db python examples/key_value.py &
    samehost call key-value put key=colour value=blue ttl=60
    samehost call key-value get key=colour
    samehost call key-value keys prefix=co

`samehost call key-value changes` prints every change from then on, until Ctrl-C.
"""

import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import takewhile

from key_value_client import Change, Conflict, Count, Entry, Key, KeyValue, NoSuchKey, Seconds

import samehost

SCHEMA = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;  -- a version that a caller was told survives a power cut
    CREATE TABLE IF NOT EXISTS entries (
        version INTEGER PRIMARY KEY AUTOINCREMENT,  -- so that none comes twice, not even after a delete
        key TEXT NOT NULL UNIQUE,
        value BLOB NOT NULL,
        expires REAL
    );
    CREATE INDEX IF NOT EXISTS by_expires ON entries (expires) WHERE expires IS NOT NULL;
"""


class Store:
    """The table. One connection and one lock do: SQLite has one writer at a time anyway, and reads are short."""

    def __init__(self, path: str, tell: Callable[[Change], None]) -> None:
        self._tell = tell  # called with the lock held, so that changes are told in their order
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # for our user alone, as the socket is
        # Every write begins with a DELETE, and so IMMEDIATE makes one transaction of all that follows.
        self._database = sqlite3.connect(path, isolation_level="IMMEDIATE", check_same_thread=False)
        self._database.executescript(SCHEMA)
        self._lock = threading.Lock()

    def get(self, key: str) -> Entry:
        with self._lock:
            row = self._database.execute(
                "SELECT value, version, expires FROM entries WHERE key = ? AND (expires IS NULL OR expires > ?)",
                (key, time.time()),
            ).fetchone()
        if row is None:
            raise NoSuchKey(f"there is nothing under {key!r}")
        value, version, expires = row
        return Entry(value, version, None if expires is None else datetime.fromtimestamp(expires, UTC))

    def keys(self, prefix: str, after: str, limit: int) -> list[str]:
        with self._lock:
            rows = self._database.execute(
                "SELECT key FROM entries WHERE key >= ? AND key > ? AND (expires IS NULL OR expires > ?) "
                "ORDER BY key LIMIT ?",
                (prefix, after, time.time(), limit),
            )
            return list(takewhile(lambda key: key.startswith(prefix), (key for (key,) in rows)))

    def put(self, key: str, value: bytes, ttl: float | None, expected: int | None = None) -> int:
        with self._lock:
            with self._database:
                self._forget_expired()
                if expected is not None:
                    row = self._database.execute("SELECT version FROM entries WHERE key = ?", (key,)).fetchone()
                    found: int = row[0] if row else 0
                    if found != expected:
                        raise Conflict(f"{key!r} has version {found}, not {expected}", data=found)
                expires = None if ttl is None else time.time() + ttl
                cursor = self._database.execute(
                    "INSERT OR REPLACE INTO entries (key, value, expires) VALUES (?, ?, ?)", (key, value, expires)
                )
            assert cursor.lastrowid is not None
            self._tell(Change(key, cursor.lastrowid))
        return cursor.lastrowid

    def delete(self, key: str) -> None:
        with self._lock:
            with self._database:
                self._forget_expired()
                if not self._database.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount:
                    raise NoSuchKey(f"there is nothing under {key!r}")
            self._tell(Change(key, 0))

    def _forget_expired(self) -> None:
        self._database.execute("DELETE FROM entries WHERE expires <= ?", (time.time(),))

    def close(self) -> None:
        with self._lock:
            self._database.close()


store = samehost.Service("key-value", interface=KeyValue)
changes = store.topic("changes", Change, queue=1000, slow="disconnect", doc="Every write and removal, in their order.")


@store.lifespan
async def open_file() -> AsyncIterator[Store]:
    """Open the file before the first call, and close it after the last."""
    opened = Store(os.environ.get("KEY_VALUE_FILE", "key_value.db"), changes.publish)
    try:
        yield opened
    finally:
        opened.close()


@store.method(idempotent=True, timeout=5.0)
def get(key: Key, call: samehost.Call) -> Entry:
    """What is stored under a key."""
    table: Store = call.state
    return table.get(key)


@store.method(idempotent=True, timeout=5.0)
def keys(call: samehost.Call, prefix: str = "", after: str = "", limit: Count = 100) -> list[str]:
    """The first keys that begin with a prefix, in their order."""
    table: Store = call.state
    return table.keys(prefix, after, limit)


@store.method(timeout=5.0)
def put(call: samehost.Call, key: Key, value: bytes, ttl: Seconds | None = None) -> int:
    """Store a value, for `ttl` seconds or for ever, and give its version."""
    table: Store = call.state
    return table.put(key, value, ttl)


@store.method(timeout=5.0)
def compare_and_set(call: samehost.Call, key: Key, value: bytes, version: int, ttl: Seconds | None = None) -> int:
    """Store a value if the one there has this version, 0 for nothing there."""
    table: Store = call.state
    return table.put(key, value, ttl, expected=version)


@store.method(timeout=5.0)
def delete(key: Key, call: samehost.Call) -> None:
    """Remove a key."""
    table: Store = call.state
    table.delete(key)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    samehost.serve(store, *sys.argv[1:2])
