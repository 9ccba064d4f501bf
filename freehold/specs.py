"""What the roles say of themselves: defaults and argument specs, read once for tests, documents and secrets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Role:
    """A role's public face."""

    name: str
    path: Path
    description: str
    defaults: dict[str, Any]
    options: dict[str, dict[str, Any]]


def roles() -> list[Role]:
    """Return every role that has argument specs, by name."""
    return [read(path.parent.parent) for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))]


def read(path: Path) -> Role:
    """Return the role in a folder, with what the first of its entry points takes."""
    entries = yaml.safe_load((path / "meta/argument_specs.yml").read_text())["argument_specs"]
    main = next(iter(entries.values()))
    defaults = path / "defaults/main.yml"
    return Role(
        name=path.name,
        path=path,
        description=main.get("short_description", ""),
        defaults=(yaml.safe_load(defaults.read_text()) or {}) if defaults.exists() else {},
        options=main.get("options") or {},
    )


def secrets() -> dict[str, list[str]]:
    """Return the names of all secrets, each with what takes it.

    Those are the roles' str options with `no_log: true`, and what the order service names as its own.
    """
    found: dict[str, list[str]] = {}
    for role in roles():
        for name, option in role.options.items():
            if option.get("no_log") and option.get("type") == "str":
                found.setdefault(name, []).append(role.name)
        for service in role.defaults.get("topology_order_services", []):
            for name in (*service.get("secrets", []), *service.get("pre_deploy_secrets", [])):
                found.setdefault(name, []).append(service["name"])
    return dict(sorted(found.items()))
