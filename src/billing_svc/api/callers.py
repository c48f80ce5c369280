"""The callers' file: each caller's name, tokens, certificates and rights. It is read again when it changes."""

import asyncio
import collections
import contextlib
import hashlib
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import pydantic
import structlog
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from billing_svc.api import access, scope
from billing_svc.platform import settings

_log = structlog.get_logger("callers")

# A revoked token is refused within this time; a check of the file costs a system call.
POLL_SECONDS = 2.0
# Enough for thousands of callers; a larger file is something else.
FILE_BYTES_MAX = 1024 * 1024
# During a rotation the old and the new token are both valid; many more proofs are a mistake.
PROOFS_MAX = 16

_SHA256 = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
_CERTIFICATE_NAME = Annotated[str, pydantic.Field(pattern="^[!-~]{1,255}$")]
# `scope` defines the meaning of separators at a prefix's end.
_PREFIX = Annotated[str, pydantic.Field(pattern="^[!-~]{1,128}$")]


class _CallerEntry(pydantic.BaseModel):
    """A caller in the file."""

    model_config = pydantic.ConfigDict(extra="forbid", hide_input_in_errors=True)

    # The name is written to logs, the audit log and error messages.
    name: Annotated[str, pydantic.Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    groups: frozenset[access.Group]
    token_sha256: Annotated[tuple[_SHA256, ...], pydantic.Field(max_length=PROOFS_MAX)] = ()
    certificates: Annotated[tuple[_CERTIFICATE_NAME, ...], pydantic.Field(max_length=PROOFS_MAX)] = ()
    account_prefix: _PREFIX | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if not self.token_sha256 and not self.certificates:
            raise ValueError("needs token_sha256 or certificates; without either the caller cannot authenticate")
        if self.account_prefix is not None:
            if access.Group.WEBHOOK in self.groups:
                raise ValueError("Stripe's events concern all accounts: group webhook cannot have an account_prefix")
            scope.check_prefix(self.account_prefix)
        return self

    def caller(self) -> access.Caller:
        return access.Caller(self.name, self.groups, self.account_prefix)


class _CallersFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", hide_input_in_errors=True)

    callers: tuple[_CallerEntry, ...]

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        proofs = (proof for one in self.callers for proof in (*set(one.token_sha256), *set(one.certificates)))
        for what, values in (("name", (one.name for one in self.callers)), ("token or certificate", proofs)):
            if any(count > 1 for count in collections.Counter(values).values()):
                raise ValueError(f"two callers have the same {what}")
        return self


def read(options: settings.Settings) -> access.Tokens:
    """Return the callers of the callers' file, and in `dev` the caller with the public token. Raises SettingsError."""
    entries = () if options.callers_file is None else _read(options.callers_file)
    tokens = [(entry.caller(), entry.token_sha256) for entry in entries]
    dev_digest = hashlib.sha256(settings.DEV_TOKEN.encode()).hexdigest()
    if options.dev:
        tokens.append((access.Caller("dev", frozenset(access.Group)), (dev_digest,)))
    elif any(dev_digest in digests for _, digests in tokens):
        raise settings.SettingsError("BILLING_CALLERS_FILE: the token of `dev` is public; choose another token")
    if not tokens:
        raise settings.SettingsError("BILLING_CALLERS_FILE is not set or has no callers: every call would be refused")
    return access.Tokens(tokens, [(entry.caller(), entry.certificates) for entry in entries])


def _read(path: Path) -> tuple[_CallerEntry, ...]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise settings.SettingsError(f"BILLING_CALLERS_FILE: {path} is larger than {FILE_BYTES_MAX} bytes")
        return _CallersFile.model_validate(YAML(typ="safe").load(content.decode())).callers
    except (OSError, YAMLError, UnicodeDecodeError, RecursionError):
        raise settings.SettingsError(f"BILLING_CALLERS_FILE: {path} cannot be read as YAML") from None
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in error.errors()
        )
        raise settings.SettingsError(f"BILLING_CALLERS_FILE: {path}: {problems}") from None


class _Stamp(NamedTuple):
    """Shows a change of a file without reading it; a replaced file or link has a new inode."""

    inode: int
    size: int
    modified_ns: int


class Followed:
    """The callers of the callers' file, updated when the file changes."""

    def __init__(self, options: settings.Settings) -> None:
        """Read the callers. Raises SettingsError."""
        self._options = options
        # Taken before the read, so that the next check finds a change during the read.
        self._stamp = _stamp(options.callers_file)
        self.tokens = read(options)
        # True while the current file cannot be used; the callers read before stay in force.
        self.is_stale = False

    async def follow(self, stop: asyncio.Event) -> None:
        """Check the file every POLL_SECONDS until `stop`."""
        while not stop.is_set():
            # In a thread: a network file system can be slow.
            await asyncio.to_thread(self.look)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)

    def look(self) -> None:
        """Read the file if it has changed. A file that cannot be used is logged once and changes nothing."""
        stamp = _stamp(self._options.callers_file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.tokens.take_over(read(self._options))
        except settings.SettingsError as error:
            self.is_stale = True
            _log.error("callers_kept", problem=str(error))
        else:
            self.is_stale = False
            _log.info("callers_reloaded")


def _stamp(path: Path | None) -> _Stamp | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else _Stamp(found.st_ino, found.st_size, found.st_mtime_ns)
