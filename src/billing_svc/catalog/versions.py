"""Catalog versions in the database: each publishing of something new gets the next number and never changes.

Sold subscriptions point to old versions for years, so a later release must still load what an earlier one stored: the
model may gain optional fields and lose rules, but not the other way round.
"""

import hashlib
import json
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import loading, model
from billing_svc.platform.database import tables
from billing_svc.platform.database.transactions import RetryTransaction

_VERSIONS = tables.catalog_versions


def canonical_text(catalog: model.Catalog) -> str:
    """Return the content as JSON, defaults written out, amounts and durations in one notation.

    Keys stay in the file's order, because a plan's first price and the order of plans mean something.
    """
    return json.dumps(catalog.model_dump(mode="json", by_alias=True), separators=(",", ":"), ensure_ascii=False)


async def publish(conn: AsyncConnection, catalog: model.Catalog, created_by: str, now: datetime) -> tuple[int, bool]:
    """Keep a catalog as the newest version; returns its number and whether it is a new one.

    The same content as the newest version makes none; an older content again does. Of two publishers at once one
    inserts; the other raises RetryTransaction, and then finds the content there, or takes the next number. Raises
    CatalogError if a meter would change its kind.
    """
    await refuse_other_kinds(conn, catalog)
    text = canonical_text(catalog)
    content_hash = hashlib.sha256(text.encode()).hexdigest()
    query = sa.select(_VERSIONS.c.version, _VERSIONS.c.content_hash).order_by(_VERSIONS.c.version.desc()).limit(1)
    last = (await conn.execute(query)).one_or_none()
    if last is not None and last.content_hash == content_hash:
        return last.version, False
    row = {
        "version": 1 if last is None else last.version + 1,
        "name": catalog.name,
        "content_hash": content_hash,
        "document": json.loads(text),
        "created_at": now,
        "created_by": created_by,
    }
    statement = insert(_VERSIONS).values(row).on_conflict_do_nothing().returning(_VERSIONS.c.version)
    version = (await conn.execute(statement)).scalar_one_or_none()
    if version is None:
        raise RetryTransaction
    return version, True


async def refuse_other_kinds(conn: AsyncConnection, catalog: model.Catalog) -> None:
    """Raise CatalogError if a meter was of another kind in any version: its counters would be misread.

    A sum would pass for a peak, and what lies beyond it would never be billed.
    """
    query = sa.select(_VERSIONS.c.version, _VERSIONS.c.document["meters"]).order_by(_VERSIONS.c.version)
    problems = {
        key: f"{catalog.name}: meters.{key}.kind: was {before[key]['kind']} in version {version}; a meter keeps its"
        " kind, so give the new one a name of its own"
        for version, before in await conn.execute(query)
        for key, meter in catalog.meters.items()
        if key in before and before[key]["kind"] != meter.kind
    }
    if problems:
        raise loading.CatalogError(problems.values())


async def newest(conn: AsyncConnection) -> int | None:
    """Return the number of the newest version; None before the first."""
    version: int | None = (await conn.execute(sa.select(sa.func.max(_VERSIONS.c.version)))).scalar_one()
    return version


async def newest_published(conn: AsyncConnection) -> int:
    """Return the number of the newest version. Raises LookupError if no catalog was ever published."""
    number = await newest(conn)
    if number is None:
        raise LookupError("no catalog was ever published")
    return number


async def load(conn: AsyncConnection, version: int) -> model.Catalog:
    """Return the catalog of a version; raises LookupError if it was never published."""
    query = sa.select(_VERSIONS.c.document).where(_VERSIONS.c.version == version)
    document = (await conn.execute(query)).scalar_one_or_none()
    if document is None:
        raise LookupError(f"catalog version {version} was never published")
    return loading.load_document(document, f"catalog version {version}")


class CatalogCache:
    """Loaded catalogs by version.

    A version never changes, so an entry never grows stale. Nothing is evicted: there are as many entries as versions
    that were ever published, by hand and seldom, and subscriptions keep old ones in use.
    """

    def __init__(self) -> None:
        self._catalogs: dict[int, model.Catalog] = {}
        # Whether a plan of any of them has a rate limit.
        self.limit_rates = False

    async def get(self, conn: AsyncConnection, version: int) -> model.Catalog:
        """Return the catalog of a version, loaded at most once (or once each by callers that meet)."""
        if version not in self._catalogs:
            catalog = self._catalogs[version] = await load(conn, version)
            self.limit_rates = self.limit_rates or catalog.limits_rates
        return self._catalogs[version]

    async def latest(self, conn: AsyncConnection) -> model.Catalog:
        """Return the newest catalog that this process has met; another process may have published a newer one.

        Raises LookupError if none was ever published.
        """
        if not self._catalogs:
            await self.get(conn, await newest_published(conn))
        return self._catalogs[max(self._catalogs)]
