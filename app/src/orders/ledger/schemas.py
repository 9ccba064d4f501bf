"""What the ledger's interface says."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec

ACCOUNT_PATTERN = r"^(me|revenue|customer:[A-Za-z0-9._-]{1,64})$(?!\n)"
CURSOR_PATTERN = r"^([A-Za-z0-9_-]{24})?$(?!\n)"

Cents = Annotated[int, msgspec.Meta(description="Cents; a debit is positive: what a customer owes.")]


class Balance(msgspec.Struct, frozen=True):
    """What stands on an account in one currency."""

    currency: str
    amount_cents: Cents


class Account(msgspec.Struct, frozen=True):
    """An account and its balances, one a currency; none where nothing was ever booked."""

    account: str
    balances: list[Balance]


class Entry(msgspec.Struct, frozen=True):
    """One entry, and what stood on the account in its currency right after it."""

    id: int
    occurred_at: datetime
    order_id: UUID
    kind: Annotated[str, msgspec.Meta(description="sale or reversal")]
    amount_cents: Cents
    currency: str
    balance_cents: Cents


class Statement(msgspec.Struct, frozen=True, omit_defaults=True):
    """Entries of an account, the newest first; `next` is where the next page begins, and missing on the last."""

    account: str
    entries: list[Entry]
    next: str | None = None
