"""The files of all services of a host, as the task that places them takes them."""

from __future__ import annotations

from typing import Any

QUADLETS = "/etc/containers/systemd/freehold"
HOME = "/etc/freehold/services"
# A service owns 1,000,000 numbers of users and groups: 1NNN000000 to 1NNN999999, where NNN is its own number. Replica R has
# the 65,536 users from 1NNNR00000, the one-off container those from 1NNN000000. All share the 65,537 groups from 1NNN000000, of
# which the last reads secrets. One range each: for two, podman makes a copy of the image with other owners.
SECRETS_GROUP = "1{number:03d}065536"


def service_files(
    services: list[dict[str, Any]],
    images: dict[str, str],
    pre_deploy_images: dict[str, str],
    secrets: dict[str, str],
    authority: str,
) -> dict[str, list[Any]]:
    """Return `files`, `directories` and `purge` for config_files.

    `images` and `pre_deploy_images` give each service's image by name, `secrets` each secret's value, `authority` the CA's PEM.
    """
    files: list[dict[str, Any]] = []
    directories: list[dict[str, Any]] = [{"path": QUADLETS}, {"path": HOME}]
    purge = [QUADLETS]
    for service in services:
        home, group = f"{HOME}/{service['name']}", SECRETS_GROUP.format(number=service["number"])
        unit = f"{QUADLETS}/svc-{service['name']}"
        settings = "".join(f"{name}={value}\n" for name, value in sorted(service["settings"].items()))
        directories.append({"path": home})
        files += [
            {"src": "service.network.j2", "dest": f"{unit}.network", "vars": {"service": service}},
            {
                "content": settings.replace("{gateway}", service["gateway"]),
                "dest": f"{home}/settings.env",
                "mode": "0640",
            },
        ]
        kinds = {"secrets": (f"{unit}@.container", images, service["secrets"])}
        if service["pre_deploy"]:
            names = service["secrets"] + service["pre_deploy_secrets"]
            kinds["pre-deploy"] = (f"{unit}-pre-deploy.container", pre_deploy_images, names)
        for folder, (dest, refs, names) in kinds.items():
            variables = {
                "service": service,
                "image": refs[service["name"]],
                "folder": f"{home}/{folder}",
                "number": f"1{service['number']:03d}",
                "one_off": folder != "secrets",
            }
            purge.append(f"{home}/{folder}")
            directories.append({"path": f"{home}/{folder}", "group": group, "mode": "0750"})
            files.append({"src": "service.container.j2", "dest": dest, "vars": variables})
            files.append({"content": authority, "dest": f"{home}/{folder}/ca.crt", "group": group, "mode": "0440"})
            files += [
                {
                    "content": secrets[name],
                    "dest": f"{home}/{folder}/{name}",
                    "group": group,
                    "mode": "0440",
                    "secret": True,
                }
                for name in names
            ]
        # systemd keeps a generated instance over a reboot only where a link names it; more than these come and go with the load.
        files += [
            {"link": f"svc-{service['name']}@.container", "dest": f"{unit}@{replica}.container"}
            for replica in range(1, service["least"] + 1)
        ]
    return {"files": files, "directories": directories, "purge": purge}


def service_memory(services: list[dict[str, Any]]) -> int:
    """Return the MiB that all replicas on a host may take together."""
    return sum(int(service["memory_mb"]) * int(service["most"]) for service in services)


def keeper_services(
    services: list[dict[str, Any]], groups: dict[str, list[str]], network_prefix: str
) -> list[dict[str, Any]]:
    """Return what a host must know of its services to have their replicas come and go with the load."""
    return [
        {
            "name": service["name"],
            "kind": service["kind"],
            "network": f"{network_prefix}.{service['number']}",
            "port": int(service["port"]),
            "health": service["health"],
            "metrics": service["metrics"],
            "drain_seconds": int(service["drain_seconds"]),
            "hosts": sorted(groups[service["hosts"]]),
            "min": int(service["scaling"]["min"]),
            "max": int(service["scaling"]["max"]),
            "asked_often": any(metric.get("query") for metric in service["scaling"]["metrics"]),
        }
        for service in services
        if service["scaling"]
    ]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {"keeper_services": keeper_services, "service_files": service_files, "service_memory": service_memory}
