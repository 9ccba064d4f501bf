"""A site that is as described is left as it is, quickly."""

from __future__ import annotations

import os

import pytest

from tests.support.deploys import converge
from tests.support.site import Site, grafana_given

# Nine hosts on two cores took 277 to 351 s without other work, most of it Python that starts on a host.
MOST_SECONDS = 420
# Of one host: ops2, which has the most roles. Grafana, where its program is given, has some more.
MOST_TASKS = 91
GRAFANA_TASKS = 6


# Each role's scenario runs it in check mode on hosts that are not as described.
WHEN_FULL = pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes minutes: make test-full")


@pytest.mark.parametrize("arguments", [(), pytest.param(("--check",), marks=WHEN_FULL)], ids=["converge", "check"])
def test_a_second_run_changes_nothing(site: Site, arguments: tuple[str, ...]) -> None:
    """Nothing fails, nothing changes, and it takes neither long nor many tasks."""
    recap, seconds, printed = converge(*arguments)
    tail = printed[-4000:]
    assert set(recap) >= set(site.addresses), tail
    bad = {host: seen for host, seen in recap.items() if seen.changed or seen.failed or seen.unreachable}
    assert not bad, tail
    most = MOST_TASKS + (GRAFANA_TASKS if grafana_given(site) else 0)
    assert max(seen.tasks for seen in recap.values()) <= most, recap
    if not arguments:
        assert seconds <= MOST_SECONDS
