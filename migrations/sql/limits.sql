-- Rate limits of tenants and keys, by the rules of gateway/ledger/rates.py. Called by seqroute_apply under the tenant's
-- lock. `p_limits` are the accounts: [{"counter", "account", "rpm", "tpm", "parallel"}, ...].

-- The refusal of a turn of p_tokens, as ["limited", account, resource, its seconds, now]; NULL: it may be admitted.
-- p_pending and p_key_pending are turns of the same group that are not in `holds` yet.
CREATE OR REPLACE FUNCTION seqroute_limit(p_limits jsonb, p_tokens bigint, p_now_s bigint, p_tenant text,
  p_pending bigint, p_key text, p_key_pending bigint) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  a record;
  v_requests bigint;
  v_tokens bigint;
  v_parallel bigint;
  v_resource text;
BEGIN
  FOR a IN SELECT * FROM jsonb_to_recordset(p_limits)
    AS x(counter text, account text, rpm bigint, tpm bigint, parallel bigint)
  LOOP
    IF a.account = 'key' THEN
      -- A key may act for several tenants: its counters have a lock of their own.
      PERFORM 1 FROM keys x WHERE x.key_id = p_key FOR UPDATE;
    END IF;
    v_resource := NULL;
    IF a.parallel IS NOT NULL THEN
      IF a.account = 'key' THEN
        SELECT count(*) + p_key_pending INTO v_parallel FROM holds x
        WHERE x.limit_key_id = p_key AND x.state = 'open' AND x.limited IS NOT NULL;
      ELSE
        SELECT count(*) + p_pending INTO v_parallel FROM holds x
        WHERE x.tenant_id = p_tenant AND x.state = 'open' AND x.limited IS NOT NULL;
      END IF;
      IF v_parallel >= a.parallel THEN
        v_resource := 'parallel';
      END IF;
    END IF;
    IF v_resource IS NULL THEN
      SELECT COALESCE(sum(x.requests), 0), COALESCE(sum(x.tokens), 0) INTO v_requests, v_tokens
      FROM rate_counts x WHERE x.account = a.counter AND x.second > p_now_s - 61;
      IF v_requests >= a.rpm THEN
        v_resource := 'requests';
      ELSIF v_tokens + p_tokens > a.tpm THEN
        v_resource := 'tokens';
      END IF;
    END IF;
    IF v_resource IS NOT NULL THEN
      RETURN jsonb_build_array('limited', a.account, v_resource, (
        SELECT COALESCE(jsonb_agg(jsonb_build_array(x.second, x.requests, x.tokens)), '[]')
        FROM rate_counts x WHERE x.account = a.counter AND x.second > p_now_s - 61), p_now_s);
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- Count a turn in the running second; the answer is [[requests, tokens, oldest second], ...] of its accounts.
CREATE OR REPLACE FUNCTION seqroute_count(p_limits jsonb, p_requests bigint, p_tokens bigint, p_now_s bigint)
RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  a record;
  v_answer jsonb := '[]';
  v_new boolean;
BEGIN
  FOR a IN SELECT * FROM jsonb_to_recordset(p_limits) AS x(counter text)
  LOOP
    INSERT INTO rate_counts AS x (account, second, requests, tokens) VALUES (a.counter, p_now_s, p_requests, p_tokens)
    ON CONFLICT (account, second)
    DO UPDATE SET requests = x.requests + EXCLUDED.requests, tokens = x.tokens + EXCLUDED.tokens
    RETURNING x.requests = p_requests INTO v_new;
    IF v_new THEN
      DELETE FROM rate_counts x WHERE x.account = a.counter AND x.second <= p_now_s - 120;
    END IF;
    v_answer := v_answer || (
      SELECT jsonb_build_array(jsonb_build_array(COALESCE(sum(x.requests), 0), COALESCE(sum(x.tokens), 0),
        min(x.second) FILTER (WHERE x.requests > 0 OR x.tokens > 0)))
      FROM rate_counts x WHERE x.account = a.counter AND x.second > p_now_s - 61);
  END LOOP;
  RETURN v_answer;
END $$;

-- A turn used other than it was counted with: less is taken back from the second it was counted in, more counts now.
CREATE OR REPLACE FUNCTION seqroute_recount(p_hold holds, p_tokens bigint, p_now_s bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_change bigint := p_tokens - p_hold.limit_tokens;
  v_account text;
BEGIN
  FOREACH v_account IN ARRAY ARRAY['t:' || p_hold.tenant_id, 'k:' || p_hold.limit_key_id] LOOP
    CONTINUE WHEN p_hold.limited & CASE WHEN left(v_account, 1) = 't' THEN 1 ELSE 2 END = 0;
    IF v_change < 0 THEN
      UPDATE rate_counts x SET tokens = GREATEST(0, x.tokens + v_change)
      WHERE x.account = v_account AND x.second = p_hold.created_at_ms / 1000;
    ELSIF v_change > 0 THEN
      INSERT INTO rate_counts AS x (account, second, requests, tokens) VALUES (v_account, p_now_s, 0, v_change)
      ON CONFLICT (account, second) DO UPDATE SET tokens = x.tokens + EXCLUDED.tokens;
    END IF;
  END LOOP;
END $$
