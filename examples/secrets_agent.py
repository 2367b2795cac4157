"""A secrets agent: passwords and tokens that live in one process's memory, and go to whom their owner says.

Who asks is what the kernel says, and nobody else's word. A secret belongs to the user who stored it, who names the
users and groups that may read it; to others it does not exist. Secrets are never written to disk, so they are gone when
the agent ends. They are plain in its memory, which root can read and the kernel may swap out; core dumps are off.

All state belongs to the event loop, so that no two calls can see it half changed. Try it from a shell::

    python examples/secrets_agent.py &
    printf hunter2 | samehost call secrets-agent put name=database value=- 'groups=["www-data"]'
    samehost call secrets-agent get name=database
    samehost call secrets-agent lock passphrase=please
    samehost call secrets-agent unlock passphrase=please
    samehost call secrets-agent audit            # as root, or as the agent's own user
"""

import asyncio
import hashlib
import hmac
import logging
import os
import resource
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import msgspec

import samehost
from samehost.errors import PolicyError

SECRETS_PER_USER_MAX = 1000
AUDIT_RECORDS_MAX = 10_000
GUESS_SECONDS = 1.0

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Value = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
Passphrase = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]

logger = logging.getLogger("secrets-agent")


class NoSuchSecret(samehost.ServiceError):
    """There is no such secret, or none for this caller: the two look alike on purpose."""

    code = "secrets.no_such_secret"


class Locked(samehost.ServiceError):
    """The owner has locked it."""

    code = "secrets.locked"


class WrongPassphrase(samehost.ServiceError):
    """Not this one."""

    code = "secrets.wrong_passphrase"


class TooManySecrets(samehost.ServiceError):
    """This user has as many as one may have."""

    code = "secrets.too_many"


@dataclass
class Secret:
    """A secret, and who besides its owner may read it."""

    value: str
    readers: samehost.Policy


@dataclass
class Vault:
    """What one user has stored.

    Attributes:
        lock: salt and hash of the passphrase while it is locked.
        unlocking: held while a passphrase is tried, so that guesses come one after the other.
        next_guess: no guess is tried before this time, by the monotonic clock.
    """

    secrets: dict[str, Secret] = field(default_factory=dict)
    lock: tuple[bytes, bytes] | None = None
    unlocking: asyncio.Lock = field(default_factory=asyncio.Lock)
    next_guess: float = 0.0


class AuditRecord(msgspec.Struct):
    """Who asked for what, and whether it was done."""

    at: datetime
    uid: int
    pid: int
    method: str
    subject: str
    granted: bool


class Agent:
    """All vaults, by the uid of their owners, and the audit log."""

    def __init__(self) -> None:
        self.vaults: dict[int, Vault] = {}
        self.log: deque[AuditRecord] = deque(maxlen=AUDIT_RECORDS_MAX)

    def vault_of(self, caller: samehost.Peer) -> Vault:
        return self.vaults.setdefault(caller.uid, Vault())

    def unlocked_vault_of(self, caller: samehost.Peer) -> Vault:
        vault = self.vault_of(caller)
        if vault.lock is not None:
            raise Locked("your secrets are locked")
        return vault

    def find(self, owner: int, name: str, caller: samehost.Peer) -> Secret:
        vault = self.vaults.get(owner, Vault())
        secret = vault.secrets.get(name)
        if secret is None or not (caller.uid == owner or secret.readers.admits(caller)):
            raise NoSuchSecret(f"uid {owner} has no secret {name!r} for you")
        if vault.lock is not None:
            raise Locked(f"uid {owner} has locked it")
        return secret

    def note(self, call: samehost.Call, subject: str, *, granted: bool = True) -> None:
        self.log.append(AuditRecord(datetime.now(UTC), call.peer.uid, call.peer.pid, call.method, subject, granted))
        logger.info("%s %s %r: %s", call.peer, call.method, subject, "granted" if granted else "refused")


def hash_of(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=2**14, r=8, p=1)


agent = samehost.Service("secrets-agent", allow=samehost.ANYONE)


