"""A catalogue to try things with, and customers that nobody is."""

import asyncio

from orders.customers.repository import CREATE
from orders.customers.schemas import Address, NewProfile
from orders.customers.service import seal
from orders.migrations import connect_as_owner
from orders.sealing import sealer
from orders.settings import Settings

SEED = """
WITH made AS (
    INSERT INTO product (sku, name, price_cents, currency)
    SELECT 'P-' || lpad(n::text, 5, '0'), 'Product ' || n, 100 + n * 37 %% 9900, 'EUR' FROM generate_series(1, %s) n
    ON CONFLICT DO NOTHING
    RETURNING sku
), stocked AS (
    INSERT INTO stock (sku, quantity) SELECT sku, %s FROM made RETURNING sku, quantity
)
INSERT INTO stock_change (sku, change, why) SELECT sku, quantity, 'opening' FROM stocked
"""

_AT_ONCE = 1000
_GIVEN_NAMES = ("Ada", "Bela", "Chiara", "Daniel", "Emine", "Farid", "Grete", "Hugo", "Ines", "Jonas", "Kim")
_FAMILY_NAMES = ("Example", "Sample", "Muster", "Ejemplo", "Esempio", "Exemple", "Voorbeeld")
_CITIES = (
    ("Exampleton", "GB"),
    ("Musterstadt", "DE"),
    ("Villemodèle", "FR"),
    ("Villa Ejemplo", "ES"),
    ("Mønsterby", "DK"),
)


def seed(settings: Settings, *, products: int, stock: int) -> int:
    """Make the products P-00001 and so on with that many pieces each, and return how many there were not before."""
    with connect_as_owner(settings) as connection:
        return connection.execute(SEED, (products, stock)).rowcount


def seed_customers(settings: Settings, *, customers: int) -> int:
    """Make profiles of the customers c-00001 and so on, and return how many there were not before.

    Raises:
        SettingsError: there is no key to seal them by.
    """
    sealing = sealer(settings)
    made = 0
    with connect_as_owner(settings) as connection, connection.cursor() as cursor:
        for first in range(1, customers + 1, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, customers + 1))
            sealed = asyncio.run(seal(sealing, {f"c-{number:05}": made_up(number) for number in numbers}))
            cursor.executemany(CREATE, [(customer_id, *fields) for customer_id, fields in sealed.items()])
            made += cursor.rowcount
    return made


def made_up(number: int) -> NewProfile:
    """Return a profile of nobody's."""
    city, country = _CITIES[number % len(_CITIES)]
    given_name, family_name = _GIVEN_NAMES[number % len(_GIVEN_NAMES)], _FAMILY_NAMES[number % len(_FAMILY_NAMES)]
    lines = [f"{number} Example Street"]
    return NewProfile(f"{given_name} {family_name}", Address(lines, city, f"{number % 100_000:05}", country))
