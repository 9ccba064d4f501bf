-- Orders go on after they are settled. Money moves in a ledger of double entry, and what happens is written down as events, both in
-- the transaction in which it happens and by triggers, so that no writer can forget it, whatever version of the service it is.
-- The new conditions have the whole table read under its lock: inserts wait a third of a second for a million orders.

CREATE TABLE order_transition (
    from_state text NOT NULL,
    to_state   text NOT NULL,
    PRIMARY KEY (from_state, to_state)
);
INSERT INTO order_transition VALUES ('settled', 'shipped'), ('shipped', 'delivered'), ('settled', 'cancelled');

ALTER TABLE orders
    ADD COLUMN changed_at timestamptz, -- when it left the state in which it was decided
    DROP CONSTRAINT orders_state_check,
    DROP CONSTRAINT orders_check1,
    ADD CONSTRAINT orders_state CHECK (state IN ('settled', 'refused', 'shipped', 'delivered', 'cancelled')),
    ADD CONSTRAINT orders_total CHECK ((state = 'refused') = (total_cents IS NULL)),
    ADD CONSTRAINT orders_changed CHECK ((state IN ('settled', 'refused')) = (changed_at IS NULL));
CREATE INDEX orders_of_state ON orders (state, accepted_at DESC, id DESC);

-- By month. Accounts are `revenue` and `customer:ID`; a debit is positive. A transaction is what one order brings of one kind.
CREATE TABLE ledger_entry (
    id           bigint      GENERATED ALWAYS AS IDENTITY,
    account      text        NOT NULL CHECK (account ~ '^(revenue|customer:[A-Za-z0-9._-]{1,64})$'),
    order_id     uuid        NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('sale', 'reversal')),
    amount_cents bigint      NOT NULL CHECK (amount_cents <> 0),
    currency     text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    occurred_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, occurred_at, id)
) PARTITION BY RANGE (occurred_at);

-- By month; what is published of it and in what order, the cursor `relay` says: a transaction's events count once no older one
-- is under way, so that none is passed by, and no row is changed for having been published.
CREATE TABLE event (
    xid         xid8        NOT NULL DEFAULT pg_current_xact_id(),
    id          bigint      GENERATED ALWAYS AS IDENTITY,
    order_id    uuid        NOT NULL,
    customer_id text        NOT NULL,
    type        text        NOT NULL,
    body        jsonb       NOT NULL,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (xid, id, occurred_at)
) PARTITION BY RANGE (occurred_at);
CREATE INDEX event_of_order ON event (order_id, id);

CREATE TABLE relay (
    name text   PRIMARY KEY,
    xid  xid8   NOT NULL,
    id   bigint NOT NULL
);
INSERT INTO relay VALUES ('events', '0', 0);

-- Every change of a stock but those that orders make: pieces that were there, were counted, came or went.
CREATE TABLE stock_change (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku         text        NOT NULL REFERENCES product,
    change      bigint      NOT NULL,
    why         text        NOT NULL CHECK (why IN ('opening', 'counted', 'moved')),
    occurred_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX stock_change_of_product ON stock_change (sku);

CREATE FUNCTION is_appended_only() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is only added to', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER appended_only BEFORE UPDATE OR DELETE ON ledger_entry FOR EACH ROW EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER never_emptied BEFORE TRUNCATE ON ledger_entry EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER appended_only BEFORE UPDATE OR DELETE ON event FOR EACH ROW EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER never_emptied BEFORE TRUNCATE ON event EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER appended_only BEFORE UPDATE OR DELETE ON stock_change FOR EACH ROW EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER never_emptied BEFORE TRUNCATE ON stock_change EXECUTE FUNCTION is_appended_only();

CREATE FUNCTION ledger_is_balanced() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong record;
BEGIN
    SELECT order_id, kind, currency INTO wrong FROM added
    GROUP BY order_id, kind, currency HAVING sum(amount_cents) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the entries of % of order % in % do not sum to zero', wrong.kind, wrong.order_id, wrong.currency
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER balanced AFTER INSERT ON ledger_entry REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_balanced();

-- This month's and the next two's, where they are missing. Attached rather than created in place: that waits for no reader.
CREATE FUNCTION make_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    month  timestamp;
    name   text;
    made   integer := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['event', 'ledger_entry'] LOOP
        FOR ahead IN 0..2 LOOP
            month := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead);
            name := parent || to_char(month, '_YYYY_MM');
            CONTINUE WHEN to_regclass('public.' || name) IS NOT NULL;
            PERFORM pg_advisory_xact_lock(hashtextextended('make_partitions', 0));
            CONTINUE WHEN to_regclass('public.' || name) IS NOT NULL;
            EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name, parent);
            EXECUTE format('REVOKE ALL ON public.%I FROM orders', name);
            EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                parent, name, month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
            EXECUTE format('CREATE TRIGGER never_emptied BEFORE TRUNCATE ON public.%I EXECUTE FUNCTION public.is_appended_only()',
                name);
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
SELECT make_partitions();

