-- A balance no longer sums all history: a month of the ledger is closed once it is over, and what it brought each account is kept
-- apart. So it may be detached too. The version before sums what is attached, so detach nothing while it still runs.
CREATE TABLE ledger_month (
    ends_at   timestamptz PRIMARY KEY,
    name      text        NOT NULL UNIQUE, -- of its partition
    entries   bigint      NOT NULL,
    closed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE ledger_balance (
    account      text        NOT NULL,
    currency     text        NOT NULL,
    ends_at      timestamptz NOT NULL REFERENCES ledger_month,
    amount_cents bigint      NOT NULL,
    entries      bigint      NOT NULL CHECK (entries > 0),
    PRIMARY KEY (account, currency, ends_at)
);
CREATE TRIGGER appended_only BEFORE UPDATE OR DELETE ON ledger_month FOR EACH ROW EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER never_emptied BEFORE TRUNCATE ON ledger_month EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER appended_only BEFORE UPDATE OR DELETE ON ledger_balance FOR EACH ROW EXECUTE FUNCTION is_appended_only();
CREATE TRIGGER never_emptied BEFORE TRUNCATE ON ledger_balance EXECUTE FUNCTION is_appended_only();

-- What a closed month brought sums to zero as its entries do.
CREATE TRIGGER balanced AFTER INSERT ON ledger_balance REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    EXECUTE FUNCTION ledger_is_balanced();
CREATE OR REPLACE FUNCTION ledger_is_balanced() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong record;
BEGIN
    IF TG_TABLE_NAME = 'ledger_balance' THEN
        SELECT ends_at, currency INTO wrong FROM added GROUP BY ends_at, currency HAVING sum(amount_cents) <> 0 LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'the balances of the month until % in % do not sum to zero', wrong.ends_at, wrong.currency
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NULL;
    END IF;
    SELECT order_id, kind, currency INTO wrong FROM added
    GROUP BY order_id, kind, currency HAVING sum(amount_cents) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the entries of % of order % in % do not sum to zero', wrong.kind, wrong.order_id, wrong.currency
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;

-- Not an error that an order could be blamed for: the same order is booked today when it comes again.
CREATE FUNCTION month_is_closed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the month % is closed', TG_TABLE_NAME USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- The months of the ledger that there are, by name and bounds, which are nowhere else than in the partition's.
CREATE VIEW ledger_partition AS
SELECT c.oid, c.relname::text AS name,
    substring(pg_get_expr(c.relpartbound, c.oid) FROM $x$TO \('([^']+)'\)$x$)::timestamptz AS ends_at
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'public.ledger_entry'::regclass;

-- Closes all months that ended before a time, the oldest first, and returns their names. Whoever still writes into one of them is
-- waited for by the trigger's lock; nobody can afterwards.
CREATE FUNCTION close_ledger_months(before timestamptz) RETURNS SETOF text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month record;
    added bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('close_ledger_months', 0));
    FOR month IN SELECT p.name, p.ends_at FROM public.ledger_partition p
        WHERE p.ends_at <= least(before, now()) AND p.ends_at NOT IN (SELECT m.ends_at FROM public.ledger_month m) ORDER BY p.ends_at
    LOOP
        IF month.ends_at <= (SELECT max(m.ends_at) FROM public.ledger_month m) THEN
            RAISE EXCEPTION 'the month % is older than one that is closed', month.name
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        EXECUTE format('CREATE TRIGGER month_is_closed BEFORE INSERT ON public.%I FOR EACH ROW EXECUTE FUNCTION public.month_is_closed()',
            month.name);
        EXECUTE format('SELECT count(*) FROM public.%I', month.name) INTO added;
        INSERT INTO public.ledger_month (ends_at, name, entries) VALUES (month.ends_at, month.name, added);
        EXECUTE format('INSERT INTO public.ledger_balance (account, currency, ends_at, amount_cents, entries)'
            ' SELECT account, currency, $1, sum(amount_cents), count(*) FROM public.%I GROUP BY account, currency', month.name)
            USING month.ends_at;
        RETURN NEXT month.name;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION month_is_closed(), close_ledger_months(timestamptz) FROM PUBLIC;
REVOKE ALL ON ledger_month, ledger_balance, ledger_partition FROM orders;
GRANT SELECT ON ledger_month, ledger_balance, ledger_partition TO orders;
