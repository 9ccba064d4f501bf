"""Change a host's firewall without locking Ansible out: what cannot be reached again puts its old rules back by itself."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.template import generate_ansible_template_vars, trust_as_template

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Render the rules, load them with a timer that undoes it, connect anew, and only then keep them."""

    TRANSFERS_FILES = True
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"src", "rollback_seconds"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; fail, with the host's old rules back in force, when it cannot be reached any more."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        seconds = int(self._task.args["rollback_seconds"])
        source = self._find_needle("templates", self._task.args["src"])
        variables = task_vars | generate_ansible_template_vars(self._task.args["src"], source, None)
        templar = self._templar.copy_with_new_env(searchpath=[os.path.dirname(source)], available_variables=variables)
        rules = templar.template(
            trust_as_template(self._loader.get_text_file_contents(source)),
            escape_backslashes=False,
            overrides={"trim_blocks": True, "lstrip_blocks": True},
        )
        applied = self._execute_module(
            "firewall", {"rules": str(rules), "rollback_seconds": seconds}, task_vars=task_vars
        )
        if applied.get("failed") or not applied.get("changed") or self._task.check_mode:
            result.update(applied)
            return result
        # A kept connection proves nothing: its packets belong to an established flow.
        self._connection.reset()
        try:
            kept = self._execute_module("firewall", {"state": "kept"}, task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            result.update(
                failed=True,
                msg=f"The new rules do not let Ansible in again ({error.message}). The host puts its old rules back within "
                f"{seconds} s. Check topology_access and topology_controller_networks.",
            )
            return result
        result.update(kept if kept.get("failed") else applied)
        return result
