"""SELECT lists derived from classes, so that `cls(*row)` cannot swap two columns of one type."""

import dataclasses
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa


def field_names(cls: type, *, without: Collection[str] = ()) -> list[str]:
    """Return the names of a dataclass's fields, in the order in which its constructor takes them."""
    return [field.name for field in dataclasses.fields(cls) if field.name not in without]


def columns(
    cls: type, table: sa.FromClause, *, without: Collection[str] = (), **expressions: sa.ColumnElement[Any]
) -> list[sa.ColumnElement[Any]]:
    """Return what to select for `cls(*row)`: each field's column of the same name, or the expression given for it."""
    return [
        table.c[name] if name not in expressions else expressions[name] for name in _known(cls, without, expressions)
    ]


class SelectList:
    """The SELECT list of a statement's text, and where the values of each class stand in a row.

    It is gathered class by class while a module is imported; a decision pays for one slice, as it would for a literal.
    """

    def __init__(self) -> None:
        self._expressions: list[str] = []

    def __str__(self) -> str:
        return ", ".join(self._expressions)

    def __len__(self) -> int:
        return len(self._expressions)

    def copy(self) -> "SelectList":
        """Return a list that begins with the same expressions; places in this one hold in it too."""
        copied = SelectList()
        copied.add_all(*self._expressions)
        return copied

    def add(self, expression: str) -> int:
        """Select one more expression; returns its index."""
        self._expressions.append(expression)
        return len(self._expressions) - 1

    def add_all(self, *expressions: str) -> slice:
        """Select several more expressions; returns their place."""
        start = len(self._expressions)
        self._expressions += expressions
        return slice(start, len(self._expressions))

    def add_fields(self, cls: type, alias: str, *, without: Collection[str] = (), **expressions: str) -> slice:
        """Select the fields of a class; returns the place of their values.

        A field's expression is the column of its name in the relation `alias`, unless another is given.
        """
        return self.add_all(*(expressions.get(name, f"{alias}.{name}") for name in _known(cls, without, expressions)))

    def index(self, expression: str) -> int:
        """Return the index of an expression that is selected."""
        return self._expressions.index(expression)


def _known(cls: type, without: Collection[str], expressions: Collection[str]) -> list[str]:
    names = field_names(cls)
    if unknown := {*without, *expressions} - set(names):
        raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    return [name for name in names if name not in without]
