"""Many rows in one statement of fixed text: they travel as one JSON parameter, `rows`.

A statement with a parameter for each value has to be built, parsed and planned anew for every number of rows, and an
array for each column is written value by value; either cost more than all the rest of a batch.
"""

from collections.abc import Mapping, Sequence

import orjson
import sqlalchemy as sa


def insert_missing(table: sa.Table, columns: Sequence[str], returning: str | None = None) -> sa.TextClause:
    """Return an insert of `rows` that skips what conflicts; columns left out take their defaults."""
    names = ", ".join(columns)
    return sa.text(
        f"INSERT INTO {table.name} ({names})"  # noqa: S608 - names of our own schema
        f" SELECT {names} FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
        f" ON CONFLICT DO NOTHING{f' RETURNING {returning}' if returning else ''}"
    )


def recordset(name: str, columns: str, parameter: str = "rows") -> str:
    """Return what stands for the rows in a FROM clause, under a name; `columns` are names with their types."""
    return f"json_to_recordset(CAST(:{parameter} AS json)) AS {name} ({columns})"


def to_rows(rows: Sequence[Mapping[str, object]], parameter: str = "rows") -> dict[str, str]:
    """Return the parameter."""
    return {parameter: orjson.dumps(rows).decode()}
