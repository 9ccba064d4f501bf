-- Webhooks: endpoints that customers and operators name, and what is sent to each. A row of webhook_delivery is the truth of a
-- delivery: messages only say when to look again. An endpoint's secrets are sealed (orders/sealing.py).
CREATE TABLE webhook_endpoint (
    id               uuid        PRIMARY KEY,
    customer_id      text        CHECK (customer_id ~ '^[A-Za-z0-9._-]{1,64}$'), -- none: the operators', who hear of all orders
    url              text        NOT NULL CHECK (length(url) BETWEEN 8 AND 2048),
    types            text[]      NOT NULL, -- empty: all
    description      text        NOT NULL CHECK (length(description) <= 200),
    secret           bytea       NOT NULL CHECK (octet_length(secret) BETWEEN 34 AND 256),
    former_secret    bytea       CHECK (octet_length(former_secret) BETWEEN 34 AND 256),
    former_until     timestamptz, -- so long deliveries are signed by both
    created_at       timestamptz NOT NULL DEFAULT now(),
    failing_since    timestamptz, -- the first failure after the last success
    disabled_at      timestamptz,
    disabled_because text        CHECK (disabled_because IN ('owner', 'failing', 'gone')),
    CHECK ((disabled_at IS NULL) = (disabled_because IS NULL)),
    CHECK ((former_secret IS NULL) = (former_until IS NULL))
);
CREATE INDEX webhook_endpoint_of_customer ON webhook_endpoint (customer_id);

-- By month of the event, as events are. No reference to the endpoint: what is left of one that was deleted goes with its month.
CREATE TABLE webhook_delivery (
    endpoint_id uuid        NOT NULL,
    event_id    bigint      NOT NULL,
    occurred_at timestamptz NOT NULL,
    type        text        NOT NULL,
    body        text        NOT NULL, -- what is sent, to the byte
    state       text        NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    queued_at   timestamptz NOT NULL DEFAULT now(), -- when it was first to be sent, or was asked for again
    next_at     timestamptz, -- when it is to be sent; while it is sent, when somebody else may think it was not
    step        smallint    NOT NULL DEFAULT 0, -- failures since it was queued
    attempts    jsonb       NOT NULL DEFAULT '[]',
    PRIMARY KEY (endpoint_id, event_id, occurred_at),
    CHECK ((state = 'pending') = (next_at IS NOT NULL))
) PARTITION BY RANGE (occurred_at);
CREATE INDEX webhook_delivery_pending ON webhook_delivery (next_at, endpoint_id) WHERE state = 'pending';
CREATE INDEX webhook_delivery_of_endpoint ON webhook_delivery (endpoint_id, next_at) WHERE state = 'pending';

-- As it was, and of the deliveries too.
CREATE OR REPLACE FUNCTION make_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    month  timestamp;
    name   text;
    made   integer := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['event', 'ledger_entry', 'webhook_delivery'] LOOP
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

REVOKE ALL ON webhook_endpoint, webhook_delivery FROM orders;
GRANT SELECT, DELETE, INSERT (id, customer_id, url, types, description, secret),
    UPDATE (url, types, description, secret, former_secret, former_until, failing_since, disabled_at, disabled_because)
    ON webhook_endpoint TO orders;
GRANT SELECT, INSERT, UPDATE (state, queued_at, next_at, step, attempts) ON webhook_delivery TO orders;
