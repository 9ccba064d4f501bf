"""What the catalogue's interface takes and gives. Prices are whole cents: money is never a float."""

from datetime import datetime
from typing import Annotated

import msgspec

MOST_CENTS = 1_000_000_000
MOST_STOCK = 1_000_000_000

# `$` alone would let a line's end pass.
SKU_PATTERN = r"^[A-Z0-9-]{1,64}$(?!\n)"
AFTER_PATTERN = r"^[A-Z0-9-]{0,64}$(?!\n)"
CURRENCY_PATTERN = r"^[A-Z]{3}$(?!\n)"
NAME_PATTERN = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$(?!\n)"
TEXT_PATTERN = r"^[^\x00]*$"
MOST_NAME, MOST_DESCRIPTION, MOST_SEARCH = 200, 2000, 100

Cents = Annotated[int, msgspec.Meta(ge=1, le=MOST_CENTS)]
Currency = Annotated[str, msgspec.Meta(pattern=CURRENCY_PATTERN)]


class Product(msgspec.Struct, frozen=True, omit_defaults=True):
    """One product on sale."""

    sku: str
    name: str
    price_cents: int
    currency: str
    description: str = ""


class Listed(msgspec.Struct, frozen=True):
    """One product of a list."""

    sku: str
    name: str
    price_cents: int
    currency: str


class Price(msgspec.Struct, frozen=True):
    """What a product cost from a time on, and since which version."""

    version: int
    price_cents: int
    currency: str
    valid_from: datetime


class Availability(msgspec.Struct, frozen=True):
    """Whether there is any of a product."""

    in_stock: bool


class Record(msgspec.Struct, frozen=True):
    """All that is known of a product, for operators; `etag` is for If-Match."""

    sku: str
    name: str
    description: str
    price_cents: int
    currency: str
    active: bool
    quantity: int
    changed_at: datetime
    etag: str


class NewProduct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a product is to be, all of it."""

    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=MOST_NAME)]
    description: Annotated[str, msgspec.Meta(pattern=TEXT_PATTERN, max_length=MOST_DESCRIPTION)]
    price_cents: Cents
    currency: Currency
    active: bool


class Stock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many pieces of a product there are."""

    quantity: Annotated[int, msgspec.Meta(ge=0, le=MOST_STOCK)]


class StockChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many pieces came, or went."""

    change: Annotated[int, msgspec.Meta(ge=-MOST_STOCK, le=MOST_STOCK)]


class Choice(msgspec.Struct, frozen=True):
    """Which products to list; none: whichever."""

    q: str | None = None
    currency: str | None = None
    min_price_cents: int | None = None
    max_price_cents: int | None = None
    in_stock: bool | None = None


ALL = Choice()
