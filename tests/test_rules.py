"""The rules that the code's shape rests on, checked on its syntax trees; docs/architecture.md says why they hold."""

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import grpc_health.v1.health_pb2
import grpc_reflection.v1alpha.reflection_pb2

import billing.v1
import billing_svc
from billing.v1 import errors_pb2
from billing_svc.api import access
from billing_svc.platform import errors
from billing_svc.platform.database import tables

TESTS = Path(__file__).resolve().parent
SRC = TESTS.parent / "src"
OURS = {"billing", "billing_svc", "webhook_gateway", "stripe_sandbox"}

# Pure modules: values and `now` in, values out.
RULES = {"rules.py", "terms.py", "periods.py", "holds.py", "states.py"}
# What a rule may know: the catalog's types, the errors that name situations, how Stripe writes ids and instants, and
# how a value is made.
RULES_MAY_IMPORT = (
    "billing_svc.catalog.model",
    "billing_svc.catalog.parts",
    "billing_svc.platform.backoff",
    "billing_svc.platform.money",
    "billing_svc.platform.errors",
    "billing_svc.stripe.parse",
    "billing_svc.stripe.subscriptions",
    "billing_svc.platform.values",
)
# Of the rest of the world, what does no I/O.
RULES_MAY_USE = ("dateutil",)

GRPC = ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "google.protobuf", "google.rpc", "billing")
# Outside of api/, where gRPC ends, these modules touch its library; messages (`billing.v1`) none of them.
GRPC_MODULES = {
    "billing_svc.platform.errors",  # each names its status code
    "billing_svc.programs.commands.common",  # knows that what it prints is a message
}

# The areas of billing_svc, the highest first. Imports go down; areas of the same line do not import each other.
AREAS = (
    ("programs",),
    ("api",),
    ("inbox", "reconciliation"),
    ("subscriptions",),
    ("metering", "usage_export"),
    ("pricing", "customers"),
    ("stripe",),
    ("catalog",),
    ("platform",),
)
LEVELS = {area: level for level, line in enumerate(AREAS) for area in line}

