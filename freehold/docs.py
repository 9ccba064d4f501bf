"""The roles' READMEs, made from their argument specs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freehold import specs

LONGEST_DEFAULT = 60


def readme(role: specs.Role) -> str:
    """Return the text of a role's README."""
    lines = [
        f"# Role `{role.name}`",
        "",
        f"{role.description.rstrip('.')}.",
        "",
        "Made by `make docs` from `meta/argument_specs.yml`; change that.",
    ]
    if role.options:
        lines += ["", "## Variables", "", "| variable | type | default | what it is |", "|---|---|---|---|"]
        lines += _rows(role.options)
    return "\n".join(lines) + "\n"


def _rows(options: dict[str, dict[str, Any]], prefix: str = "") -> Iterator[str]:
    for name, option in options.items():
        kind = option.get("type", "str")
        if elements := option.get("elements"):
            kind = f"{kind} of {elements}"
        if choices := option.get("choices"):
            kind = f"{kind}: {', '.join(str(choice) for choice in choices)}"
        description = option.get("description", "")
        text = " ".join(" ".join(description if isinstance(description, list) else [description]).split())
        yield f"| `{prefix}{name}` | {kind} | {_default(option)} | {text.replace('|', chr(92) + '|')} |"
        yield from _rows(option.get("options") or {}, f"{prefix}{name}{'[]' if option.get('elements') else ''}.")


def _default(option: dict[str, Any]) -> str:
    if option.get("no_log"):
        return "none: a secret"
    if option.get("required"):
        return "required"
    if "default" not in option:
        return ""
    value = option["default"]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > LONGEST_DEFAULT or "\n" in text or "|" in text:
        return "[see there](defaults/main.yml)"
    return f"`{text}`" if text else "empty"


def outdated() -> dict[Path, str]:
    """Return the READMEs that differ from what the specs give, each with what it should be."""
    wanted = {role.path / "README.md": readme(role) for role in specs.roles()}
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}


def write() -> list[Path]:
    """Write the READMEs that are outdated and return their paths."""
    changed = outdated()
    for path, text in changed.items():
        path.write_text(text)
    return list(changed)
