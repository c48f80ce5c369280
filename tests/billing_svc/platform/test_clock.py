"""How the service's clock moves with the sandbox's: in `dev` by a file, in tests by `world.advance`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from billing_svc.platform import clock
from billing_svc.platform.settings import Settings, SettingsError, read_database
from stripe_sandbox.time import clock as sandbox_clock

DAY = timedelta(days=1)


def dev(settings: Settings, file: Path) -> Settings:
    return settings.model_copy(update={"dev": True, "clock_file": file})


def test_without_a_file_the_clock_is_the_machines(settings: Settings) -> None:
    assert abs(clock.from_settings(settings).now() - datetime.now(UTC)) < timedelta(seconds=1)


def test_all_clocks_that_read_the_file_move_at_once(settings: Settings, tmp_path: Path) -> None:
    moved = sandbox_clock.SandboxClock(tmp_path / "clock")
    first, second = (clock.from_settings(dev(settings, tmp_path / "clock")) for _ in range(2))
    moved.set_offset(35 * 86_400)
    for one in (first, second):
        assert abs(one.now() - datetime.now(UTC) - 35 * DAY) < timedelta(seconds=1)
        assert int(one.now().timestamp()) - moved.now() in {0, 1}


def test_a_file_that_is_not_there_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BILLING_CLOCK_FILE"):
        clock.from_settings(dev(settings, tmp_path / "nothing"))


def test_nothing_but_dev_may_move_the_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    monkeypatch.setenv("BILLING_CLOCK_FILE", str(tmp_path / "clock"))
    monkeypatch.delenv("BILLING_DEV", raising=False)
    with pytest.raises(SettingsError, match="BILLING_CLOCK_FILE"):
        read_database()
