"""Each role's argument specs say the same as its defaults, completely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from freehold import specs

ROLES = [pytest.param(role, id=role.name) for role in specs.roles()]
SECRET_WORDS = ("password", "secret", "cookie", "token", "hmac")


def _options(options: dict[str, dict[str, Any]], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in options.items():
        yield f"{prefix}{name}", option
        yield from _options(option.get("options") or {}, f"{prefix}{name}.")


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_those_of_the_specs(role: specs.Role) -> None:
    """What a reader of the specs learns is what the role does."""
    specified = {name: option["default"] for name, option in role.options.items() if "default" in option}
    assert role.defaults == specified


@pytest.mark.parametrize("role", ROLES)
def test_options_are_described_and_typed(role: specs.Role) -> None:
    """Every option has a type and a description; one without a default is required."""
    for name, option in _options(role.options):
        assert option.get("type"), f"{name}: type is missing"
        assert option.get("description"), f"{name}: description is missing"
        if option["type"] == "list":
            assert option.get("elements"), f"{name}: elements is missing"
    for name, option in role.options.items():
        assert "default" in option or option.get("required"), f"{name}: neither a default nor required"


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_carry_the_name_of_the_role(role: specs.Role) -> None:
    """A variable belongs to a role that one can tell; secrets may be shared by those that need them."""
    for name, option in role.options.items():
        shared = option.get("no_log") or name == "services"
        assert shared or name.startswith(f"{role.name}_"), f"{name}: does not begin with {role.name}_"


@pytest.mark.parametrize("role", ROLES)
def test_secrets_are_marked_and_have_no_default(role: specs.Role) -> None:
    """A secret never reaches a log, and none has a value that everybody knows."""
    for name, option in role.options.items():
        if option.get("no_log"):
            assert option["type"] == "str", f"{name}: a secret is a str"
            assert option.get("default", "") == "", f"{name}: a secret has no default"
        elif option.get("type") == "str" and name.endswith(SECRET_WORDS):
            pytest.fail(f"{name}: looks like a secret and has no `no_log: true`")


def test_every_role_has_specs() -> None:
    """A role without argument specs would be left out of all these tests."""
    with_tasks = {path.parent.parent.name for path in specs.ROOT.glob("roles/*/defaults/main.yml")}
    assert with_tasks - {role.name for role in specs.roles()} == set()
