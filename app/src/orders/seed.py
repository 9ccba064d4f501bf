"""A catalogue to try things with."""

from orders.migrations import connect_as_owner
from orders.settings import Settings

SEED = """
WITH made AS (
    INSERT INTO product (sku, name, price_cents, currency)
    SELECT 'P-' || lpad(n::text, 5, '0'), 'Product ' || n, 100 + n * 37 %% 9900, 'EUR' FROM generate_series(1, %s) n
    ON CONFLICT DO NOTHING
    RETURNING sku
)
INSERT INTO stock (sku, quantity) SELECT sku, %s FROM made
"""


def seed(settings: Settings, *, products: int, stock: int) -> int:
    """Make the products P-00001 and so on with that many pieces each, and return how many there were not before."""
    with connect_as_owner(settings) as connection:
        return connection.execute(SEED, (products, stock)).rowcount
