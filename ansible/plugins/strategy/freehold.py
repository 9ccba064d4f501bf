"""Ansible's strategy `linear` by way of Mitogen, and plain where Mitogen is not installed.

A task of Ansible starts a Python of its own on the host; Mitogen keeps one a host that runs all. What it saves was measured in
docs/decisions/0024-mitogen.md. `ANSIBLE_STRATEGY=linear` does without it.
"""

from __future__ import annotations

try:
    from ansible_mitogen import affinity
    from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule
except ImportError:
    from ansible.plugins.strategy.linear import StrategyModule
else:
    # Mitogen binds its processes to processors; of two, all of Ansible's would share one and leave the other idle.
    affinity.policy = affinity.Policy()

__all__ = ["StrategyModule"]
