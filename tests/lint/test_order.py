"""What Ansible's filters on sets give has no order, and is given one where it is written or told.

`difference`, `intersect`, `union` and `symmetric_difference` go over Python's sets (`ansible/plugins/filter/mathstuff.py`), in
which words lie differently in each process: a file written from one would change at a second run, and a message would
not be the one that a test or a reader looks for.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("ansible", "roles", "inventories")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".yml", ".j2") and "molecule" not in path.parts
)
SETS = re.compile(r"\|\s*(difference|intersect|union|symmetric_difference)\(")
# What may follow: an order, what asks for none, or another filter on sets, which is looked at in its turn.
ORDERLESS = re.compile(
    r"\s*(\|\s*(sort|length|count|unique\s*\|\s*sort|difference|intersect|union|symmetric_difference)\b|else\b|\)|-?%}|$)"
)


def unordered(text: str) -> list[str]:
    """Find the filters on sets whose answer goes on as it lies."""
    found = []
    for match in SETS.finditer(text):
        end, depth = match.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if not ORDERLESS.match(text, end):
            found.append(text[match.start() : end + 20].strip())
    return found


def test_what_a_set_gives_is_put_in_order() -> None:
    found = {str(path.relative_to(ROOT)): unordered(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: parts for path, parts in found.items() if parts} == {}
