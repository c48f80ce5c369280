"""Catalog versions in the database: each published change gets the next number, and a version never changes.

Sold subscriptions refer to old versions for years, so every release must load the versions that earlier releases
stored: a release may add optional fields and remove rules, but must not remove fields or add rules.
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
    """Return the content as JSON, with all defaults, and with a single notation for amounts and durations.

    Keys keep the file's order, because a plan's first price and the order of plans have a meaning.
    """
    return json.dumps(catalog.model_dump(mode="json", by_alias=True), separators=(",", ":"), ensure_ascii=False)


async def publish(conn: AsyncConnection, catalog: model.Catalog, created_by: str, now: datetime) -> tuple[int, bool]:
    """Store a catalog as the newest version; returns the version's number and whether it is new.

    Content equal to the newest version's makes no new version; content equal to an older version's does. If two
    publishers run at once, the second raises RetryTransaction, and then finds the content or takes the next number.
    Raises CatalogError if a meter would change its kind.
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
    """Raise CatalogError if a meter had another kind in any version: its stored counters would be misread.

    A sum would be taken for a peak, and usage beyond it would never be billed.
    """
    query = sa.select(_VERSIONS.c.version, _VERSIONS.c.document["meters"]).order_by(_VERSIONS.c.version)
    problems = {
        key: f"{catalog.name}: meters.{key}.kind: was {before[key]['kind']} in version {version}; a meter keeps its"
        " kind, so give the new meter another name"
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

    A version never changes, so an entry never becomes stale. No entry is evicted: versions are published by hand and
    seldom, and subscriptions keep old versions in use.
    """

    def __init__(self) -> None:
        self._catalogs: dict[int, model.Catalog] = {}
        # Whether any plan of a loaded catalog has a rate limit.
        self.limit_rates = False

    async def get(self, conn: AsyncConnection, version: int) -> model.Catalog:
        """Return the catalog of a version. It is loaded once; concurrent first callers may each load it."""
        if version not in self._catalogs:
            catalog = self._catalogs[version] = await load(conn, version)
            self.limit_rates = self.limit_rates or catalog.limits_rates
        return self._catalogs[version]

    async def latest(self, conn: AsyncConnection) -> model.Catalog:
        """Return the newest catalog that this process has loaded; another process may have published a newer version.

        Raises LookupError if none was ever published.
        """
        if not self._catalogs:
            await self.get(conn, await newest_published(conn))
        return self._catalogs[max(self._catalogs)]
