#!/usr/bin/python
"""Load nftables rules under a dead man's switch; part of the action plugin of the same name."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: firewall
short_description: Rules of nftables that are rolled back unless the host is reached again
description:
  - Loads a rule file that replaces the table C(inet freehold) and no other. A systemd timer puts the former rules back after
    C(rollback_seconds), unless a new connection reaches the host before that and stops the timer.
options:
  src:
    description: Template of the rules.
    type: str
    required: true
  rollback_seconds:
    description: How long the host waits to be reached again.
    type: int
    required: true
"""

RULES = "/etc/freehold/firewall.nft"
FORMER = "/etc/freehold/firewall.nft.former"
OPEN = "table inet freehold\ndelete table inet freehold\n"
UNIT_FILE = "/etc/systemd/system/freehold-firewall.service"
UNIT = """\
[Unit]
Description=Firewall made from Freehold's access matrix
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
After=local-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f /etc/freehold/firewall.nft
ExecReload=/usr/sbin/nft -f /etc/freehold/firewall.nft

[Install]
WantedBy=sysinit.target
"""
TIMER = "freehold-firewall-rollback"


class Firewall:
    """The rules of one host."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module

    def _run(self, *command: str) -> None:
        self._module.run_command(list(command), check_rc=True)

    @staticmethod
    def _read(path: str) -> str | None:
        try:
            with open(path, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    @staticmethod
    def _write(path: str, text: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)

    def apply(self, rules: str, seconds: int) -> bool:
        """Load the rules and set the timer; say whether anything had to change."""
        present = self._read(RULES)
        loaded = self._module.run_command(["nft", "list", "table", "inet", "freehold"])[0] == 0
        if present == rules and loaded and self._read(UNIT_FILE) == UNIT and not os.path.exists(FORMER):
            return False
        if self._module.check_mode:
            return True
        candidate = f"{RULES}.candidate"
        self._write(candidate, rules)
        code, _, error = self._module.run_command(["nft", "--check", "--file", candidate])
        if code != 0:
            self._module.fail_json(msg=f"nft refuses the rules, the host keeps its present ones: {error.strip()}")
        if not os.path.exists(FORMER):
            self._write(FORMER, present if present is not None and loaded else OPEN)
        self._module.run_command(["systemctl", "stop", f"{TIMER}.timer", f"{TIMER}.service"])
        self._run(
            "systemd-run",
            f"--unit={TIMER}",
            f"--on-active={seconds}",
            "--timer-property=AccuracySec=100ms",
            "--collect",
            "/bin/sh",
            "-c",
            f"mv {FORMER} {RULES} && exec nft --file {RULES}",
        )
        os.replace(candidate, RULES)
        self._run("nft", "--file", RULES)
        return True

    def keep(self) -> None:
        """Stop the timer and have the rules loaded on every boot."""
        self._module.run_command(["systemctl", "stop", f"{TIMER}.timer"])  # it is gone where it has done its work
        if not os.path.exists(FORMER):
            self._module.fail_json(
                msg="The host was not reached in time and put its old rules back. Check topology_access and "
                "topology_controller_networks; firewall_rollback_seconds is how long it waits."
            )
        if self._read(UNIT_FILE) != UNIT:
            self._write(UNIT_FILE, UNIT)
            self._run("systemctl", "daemon-reload")
        self._run("systemctl", "enable", "--now", "freehold-firewall.service")
        os.unlink(FORMER)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["applied", "kept"], "default": "applied"},
            "rules": {"type": "str"},
            "rollback_seconds": {"type": "int"},
        },
        required_if=[("state", "applied", ["rules", "rollback_seconds"])],
        supports_check_mode=True,
    )
    firewall = Firewall(module)
    if module.params["state"] == "kept":
        firewall.keep()
        module.exit_json(changed=True)
    module.exit_json(changed=firewall.apply(module.params["rules"], module.params["rollback_seconds"]))


if __name__ == "__main__":
    main()
