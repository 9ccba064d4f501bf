"""Refuse bad input before anything changes: all rules of a role in one task that never leaves the controller."""

from __future__ import annotations

from typing import Any

from ansible._internal._templating._engine import TemplateEngine
from ansible.errors import AnsibleActionFail, AnsibleTemplateError

from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
module: preflight
short_description: Check rules on the controller and report every one that does not hold
options:
  rules:
    description:
      - Rules, each with C(that), a Jinja expression without braces, and C(msg), the text shown where it is not true.
      - C(msg) is templated only when the rule fails; it names the variable, its value and what would be right.
    type: list
    elements: dict
    required: true
"""


class ActionModule(ActionBase):
    """Evaluate `rules` lazily: an expression or a message is only templated when it is its turn."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"rules"})

    @classmethod
    def finalize_task_arg(cls, name: str, value: object, templar: TemplateEngine, context: object) -> object:
        """Keep the rules' own templates: only the name of their list is resolved here."""
        if name == "rules" and isinstance(value, str):
            return templar.resolve_to_container(value)
        return value

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return every failed rule's message at once, so that one run shows all that is to be mended."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        rules = self._task.args.get("rules")
        if not isinstance(rules, list):
            raise AnsibleActionFail(f"rules must be a list of rules, not {type(rules).__name__}")
        failures = []
        for rule in rules:
            if set(rule) != {"that", "msg"}:
                raise AnsibleActionFail(f"a rule has exactly `that` and `msg`, not {sorted(rule)}")
            try:
                holds = self._templar.evaluate_conditional(rule["that"])
            except AnsibleTemplateError as error:
                failures.append(f"the rule `{rule['that']}` cannot be evaluated: {error.message}")
                continue
            if not holds:
                failures.append(str(self._templar.template(rule["msg"])).strip())
        if failures:
            result.update(failed=True, msg="\n".join(failures), refusals=failures)
        else:
            result.update(changed=False)
        return result
