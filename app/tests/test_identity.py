"""An identifier is the same for the same order, and cannot be made up."""

from random import Random
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.ordering.identity import CONTENT_BYTES, Identities, canonical, content

SKUS = st.from_regex(r"[A-Z0-9-]{1,64}", fullmatch=True)
LINES = st.dictionaries(SKUS, st.integers(1, 1000), min_size=1, max_size=8).map(lambda lines: list(lines.items()))
CUSTOMERS = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
KEYS = st.from_regex(r"[!-~]{1,255}", fullmatch=True)
NEW, OLD = b"n" * 32, b"o" * 32


@given(CUSTOMERS, KEYS, LINES, st.randoms())
def test_the_same_order_has_the_same_identifier_however_its_lines_stand(
    customer: str, key: str, lines: list[tuple[str, int]], random: Random
) -> None:
    identities = Identities([NEW])
    identifier = identities.identify(customer, key, lines)
    shuffled = random.sample(lines, len(lines))
    assert identities.identify(customer, key, shuffled) == identifier
    assert (identifier.version, identifier.variant) == (8, RFC_4122)
    assert identities.parse(str(identifier)) == identifier


@given(CUSTOMERS, KEYS, LINES, CUSTOMERS, KEYS, LINES)
def test_another_order_has_another_identifier(
    customer: str, key: str, lines: list[tuple[str, int]], other: str, other_key: str, others: list[tuple[str, int]]
) -> None:
    one, two = (customer, key, sorted(lines)), (other, other_key, sorted(others))
    assert (canonical(*one) == canonical(*two)) == (one == two)
    assert (content(*one) == content(*two)) == (one == two)


@given(CUSTOMERS, KEYS, LINES)
def test_any_forged_bit_is_noticed(customer: str, key: str, lines: list[tuple[str, int]]) -> None:
    identities = Identities([NEW, OLD])
    identifier = identities.identify(customer, key, lines)
    for bit in range(128):
        assert identities.parse(str(UUID(int=identifier.int ^ 1 << bit))) is None


@given(st.uuids())
def test_a_made_up_identifier_is_none_of_ours(identifier: UUID) -> None:
    assert Identities([NEW]).parse(str(identifier)) is None


def test_the_key_before_still_counts_after_a_rotation_and_the_one_before_that_does_not() -> None:
    order = ("c", "k", [("P-1", 1)])
    former = Identities([OLD]).identify(*order)
    rotated = Identities([NEW, OLD])
    assert rotated.parse(str(former)) == former
    assert rotated.identify(*order) != former
    assert rotated.identify(*order).bytes[:CONTENT_BYTES] == former.bytes[:CONTENT_BYTES]
    assert Identities([NEW]).parse(str(former)) is None


@pytest.mark.parametrize("text", ["", "no", "{}", "urn:uuid:"])
def test_another_way_to_write_an_identifier_is_refused(text: str) -> None:
    identities = Identities([NEW])
    identifier = identities.identify("c", "k", [("P-1", 1)])
    for written in (text, text + str(identifier), str(identifier).upper() + text, identifier.hex + text):
        assert (identities.parse(written) is None) == (written != str(identifier))
