"""What the catalogue's interface gives."""

import msgspec


class Product(msgspec.Struct, frozen=True):
    """One product on sale. Prices are whole cents: money is never a float."""

    sku: str
    name: str
    price_cents: int
    currency: str
