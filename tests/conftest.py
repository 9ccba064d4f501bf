"""Fixtures of all tests that need a running system."""

from __future__ import annotations

import pytest

from tests.support import site as sites


@pytest.fixture(scope="session")
def site() -> sites.Site:
    """Return the system under test; every host of it runs."""
    return sites.load()
