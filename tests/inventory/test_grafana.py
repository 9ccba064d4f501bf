"""What Grafana is given where a source gives it: data sources of its own host, one door, and nobody but operators. No host is touched."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from freehold import artifacts
from tests.inventory.conftest import ROOT, Inventory, run_playbook

BOARDS = sorted((ROOT / "dashboards/build").glob("*.json"))
GIVEN = ("grafana", "jaeger", "loki")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the role's files as ops1 would have them, and the edge's configuration with what leads there."""
    folder = tmp_path_factory.mktemp("grafana")
    inventory = Inventory(folder)
    for name in GIVEN:
        (folder / "state/artifacts" / artifacts.described()[name].file).touch()
    render = {
        "name": "Render",
        "ansible.builtin.template": {
            "src": f"{ROOT}/roles/{{{{ item }}}}.j2",
            "dest": f"{folder}/{{{{ item | basename }}}}",
        },
        "loop": [f"grafana/templates/{name}" for name in ("grafana.ini", "datasources.yml", "dashboards.yml")],
    }
    tell = {
        "name": "Tell",
        "ansible.builtin.copy": {
            "content": "{{ {'services': topology_host_services, 'clients': __keycloak_clients} | to_json }}",
            "dest": f"{folder}/told.json",
        },
    }
    keycloak = [f"{ROOT}/roles/keycloak/{kind}/main.yml" for kind in ("defaults", "vars")]
    plays: list[dict[str, Any]] = [
        {"hosts": "ops1", "vars_files": [f"{ROOT}/roles/grafana/vars/main.yml"], "tasks": [render]},
        {"hosts": "ops2", "vars_files": keycloak, "tasks": [tell]},
    ]
    for play in plays:
        play |= {"connection": "local", "gather_facts": False, "roles": [{"role": "topology"}]}
    (folder / "play.yml").write_text(yaml.safe_dump(plays))
    status, failures = run_playbook(str(folder / "play.yml"), inventory.write())
    assert failures == {}
    assert status == 0
    return folder


@pytest.fixture(scope="module")
def settings(written: Path) -> configparser.ConfigParser:
    """Return its settings."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(written / "grafana.ini")
    return parser


@pytest.fixture(scope="module")
def sources(written: Path) -> dict[str, Any]:
    """Return its data sources by identifier."""
    return {
        source["uid"]: source for source in yaml.safe_load((written / "datasources.yml").read_text())["datasources"]
    }


def test_every_data_source_that_a_dashboard_names_is_there(sources: dict[str, Any]) -> None:
    """By its identifier and kind."""

    def named(part: object) -> set[tuple[str, str]]:
        if isinstance(part, list):
            return set().union(*map(named, part))
        if not isinstance(part, dict):
            return set()
        found = set().union(*map(named, part.values()))
        source = part.get("datasource")
        return found | {(source["uid"], source["type"])} if isinstance(source, dict) and source.get("uid") else found

    wanted = set().union(*(named(json.loads(board.read_text())) for board in BOARDS))
    assert wanted
    assert wanted - {("-- Grafana --", "grafana"), ("-- Grafana --", "datasource")} <= {
        (name, source["type"]) for name, source in sources.items()
    }


def test_data_sources_are_of_its_own_host(sources: dict[str, Any]) -> None:
    """So that each ops host shows all by itself; Prometheus is asked by mTLS, with a certificate that is no Prometheus server's."""
    assert {name: source["url"] for name, source in sources.items()} == {
        "prometheus": "https://192.0.2.33:9090",
        "loki": "http://127.0.0.1:3100",
        "jaeger": "http://127.0.0.1:16686",
    }
    secure = sources["prometheus"]["secureJsonData"]
    assert secure["tlsClientKey"] == "$__file{/etc/freehold/pki/grafana.key}"
    assert secure["tlsCACert"] == "$__file{/etc/freehold/pki/ca.crt}"
    assert sources["loki"]["jsonData"]["derivedFields"][0]["url"] == "$${__value.raw}"


def test_it_listens_on_loopback_and_knows_its_address(settings: configparser.ConfigParser) -> None:
    """The host proxy and the edge lead there."""
    server = settings["server"]
    assert (server["http_addr"], server["http_port"]) == ("127.0.0.1", "3000")
    assert (server["root_url"], server["serve_from_sub_path"]) == ("https://192.0.2.30/grafana/", "true")


def test_operators_alone_get_in(settings: configparser.ConfigParser, written: Path) -> None:
    """By Keycloak: whoever has no role that is named is refused, and nobody is let in without a name or by a default password."""
    login = settings["auth.generic_oauth"]
    assert settings["auth.anonymous"]["enabled"] == "false"
    assert (login["enabled"], login["use_pkce"], login["role_attribute_strict"]) == ("true", "true", "true")
    assert login["role_attribute_path"] == "contains(role_names[*], 'operator') && 'Editor'"
    for name in ("admin_password", "secret_key"):
        assert settings["security"][name] == '"""made-up-for-a-test"""'
    (client,) = (
        one
        for one in json.loads((written / "told.json").read_text())["clients"]
        if one["clientId"] == login["client_id"]
    )
    assert client["redirectUris"] == [f"{settings['server']['root_url']}login/generic_oauth"]
    assert "role_names" in client["defaultClientScopes"]


def test_the_edge_keeps_a_client_on_one_host(written: Path) -> None:
    """Each Grafana knows its own log-ins."""
    services = {one["name"]: one for one in json.loads((written / "told.json").read_text())["services"]}
    assert services["grafana"]["sticky"]
    assert [route["path"] for route in services["grafana"]["routes"]] == ["/grafana"]


def test_a_host_that_has_no_figures_of_its_own_is_refused(inventory: Inventory) -> None:
    """Its dashboards would be empty."""
    inventory.hosts["prometheus"] = {"hosts": {"ops2": {}}}
    status, said = inventory.judge("--limit", "ops1")
    assert status
    assert "ops1 is in the group grafana and not in prometheus" in said
