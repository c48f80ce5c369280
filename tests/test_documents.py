"""What the documents and the container files say is so."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ruamel.yaml import YAML

from billing_svc.api import access
from billing_svc.platform import settings
from billing_svc.platform.database import embedded
from webhook_gateway import settings as gateway_settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    files = [target for target in targets if "://" not in target]
    assert [target for target in files if not (document.parent / target).exists()] == []


def test_the_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text())
    assert named
    places = (ROOT, ROOT / "src", ROOT / "src" / "billing_svc")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_every_setting_is_documented_and_no_other() -> None:
    service, gateway = (ROOT / "docs" / "settings.md").read_text().split("## `webhook-gateway`")
    assert documented(service) == {str(field.alias) for field in settings.Settings.model_fields.values()}
    environment = gateway_settings._Environment  # noqa: SLF001 - the names are nowhere else
    assert documented(gateway) == {str(field.validation_alias) for field in environment.model_fields.values()}


def test_every_group_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    assert set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)) == set(access.Group)


def documented(text: str) -> set[str]:
    return set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE))


def test_the_compose_file_sets_what_the_programs_read() -> None:
    services = compose()["services"]
    known = {str(field.alias) for field in settings.Settings.model_fields.values()}
    environment = gateway_settings._Environment  # noqa: SLF001 - as above
    known_to_gateway = {str(field.validation_alias) for field in environment.model_fields.values()}
    for name in ("migrate", "catalog", "server", "worker"):
        assert set(services[name]["environment"]) <= known
    assert set(services["gateway"]["environment"]) <= known_to_gateway


def test_the_compose_file_opens_ports_on_this_machine_alone() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_compose_file_s_programs_own_nothing_in_the_database() -> None:
    services = compose()["services"]
    owner = services["postgres"]["environment"]["POSTGRES_USER"]
    logins = {
        name: sa.make_url(one["environment"]["DATABASE_URL"]).username
        for name, one in services.items()
        if "DATABASE_URL" in one.get("environment", {})
    }
    assert {name for name, login in logins.items() if login == owner} == {"migrate"}
    assert {login for name, login in logins.items() if name != "migrate"} == {"billing_app"}


def test_the_containers_login_acts_as_the_service_alone(postgres: embedded.EmbeddedPostgres) -> None:
    """The script, as the image of Postgres runs it, on a server where nothing was migrated yet or all was."""
    script = ROOT / "deploy" / "postgres" / "logins.sql"
    url = sa.make_url(postgres.start()).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(embedded.find_programs() / "psql"), "-v", "ON_ERROR_STOP=1", "-1", "-f", str(script), "-c"]
    show = "SELECT pg_has_role('billing_app', 'billing_service', 'USAGE'), rolcanlogin, rolsuper FROM pg_roles"
    show += " WHERE rolname = 'billing_app'; DROP ROLE billing_app"
    ended = subprocess.run(
        [*command, show, "-At", url],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"POSTGRES_PASSWORD": "a-b"},
    )
    assert "t|t|f" in ended.stdout


def test_what_the_image_copies_exists_and_is_let_in() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert names == let_in


def test_every_dependency_is_pinned() -> None:
    """After a change to pyproject.toml: make constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pins = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {name_of(one) for one in wanted} - {name_of(one) for one in pins} == {"billing-svc"}


def name_of(requirement: str) -> str:
    """Return the package's name in the one spelling that all others are equal to."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
    return loaded