# The module of billing_svc that writes each table. The second writers are exceptions: ADR 0016 has their reasons.
WRITERS = {
    "account_overrides": {"metering.overrides.store"},
    "accounts": {"platform.accounts.store"},
    "audit_log": {"platform.audit.store"},
    "catalog_versions": {"catalog.versions"},
    "change_requests": {"platform.request_ids.store"},
    "checkouts": {"subscriptions.checkouts.store"},
    "findings": {"platform.findings.store"},
    "gauge_levels": {"metering.gauges.store"},
    "invoices": {"subscriptions.invoices.store"},
    "rate_windows": {"metering.quota.store"},
    "reader_accounts": set(),  # an operator writes it
    "reconcile_passes": {"reconciliation.passes"},
    "reservations": {"metering.reservations.store"},
    "stripe_call_limits": {"stripe.call_limits"},
    "stripe_customers": {"customers.store"},
    "stripe_events": {"inbox.store"},
    "stripe_objects": {"stripe.leases"},
    "stripe_prices": {"stripe.prices"},
    "stripe_requests": {"stripe.intents"},
    "subscription_duties": {"subscriptions.records.follow_up_queue"},
    "subscription_history": {"stripe.subscription_history"},
    "subscriptions": {"stripe.subscription_records"},
    "usage_alerts": {"metering.alerts.store"},
    "usage_counters": {"metering.counters.store", "usage_export.counters"},
    "usage_events": {"metering.usage.store", "metering.corrections.store"},
    "usage_reports": {"usage_export.store"},
}
# What follows these words is a table, or `SET` and `OF`, which are none.
SQL_WRITE = re.compile(r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE|COPY)\s+(?:ONLY\s+)?(\w+)")
BUILDS_WRITE = re.compile("insert|update|delete")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: `from a import b` counts as `a.b`, which also begins with `a`."""

    module: str
    file: Path
    line: int
    imported: str

    def is_of(self, names: Iterable[str]) -> bool:
        """Say whether it is one of the names or lies below one."""
        return any(self.imported == name or self.imported.startswith(f"{name}.") for name in names)

    def __str__(self) -> str:
        return f"{self.file.relative_to(SRC)}:{self.line} imports {self.imported}"


def files(package: str) -> list[Path]:
    found = sorted((SRC / package).rglob("*.py"))
    assert found, f"nothing below src/{package}"
    return found


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imports(*packages: str) -> Iterator[Import]:
    """Every import of the packages, also inside functions and for the type checker alone."""
    for package in packages:
        for file in files(package):
            module = ".".join(file.relative_to(SRC).with_suffix("").parts)
            for node in ast.walk(tree(file)):
                if isinstance(node, ast.Import):
                    yield from (Import(module, file, node.lineno, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{file}:{node.lineno} imports relatively, which these rules do not follow"
                    yield from (Import(module, file, node.lineno, f"{node.module}.{one.name}") for one in node.names)


def imported_names(*folders: Path) -> Iterator[tuple[Path, str]]:
    """Every import outside of src, by file."""
    for file in (file for folder in folders for file in folder.rglob("*.py")):
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)


def fixtures() -> Iterator[str]:
    """Every fixture of the tests, as `module.function`."""
    for file in TESTS.rglob("*.py"):
        module = ".".join(("tests", *file.relative_to(TESTS).with_suffix("").parts))
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                "fixture" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                yield f"{module}.{node.name}"


def called_attributes(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.lineno, node.func.attr


def described(found: Iterable[Import]) -> list[str]:
    return [str(one) for one in found]


def area_of(module: str) -> str:
    """Return the area of billing_svc that a module lies in; empty outside of all areas."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "billing_svc" and parts[1] in LEVELS else ""


def is_edge(one: Import) -> bool:
    """Say whether a module answers callers; everything behind it takes and returns our own types."""
    return area_of(one.module) == "api" or one.module in GRPC_MODULES


def knows_the_edge(one: Import) -> bool:
    """Say whether a module shows operators what callers see: in --json the API's messages, just as they are."""
    return area_of(one.module) in {"api", "programs"}


def own_imports() -> Iterator[tuple[str, str]]:
    """Every pair of modules of billing_svc of which the first imports the second."""
    known = {module_of(file) for file in files("billing_svc")}
    for one in imports("billing_svc"):
        target = one.imported if one.imported in known else one.imported.rpartition(".")[0]
        module = module_of(one.file)
        if target in known and target != module:
            yield module, target


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def folder_of(module: str) -> str:
    """Return the folder that a module's file lies in; a package's own `__init__` lies in the package."""
    is_package = (SRC / Path(*module.split("."))).is_dir()
    return module if is_package else module.rpartition(".")[0]


