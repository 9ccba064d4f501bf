"""Say which golden images of the lab are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from freehold.lab import Lab, LabError, golden_image_name, lab_name

DOCUMENTATION = r"""
module: lab_images
short_description: Say which golden images of the lab are missing
description:
  - An image is named by a hash of what it is made from, so an image that exists is the right one.
  - Images that exist are noted in the lab's description, from where hosts take them.
options:
  images:
    description: The roles whose C(install.yml) makes each tier's image, in their order.
    type: dict
    required: true
"""


class ActionModule(ActionBase):
    """Compare names with what the machine has."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"images"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the list `missing` of tier, image and roles."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec({"images": {"type": "dict", "required": True}})
        lab = Lab(lab_name())
        try:
            missing = []
            for tier, roles in arguments["images"].items():
                image = golden_image_name(tier, roles)
                if lab.image_exists(image):
                    lab.use_image(tier, image, dry=bool(self._task.check_mode))
                else:
                    missing.append({"tier": tier, "image": image, "roles": roles})
        except LabError as error:
            raise AnsibleActionFail(str(error)) from error
        result.update(changed=False, missing=missing)
        return result
