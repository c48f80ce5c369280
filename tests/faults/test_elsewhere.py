from pathlib import Path

import pytest

from tests.faults.__main__ import ELSEWHERE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("place", ELSEWHERE)
def test_what_a_long_run_also_runs_is_there(place: str) -> None:
    assert (ROOT / place).exists()
