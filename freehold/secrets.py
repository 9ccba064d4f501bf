"""The lab's secrets: one random value for each secret that a role asks for. Other inventories have a vault."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import yaml

from freehold import specs

SECRET_BYTES = 24  # 32 characters of URL-safe base64


def generate(path: Path) -> list[str]:
    """Add what is missing to the secrets file, keep what is there, and return the names that were added."""
    known: dict[str, str] = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    missing = [name for name in specs.secrets() if name not in known]
    if not missing:
        return []
    known |= {name: secrets.token_urlsafe(SECRET_BYTES) for name in missing}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(
            "---\n# Made by `make up` for this lab. A running system has these values: change none of them here.\n"
        )
        yaml.safe_dump(known, file, default_flow_style=False)
    temporary.rename(path)
    return missing
