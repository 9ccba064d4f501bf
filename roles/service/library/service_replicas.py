#!/usr/bin/python
"""Run the replicas of this host's services: start what is missing, or roll what runs."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.service_host import (
    FailedError,
    HostProxy,
    Service,
    Units,
    alone,
    difference,
    settle,
    stop_after_last_request,
    wait_ready,
)
from ansible.module_utils.service_record import ARGUMENTS, Record, RecordUnreachableError

DOCUMENTATION = r"""
module: service_replicas
short_description: Run the replicas of this host's services
description:
  - C(retired) stops replicas that are too many, each after its last request, and those whose service is gone, with network,
    settings and secrets of that service. It comes before their units are removed.
  - C(running) starts replicas that are missing and waits until all that it started are ready. It leaves running ones alone, and
    names the services whose replicas run with older files than the host has now. A service that has no record yet is
    prepared by its one-off container before its first replica, and recorded when it is ready.
  - C(rolled) replaces those older replicas one by one, and returns when the last is ready. Where a service has a single replica
    on the host, the host first tells the edges to go elsewhere, then finishes its requests.
  - C(scaled) starts what is missing of these services and stops what is too many, and leaves all others alone.
  - C(prepared) runs the one-off containers.
  - C(pulled) gets the images.
options:
  state: {type: str, choices: [retired, running, rolled, scaled, prepared, pulled], required: true}
  services:
    description: Services of this host, each with all its keys, and C(gateway), the address of its network's gateway.
    type: list
    elements: dict
    required: true
  images: {description: Image of each service by name., type: dict, required: true}
  unrecorded: {description: Services that have no record., type: list, elements: str, default: []}
  deploying:
    description: Services that a deploy follows for. C(running) does not name them as running with older files.
    type: list
    elements: str
    default: []
  platform:
    description: What this host gives to every service.
    type: dict
    required: true
    suboptions:
      registry: {description: What an image's full name begins with., type: str, required: true}
      record: {description: How to reach etcd., type: dict, required: true}
      by: {description: Who runs this., type: str, required: true}
      socket: {description: Runtime socket of the host proxy., type: path, required: true}
      ready_seconds: {type: int, required: true}
      announce_seconds: {type: int, required: true}
"""

RETURN = r"""
did: {description: What was changed, as words., returned: always, type: list}
stale: {description: Services whose replicas run with older files., returned: always, type: list}
"""


STATES = ["retired", "running", "rolled", "scaled", "prepared", "pulled"]


class Host:
    """The services of one host."""

    def __init__(self, module: AnsibleModule) -> None:
        params, platform = module.params, module.params["platform"]
        self._module = module
        self._units = Units(module.run_command)
        self._proxy = HostProxy(platform["socket"])
        self._ready_seconds: int = platform["ready_seconds"]
        self._announce_seconds: int = platform["announce_seconds"]
        self._unrecorded: list[str] = params["unrecorded"]
        self._deploying: list[str] = params["deploying"]
        self._services = [
            Service(
                name=service["name"],
                kind=service["kind"],
                network=service["gateway"].rpartition(".")[0],
                replicas=int(service["replicas"]),
                port=int(service["port"]),
                health=service["health"],
                drain_seconds=int(service["drain_seconds"]),
                image=f"{platform['registry']}/{params['images'][service['name']]}",
                pre_deploy=bool(service["pre_deploy"]),
            )
            for service in params["services"]
        ]
        self.did: list[str] = []
        self.stale: list[str] = []

    def run(self, state: str) -> None:
        """Bring the host to a state; in check mode only say what would be done."""
        if state == "pulled":
            self._pull()
        elif state == "prepared":
            self._pull()
            self._prepare([service for service in self._services if service.pre_deploy])
        elif state == "retired":
            self._retire()
        elif state == "rolled":
            self._pull()
            for service in self._services:
                self._roll(service)
        elif state == "scaled":
            for service in self._services:
                self._scale(service)
        else:
            self._run()

    def _do(self, what: str) -> bool:
        """Note what is done; say whether to really do it."""
        self.did.append(what)
        return not self._module.check_mode

    def _pull(self) -> None:
        for image in dict.fromkeys(service.image for service in self._services if service.replicas):
            if not self._units.has_image(image) and self._do(f"pulled {image}"):
                self._units.pull(image)

    def _scale(self, service: Service) -> None:
        what = difference(self._units, service)
        names = [service.unit(replica) for replica in what.missing]
        done = [f"started {', '.join(names)}"] * bool(names) + [f"stopped {', '.join(what.surplus)}"] * bool(
            what.surplus
        )
        if done and self._do("; ".join(done)):
            settle(self._units, self._proxy, service, what, self._ready_seconds)

    def _prepare(self, services: list[Service]) -> None:
        for service in services:
            if self._do(f"ran {service.one_off}"):
                self._units.start(service.one_off)

    def _run(self) -> None:
        started = self._units.started()
        wanted = self._wanted()
        missing = [unit for unit in wanted if unit not in started]
        self.stale = [
            service.name
            for service in self._services
            if service.name not in self._deploying
            and any(started[unit] < service.changed_at() for unit in self._active(service, started))
        ]
        if missing and not self._module.check_mode:
            self._pull()
        first = [service for service in self._services if service.name in self._unrecorded]
        self._prepare([service for service in first if service.pre_deploy])
        if missing and self._do(f"started {', '.join(missing)}"):
            self._units.start(*missing)
            for unit in missing:
                service, replica = wanted[unit]
                wait_ready(self._units, self._proxy, service, replica, self._ready_seconds)
        self._take_requests()
        if first and self._do(f"recorded {', '.join(service.name for service in first)}"):
            platform = self._module.params["platform"]
            record = Record(platform["record"])
            for service in first:
                record.write_first(service.name, self._module.params["images"][service.name], platform["by"])

    def _wanted(self) -> dict[str, tuple[Service, int]]:
        return {service.unit(r): (service, r) for service in self._services for r in range(1, service.replicas + 1)}

    @staticmethod
    def _active(service: Service, started: dict[str, float]) -> list[str]:
        return [unit for unit in (service.unit(r) for r in range(1, service.replicas + 1)) if unit in started]

    def _retire(self) -> None:
        wanted = self._wanted()
        surplus = [unit for unit in self._units.alive() if unit not in wanted]
        if surplus and self._do(f"stopped {', '.join(surplus)}"):
            stop_after_last_request(self._units, self._proxy, self._services, surplus)
        for name in sorted(self._units.known() - {service.name for service in self._services}):
            if self._do(f"removed what {name} had"):
                self._units.forget(name)

    def _take_requests(self) -> None:
        """End what an interrupted roll left drained."""
        for service in self._services:
            if not service.is_web or (self._module.check_mode and self.did):
                continue
            for replica, server in self._proxy.servers(service).items():
                held = server["status"].startswith(("DRAIN", "MAINT"))
                if held and replica <= service.replicas and self._do(f"undrained {service.name} {replica}"):
                    self._proxy.undrain(service, replica)
            if self._proxy.is_announced(service) and self._do(f"undrained {service.name}"):
                self._proxy.withdraw(service)

    def _roll(self, service: Service) -> None:
        started = self._units.started()
        old = [r for r in range(1, service.replicas + 1) if started.get(service.unit(r), 0) < service.changed_at()]
        if not old or not self._do(f"rolled {', '.join(service.unit(r) for r in old)}"):
            return
        alone = service.is_web and len(self._active(service, started)) <= 1
        if alone:
            self._proxy.announce(service)
            time.sleep(self._announce_seconds)
        for replica in old:
            if service.is_web:
                self._proxy.drain(service, replica)
                self._proxy.wait_idle(service, [replica], service.drain_seconds)
            self._units.stop(service.unit(replica))
            self._units.start(service.unit(replica))
            wait_ready(self._units, self._proxy, service, replica, self._ready_seconds)
            if service.is_web:
                self._proxy.undrain(service, replica)
        if service.is_web:
            self._proxy.withdraw(service)


def main() -> None:
    """Run the module."""
    specification: dict[str, Any] = {
        "state": {"type": "str", "choices": STATES, "required": True},
        "services": {"type": "list", "elements": "dict", "required": True},
        "images": {"type": "dict", "required": True},
        "unrecorded": {"type": "list", "elements": "str", "default": []},
        "deploying": {"type": "list", "elements": "str", "default": []},
        "platform": {
            "type": "dict",
            "required": True,
            "options": {
                "registry": {"type": "str", "required": True},
                "record": ARGUMENTS,
                "by": {"type": "str", "required": True},
                "socket": {"type": "path", "required": True},
                "ready_seconds": {"type": "int", "required": True},
                "announce_seconds": {"type": "int", "required": True},
            },
        },
    }
    module = AnsibleModule(argument_spec=specification, supports_check_mode=True)
    host = Host(module)
    try:
        with alone():
            host.run(module.params["state"])
    except FailedError as error:
        module.fail_json(msg=str(error), did=host.did)
    except RecordUnreachableError as error:
        module.fail_json(msg=f"the images were not recorded, etcd does not answer: {error}", did=host.did)
    module.exit_json(changed=bool(host.did or host.stale), did=host.did, stale=host.stale)


if __name__ == "__main__":
    main()
