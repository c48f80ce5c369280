# ruff: noqa: INP001 - a program of its own, in no package
"""Generate src/billing/v1 from proto/billing/v1: messages, services, and type hints for both.

`--check` generates into a temporary folder instead, and fails with a summary if the committed stubs differ.
"""

import argparse
import difflib
import importlib.resources
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
SOURCE = ROOT / "src"
PACKAGE = Path("billing") / "v1"

# What generating makes; anything else in the package is written by hand (__init__.py) or is stale.
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")

# A summary is to be read, not to be applied: so many changed lines of each file are shown.
DIFF_LINES_MAX = 20


def plugin(name: str) -> str:
    """Name a plugin of this interpreter's environment to protoc; it need not be on the PATH."""
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        raise SystemExit(f"{name} is missing: install the dev extra")
    return f"--plugin={name}={path}"


def generate(out: Path) -> None:
    """Write the stubs of every proto file below `out`, an empty folder."""
    with importlib.resources.as_file(importlib.resources.files("grpc_tools") / "_proto") as well_known:
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={PROTO}",
                f"--proto_path={well_known}",
                plugin("protoc-gen-mypy"),
                plugin("protoc-gen-mypy_grpc"),
                f"--python_out={out}",
                f"--grpc_python_out={out}",
                f"--mypy_out=quiet:{out}",
                # Concrete, as the servicers really are: an RPC that one does not have answers UNIMPLEMENTED.
                f"--mypy_grpc_out=quiet,generate_concrete_servicer_stubs:{out}",
                *sorted(str(path) for path in (PROTO / PACKAGE).glob("*.proto")),
            ]
        )
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")


def generated_files(out: Path) -> list[Path]:
    """List the generated files below `out`, sorted."""
    return sorted(path for pattern in GENERATED for path in (out / PACKAGE).glob(pattern))


def install(fresh: Path) -> None:
    """Make the committed stubs those of `fresh`; not touched before, so that a failed protoc leaves them alone."""
    new = {path.name: path.read_bytes() for path in generated_files(fresh)}
    for stale in generated_files(SOURCE):
        if stale.name not in new:
            stale.unlink()
    for name, content in new.items():
        path = SOURCE / PACKAGE / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def differences(fresh: Path, committed: Path) -> list[str]:
    """List the files that are missing, stale or different, with the first changed lines of each."""
    found = []
    names = {path.name for path in generated_files(fresh)} | {path.name for path in generated_files(committed)}
    for name in sorted(names):
        new, old = fresh / PACKAGE / name, committed / PACKAGE / name
        if not old.exists():
            found.append(f"{PACKAGE / name}: not committed")
        elif not new.exists():
            found.append(f"{PACKAGE / name}: no proto file makes it any more")
        elif new.read_bytes() != old.read_bytes():
            before, after = old.read_text().splitlines(), new.read_text().splitlines()
            changed = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]  # without the two file names
            found.append("\n".join([f"{PACKAGE / name}: differs", *changed[:DIFF_LINES_MAX]]))
    return found


def main() -> int:
    """Generate, or check; the answer is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the committed stubs differ")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        if not check:
            install(fresh)
            return 0
        found = differences(fresh, SOURCE)
    if found:
        sys.stderr.write("\n".join(found) + "\nthe stubs are not what proto/ makes: run `make generate`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
