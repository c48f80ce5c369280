"""Statements of fixed text for many rows: the rows are sent as an array for each column, or as a JSON parameter `rows`.

A statement with a parameter for each value must be built, parsed and planned again for every number of rows, and the
driver encodes an array value by value; either would cost more than the rest of a batch. Postgres reads arrays faster
than JSON, so the hot path uses arrays; see ADR 0013.
"""

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def insert_missing(table: sa.Table, columns: Sequence[str]) -> sa.TextClause:
    """Return an insert of `rows` that skips rows in conflict; columns that are not named get their defaults."""
    names = ", ".join(columns)
    return sa.text(
        f"INSERT INTO {table.name} ({names})"  # noqa: S608 - names of our own schema
        f" SELECT {names} FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
        " ON CONFLICT DO NOTHING"
    )


def insert(table: sa.Table, columns: Sequence[str]) -> str:
    """Return an insert whose parameters `to_columns` makes."""
    own = arrays("own", ", ".join(f"{name} {table.c[name].type.compile(dialect=_DIALECT)}" for name in columns))
    values = ", ".join(f"coalesce(own.{name}, shared.{name})" for name in columns)
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT {values} FROM {own}"  # noqa: S608 - our own schema
        f" CROSS JOIN json_populate_record(CAST(NULL AS {table.name}), CAST(:shared AS json)) AS shared"
    )


def arrays(name: str, columns: str) -> str:
    """Return the FROM item that reads the parameters of `to_arrays`; `columns` are names with their types."""
    named = [column.split(" ", 1) for column in columns.split(", ")]
    parameters = ", ".join(f"CAST(:{column} AS {kind}[])" for column, kind in named)
    return f"unnest({parameters}) AS {name} ({', '.join(column for column, _ in named)})"


def recordset(name: str, columns: str) -> str:
    """Return the FROM item that reads the parameter of `to_rows`; `columns` are names with their types."""
    return f"json_to_recordset(CAST(:rows AS json)) AS {name} ({columns})"


def to_rows(rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return the parameter of a `recordset`, or of `insert_missing`."""
    return {"rows": orjson.dumps(rows, _plain).decode()}


def to_arrays(columns: Sequence[str], rows: Collection[tuple[object, ...]]) -> dict[str, str]:
    """Return the parameters of `arrays`."""
    if not rows:
        return dict.fromkeys(columns, "{}")
    return {name: _array(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}


def to_columns(columns: Sequence[str], rows: Collection[tuple[object, ...]]) -> dict[str, str]:
    """Return the parameters of an `insert` of at least one row.

    A column whose value is the same in all rows is sent once; the first column is always sent for each row.
    """
    parameters: dict[str, str] = {}
    shared: dict[str, object] = {}
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        if parameters and values.count(values[0]) == len(values):
            shared[name] = values[0]
            parameters[name] = "{}"  # unnest fills an array that is shorter than the first with nulls
        else:
            parameters[name] = _array(values)
    return {**parameters, "shared": orjson.dumps(shared, _plain).decode()}


def _array(values: Sequence[object]) -> str:
    """Return an array literal of Postgres. It differs from JSON in its brackets and in the escapes in strings."""
    if isinstance(values[0], dict):  # of a json column, whose array has texts as elements
        values = [orjson.dumps(value).decode() for value in values]
    text = orjson.dumps(values, _plain).decode()
    if "\\" in text:
        text = "[" + ",".join(_quoted(value) if isinstance(value, str) else _json(value) for value in values) + "]"
    return "{" + text[1:-1] + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _json(value: object) -> str:
    return orjson.dumps(value, _plain).decode()


def _plain(value: object) -> str:
    """Return a value that JSON has no type for as the text that Postgres reads."""
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no text that is agreed upon")
