"""How well a host keeps the time is what chrony said of it; the lines are those of chronyc 4.6.1, as it printed them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "roles/node_exporter/files/host-clock.awk"
HEARD = 1795891360.515355861
FOLLOWS = (
    f"7F000001,127.0.0.1,4,{HEARD:.9f},-0.000004410,-0.000000016,0.000000200,0.154,-0.004,0.303,0.000004673,"
    "0.000027924,0.2,Normal"
)
NEVER = (
    "00000000,,0,0.000000000,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,1.000000000,1.000000000,0.0,"
    "Not synchronised"
)
SILENT = "Could not open connection to daemon"
HOUR = 3600


def figures(said: str, now: float) -> dict[str, float]:
    """Return the figures that are written of what chronyc says."""
    printed = subprocess.run(
        ["awk", "-v", f"now={now:.0f}", "-f", str(SCRIPT)],
        input=said + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.split() for line in printed.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_a_clock_that_follows_a_server() -> None:
    """Chronyc says "fast" of this line's offset, a clock that is ahead."""
    assert figures(FOLLOWS, HEARD + 20) == {"host_clock_synchronised": 1, "host_clock_offset_seconds": -0.000004410}


def test_servers_that_were_lost_long_ago() -> None:
    """The daemon goes on to say Normal; the offset is what it believes."""
    assert figures(FOLLOWS, HEARD + 2 * HOUR)["host_clock_synchronised"] == 1
    assert figures(FOLLOWS, HEARD + 4 * HOUR) == {
        "host_clock_synchronised": 0,
        "host_clock_offset_seconds": -0.000004410,
    }


@pytest.mark.parametrize("said", [NEVER, SILENT, ""])
def test_a_clock_that_follows_nobody(said: str) -> None:
    """Then nothing is known of its offset, and it is not called right."""
    assert figures(said, HEARD) == {"host_clock_synchronised": 0}
