"""Render, validate and place many files in one task; the module of the same name does the work on the host."""

from __future__ import annotations

import base64
import gzip
import json
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.template import generate_ansible_template_vars, trust_as_template

from ansible.plugins.action import ActionBase

SOURCES = ("src", "copy", "content", "link")
KEYS = {*SOURCES, "dest", "owner", "group", "mode", "validate", "secret", "vars"}


class ActionModule(ActionBase):
    """Turn each entry of `files` into bytes on the controller and hand all of them to the module at once."""

    TRANSFERS_FILES = True
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"files", "directories", "absent", "purge"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result: `changed`, `changed_files` and a diff without secrets."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        payload = {
            "files": [self._file(dict(entry), task_vars) for entry in self._task.args.get("files") or []],
            "directories": [dict(entry) for entry in self._task.args.get("directories") or []],
            "absent": list(self._task.args.get("absent") or []),
            "purge": list(self._task.args.get("purge") or []),
        }
        packed = base64.b64encode(gzip.compress(json.dumps(payload).encode(), mtime=0)).decode()
        result.update(self._execute_module("config_files", {"payload": packed}, task_vars=task_vars))
        result.pop("invocation", None)
        return result

    def _file(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        unknown = set(entry) - KEYS
        given = [key for key in SOURCES if key in entry]
        if unknown or len(given) != 1 or "dest" not in entry:
            raise AnsibleActionFail(
                f"files: an entry has `dest` and one of {', '.join(SOURCES)}; got {sorted(entry)}"
                + (f", of which {sorted(unknown)} are unknown" if unknown else "")
            )
        if "link" in entry:
            return {"dest": entry["dest"], "link": str(entry["link"])}
        if "content" in entry:
            data = str(entry["content"]).encode()
        elif "copy" in entry:
            with open(self._find_needle("files", entry["copy"]), "rb") as file:
                data = file.read()
        else:
            data = self._render(entry, task_vars).encode()
        return {
            "dest": entry["dest"],
            "content": base64.b64encode(data).decode(),
            "owner": entry.get("owner", "root"),
            "group": entry.get("group", "root"),
            "mode": str(entry.get("mode", "0644")),
            "validate": entry.get("validate"),
            "secret": bool(entry.get("secret", False)),
        }

    def _render(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> str:
        source = self._find_needle("templates", entry["src"])
        variables = (
            task_vars
            | generate_ansible_template_vars(entry["src"], source, entry["dest"])
            | dict(entry.get("vars") or {})
        )
        templar = self._templar.copy_with_new_env(searchpath=[os.path.dirname(source)], available_variables=variables)
        template = trust_as_template(self._loader.get_text_file_contents(source))
        rendered = templar.template(
            template, escape_backslashes=False, overrides={"trim_blocks": True, "lstrip_blocks": True}
        )
        return "" if rendered is None else str(rendered)
