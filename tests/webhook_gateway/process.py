"""The gateway as a process."""

import os
from pathlib import Path

SOURCES = str(Path(__file__).parents[2] / "src")


def environment(**changed: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "1", **changed}
