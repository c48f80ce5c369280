"""Inserting many rows by one statement of fixed text: the rows travel as one JSON parameter.

A statement with a parameter for each value has to be built, parsed and planned anew for every number of rows; that cost
more than all the rest of a batch.
"""

from collections.abc import Mapping, Sequence

import orjson
import sqlalchemy as sa


def insert_missing(table: sa.Table, columns: Sequence[str], returning: str | None = None) -> sa.TextClause:
    """Return an insert of the parameter `rows` that skips what conflicts; columns left out take their defaults."""
    names = ", ".join(columns)
    return sa.text(
        f"INSERT INTO {table.name} ({names})"  # noqa: S608 - names of our own schema
        f" SELECT {names} FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
        f" ON CONFLICT DO NOTHING{f' RETURNING {returning}' if returning else ''}"
    )


def to_rows(rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return the parameter of `insert_missing`."""
    return {"rows": orjson.dumps(rows).decode()}
