#!/usr/bin/python
"""Say of a host what decides whether the platform can run on it; part of the action plugin of the same name. Changes nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import glob
import json
import os
import re
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_survey
short_description: Say of a host what decides whether the platform can run on it
description:
  - Changes nothing, in check mode or not. A host that cannot be reached, or where becoming root fails, is no failure but an answer.
  - To learn whether another host is reached at a port, a connection is opened and closed; one that is refused counts as reached.
  - The package sources are asked for their signed lists, which are kept in a folder of the moment.
options:
  access:
    description: Rows of the access matrix, as C(topology_access).
    type: list
    elements: dict
    required: true
  addresses:
    description: Address of each host, as C(topology_addresses).
    type: dict
    required: true
  tiers:
    description: Names of the tiers, as C(topology_tiers).
    type: list
    elements: str
    required: true
  loopback_ports:
    description: Ports that the platform's own programs take on the host's loopback.
    type: list
    elements: int
    default: []
  paths:
    description: Folders whose file systems are looked at; one that does not exist counts as the nearest above it.
    type: list
    elements: str
    default: []
  ntp_servers:
    description: Time servers to ask where the clock is not synchronised yet.
    type: list
    elements: str
    default: []
  suite:
    description: Debian's release whose packages are wanted.
    type: str
    required: true
  mark:
    description: A file of hosts on which the platform runs already.
    type: str
    required: true
author: Freehold
"""

RETURN = r"""
survey:
  description: >-
    C(reached), and C(why) where it is not. Else C(managed), whether there is the mark, C(init), C(nftables) and C(cgroup2), C(addresses), C(cpus), C(memory_available_mb),
    C(disks) by path, C(clock), C(listeners), C(blocked) and C(packages).
  type: dict
  returned: always
"""

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 3.0
APT_SECONDS = 20
NETLINK_NETFILTER = 12
NFT_GET_GENERATION = (10 << 8) | 16
NLMSG_ERROR = 2
LISTEN = "0A"
# A hook of apt's might leave a mark: none runs. The lists of packages themselves are not fetched.
APT_CONF = """
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::IndexTargets::deb::Packages::DefaultEnabled "false";
Acquire::IndexTargets::deb::Translations::DefaultEnabled "false";
Acquire::Retries "1";
APT::Sandbox::User "root";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


def read(path: str) -> str:
    """Return a file's text, empty where there is none to be read."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""


def nftables() -> str:
    """Return why the kernel takes no rules of nftables; empty where it does."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
            kernel.settimeout(ANSWER_SECONDS)
            kernel.send(struct.pack("=IHHIIBBH", 20, NFT_GET_GENERATION, 1, 1, 0, 0, 0, 0))
            answer = kernel.recv(4096)
    except OSError as error:
        return error.strerror or str(error)
    kind, code = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
    return os.strerror(-code) if kind == NLMSG_ERROR and code else ""


def disk(path: str) -> dict[str, int]:
    """Return size and free space, in MiB, of the file system that holds a path or will."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    found = shutil.disk_usage(path)
    return {"total_mb": found.total >> 20, "free_mb": found.free >> 20}


