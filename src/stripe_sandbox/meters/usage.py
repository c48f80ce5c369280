"""Aggregates meter events, for invoices and for the API."""

import dataclasses

from stripe_sandbox import state
from stripe_sandbox.state import Json, Work


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The events with a timestamp in [start, end), in unix seconds, and a number greater than `after`.

    The number separates events of the same second: a change bills the events reported before it; events reported after
    it belong to the subscription's new items.
    """

    start: int
    end: int
    after: int = 0


def latest(work: Work) -> int:
    """Return the number of the latest reported event; 0 if there is none."""
    return int(work.connection.execute("SELECT coalesce(max(seq), 0) FROM meter_events").fetchone()[0])


def total(work: Work, meter: Json, customer: str, window: Window) -> int:
    """Return the aggregate of the events in a window that count by now, by the meter's formula."""
    among = (
        "FROM meter_events WHERE meter = ? AND customer = ? AND timestamp >= ? AND timestamp < ? AND seq > ?"
        f" AND problem IS NULL AND counted <= {state.NOW}"
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
    """Return the units that a metered price bills; 0 if the total is below zero, without a carry-over."""
    return max(0, total(work, work.get("billing.meter", price["recurring"]["meter"]), customer, window))
