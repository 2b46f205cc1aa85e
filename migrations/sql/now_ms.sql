-- The ledger's clock, for the leases, windows and idempotency keys of all gateways.
CREATE OR REPLACE FUNCTION seqroute_now_ms() RETURNS bigint
LANGUAGE sql VOLATILE AS $$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint $$
