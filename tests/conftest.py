"""Fixtures of all tests that need a running system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import site as sites
from tests.support import watch


@pytest.fixture(scope="session")
def site() -> sites.Site:
    """Return the system under test; every host of it runs."""
    return sites.load()


@pytest.fixture(scope="module")
def told(site: sites.Site) -> Iterator[list[watch.Message]]:
    """Return the messages of Alertmanager, which for this module's tests has a receiver and little patience."""
    with watch.receiver(site) as (url, messages):
        watch.configure(
            "alertmanager",
            alertmanager_receivers=[{"name": "test", "severities": ["critical", "warning"], "webhook_url": url}],
            alertmanager_group_wait="1s",
            alertmanager_group_interval="2s",
        )
        try:
            yield messages
        finally:
            watch.configure("alertmanager")
