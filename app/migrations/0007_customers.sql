-- What customers said of themselves. Name and address are sealed (orders/sealing.py): here they are bytes that nobody can read.
CREATE SEQUENCE customer_version;
CREATE TABLE customer (
    id         text        PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9._-]{1,64}$'),
    version    bigint      NOT NULL,
    name       bytea       NOT NULL CHECK (octet_length(name) BETWEEN 34 AND 4096),
    address    bytea       NOT NULL CHECK (octet_length(address) BETWEEN 34 AND 8192),
    changed_at timestamptz NOT NULL
);

-- A version is never used twice, not even by a profile that was made anew after its erasure: an old tag fits nothing.
-- With its owner's rights: nobody else may count.
CREATE FUNCTION customer_changes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.version := nextval('public.customer_version');
    NEW.changed_at := clock_timestamp();
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION customer_changes() FROM PUBLIC;
CREATE TRIGGER customer_changes BEFORE INSERT OR UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION customer_changes();

REVOKE ALL ON customer FROM orders;
REVOKE ALL ON SEQUENCE customer_version FROM orders;
GRANT SELECT, DELETE, INSERT (id, name, address), UPDATE (name, address) ON customer TO orders;
