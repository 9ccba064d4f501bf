#!/usr/bin/python
"""Find the interface for a virtual address and refuse one that a stranger answers for."""

from __future__ import annotations

import json
import select
import socket
import struct
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: virtual_address
short_description: Find the interface for a virtual address and refuse one that a stranger answers for
description:
  - Asks the network segment (ARP) who has the virtual address. Nobody, this host and its peers are fine; any other answer fails.
  - Changes nothing, in check mode or not.
options:
  address:
    description: The virtual address.
    type: str
    required: true
  own:
    description: This host's own address; the virtual one goes to the interface that carries it.
    type: str
    required: true
  peers:
    description: Addresses of the other hosts that may hold the virtual one.
    type: list
    elements: str
    default: []
  wait_seconds:
    description: How long to wait for answers.
    type: float
    default: 0.5
author: Freehold
"""

RETURN = r"""
interface:
  description: Name of the interface that carries the host's own address.
  type: str
  returned: success
holder:
  description: Who has the virtual address now, C(self), C(peer) or C(nobody).
  type: str
  returned: success
"""

ETH_P_ARP = 0x0806
REQUEST, REPLY = 1, 2


def arp_answers(interface: str, own: str, targets: list[str], seconds: float) -> dict[str, set[str]]:
    """Return the hardware addresses that answer for each target within the time; stops early when each target has one."""
    found: dict[str, set[str]] = {target: set() for target in targets}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as packets:
        packets.bind((interface, ETH_P_ARP))
        hardware = packets.getsockname()[4]
        for target in targets:
            packets.send(
                b"\xff" * 6
                + hardware
                + struct.pack("!HHHBBH", ETH_P_ARP, 1, 0x0800, 6, 4, REQUEST)
                + hardware
                + socket.inet_aton(own)
                + b"\0" * 6
                + socket.inet_aton(target)
            )
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not all(found.values()):
            if not select.select([packets], [], [], left)[0]:
                continue
            frame = packets.recv(128)
            if len(frame) >= 42 and struct.unpack("!H", frame[20:22])[0] == REPLY:
                sender, address = frame[22:28], socket.inet_ntoa(frame[28:32])
                if address in found and sender != hardware:
                    found[address].add(sender.hex(":"))
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "own": {"type": "str", "required": True},
            "peers": {"type": "list", "elements": "str", "default": []},
            "wait_seconds": {"type": "float", "default": 0.5},
        },
        supports_check_mode=True,
    )
    address, own, peers = module.params["address"], module.params["own"], module.params["peers"]
    links = json.loads(module.run_command(["ip", "-json", "-4", "address", "show"], check_rc=True)[1])
    carried = {info["local"]: link["ifname"] for link in links for info in link.get("addr_info", [])}
    if own not in carried:
        module.fail_json(
            msg=f"address: no interface of this host carries {own}; it has {', '.join(sorted(carried))}. "
            "Correct the host's `address` in the inventory."
        )
    holder = "self"
    if address not in carried:
        answers = arp_answers(carried[own], own, [address, *peers], module.params["wait_seconds"])
        holders = answers.pop(address)
        strangers = holders.difference(*answers.values())
        if strangers:
            module.fail_json(
                msg=f"topology_vip {address} is in use already: {', '.join(sorted(strangers))} answers for it on "
                f"{carried[own]}, and that is none of the edge hosts. Choose a free address."
            )
        holder = "peer" if holders else "nobody"
    module.exit_json(changed=False, interface=carried[own], holder=holder)


if __name__ == "__main__":
    main()
