"""Many rows in one statement of fixed text: they travel as one JSON parameter, `rows`.

A statement with a parameter for each value has to be built, parsed and planned anew for every number of rows, and an
array for each column is written value by value; either cost more than all the rest of a batch.
"""

from collections.abc import Collection, Mapping, Sequence

import orjson
import sqlalchemy as sa


def insert_missing(table: sa.Table, columns: Sequence[str]) -> sa.TextClause:
    """Return an insert of `rows` that skips what conflicts; columns left out take their defaults."""
    names = ", ".join(columns)
    return sa.text(
        f"INSERT INTO {table.name} ({names})"  # noqa: S608 - names of our own schema
        f" SELECT {names} FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
        " ON CONFLICT DO NOTHING"
    )


def insert(table: sa.Table, columns: Sequence[str], rows: str = "rows") -> str:
    """Return an insert of what `to_columns` makes of rows."""
    row_type = f"CAST(NULL AS {table.name})"
    values = ", ".join(f"coalesce(own.{name}, shared.{name})" for name in columns)
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT {values}"  # noqa: S608 - names of our own schema
        f" FROM json_populate_recordset({row_type}, CAST(:{rows} AS json)) AS own"
        f" CROSS JOIN json_populate_record({row_type}, CAST(:{rows}_shared AS json)) AS shared"
    )


def recordset(name: str, columns: str, parameter: str = "rows") -> str:
    """Return what stands for the rows in a FROM clause, under a name; `columns` are names with their types."""
    return f"json_to_recordset(CAST(:{parameter} AS json)) AS {name} ({columns})"


def to_rows(rows: Sequence[Mapping[str, object]], parameter: str = "rows") -> dict[str, str]:
    """Return the parameter."""
    return {parameter: orjson.dumps(rows).decode()}


def to_columns(columns: Sequence[str], rows: Collection[tuple[object, ...]], parameter: str = "rows") -> dict[str, str]:
    """Return the parameters of an `insert` of one row or more; a value that all rows share travels and is parsed once.

    The first column stays with the rows.
    """
    own: dict[str, tuple[object, ...]] = {}
    shared: dict[str, object] = {}
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        if own and values.count(values[0]) == len(values):
            shared[name] = values[0]
        else:
            own[name] = values
    names = tuple(own)
    return {
        parameter: orjson.dumps(
            [dict(zip(names, row, strict=True)) for row in zip(*own.values(), strict=True)]
        ).decode(),
        f"{parameter}_shared": orjson.dumps(shared).decode(),
    }
