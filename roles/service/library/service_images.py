#!/usr/bin/python
"""Read or write the record of what each service runs and how often, and of how many hosts there are, or list what ran when."""

from __future__ import annotations

import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.service_host import remembered_replicas
from ansible.module_utils.service_record import (
    ARGUMENTS,
    HOSTS,
    SCALING,
    ChangedMeanwhileError,
    Record,
    RecordUnreachableError,
)

DOCUMENTATION = r"""
module: service_images
short_description: Read or write the record of what each service runs and how often, and of how many hosts there are
description:
  - C(read) returns the recorded image of each service, and its replicas where a playbook or the autoscaler set them. One without a record has the image that the inventory gives it first.
    Without an etcd that answers, it is the image that this host is configured with.
  - C(written) records the images that are given, and the change in each service's history.
  - C(listed) returns the histories of all services that were ever recorded.
  - C(scaled) records how many replicas over all hosts a service, or how many hosts a tier, is to have.
options:
  state: {type: str, choices: [read, written, listed, scaled], default: read}
  by: {description: Who changes the record., type: str, default: ""}
  services:
    description: Services, each with C(name), and C(image) or, where they are scaled, C(replicas); none where they are listed.
    type: list
    elements: dict
    default: []
  tiers:
    description: Tiers, each with C(name) and C(hosts), that are scaled.
    type: list
    elements: dict
    default: []
  record:
    description: How to reach etcd.
    type: dict
    required: true
    suboptions:
      endpoints: {description: ADDRESS:PORT of each member., type: list, elements: str, required: true}
      user: {type: str, required: true}
      password: {type: str, required: true}
      ca_file: {type: path, required: true}
      certificate: {type: path, required: true}
      key: {type: path, required: true}
"""

RETURN = r"""
images: {description: Image of each service by name., type: dict, returned: always}
unrecorded: {description: Services that no record names yet., type: list, returned: always}
reachable: {description: Whether etcd answered., type: bool, returned: always}
replicas:
  description: Replicas over all hosts, of each service whose number was ever changed.
  type: dict
  returned: where they are read or scaled
histories:
  description: Of each service by name the changes, the oldest first, each with C(image), C(before), C(at) and C(by).
  type: dict
  returned: where they are listed
"""

QUADLET = "/etc/containers/systemd/freehold/svc-{name}@.container"


def configured(name: str) -> str:
    """Return the image that this host is configured with, empty where there is none."""
    path = QUADLET.format(name=name)
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        found = re.search(r"^Image=[^/]+/(.+)$", file.read(), re.MULTILINE)
    return found.group(1) if found else ""


def read(module: AnsibleModule) -> None:
    """Find each service's image, or say of which none is known."""
    services: list[dict[str, Any]] = module.params["services"]
    record = Record(module.params["record"])
    images, unrecorded, reachable, why = {}, [], True, ""
    try:
        replicas = record.replicas()
    except RecordUnreachableError as error:
        reachable, why, replicas = False, str(error), remembered_replicas()
    for service in services:
        name = service["name"]
        if reachable:
            try:
                images[name] = record.image(name)
            except RecordUnreachableError as error:
                reachable, why = False, str(error)
        if not reachable:
            images[name] = configured(name)
            if not images[name] and not module.check_mode:
                module.fail_json(
                    msg=f"etcd does not say which image {name} runs, and this host has never run it: {why}"
                )
        if not images[name]:
            unrecorded.append(name)
            images[name] = service["image"]
        if not images[name] and not module.check_mode:
            module.fail_json(
                msg=f"services: {name} has no image: none is recorded and the inventory gives none. "
                "Set `image` to REPOSITORY@sha256:DIGEST; in the lab `make up` builds it."
            )
    if not reachable:
        module.warn(f"etcd does not answer, so services keep the images that this host has: {why}")
    module.exit_json(changed=False, images=images, unrecorded=unrecorded, reachable=reachable, replicas=replicas)


def write(module: AnsibleModule) -> None:
    """Record what is given."""
    record = Record(module.params["record"])
    images = {service["name"]: service["image"] for service in module.params["services"]}
    try:
        if module.check_mode:
            changed = any(record.image(name) != image for name, image in images.items())
        else:
            changed = bool([name for name, image in images.items() if record.write(name, image, module.params["by"])])
    except RecordUnreachableError as error:
        module.fail_json(msg=f"the images {images} were not recorded, etcd does not answer: {error}")
    module.exit_json(changed=changed, images=images, unrecorded=[], reachable=True)


def scale(module: AnsibleModule) -> None:
    """Record how many replicas or hosts there are to be."""
    record = Record(module.params["record"])
    replicas = {service["name"]: int(service["replicas"]) for service in module.params["services"]}
    hosts = {tier["name"]: int(tier["hosts"]) for tier in module.params["tiers"]}
    by = module.params["by"]
    changed = False
    try:
        for folder, counted, counts in ((SCALING, "replicas", replicas), (HOSTS, "hosts", hosts)):
            if module.check_mode:
                there = {name: entry[counted] for name, entry in record.scalings(folder).items()}
                changed = changed or there != there | counts
                continue
            for name, count in counts.items():
                changed = record.scale(name, count, by=by, reason="asked for by hand", folder=folder) or changed
    except RecordUnreachableError as error:
        module.fail_json(msg=f"{replicas or hosts} was not recorded, etcd does not answer: {error}")
    except ChangedMeanwhileError as error:
        module.fail_json(msg=f"{error}, by the autoscaler or by somebody else; look at what there is now and ask again")
    module.exit_json(changed=changed, images={}, unrecorded=[], reachable=True, replicas=replicas)


def list_all(module: AnsibleModule) -> None:
    """Return what is recorded of each service."""
    record = Record(module.params["record"])
    try:
        images = record.images()
        histories = {name: record.history(name) for name in images}
    except RecordUnreachableError as error:
        module.fail_json(msg=f"what ran when is not known, etcd does not answer: {error}")
    module.exit_json(changed=False, images=images, histories=histories, unrecorded=[], reachable=True)


def main() -> None:
    """Run the module."""
    specification: dict[str, Any] = {
        "state": {"type": "str", "choices": ["read", "written", "listed", "scaled"], "default": "read"},
        "by": {"type": "str", "default": ""},
        "services": {"type": "list", "elements": "dict", "default": []},
        "tiers": {"type": "list", "elements": "dict", "default": []},
        "record": ARGUMENTS,
    }
    module = AnsibleModule(argument_spec=specification, supports_check_mode=True)
    {"read": read, "written": write, "listed": list_all, "scaled": scale}[module.params["state"]](module)


if __name__ == "__main__":
    main()
