"""Secrets: one random value for each that a role asks for, in the state folder of what runs on this machine. Others have a vault."""

from __future__ import annotations

import os
import secrets
import string
from pathlib import Path

import yaml

from freehold import specs
from freehold.lab import Lab, lab_name

ROOT = Path(__file__).resolve().parent.parent
# 190 bits. Letters and digits alone: programs take a word that begins with a hyphen for an option.
LENGTH, CHARACTERS = 32, string.ascii_letters + string.digits


def file(inventory: str) -> Path | None:
    """Return the file of an inventory's secrets, or None where they stand in a vault.

    That is told by the inventory's state.yml: what it reads (ansible/plugins/inventory/lab_state.py) is made on this machine.
    """
    source = ROOT / "inventories" / inventory / "state.yml"
    if not source.exists():
        return None
    return Lab(yaml.safe_load(source.read_text()).get("lab") or lab_name()).state / "secrets.yml"


def made_up() -> dict[str, str]:
    """Return a random value for every secret."""
    return {name: "".join(secrets.choice(CHARACTERS) for _ in range(LENGTH)) for name in specs.secrets()}


def generate(path: Path) -> list[str]:
    """Add what is missing to the secrets file, keep what is there, and return the names that were added."""
    known: dict[str, str] = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    missing = {name: value for name, value in made_up().items() if name not in known}
    if not missing:
        return []
    known |= missing
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(
            "---\n# Made by `make up` or `make secrets`. A running system has these values: change none of them here.\n"
        )
        yaml.safe_dump(known, file, default_flow_style=False)
    temporary.rename(path)
    return list(missing)
