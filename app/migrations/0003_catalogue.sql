-- Products get a version that every change raises, a history of their prices, and words to be found by.
-- The new columns rewrite the table, and the index is made in the same transaction: who reads products waits meanwhile, some three
-- seconds for a hundred thousand, and gets what was cached. A table too large for that would need another way.
ALTER TABLE product
    ADD COLUMN version     bigint      NOT NULL DEFAULT 1 CHECK (version > 0),
    ADD COLUMN description text        NOT NULL DEFAULT '',
    ADD COLUMN active      boolean     NOT NULL DEFAULT true,
    ADD COLUMN changed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- `simple`: words as they are written, of whatever language.
    ADD COLUMN search      tsvector    NOT NULL GENERATED ALWAYS AS
                                           (to_tsvector('simple', name || ' ' || description)) STORED;
CREATE INDEX product_search ON product USING gin (search);

-- A product that has a price was on sale with it: it can be switched off, but not be deleted.
CREATE TABLE product_price (
    sku         text        NOT NULL REFERENCES product,
    version     bigint      NOT NULL, -- the product's that brought it; it orders prices also where a clock went back
    price_cents bigint      NOT NULL,
    currency    text        NOT NULL,
    valid_from  timestamptz NOT NULL,
    PRIMARY KEY (sku, version)
);
-- What prices were before is not known.
INSERT INTO product_price SELECT sku, version, price_cents, currency, changed_at FROM product;

-- By triggers, so that no writer can forget it, whoever it is and whatever version of the service.
CREATE FUNCTION product_changes() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.version := OLD.version + 1;
    NEW.changed_at := clock_timestamp();
    RETURN NEW;
END
$$;
CREATE TRIGGER product_changes BEFORE UPDATE ON product FOR EACH ROW EXECUTE FUNCTION product_changes();

-- With its owner's rights: nobody else may write history.
CREATE FUNCTION product_is_priced() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.product_price (sku, version, price_cents, currency, valid_from)
    VALUES (NEW.sku, NEW.version, NEW.price_cents, NEW.currency, NEW.changed_at);
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION product_changes(), product_is_priced() FROM PUBLIC;
CREATE TRIGGER product_first_price AFTER INSERT ON product FOR EACH ROW EXECUTE FUNCTION product_is_priced();
CREATE TRIGGER product_next_price AFTER UPDATE ON product FOR EACH ROW
    WHEN ((OLD.price_cents, OLD.currency) IS DISTINCT FROM (NEW.price_cents, NEW.currency))
    EXECUTE FUNCTION product_is_priced();

-- The platform's default privileges let the service write and delete all that the owner makes. It may do what it does.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM orders;
GRANT SELECT ON product, product_price, stock, orders, order_line TO orders;
GRANT INSERT (sku, name, description, price_cents, currency, active) ON product TO orders;
GRANT UPDATE (name, description, price_cents, currency, active) ON product TO orders;
GRANT INSERT, UPDATE (quantity) ON stock TO orders;
GRANT INSERT ON orders, order_line TO orders;