def memory_available_mb() -> int:
    """Return how much memory nobody needs."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) >> 10 if found else 0


def _owner(process: str) -> str:
    """Return the unit that a process belongs to, or its program."""
    unit = re.search(r"([^/\n]+\.service)(?:/[^\n]*)?$", read(f"/proc/{process}/cgroup"), re.MULTILINE)
    return unit[1] if unit else read(f"/proc/{process}/comm").strip()


def listeners(ports: Iterable[int]) -> list[dict[str, Any]]:
    """Return who listens on which of some ports: `port` and `by`."""
    wanted, found = set(ports), {}
    for line in (read("/proc/net/tcp") + read("/proc/net/tcp6")).splitlines():
        words = line.split()
        if len(words) > 9 and words[3] == LISTEN and int(words[1].rpartition(":")[2], 16) in wanted:
            found[f"socket:[{words[9]}]"] = int(words[1].rpartition(":")[2], 16)
    owners = {}
    for link in glob.glob("/proc/[0-9]*/fd/*") if found else []:
        with contextlib.suppress(OSError):
            if (target := os.readlink(link)) in found:
                owners[target] = _owner(link.split("/")[2])
    pairs = {(port, owners.get(inode, "an unknown program")) for inode, port in found.items()}
    return [{"port": port, "by": by} for port, by in sorted(pairs)]


def _refusal(address: str, port: int) -> str:
    """Return why nothing gets through to a port; empty where something does, if only to be refused by the host itself."""
    try:
        socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return "" if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET) else error.strerror or str(error)
    return ""


def blocked(peers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return which ports of which hosts are not reached: `host`, `address`, `port`, `why`."""
    tried = [(peer["host"], peer["address"], port) for peer in peers for port in peer["ports"]]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda one: _refusal(one[1], one[2]), tried)
    return [
        {"host": host, "address": address, "port": port, "why": why}
        for (host, address, port), why in zip(tried, answers, strict=True)
        if why
    ]


def clock(module: AnsibleModule) -> str:
    """Return why the clock is not right and will not be; empty where it is, could be, or is another's to set."""
    if module.run_command(["systemd-detect-virt", "--container", "--quiet"])[0] == 0:
        return ""
    if module.run_command(["timedatectl", "show", "--property=NTPSynchronized", "--value"])[1].strip() == "yes":
        return ""
    reasons = []
    for server in module.params["ntp_servers"]:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(server, 123, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as question:
                question.settimeout(ANSWER_SECONDS)
                question.sendto(b"\x23" + bytes(47), address)
                if len(question.recv(512)) >= 48:
                    return ""
        except OSError as error:
            reasons.append(f"{server}: {error.strerror or error}")
    return "it is not synchronised, and no time server answers: " + (", ".join(reasons) or "none is named")


def packages(module: AnsibleModule) -> str:
    """Return why the package sources do not give the release's packages; empty where they do."""
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(f"{folder}/lists/partial")
        with open(f"{folder}/apt.conf", "w", encoding="utf-8") as file:
            file.write(APT_CONF)
        options = [f"--option=Dir::State::Lists={folder}/lists", f"--option=Acquire::http::Timeout={APT_SECONDS}"]
        command = ["apt-get", "update", "--quiet", "--error-on=any", f"--config-file={folder}/apt.conf", *options]
        status, _, said = module.run_command(command, environ_update={"LC_ALL": "C"})
        if status:
            return " ".join(said.split())
        suite = re.compile(rf"^Codename: {re.escape(module.params['suite'])}$", re.MULTILINE)
        if not any(suite.search(read(path)) for path in glob.glob(f"{folder}/lists/*Release")):
            return f"none of them is of {module.params['suite']}"
    return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "required": True},
            "ports": {"type": "list", "elements": "int", "required": True},
            "peers": {"type": "list", "elements": "dict", "required": True},
            "ntp_servers": {"type": "list", "elements": "str", "required": True},
            "suite": {"type": "str", "required": True},
            "mark": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    links = json.loads(module.run_command(["ip", "-json", "-4", "address", "show"], check_rc=True)[1])
    survey = {
        "reached": True,
        "managed": os.path.exists(module.params["mark"]),
        "init": read("/proc/1/comm").strip(),
        "nftables": nftables(),
        "cgroup2": os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
        "addresses": sorted(info["local"] for link in links for info in link.get("addr_info", [])),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_available_mb": memory_available_mb(),
        "disks": {path: disk(path) for path in module.params["paths"]},
        "clock": clock(module),
        "listeners": listeners(module.params["ports"]),
        "blocked": blocked(module.params["peers"]),
        "packages": packages(module),
    }
    module.exit_json(changed=False, survey=survey)


if __name__ == "__main__":
    main()
