"""Chooses the user of the embedded PostgreSQL, which refuses to run as root."""

import contextlib
import os
import pwd
import stat
from pathlib import Path

from billing_svc.platform.database import embedded_child

# From linux/capability.h: pass permission checks of files; pass those of reading files and of searching folders; change
# what happens to capabilities.
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_SETPCAP = 1, 2, 8


def choose(data_dir: Path, cluster: Path, programs: Path) -> embedded_child.RunAs:
    """Return the user that runs the server: this process's user, or `nobody` instead of root."""
    if os.geteuid() != 0:
        return embedded_child.RunAs()
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        user_id, group_id = owner.st_uid, owner.st_gid
    else:
        nobody = pwd.getpwnam("nobody")
        user_id, group_id = nobody.pw_uid, nobody.pw_gid
    os.chown(data_dir, user_id, group_id)
    closed = first_closed_folder((data_dir.parent, programs), user_id)
    if closed is None:
        return embedded_child.RunAs(user_id, group_id)
    # For example, the clone is below root's home folder. Instead of opening that folder to everyone, the server gets
    # the capability that it lacks. It is root's child already, and its role in the database cannot reach files.
    executable = (programs / "postgres").stat().st_mode & stat.S_IXOTH
    wanted = (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE) if executable else (_CAP_DAC_OVERRIDE,)
    permitted = permitted_capabilities()
    for capability in wanted:
        if permitted & 1 << capability and permitted & 1 << _CAP_SETPCAP:
            return embedded_child.RunAs(user_id, group_id, capability)
    raise embedded_child.EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root, and the user that runs it instead cannot enter {closed}: allow that "
        f"(chmod o+x {closed}), move the clone, or work as another user than root"
    )


def first_closed_folder(folders: tuple[Path, ...], user_id: int) -> Path | None:
    """Find the first folder on the way to `folders` that the user may not pass through."""
    for folder in folders:
        for step in (*reversed(folder.parents), folder):
            status = step.stat()
            needed = stat.S_IXUSR if status.st_uid == user_id else stat.S_IXOTH
            if not status.st_mode & needed:
                return step
    return None


def permitted_capabilities() -> int:
    """Return the mask of this process's permitted capabilities; a container's root has fewer than the host's."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    return 0