def cycles(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return a name of each node that can be reached from itself."""
    below: dict[str, set[str]] = {}
    for one, other in pairs:
        if one != other:
            below.setdefault(one, set()).add(other)
    found = []
    for start in sorted(below):
        reached: set[str] = set()
        waiting = list(below[start])
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting.extend(below.get(node, ()))
        if start in reached:
            found.append(start)
    return found


def is_rule(module: str) -> bool:
    return module.startswith("billing_svc.") and f"{module.rpartition('.')[2]}.py" in RULES


def written_tables(module: ast.Module) -> Iterator[str]:
    """Yield each table that a module inserts into, updates or deletes from; `line ...` where it cannot be told."""

    def table(node: ast.expr) -> str | None:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tables":
            return node.attr if node.attr in tables.metadata.tables else None
        return named.get(node.id) if isinstance(node, ast.Name) else None

    named: dict[str, str | None] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named.setdefault(node.targets[0].id, table(node.value))
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from set(SQL_WRITE.findall(node.value)) & tables.metadata.tables.keys()
        if isinstance(node, ast.Call):
            of, _, name = ast.unparse(node.func).rpartition(".")
            # `sa.update(table)` and `table.update()`.
            asked = [*node.args[:1], *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]
            known = [found for one in asked if (found := table(one)) is not None]
            if BUILDS_WRITE.search(name) and (known or of in {"sa", "postgresql", "bulk"}):
                yield known[0] if known else f"line {node.lineno}"


def modules_below(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # Migrations are run by Alembic, programs by Python; neither can be imported for its names alone.
        if ".migrations." not in found.name and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def test_every_module_lies_in_an_area() -> None:
    beside = {module for file in files("billing_svc") if not area_of(module := module_of(file))}
    assert beside == {"billing_svc", "billing_svc.__main__"}


def test_imports_go_down_the_line_of_areas() -> None:
    def goes_down(module: str, target: str) -> bool:
        area, other = area_of(module), area_of(target)
        return area == other or not other or (bool(area) and LEVELS[area] < LEVELS[other])

    beyond = {pair for pair in own_imports() if not goes_down(*pair)}
    # It starts the program that its arguments name.
    assert beyond == {("billing_svc.__main__", "billing_svc.programs.cli")}


def test_a_cycle_would_be_found() -> None:
    assert cycles([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]) == ["b", "c"]


def test_neither_modules_nor_folders_import_each_other_in_a_circle() -> None:
    pairs = list(own_imports())
    assert cycles(pairs) == []
    assert cycles((folder_of(one), folder_of(other)) for one, other in pairs) == []


def test_a_class_is_told_apart_without_its_module() -> None:
    places: dict[str, list[str]] = {}
    for file in files("billing_svc"):
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module_of(file))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_only_the_api_touches_generated_modules() -> None:
    def is_generated(one: Import) -> bool:
        return any(part.endswith(("_pb2", "_pb2_grpc")) for part in one.imported.split("."))

    beyond = (one for one in imports("billing_svc") if is_generated(one) and area_of(one.module) != "api")
    assert described(beyond) == []


def test_rules_know_nothing_of_databases_grpc_or_stripe() -> None:
    def allowed(one: Import) -> bool:
        top = one.imported.partition(".")[0]
        if top not in OURS:
            return top in stdlib or one.is_of(RULES_MAY_USE)
        # `from billing_svc.quota import terms` is a module, `from ...terms import X` a name in one.
        return one.is_of(RULES_MAY_IMPORT) or is_rule(one.imported) or is_rule(one.imported.rpartition(".")[0])

    stdlib = sys.stdlib_module_names - {"asyncio", "socket", "subprocess", "sqlite3", "urllib.request", "http"}
    assert described(one for one in imports("billing_svc") if one.file.name in RULES and not allowed(one)) == []


def test_rules_are_told_the_time() -> None:
    reads = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}
    found = [
        f"{file.relative_to(SRC)}:{line} calls {name}"
        for file in files("billing_svc")
        if file.name in RULES
        for line, name in called_attributes(file)
        if name in reads
    ]
    assert found == []


def test_stores_leave_the_transaction_to_their_caller() -> None:
    ends = {"commit", "rollback", "begin", "begin_nested", "connect", "execution_options"}
    found = [
        f"{file.relative_to(SRC)}:{line} calls {name}"
        for file in files("billing_svc")
        if file.name == "store.py"
        for line, name in called_attributes(file)
        if name in ends
    ]
    assert found == []


def test_only_one_module_writes_usage_reports() -> None:
    naming = {
        module_of(file)
        for file in files("billing_svc")
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and node.attr == "usage_reports"
    }
    assert naming == {"billing_svc.usage_export.store"}
    statement = re.compile(r"(update|insert\s+into|delete\s+from)\s+usage_reports", re.IGNORECASE)
    assert [str(file) for file in files("billing_svc") if statement.search(file.read_text())] == []


def test_a_report_s_state_is_written_by_its_transitions_alone() -> None:
    """A state that is written without what goes with it may bill units twice (ADR 0007)."""
    reports = ["billing_svc.usage_export.rules", "billing_svc.usage_export.states", "billing_svc.usage_export.store"]
    writing = {
        (module_of(file), place)
        for file in {one.file for one in imports("billing_svc") if one.is_of(reports)}
        for node in ast.walk(tree(file))
        for place in state_written_in(node)
    }
    assert writing == {
        ("billing_svc.usage_export.accrual", "rules.UsageReport"),  # a new one
        ("billing_svc.usage_export.store", "dict"),  # one that is read
        ("billing_svc.usage_export.store", "update.where(begins).values"),  # a transition
    }


def test_a_written_state_would_be_found() -> None:
    code = "a = {'state': 1}; b(state=1); b['state'] = 1; b.state = 1; b |= dict(state=1); c = b['state']; b(b.state)"
    found = [place for node in ast.walk(ast.parse(code)) for place in state_written_in(node)]
    assert sorted(found) == ["attribute", "b", "dict", "dict", "item"]


def state_written_in(node: ast.AST) -> Iterator[str]:
    """Say in what a syntax node gives a value to something named `state`, if it does."""
    match node:
        case ast.Dict(keys=keys) if any(isinstance(key, ast.Constant) and key.value == "state" for key in keys):
            yield "dict"
        case ast.Call(func=called, keywords=named) if any(one.arg == "state" for one in named):
            yield ast.unparse(called)
        case ast.Subscript(slice=ast.Constant(value="state"), ctx=ast.Store()):
            yield "item"
        case ast.Attribute(attr="state", ctx=ast.Store()):
            yield "attribute"


def test_every_way_to_write_a_table_would_be_found() -> None:
    source = """
_CHECKOUTS = tables.checkouts
insert(_CHECKOUTS).values(x=1)
sa.update(tables.accounts).values(x=1)
bulk.insert_missing(tables.invoices, ())
tables.audit_log.delete()
sa.text("WITH gone AS (DELETE FROM reservations r RETURNING 1) SELECT 1 FOR UPDATE OF r")
direct.PreparedStatement(f"UPDATE rate_windows SET {x}")
sa.update(table_that_came_as_an_argument)
store.insert(conn, tables)
sa.select(tables.usage_events)
"""
    found = {"checkouts", "accounts", "invoices", "audit_log", "reservations", "rate_windows", "line 9"}
    assert set(written_tables(ast.parse(source))) == found


def test_a_store_writes_only_its_own_tables() -> None:
    writers: dict[str, set[str]] = {name: set() for name in tables.metadata.tables}
    for file in files("billing_svc"):
        if "migrations" not in file.parts:
            for table in written_tables(tree(file)):
                writers.setdefault(table, set()).add(module_of(file).removeprefix("billing_svc."))
    assert writers == WRITERS


def test_only_the_edge_touches_grpc() -> None:
    beyond = (one for one in imports("billing_svc") if one.is_of(GRPC) and not is_edge(one))
    assert described(beyond) == []


def test_only_the_transport_touches_what_grpc_keeps_to_itself() -> None:
    """It moves with the pin of grpcio (ADR 0011)."""
    private = (
        one
        for one in imports("billing_svc", "webhook_gateway")
        if one.is_of(["grpc._cython", "grpc._server", "grpc._channel"])
    )
    assert described(one for one in private if not one.module.startswith("billing_svc.api.transport.fast")) == []


def test_only_the_server_knows_servicers() -> None:
    beyond = (
        one
        for one in imports("billing_svc")
        if one.is_of(["billing_svc.api.servicers"])
        and one.module not in {"billing_svc.programs.server", "billing_svc.api.servicers.services"}
    )
    assert described(beyond) == []


def test_only_the_edge_knows_conversions_and_interceptors() -> None:
    edge = {"conversions", "interceptors"}
    beyond = (
        one
        for one in imports("billing_svc")
        if edge & set(one.imported.split(".")) and one.is_of(["billing_svc"]) and not knows_the_edge(one)
    )
    assert described(beyond) == []


def test_only_the_client_knows_the_stripe_sdk() -> None:
    beyond = (
        one
        for one in imports("billing", "billing_svc", "webhook_gateway")
        if one.is_of(["stripe"]) and one.module != "billing_svc.stripe.client"
    )
    assert described(beyond) == []


def test_the_gateway_needs_nothing_of_the_service() -> None:
    beyond = (
        one
        for one in imports("webhook_gateway")
        if one.is_of(["billing_svc", "stripe_sandbox", "stripe", "sqlalchemy", "psycopg"])
    )
    assert described(beyond) == []


def test_the_sandbox_is_a_stranger() -> None:
    """It stands in for another company: what it shared with the service, it could not test."""
    assert described(one for one in imports("stripe_sandbox") if one.is_of(OURS - {"stripe_sandbox"})) == []
    beyond = (one for one in imports("billing", "billing_svc", "webhook_gateway") if one.is_of(["stripe_sandbox"]))
    assert described(beyond) == []


def test_the_service_needs_no_gateway() -> None:
    assert described(one for one in imports("billing", "billing_svc") if one.is_of(["webhook_gateway"])) == []


def test_the_stubs_need_only_their_runtime() -> None:
    allowed = ("billing", "grpc", "google.protobuf")
    beyond = (
        one
        for one in imports("billing")
        if not one.is_of(allowed) and one.imported.partition(".")[0] not in sys.stdlib_module_names
    )
    assert described(beyond) == []


def test_every_rpc_has_an_access_entry_and_every_entry_an_rpc() -> None:
    contract = [module.DESCRIPTOR for module in modules_below(billing.v1) if module.__name__.endswith("_pb2")]
    standard = [grpc_health.v1.health_pb2.DESCRIPTOR, grpc_reflection.v1alpha.reflection_pb2.DESCRIPTOR]
    rpcs = {
        f"/{service.full_name}/{method.name}"
        for descriptor in (*contract, *standard)
        for service in descriptor.services_by_name.values()
        for method in service.methods
    }
    assert rpcs >= {"/billing.v1.QuotaService/CheckQuota", "/grpc.health.v1.Health/Check"}
    assert set(access.ENTRIES) == rpcs


def test_every_error_has_a_documented_reason() -> None:
    def below(kind: type[errors.BillingError]) -> Iterator[type[errors.BillingError]]:
        for subclass in kind.__subclasses__():
            yield subclass
            yield from below(subclass)

    imported = list(modules_below(billing_svc))
    kinds = set(below(errors.BillingError))
    assert imported
    assert errors.InvalidRequest in kinds
    known = set(errors_pb2.ErrorReason.keys())
    assert {kind.__name__: kind.reason for kind in kinds if f"ERROR_REASON_{kind.reason}" not in known} == {}


def test_no_test_module_is_imported() -> None:
    """What two of them need is a fixture of their folder's conftest, or lies in a module that has no tests."""
    places = TESTS, TESTS.parent / "benchmarks", TESTS.parent / "scripts", TESTS.parent / "examples"
    found = [
        (str(file), name)
        for file, name in imported_names(*places)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    ]
    assert found == []


def test_fixtures_come_from_a_conftest_and_not_by_import() -> None:
    """An imported fixture hides, in its new module, the one of that name which a reader looks for."""
    known = set(fixtures())
    assert "tests.conftest.database_url" in known
    assert [(str(file), name) for file, name in imported_names(TESTS) if name in known] == []
    assert [str(file) for file in TESTS.rglob("*.py") if re.search(r"^__all__", file.read_text(), re.MULTILINE)] == []
