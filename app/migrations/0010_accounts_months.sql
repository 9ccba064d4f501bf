-- The same accounts as before, told faster: a repetition that is counted ({1,64}) is one that PostgreSQL's expressions spread out, and
-- took 16 us for each entry of a customer's, a sixth of all that a batch of orders took. Not valid: those that are there were checked.
ALTER TABLE ledger_entry
    DROP CONSTRAINT ledger_entry_account_check,
    ADD CONSTRAINT ledger_entry_account CHECK (account = 'revenue'
        OR (starts_with(account, 'customer:') AND length(account) BETWEEN 10 AND 73 AND substr(account, 10) !~ '[^A-Za-z0-9._-]')) NOT VALID;

-- Closes the ledger's months that are over for a day, and detaches those of events and deliveries that ended so many months ago, or
-- earlier; none are detached where no number is given. Returns what was done to which partition; `kept` is an old one that has events
-- which are not published: the relay would never see them. What is detached stays as a table of its own. For the service's workers,
-- which do it each hour; where somebody else does, there is nothing to do. Traffic goes on beside this, so it waits for no lock long.
CREATE FUNCTION keep_months(months integer) RETURNS TABLE (done text, name text) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
    old record;
BEGIN
    IF months < 1 THEN
        RAISE EXCEPTION 'a month that is not over stays' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('keep_months', 0)) THEN
        RETURN;
    END IF;
    -- A transaction that began in a month may write into it after its end: a day is longer than any.
    RETURN QUERY SELECT 'closed', c FROM public.close_ledger_months(now() - interval '1 day') c;
    FOR old IN SELECT p.relname AS parent, c.relname AS child FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
        WHERE i.inhparent IN ('public.event'::regclass, 'public.webhook_delivery'::regclass)
            -- A month's end is in its bounds only.
            AND substring(pg_get_expr(c.relpartbound, c.oid) FROM $x$TO \('([^']+)'\)$x$)::timestamptz
                <= now() - make_interval(months => keep_months.months)
        ORDER BY c.relname
    LOOP
        name := old.child;
        done := 'detached';
        IF old.parent = 'event' THEN
            EXECUTE format('SELECT CASE WHEN EXISTS (SELECT FROM public.%I e, public.relay r WHERE r.name = ''events'''
                ' AND (e.xid, e.id) > (r.xid, r.id)) THEN ''kept'' ELSE ''detached'' END', name) INTO done;
        END IF;
        IF done = 'detached' THEN
            EXECUTE format('ALTER TABLE public.%I DETACH PARTITION public.%I', old.parent, name);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION keep_months(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keep_months(integer) TO orders;