@agent.lifespan
async def in_memory() -> AsyncIterator[Agent]:
    """Keep everything in memory, and what is in memory out of core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    yield Agent()


@agent.method(inline=True, errors={PolicyError: "secrets.no_such_reader"})
def put(
    name: Name, value: Value, call: samehost.Call, users: tuple[str, ...] = (), groups: tuple[str, ...] = ()
) -> None:
    """Store a secret, or replace it; `users` and members of `groups` may read it as well."""
    all_vaults: Agent = call.state
    vault = all_vaults.unlocked_vault_of(call.peer)
    readers = samehost.allow(uid=call.peer.uid)
    if users:
        readers |= samehost.allow(user=users)
    if groups:
        readers |= samehost.allow(group=groups)
    if name not in vault.secrets and len(vault.secrets) >= SECRETS_PER_USER_MAX:
        raise TooManySecrets(f"you have {SECRETS_PER_USER_MAX} secrets already")
    vault.secrets[name] = Secret(value, readers)
    all_vaults.note(call, name)


@agent.method(inline=True, idempotent=True)
def get(name: Name, call: samehost.Call, owner: int | None = None) -> str:
    """Give a secret: one's own, or one of the user `owner` (a uid) that the caller may read."""
    all_vaults: Agent = call.state
    owner = call.peer.uid if owner is None else owner
    subject = f"{owner}/{name}"
    try:
        secret = all_vaults.find(owner, name, call.peer)
    except samehost.ServiceError:
        all_vaults.note(call, subject, granted=False)
        raise
    all_vaults.note(call, subject)
    return secret.value


@agent.method(inline=True, idempotent=True)
def names(call: samehost.Call) -> dict[str, str]:
    """One's own secrets, and who may read each."""
    all_vaults: Agent = call.state
    return {name: str(secret.readers) for name, secret in all_vaults.unlocked_vault_of(call.peer).secrets.items()}


@agent.method(inline=True)
def forget(name: Name, call: samehost.Call) -> None:
    """Forget one of one's own secrets."""
    all_vaults: Agent = call.state
    if all_vaults.unlocked_vault_of(call.peer).secrets.pop(name, None) is None:
        raise NoSuchSecret(f"you have no secret {name!r}")
    all_vaults.note(call, name)


@agent.method
async def lock(passphrase: Passphrase, call: samehost.Call) -> None:
    """Give none of one's own secrets to anybody, until `unlock` is called with the same passphrase."""
    all_vaults: Agent = call.state
    salt = os.urandom(16)
    hashed = await asyncio.to_thread(hash_of, passphrase, salt)
    all_vaults.unlocked_vault_of(call.peer).lock = salt, hashed
    all_vaults.note(call, "")


@agent.method
async def unlock(passphrase: Passphrase, call: samehost.Call) -> None:
    """Give them again. Guesses are tried one after the other, one a second."""
    all_vaults: Agent = call.state
    vault = all_vaults.vault_of(call.peer)
    async with vault.unlocking:
        if vault.lock is None:
            return
        # Counted before it is tried, so that hanging up on a wrong guess does not help.
        await asyncio.sleep(vault.next_guess - time.monotonic())
        vault.next_guess = time.monotonic() + GUESS_SECONDS
        salt, expected = vault.lock
        found = await asyncio.to_thread(hash_of, passphrase, salt)
        is_right = hmac.compare_digest(found, expected)
        all_vaults.note(call, "", granted=is_right)
        if not is_right:
            raise WrongPassphrase("that is not the passphrase")
        vault.lock = None


@agent.method(inline=True, idempotent=True, allow=samehost.allow(uid={0, os.geteuid()}))
def audit(call: samehost.Call, limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100) -> list[AuditRecord]:
    """The last records of who asked for what."""
    all_vaults: Agent = call.state
    return list(all_vaults.log)[-limit:]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    samehost.serve(agent, *sys.argv[1:2], mode=0o666)  # everybody may connect; the agent tells them apart
