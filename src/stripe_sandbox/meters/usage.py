"""What a meter counted, as it is billed and as it is summed up for the API."""

import dataclasses

from stripe_sandbox.state import Json, Work


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Which events count: timestamps from `start` to before `end`, and reported after the one numbered `after`.

    A change bills what was reported before it, so that what is reported later in the same second counts for what came
    after the change.
    """

    start: int
    end: int
    after: int = 0


def latest(work: Work) -> int:
    """Give the number of the event that was reported last."""
    return int(work.connection.execute("SELECT coalesce(max(seq), 0) FROM meter_events").fetchone()[0])


def total(work: Work, meter: Json, customer: str, window: Window) -> int:
    """Aggregate the events of a window, as the meter says."""
    among = (
        "FROM meter_events WHERE meter = ? AND customer = ? AND timestamp >= ? AND timestamp < ? AND seq > ?"
        " AND problem IS NULL"
    )
    match meter["default_aggregation"]["formula"]:
        case "count":
            query = f"SELECT count(*) {among}"
        case "last":
            query = f"SELECT value {among} ORDER BY timestamp DESC, seq DESC LIMIT 1"
        case _:
            query = f"SELECT coalesce(sum(value), 0) {among}"
    values = (meter["id"], customer, window.start, window.end, window.after)
    row = work.connection.execute(query, values).fetchone()
    return int(row[0]) if row else 0


def billed_units(work: Work, price: Json, customer: str, window: Window) -> int:
    """Give what a metered price bills for: a total below zero bills nothing, and is not carried over."""
    return max(0, total(work, work.get("billing.meter", price["recurring"]["meter"]), customer, window))
