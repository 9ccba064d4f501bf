#!/usr/bin/python
"""Place many files, each validated before it lands; part of the action plugin of the same name."""

from __future__ import annotations

import base64
import grp
import gzip
import json
import os
import pwd
import shutil
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: config_files
short_description: Render, validate and place many files in one task
description:
  - Templates are rendered on the controller, all files travel in one module call, each is validated before it replaces the
    old one, and systemd re-reads its units when one of them changed.
options:
  files:
    description:
      - Files to place. Each entry has C(dest) and one of C(src) (a template of the role), C(copy) (a file of the role),
        C(content) and C(link) (the target of a symbolic link); the first three have C(owner) and C(group) (root), C(mode)
        (0644), C(validate) (a command in which %s is the new file), C(secret) (its content never shows in a diff) and
        C(vars) (variables of this template alone).
    type: list
    elements: dict
  directories:
    description: Folders to make first, each with C(path), C(owner), C(group), C(mode).
    type: list
    elements: dict
  absent:
    description: Files to remove.
    type: list
    elements: path
  purge:
    description: Glob-free folders in which every file that is not in C(files) is removed (not recursive).
    type: list
    elements: path
"""

RETURN = r"""
changed_files:
  description: Paths of files and folders that were made, changed or removed.
  returned: always
  type: list
"""

UNIT_FOLDERS = ("/etc/systemd/", "/run/systemd/", "/etc/containers/systemd/")


class Tree:
    """The wanted state of the files of one task."""

    def __init__(self, module: AnsibleModule, payload: dict[str, Any]) -> None:
        self._module = module
        self._payload = payload
        self.changed: list[str] = []
        self.diffs: list[dict[str, str]] = []

    def apply(self) -> None:
        """Make folders, then files, then remove what is to go; in check mode only report."""
        for entry in self._payload["directories"]:
            self._directory(entry)
        for entry in self._payload["files"]:
            self._link(entry) if "link" in entry else self._file(entry)
        wanted = {entry["dest"] for entry in self._payload["files"]}
        stale = [
            os.path.join(folder, name)
            for folder in self._payload["purge"]
            if os.path.isdir(folder)
            for name in sorted(os.listdir(folder))
            if os.path.join(folder, name) not in wanted and not os.path.isdir(os.path.join(folder, name))
        ]
        for path in [*self._payload["absent"], *stale]:
            if os.path.lexists(path):
                self.changed.append(path)
                if not self._module.check_mode:
                    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)

    def _ids(self, entry: dict[str, Any]) -> tuple[int, int] | None:
        """Return uid and gid, or None in check mode on a host that lacks the package that brings them."""
        owner, group = str(entry.get("owner", "root")), str(entry.get("group", "root"))
        try:
            uid = int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError as error:
            if self._module.check_mode:
                return None
            self._module.fail_json(msg=f"{entry.get('dest', entry.get('path'))}: {error.args[0]}")
        return uid, gid

    def _directory(self, entry: dict[str, Any]) -> None:
        path, mode, ids = entry["path"], int(str(entry.get("mode", "0755")), 8), self._ids(entry)
        if os.path.isdir(path):
            now = os.stat(path)
            if ids == (now.st_uid, now.st_gid) and stat.S_IMODE(now.st_mode) == mode:
                return
        self.changed.append(path)
        if self._module.check_mode or ids is None:
            return
        os.makedirs(path, exist_ok=True)
        os.chown(path, *ids)
        os.chmod(path, mode)

    def _link(self, entry: dict[str, Any]) -> None:
        dest, target = entry["dest"], entry["link"]
        if os.path.islink(dest) and os.readlink(dest) == target:
            return
        self.changed.append(dest)
        if self._module.check_mode:
            return
        os.makedirs(os.path.dirname(dest), exist_ok=True)
        temporary = os.path.join(os.path.dirname(dest), f".{os.path.basename(dest)}.new")
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.replace(temporary, dest)

    def _file(self, entry: dict[str, Any]) -> None:
        dest, mode, ids = entry["dest"], int(entry["mode"], 8), self._ids(entry)
        data = base64.b64decode(entry["content"])
        old: bytes | None = None
        if os.path.isfile(dest):
            with open(dest, "rb") as file:
                old = file.read()
            now = os.stat(dest)
            if old == data and ids == (now.st_uid, now.st_gid) and stat.S_IMODE(now.st_mode) == mode:
                return
        self.changed.append(dest)
        if not entry["secret"] and old != data:
            self.diffs.append(
                {
                    "before_header": dest,
                    "after_header": dest,
                    "before": (old or b"").decode(errors="replace"),
                    "after": data.decode(errors="replace"),
                }
            )
        if self._module.check_mode or ids is None:
            return
        folder = os.path.dirname(dest)
        os.makedirs(folder, exist_ok=True)
        # The name keeps its ending, as some validators go by it, and begins with a dot, as daemons that read folders skip it.
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=f".{os.path.basename(dest)}")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chown(temporary, *ids)
            os.chmod(temporary, mode)
            if entry["validate"] and old != data:
                code, out, err = self._module.run_command(entry["validate"].replace("%s", temporary))
                if code != 0:
                    self._module.fail_json(
                        msg=f"{dest} was left as it is: `{entry['validate']}` refuses the new one: {(err or out).strip()}"
                    )
            os.replace(temporary, dest)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"payload": {"type": "str", "required": True, "no_log": True}}, supports_check_mode=True
    )
    payload = json.loads(gzip.decompress(base64.b64decode(module.params["payload"])))
    tree = Tree(module, payload)
    tree.apply()
    units = any(path.startswith(UNIT_FOLDERS) for path in tree.changed)
    if units and not module.check_mode and os.path.isdir("/run/systemd/system"):
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    module.exit_json(changed=bool(tree.changed), changed_files=tree.changed, diff=tree.diffs)


if __name__ == "__main__":
    main()
