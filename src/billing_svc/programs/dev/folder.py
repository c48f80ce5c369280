"""The data folder of `dev`, and the marker file in it that shows that `dev` created the folder."""

import contextlib
import fcntl
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from billing_svc.programs.commands import common

MARKER = "billing-svc-dev"
ENVIRONMENT = "environment"
_STRIPE_ITSELF = "stripe-itself"
_MARKER_TEXT = "`billing-svc dev` keeps its data here; --reset deletes every other file of this folder.\n"
# A `dev` that was just killed, and its Postgres, may still hold the folder for a moment.
_PREDECESSOR_SECONDS_MAX = 2.0
_POLL_SECONDS = 0.05
# Other users may enter the folder, which Postgres' user needs if root runs `dev`, but may not list it.
_MODE = 0o711


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Create the folder, lock it against another `dev`, and yield its full path. Raises Refusal."""
    path = folder.resolve()
    with _claim(path) as marker:
        _lock(marker, folder)
        marker.truncate(0)
        marker.write(_MARKER_TEXT)
        marker.flush()
        yield path


def keep_to_one_stripe(path: Path, sandbox_state: Path, *, sandbox: bool) -> None:
    """Remember whether the stored objects exist in the sandbox or at Stripe itself. Raises Refusal on a change."""
    marker = path / _STRIPE_ITSELF
    if marker.exists() if sandbox else sandbox_state.exists():
        other, wanted = ("Stripe itself", "the sandbox") if sandbox else ("the sandbox", "Stripe itself")
        raise common.Refusal(
            f"{path} has objects of {other}, which {wanted} does not know; name another folder with --data-dir, "
            "or delete them with --reset"
        )
    if not sandbox:
        marker.touch()


def write_environment(path: Path, variables: Mapping[str, str]) -> None:
    """Write the variables for commands to a file that a shell can read. It contains the database's password."""
    file = path / ENVIRONMENT
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())))


def _claim(path: Path) -> IO[str]:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=_MODE)
        marker = path / MARKER
        if not marker.exists() and any(path.iterdir()):
            raise common.Refusal(f"{path} has files that `dev` did not create; name another folder with --data-dir")
        return marker.open("a")
    except OSError as error:
        raise common.Refusal(f"{path} cannot be used: {error.strerror}; name another folder with --data-dir") from None


def empty(path: Path) -> None:
    """Delete the contents of a claimed folder, except the marker. Links are deleted, not followed."""
    deadline = time.monotonic() + _PREDECESSOR_SECONDS_MAX
    while True:
        try:
            for entry in path.iterdir():
                if entry.name == MARKER:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        except OSError:
            # A server that is shutting down may write a last file into a folder that was just emptied.
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _lock(file: IO[str], folder: Path) -> None:
    deadline = time.monotonic() + _PREDECESSOR_SECONDS_MAX
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise common.Refusal(
                    f"another `billing-svc dev` runs on {folder}; stop it, or name another folder with --data-dir"
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            return
