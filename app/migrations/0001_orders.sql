-- Rights go to the role `orders`, as which the service works; the role that migrates owns everything.

CREATE TABLE product (
    sku         text        PRIMARY KEY CHECK (sku ~ '^[A-Z0-9-]{1,64}$'),
    name        text        NOT NULL,
    price_cents bigint      NOT NULL CHECK (price_cents BETWEEN 1 AND 1000000000),
    currency    text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$')
);
GRANT SELECT ON product TO orders;

-- Apart from the product, since it changes with every order. Room is left on each page for the changed row.
CREATE TABLE stock (
    sku         text        PRIMARY KEY REFERENCES product,
    quantity    bigint      NOT NULL CHECK (quantity >= 0)
) WITH (fillfactor = 50);
GRANT SELECT, UPDATE ON stock TO orders;

CREATE TABLE orders (
    id              uuid        PRIMARY KEY,
    customer_id     text        NOT NULL,
    idempotency_key text        NOT NULL,
    state           text        NOT NULL CHECK (state IN ('settled', 'refused')),
    refusal         text        CHECK (refusal IN
                                    ('unknown_product', 'too_little_stock', 'mixed_currencies', 'key_reused')),
    total_cents     bigint      CHECK (total_cents > 0),
    currency        text        CHECK (currency ~ '^[A-Z]{3}$'),
    accepted_at     timestamptz NOT NULL,
    decided_at      timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'refused') = (refusal IS NOT NULL)),
    CHECK ((state = 'settled') = (total_cents IS NOT NULL)),
    CHECK ((total_cents IS NULL) = (currency IS NULL))
);
-- What the order's content decides of its id. The rest of the id is a check, and changes when its key is rotated.
CREATE UNIQUE INDEX orders_content ON orders (substring(uuid_send(id) FROM 1 FOR 11));
-- One order a key. Another body under the same key is kept as a refused order.
CREATE UNIQUE INDEX orders_key ON orders (customer_id, idempotency_key) WHERE refusal IS DISTINCT FROM 'key_reused';
GRANT SELECT, INSERT ON orders TO orders;

CREATE TABLE order_line (
    order_id         uuid       NOT NULL REFERENCES orders,
    position         smallint   NOT NULL,
    sku              text       NOT NULL,
    quantity         integer    NOT NULL CHECK (quantity > 0),
    unit_price_cents bigint,    -- none where the product does not exist
    PRIMARY KEY (order_id, position)
);
GRANT SELECT, INSERT ON order_line TO orders;