-- What an order was decided to be, or what became of it, as money and as an event, which tells the order without its lines. With
-- its owner's rights, as all that follows: nobody else may write either.
CREATE FUNCTION order_happened() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.ledger_entry (account, order_id, kind, amount_cents, currency)
    SELECT e.account, o.id, CASE o.state WHEN 'settled' THEN 'sale' ELSE 'reversal' END,
        CASE o.state WHEN 'settled' THEN e.amount_cents ELSE -e.amount_cents END, o.currency
    FROM happened o, LATERAL (VALUES ('customer:' || o.customer_id, o.total_cents), ('revenue', -o.total_cents))
        AS e (account, amount_cents)
    WHERE o.state IN ('settled', 'cancelled');
    INSERT INTO public.event (order_id, customer_id, type, body)
    SELECT o.id, o.customer_id, 'order.' || o.state, jsonb_strip_nulls(jsonb_build_object('id', o.id, 'state', o.state,
        'refusal', o.refusal, 'accepted_at', o.accepted_at, 'decided_at', o.decided_at, 'changed_at', o.changed_at,
        'total_cents', o.total_cents, 'currency', o.currency))
    FROM happened o;
    RETURN NULL;
END
$$;
CREATE TRIGGER decided AFTER INSERT ON orders REFERENCING NEW TABLE AS happened
    FOR EACH STATEMENT EXECUTE FUNCTION order_happened();
CREATE TRIGGER changed AFTER UPDATE ON orders REFERENCING NEW TABLE AS happened
    FOR EACH STATEMENT EXECUTE FUNCTION order_happened();

CREATE FUNCTION order_goes_on() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.order_transition WHERE from_state = OLD.state AND to_state = NEW.state) THEN
        RAISE EXCEPTION 'no order goes from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    NEW.changed_at := now();
    RETURN NEW;
END
$$;
CREATE TRIGGER goes_on BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION order_goes_on();

-- What was sold before is booked today: there are no months of then. Of its events nobody waits to hear.
INSERT INTO ledger_entry (account, order_id, kind, amount_cents, currency)
SELECT e.account, o.id, 'sale', e.amount_cents, o.currency
FROM orders o, LATERAL (VALUES ('customer:' || o.customer_id, o.total_cents), ('revenue', -o.total_cents))
    AS e (account, amount_cents)
WHERE o.state = 'settled';
-- Pieces that are there, and those that were sold.
INSERT INTO stock_change (sku, change, why)
SELECT s.sku, s.quantity + coalesce(sold.quantity, 0), 'opening'
FROM stock s LEFT JOIN (
    SELECT l.sku, sum(l.quantity) AS quantity FROM order_line l JOIN orders o ON o.id = l.order_id
    WHERE o.state = 'settled' GROUP BY l.sku
) sold USING (sku);

REVOKE ALL ON FUNCTION is_appended_only(), ledger_is_balanced(), make_partitions(), order_happened(), order_goes_on() FROM PUBLIC;
REVOKE ALL ON order_transition, ledger_entry, event, relay, stock_change FROM orders;
REVOKE INSERT ON orders FROM orders;
GRANT INSERT (id, customer_id, idempotency_key, state, refusal, total_cents, currency, accepted_at) ON orders TO orders;
GRANT UPDATE (state) ON orders TO orders;
GRANT SELECT ON order_transition, ledger_entry, event, relay, stock_change TO orders;
GRANT UPDATE (xid, id) ON relay TO orders;
GRANT INSERT (sku, change, why) ON stock_change TO orders;
GRANT EXECUTE ON FUNCTION make_partitions() TO orders;
