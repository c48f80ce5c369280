"""Stores the sandbox's whole state in one SQLite file.

A request is one transaction: its objects, its events, their deliveries and its idempotency row are written together or
not at all. So the process may be killed at any moment.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from stripe_sandbox import errors
from stripe_sandbox.time import moments

Json = dict[str, Any]
T = TypeVar("T")

SCHEMA_VERSION = 3

VERSIONS_SECONDS = 24 * 3600
"""How long former contents of objects that can be searched are kept, in the sandbox's time."""

NOW = "(unixepoch() + coalesce((SELECT value FROM facts WHERE name = 'clock_offset_seconds'), 0))"
"""The sandbox's time in SQL, as `time.clock` has it: the real time and the offset."""

SCHEMA = f"""
CREATE TABLE objects (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of lists: `created` has whole seconds
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  created INTEGER NOT NULL,
  body TEXT NOT NULL,
  due INTEGER,  -- when it changes by itself (see `moments`); NULL: never
  due_what TEXT
) STRICT;
CREATE INDEX objects_due ON objects (due) WHERE due IS NOT NULL;
CREATE INDEX drafts_by_customer ON objects (json_extract(body, '$.customer'))
  WHERE kind = 'invoice' AND json_extract(body, '$.status') = 'draft';
CREATE INDEX objects_by_kind ON objects (kind, seq DESC);
-- NULLs are distinct, so these bind only those that have a key.
CREATE UNIQUE INDEX price_lookup_key ON objects (json_extract(body, '$.lookup_key')) WHERE kind = 'price';
CREATE UNIQUE INDEX active_meter_event_name ON objects (json_extract(body, '$.event_name'))
  WHERE kind = 'billing.meter' AND json_extract(body, '$.status') = 'active';

CREATE TABLE meter_events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  identifier TEXT NOT NULL,
  event_name TEXT NOT NULL,
  meter TEXT,  -- NULL: no active meter had the name
  customer TEXT NOT NULL,
  value INTEGER NOT NULL,
  timestamp INTEGER NOT NULL,
  created INTEGER NOT NULL,
  counted INTEGER NOT NULL,  -- from when on it counts: Stripe processes accepted events later
  problem TEXT  -- why it will not be billed; NULL: it will
) STRICT;
CREATE INDEX meter_events_by_identifier ON meter_events (identifier);
CREATE INDEX meter_events_by_meter ON meter_events (meter, customer, timestamp);

CREATE TABLE idempotency (
  key TEXT PRIMARY KEY,
  fingerprint TEXT NOT NULL,
  created INTEGER NOT NULL,
  status INTEGER NOT NULL,
  response TEXT NOT NULL
) STRICT;

CREATE TABLE deliveries (
  event TEXT PRIMARY KEY REFERENCES objects (id),
  attempts INTEGER NOT NULL,
  first_attempt_at REAL NOT NULL,  -- the wall's time, not the sandbox's
  next_attempt_at REAL,            -- NULL: nothing more to do
  delivered_at REAL
) STRICT;
CREATE INDEX deliveries_due ON deliveries (next_attempt_at) WHERE next_attempt_at IS NOT NULL;

-- The contents of objects that can be searched, one row for each write.
CREATE TABLE versions (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL,
  kind TEXT NOT NULL,
  at INTEGER NOT NULL,
  body TEXT NOT NULL
) STRICT;
CREATE INDEX versions_by_id ON versions (id, at);
CREATE TRIGGER created AFTER INSERT ON objects WHEN NEW.kind IN ('customer', 'subscription') BEGIN
  INSERT INTO versions (id, kind, at, body) VALUES (NEW.id, NEW.kind, {NOW}, NEW.body);
END;
CREATE TRIGGER changed AFTER UPDATE OF body ON objects WHEN NEW.kind IN ('customer', 'subscription') BEGIN
  DELETE FROM versions WHERE id = NEW.id AND seq < (
    SELECT max(seq) FROM versions WHERE id = NEW.id AND at <= {NOW} - {VERSIONS_SECONDS}
  );
  INSERT INTO versions (id, kind, at, body) VALUES (NEW.id, NEW.kind, {NOW}, NEW.body);
END;

CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""  # noqa: S608 - constants only

LOCK_WAIT_SECONDS = 5.0
"""How long a transaction waits while another process has locked the file."""


def new_id(prefix: str) -> str:
    """Return an id like Stripe's; it cannot be guessed, because it is all that a page asks for."""
    return f"{prefix}_{secrets.token_hex(12)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """The part of a list that a request asks for."""

    limit: int = 10
    starting_after: str | None = None
    ending_before: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A transaction. Objects are JSON, in the form that Stripe would store."""

    connection: sqlite3.Connection

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo the block's writes if the block raises; earlier writes of the transaction stay."""
        self.connection.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK TO attempt")
            raise
        finally:
            self.connection.execute("RELEASE attempt")

    def insert(self, kind: str, body: Json, created: int | None = None) -> Json:
        """Store an object; `created` in unix seconds, if the object's own `created` has another form.

        Raises sqlite3.IntegrityError if the id, or another unique field of the kind, exists.
        """
        self.connection.execute(
            "INSERT INTO objects (id, kind, created, body, due, due_what) VALUES (?, ?, ?, ?, ?, ?)",
            (body["id"], kind, created or body["created"], json.dumps(body), *(moments.of(body) or (None, None))),
        )
        return body

    def replace(self, body: Json) -> Json:
        """Store the new content of an object. Raises sqlite3.IntegrityError as `insert` does."""
        self.connection.execute(
            "UPDATE objects SET body = ?, due = ?, due_what = ? WHERE id = ?",
            (json.dumps(body), *(moments.of(body) or (None, None)), body["id"]),
        )
        return body

    def delete(self, object_id: str) -> None:
        """Delete an object."""
        self.connection.execute("DELETE FROM objects WHERE id = ?", (object_id,))

    def find(self, kind: str, object_id: str) -> Json | None:
        """Return the object of a kind; None if there is none."""
        row = self.connection.execute(
            "SELECT body FROM objects WHERE id = ? AND kind = ?", (object_id, kind)
        ).fetchone()
        return json.loads(row[0]) if row else None

    def find_any(self, object_id: str) -> Json | None:
        """Return the object with an id, of any kind; None if there is none."""
        row = self.connection.execute("SELECT body FROM objects WHERE id = ?", (object_id,)).fetchone()
        return json.loads(row[0]) if row else None

    def get(self, kind: str, object_id: str, *, param: str | None = None) -> Json:
        """Return the object. If there is none, raises Refused with the parameter `param`; NotFound without it."""
        found = self.find(kind, object_id)
        if found is not None:
            return found
        message = f"No such {kind.rpartition('.')[2]}: '{object_id}'"
        if param is None:
            raise errors.NotFound(message, param="id", code="resource_missing")
        raise errors.Refused(message, param=param, code="resource_missing")

    def fact(self, name: str, default: int = 0) -> int:
        """Return a stored number about the sandbox itself; `default` if it was never set."""
        row = self.connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else default

    def set_fact(self, name: str, value: int) -> None:
        """Store a number about the sandbox itself."""
        self.connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def versions(self, kind: str, at: int) -> list[Json]:
        """Return the objects of a kind as they were at a unix time, at most `VERSIONS_SECONDS` ago; newest first."""
        rows = self.connection.execute(
            "SELECT v.body FROM objects o JOIN versions v ON v.seq ="
            " (SELECT max(seq) FROM versions WHERE id = o.id AND at <= ?) WHERE o.kind = ? ORDER BY o.seq DESC",
            (at, kind),
        ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def select(
        self, kind: str, where: Mapping[str, Any], page: Page, created: Mapping[str, int] | int | None = None
    ) -> tuple[list[Json], bool]:
        """Return a page, the newest first, and whether another page follows.

        `where` maps paths within the object to a value (None: absent), or to a list of allowed values.
        """
        conditions: list[str] = ["kind = ?"]
        values: list[Any] = [kind]
        for path, wanted in where.items():
            if wanted is None:
                conditions.append("json_extract(body, ?) IS NULL")
                values.append(f"$.{path}")
                continue
            options = wanted if isinstance(wanted, list) else [wanted]
            conditions.append(f"json_extract(body, ?) IN ({', '.join('?' * len(options))})")
            values += [f"$.{path}", *options]
        comparisons = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
        bounds = {"": created} if isinstance(created, int) else created or {}
        for name, bound in bounds.items():
            conditions.append(f"created {comparisons.get(name, '=')} ?")
            values.append(bound)
        backwards = page.ending_before is not None
        cursor = page.ending_before or page.starting_after
        if cursor:
            beyond = "seq > (SELECT seq FROM objects WHERE id = ?)", "seq < (SELECT seq FROM objects WHERE id = ?)"
            conditions.append(beyond[0] if backwards else beyond[1])
            values.append(cursor)
        rows = self.connection.execute(
            f"SELECT body FROM objects WHERE {' AND '.join(conditions)}"  # noqa: S608 - fixed text only, values are bound
            f" ORDER BY seq {'ASC' if backwards else 'DESC'} LIMIT ?",
            (*values, page.limit + 1),
        ).fetchall()
        found = [json.loads(row[0]) for row in rows[: page.limit]]
        return (found[::-1] if backwards else found), len(rows) > page.limit


class State:
    """The file, its only connection and the only thread that uses it, so transactions run one after another."""

    def __init__(self, file: pathlib.Path) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="stripe-sandbox-state")
        self._connection = self._thread.submit(_open, file).result()

    async def run(self, work: Callable[[Work], T]) -> T:
        """Run `work` in a transaction: commit if it returns, roll back if it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[Work], T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(Work(self._connection))
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise
        return result

    def close(self) -> None:
        """Wait for the running transaction, and close the file."""
        self._thread.submit(self._connection.close).result()
        self._thread.shutdown()


def _open(file: pathlib.Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(file, timeout=LOCK_WAIT_SECONDS, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        connection.close()
        raise ValueError(f"{file} was written by another version of the sandbox; delete it to start afresh")
    return connection
