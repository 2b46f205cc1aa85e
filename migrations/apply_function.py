"""The ledger's laws as Postgres functions, so that a whole group of operations costs one round trip.

They say what `gateway/ledger_sqlite_reserve.py` and `ledger_sqlite_resolve.py` say in Python, branch by branch; one
test suite runs against both.

Lock order: a tenant's row first; then its sessions, keys and holds. Whoever moves a tenant's money holds that one lock.
A group may carry operations of several tenants, one tenant after the other; it then takes their locks without waiting
(SKIP LOCKED) and answers "busy" for a tenant that somebody else is moving: such operations come again in a group of
their own, which waits (`p_wait`) and holds nothing else. So no transaction ever waits while it holds what another waits
for. Checkpoints take no tenant lock and never wait either: a hold that is locked is being resolved.

A tenant's row is read once and written once per group, however many of its turns the group carries.
"""

from __future__ import annotations

NEXT_RESET = """
CREATE OR REPLACE FUNCTION seqroute_next_reset(window_text text, now_ms bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  parts text[] := regexp_match(window_text, '^([1-9][0-9]{0,3})(h|d|mo)$');
  many int := parts[1]::int;
  length_ms bigint;
  months int;
  moment timestamp;
BEGIN
  IF parts[2] = 'mo' THEN
    moment := timestamp 'epoch' + (now_ms / 1000) * interval '1 second';
    months := (extract(year FROM moment)::int * 12 + extract(month FROM moment)::int - 1) / many * many + many;
    moment := make_timestamp(months / 12, months % 12 + 1, 1, 0, 0, 0);
    RETURN extract(epoch FROM moment)::bigint * 1000;
  END IF;
  length_ms := many * CASE parts[2] WHEN 'h' THEN 3600000::bigint ELSE 86400000::bigint END;
  RETURN (now_ms / length_ms + 1) * length_ms;
END $$
"""

REMEMBER = """
CREATE OR REPLACE FUNCTION seqroute_remember(stored text, news text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  memory jsonb := stored::jsonb;
  fresh jsonb := news::jsonb;
  added jsonb;
BEGIN
  IF fresh IS NULL THEN
    RETURN stored;
  ELSIF NOT fresh ? 'add' THEN
    RETURN news;
  END IF;
  SELECT jsonb_object_agg(x.key, COALESCE((memory->>x.key)::bigint, 0) + x.value::bigint) INTO added
  FROM jsonb_each_text(fresh->'add') x;
  RETURN memory || (fresh->'set') || added || jsonb_build_object(
    'warm', COALESCE(memory->'warm', '{}') || (fresh->'warm'),
    'answered', jsonb_path_query_array(COALESCE(memory->'answered', '[]') || (fresh->'answered'),
      '$[last - 15 to last]'));
END $$
"""

APPLY = """
CREATE OR REPLACE FUNCTION seqroute_apply(p_locking boolean, p_wait boolean, p_again boolean, p_ops jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  o record;
  t tenants%ROWTYPE;
  s sessions%ROWTYPE;
  k keys%ROWTYPE;
  h holds%ROWTYPE;
  c idempotency%ROWTYPE;
  results jsonb[] := '{}';
  result jsonb;
  v_found boolean;
  v_again boolean;
  v_tenant text;
  v_locked text;
  v_first boolean := true;
  v_busy boolean := false;
  v_granted bigint;
  v_turn int;
  v_available bigint;
  v_owed bigint;
  v_fits bigint;
  v_over bigint;
  v_key text;
  v_kind text;
  v_state text;
  v_source text;
  v_row decisions%ROWTYPE;
  v_was tenants%ROWTYPE;
BEGIN
  IF NOT p_locking THEN
    PERFORM set_config('synchronous_commit', 'off', true);
  ELSIF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;

  FOR o IN SELECT * FROM jsonb_to_recordset(p_ops) AS x(
    op text, again boolean, hold_id text, attempt_id text, decision_id text, session_id text, key_id text, model text,
    amount bigint, now_ms bigint, expires_at_ms bigint, first_nanousd bigint, ceiling_nanousd bigint,
      expected_turns int,
    max_turns int, checkpoint bigint, decision jsonb, claim_key text, claim_sha text, claim_expires_ms bigint,
    usage_source text, memory text, close_session boolean, answer_status int, answer_headers text, answer_body text,
    drop_claim boolean, tenant_id text)
  LOOP
    result := NULL;
    v_again := p_again OR COALESCE(o.again, false);

    IF p_locking THEN
      v_tenant := o.tenant_id;
      IF v_tenant IS NULL THEN
        SELECT x.tenant_id INTO v_tenant FROM holds x WHERE x.hold_id = o.hold_id;
      END IF;
      IF v_first OR v_tenant IS DISTINCT FROM v_locked THEN
        IF t IS DISTINCT FROM v_was THEN
          UPDATE tenants x SET reserved_nanousd = t.reserved_nanousd, spent_nanousd = t.spent_nanousd,
            overage_nanousd = t.overage_nanousd, reset_at_ms = t.reset_at_ms
          WHERE x.tenant_id = t.tenant_id;
        END IF;
        v_first := false;
        v_locked := v_tenant;
        v_busy := false;
        IF p_wait THEN
          SELECT * INTO t FROM tenants x WHERE x.tenant_id = v_tenant FOR UPDATE;
        ELSE
          SELECT * INTO t FROM tenants x WHERE x.tenant_id = v_tenant FOR UPDATE SKIP LOCKED;
          IF NOT FOUND THEN
            v_busy := EXISTS (SELECT FROM tenants x WHERE x.tenant_id = v_tenant);
          END IF;
        END IF;
        v_was := t;
      END IF;
      IF v_busy THEN
        results := array_append(results, '["busy"]'::jsonb);
        CONTINUE;
      END IF;
    END IF;

    IF o.op IN ('settle', 'release', 'sweep') THEN
      SELECT * INTO h FROM holds x WHERE x.hold_id = o.hold_id FOR UPDATE;
      IF NOT FOUND THEN
        results := array_append(results, jsonb_build_array('unknown_hold'));
        CONTINUE;
      END IF;
      SELECT * INTO s FROM sessions x WHERE x.tenant_id = h.tenant_id AND x.session_id = h.session_id FOR UPDATE;
    END IF;

    CASE o.op
    WHEN 'reserve' THEN
      IF t.tenant_id IS NULL THEN
        result := jsonb_build_array('tenant_missing');
      END IF;
      IF result IS NULL AND v_again THEN
        SELECT * INTO h FROM holds x WHERE x.hold_id = o.hold_id AND x.attempt_id = o.attempt_id;
        IF FOUND THEN
          SELECT x.turn INTO v_turn FROM decisions x WHERE x.decision_id = o.decision_id;
          SELECT * INTO s FROM sessions x WHERE x.tenant_id = t.tenant_id AND x.session_id = o.session_id;
          result := jsonb_build_array('reserved', COALESCE(v_turn, 0), s.granted_nanousd, s.reserved_nanousd,
            s.spent_nanousd, s.overage_nanousd, t.granted_nanousd, t.reserved_nanousd, t.spent_nanousd,
              t.overage_nanousd);
        END IF;
      END IF;
      IF result IS NULL AND o.claim_key IS NOT NULL THEN
        SELECT * INTO c FROM idempotency x WHERE x.tenant_id = t.tenant_id AND x.idempotency_key = o.claim_key;
        IF FOUND THEN
          IF c.expires_at_ms <= o.now_ms THEN
            DELETE FROM idempotency x WHERE x.tenant_id = t.tenant_id AND x.idempotency_key = o.claim_key;
          ELSE
            result := jsonb_build_array('claim', encode(c.body_sha256, 'hex'), c.decision_id, c.status, c.headers,
              encode(c.body, 'base64'));
          END IF;
        END IF;
      END IF;
      IF result IS NULL AND t.reset_at_ms <= o.now_ms THEN
        INSERT INTO ledger_entries (kind, scope, amount_nanousd, spent_delta_nanousd, overage_delta_nanousd,
          tenant_id,
          actor, created_at_ms)
        VALUES ('reset', 'tenant', t.spent_nanousd, -t.spent_nanousd, -t.overage_nanousd, t.tenant_id, 'sweeper',
          o.now_ms);
        t.spent_nanousd := 0;
        t.overage_nanousd := 0;
        t.reset_at_ms := seqroute_next_reset(t."window", o.now_ms);
      END IF;
      IF result IS NULL THEN
        SELECT * INTO s FROM sessions x WHERE x.tenant_id = t.tenant_id AND x.session_id = o.session_id FOR UPDATE;
        v_found := FOUND;
        IF v_found AND o.decision IS NOT NULL THEN
          IF s.state = 'closed' THEN
            result := jsonb_build_array('closed', 'closed');
          ELSIF s.turns >= o.max_turns THEN
            result := jsonb_build_array('closed', 'max_turns');
          END IF;
        END IF;
      END IF;
      IF result IS NULL THEN
        v_granted := COALESCE(o.ceiling_nanousd, CASE WHEN v_found THEN s.granted_nanousd ELSE o.first_nanousd END);
        IF NOT v_found OR o.ceiling_nanousd IS NOT NULL THEN
          v_granted := LEAST(v_granted, t.max_session_nanousd);  -- LEAST passes over a NULL: no limit
        END IF;
        IF v_found AND o.ceiling_nanousd IS NOT NULL THEN
          v_granted := GREATEST(v_granted, LEAST(s.granted_nanousd, s.reserved_nanousd + s.spent_nanousd));
        END IF;
        IF NOT v_found THEN
          s.reserved_nanousd := 0;
          s.spent_nanousd := 0;
          s.overage_nanousd := 0;
          s.turns := 0;
          s.last_decision_id := NULL;
        END IF;
        v_available := v_granted - s.reserved_nanousd - s.spent_nanousd;
        IF v_available < o.amount THEN
          result := jsonb_build_array('refused', 'session', v_granted, s.reserved_nanousd, s.spent_nanousd,
            s.overage_nanousd);
        END IF;
      END IF;
      IF result IS NULL THEN
        v_key := NULL;
        IF o.key_id IS NOT NULL THEN
          SELECT * INTO k FROM keys x WHERE x.key_id = o.key_id AND x.has_budget = 1 FOR UPDATE;
          IF FOUND THEN
            v_key := k.key_id;
            IF k.reset_at_ms <= o.now_ms THEN
              INSERT INTO ledger_entries (kind, scope, amount_nanousd, spent_delta_nanousd, overage_delta_nanousd,
                tenant_id, key_id, actor, created_at_ms)
              VALUES ('reset', 'key', k.spent_nanousd, -k.spent_nanousd, -k.overage_nanousd, t.tenant_id, k.key_id,
                'sweeper', o.now_ms);
              UPDATE keys x SET spent_nanousd = 0, overage_nanousd = 0,
                reset_at_ms = seqroute_next_reset(k."window", o.now_ms)
              WHERE x.key_id = k.key_id RETURNING * INTO k;
            END IF;
            IF k.granted_nanousd - k.reserved_nanousd - k.spent_nanousd < o.amount THEN
              result := jsonb_build_array('refused', 'key', k.granted_nanousd, k.reserved_nanousd, k.spent_nanousd,
                k.overage_nanousd);
            END IF;
          END IF;
        END IF;
      END IF;
      IF result IS NULL AND t.granted_nanousd - t.reserved_nanousd - t.spent_nanousd < o.amount THEN
        result := jsonb_build_array('refused', 'tenant', t.granted_nanousd, t.reserved_nanousd, t.spent_nanousd,
          t.overage_nanousd);
      END IF;
      IF result IS NULL THEN
        IF NOT v_found OR v_granted <> s.granted_nanousd THEN
          v_owed := v_granted - CASE WHEN v_found THEN s.granted_nanousd ELSE 0 END;
          INSERT INTO ledger_entries (kind, scope, amount_nanousd, granted_delta_nanousd, tenant_id, session_id,
            actor,
            created_at_ms)
          VALUES ('grant', 'session', v_owed, v_owed, t.tenant_id, o.session_id, 'client', o.now_ms);
        END IF;
        INSERT INTO ledger_entries (kind, scope, amount_nanousd, reserved_delta_nanousd, tenant_id, session_id,
          key_id,
          hold_id, attempt_id, decision_id, model, created_at_ms)
        VALUES ('reserve', 'turn', o.amount, o.amount, t.tenant_id, o.session_id, v_key, o.hold_id, o.attempt_id,
          o.decision_id, o.model, o.now_ms);
        INSERT INTO holds (hold_id, tenant_id, session_id, key_id, decision_id, attempt_id, model, amount_nanousd,
          state, dispatched, checkpoint_nanousd, expires_at_ms, created_at_ms)
        VALUES (o.hold_id, t.tenant_id, o.session_id, v_key, o.decision_id, o.attempt_id, o.model, o.amount, 'open',
          CASE WHEN o.checkpoint IS NULL THEN 0 ELSE 1 END, LEAST(COALESCE(o.checkpoint, 0), o.amount),
          o.expires_at_ms, o.now_ms);
        v_turn := s.turns;
        IF o.decision IS NOT NULL THEN
          v_row := jsonb_populate_record(NULL::decisions, o.decision);
          v_row.turn := v_turn;
          v_row.previous_decision_id := s.last_decision_id;
          v_row.session_budget_nanousd := v_granted;
          v_row.remaining_before_nanousd := v_available;
          INSERT INTO decisions SELECT v_row.*;
        ELSE
          SELECT x.turn INTO v_turn FROM decisions x WHERE x.decision_id = o.decision_id;
          v_turn := COALESCE(v_turn, s.turns);
        END IF;
        IF v_found THEN
          UPDATE sessions x SET granted_nanousd = v_granted, reserved_nanousd = x.reserved_nanousd + o.amount,
            turns = x.turns + CASE WHEN o.decision IS NULL THEN 0 ELSE 1 END,
            last_decision_id = CASE WHEN o.decision IS NULL THEN x.last_decision_id ELSE o.decision_id END,
            expected_turns = COALESCE(o.expected_turns, x.expected_turns), updated_at_ms = o.now_ms
          WHERE x.tenant_id = t.tenant_id AND x.session_id = o.session_id;
        ELSE
          INSERT INTO sessions (tenant_id, session_id, granted_nanousd, reserved_nanousd, turns, last_decision_id,
            expected_turns, created_at_ms, updated_at_ms)
          VALUES (t.tenant_id, o.session_id, v_granted, o.amount, CASE WHEN o.decision IS NULL THEN 0 ELSE 1 END,
            CASE WHEN o.decision IS NULL THEN NULL ELSE o.decision_id END, o.expected_turns, o.now_ms, o.now_ms);
        END IF;
        IF v_key IS NOT NULL THEN
          UPDATE keys x SET reserved_nanousd = x.reserved_nanousd + o.amount WHERE x.key_id = v_key;
        END IF;
        t.reserved_nanousd := t.reserved_nanousd + o.amount;
        IF o.claim_key IS NOT NULL THEN
          INSERT INTO idempotency (tenant_id, idempotency_key, body_sha256, decision_id, created_at_ms, expires_at_ms)
          VALUES (t.tenant_id, o.claim_key, decode(o.claim_sha, 'hex'), o.decision_id, o.now_ms, o.claim_expires_ms);
        END IF;
        result := jsonb_build_array('reserved', v_turn, v_granted, s.reserved_nanousd + o.amount, s.spent_nanousd,
          s.overage_nanousd, t.granted_nanousd, t.reserved_nanousd, t.spent_nanousd, t.overage_nanousd);
      END IF;

    WHEN 'settle', 'release', 'sweep' THEN
      v_kind := NULL;
      v_over := 0;
      v_source := COALESCE(o.usage_source, 'none');
      IF h.state = 'open' THEN
        -- v_owed: what this resolution posts in all; v_fits: what of it is held or left; v_over: the rest.
        IF o.op = 'settle' THEN
          v_kind := 'settle';
          v_state := 'settled';
          v_owed := o.amount;
          v_fits := LEAST(o.amount, h.amount_nanousd);
        ELSIF o.op = 'release' THEN
          v_kind := 'release';
          v_state := 'released';
          v_owed := 0;
          v_fits := 0;
        ELSIF h.expires_at_ms <= o.now_ms THEN
          IF h.dispatched = 1 THEN
            v_kind := 'orphan_post';
            v_state := 'orphaned';
            v_owed := h.checkpoint_nanousd;
            v_source := 'estimated';
          ELSE
            v_kind := 'expire';
            v_state := 'expired';
            v_owed := 0;
          END IF;
          v_fits := v_owed;
        END IF;
      ELSIF o.op = 'settle' AND h.state IN ('expired', 'orphaned') AND h.late = 0 THEN
        v_kind := 'late_post';
        v_state := h.state;
        v_owed := GREATEST(0, o.amount - h.posted_nanousd);
        v_fits := LEAST(v_owed, s.granted_nanousd - s.reserved_nanousd - s.spent_nanousd,
          t.granted_nanousd - t.reserved_nanousd - t.spent_nanousd);
        IF h.key_id IS NOT NULL THEN
          SELECT LEAST(v_fits, x.granted_nanousd - x.reserved_nanousd - x.spent_nanousd) INTO v_fits
          FROM keys x WHERE x.key_id = h.key_id;
        END IF;
        v_fits := GREATEST(0, v_fits);
      END IF;

      IF v_kind IS NULL THEN
        IF v_again AND o.op = 'settle' AND h.state = 'settled' AND h.posted_nanousd = o.amount THEN
          v_kind := 'settle';
          v_over := GREATEST(0, o.amount - h.amount_nanousd);
        ELSIF v_again AND o.op = 'release' AND h.state = 'released' THEN
          v_kind := 'release';
        ELSE
          v_kind := CASE WHEN o.op = 'sweep' THEN 'none' ELSE 'already' END;
        END IF;
      ELSE
        v_over := v_owed - v_fits;
        v_available := CASE WHEN h.state = 'open' THEN h.amount_nanousd ELSE 0 END;
        INSERT INTO ledger_entries (kind, scope, amount_nanousd, reserved_delta_nanousd, spent_delta_nanousd,
          tenant_id,
          session_id, key_id, hold_id, attempt_id, decision_id, model, usage_source, created_at_ms)
        VALUES (v_kind, 'turn', CASE WHEN v_kind IN ('release', 'expire') THEN h.amount_nanousd ELSE v_fits END,
          -v_available, v_fits, h.tenant_id, h.session_id, h.key_id, h.hold_id, h.attempt_id, h.decision_id, h.model,
          v_source, o.now_ms);
        IF v_over > 0 THEN
          INSERT INTO ledger_entries (kind, scope, amount_nanousd, spent_delta_nanousd, overage_delta_nanousd,
            tenant_id,
            session_id, key_id, hold_id, attempt_id, decision_id, model, usage_source, created_at_ms)
          VALUES ('overage', 'turn', v_over, v_over, v_over, h.tenant_id, h.session_id, h.key_id, h.hold_id,
            h.attempt_id,
            h.decision_id, h.model, v_source, o.now_ms);
        END IF;
        UPDATE sessions x SET reserved_nanousd = x.reserved_nanousd - v_available,
          spent_nanousd = x.spent_nanousd + v_owed, overage_nanousd = x.overage_nanousd + v_over,
          memory = seqroute_remember(x.memory, o.memory),
          state = CASE WHEN o.close_session THEN 'closed' ELSE x.state END, updated_at_ms = o.now_ms
        WHERE x.tenant_id = h.tenant_id AND x.session_id = h.session_id RETURNING * INTO s;
        IF h.key_id IS NOT NULL THEN
          UPDATE keys x SET reserved_nanousd = x.reserved_nanousd - v_available,
            spent_nanousd = x.spent_nanousd + v_owed, overage_nanousd = x.overage_nanousd + v_over
          WHERE x.key_id = h.key_id;
        END IF;
        t.reserved_nanousd := t.reserved_nanousd - v_available;
        t.spent_nanousd := t.spent_nanousd + v_owed;
        t.overage_nanousd := t.overage_nanousd + v_over;
        UPDATE holds x SET state = v_state, posted_nanousd = x.posted_nanousd + v_owed,
          late = CASE WHEN v_kind = 'late_post' THEN 1 ELSE 0 END, resolved_at_ms = COALESCE(x.resolved_at_ms,
            o.now_ms)
        WHERE x.hold_id = h.hold_id;
        v_available := s.granted_nanousd - s.reserved_nanousd - s.spent_nanousd;
        IF o.op = 'sweep' THEN
          UPDATE decisions x SET cost_nanousd = COALESCE(x.cost_nanousd, 0) + v_owed,
            usage_source = COALESCE(x.usage_source, v_source), remaining_after_nanousd = v_available,
            error_code = CASE WHEN x.status = 'pending' THEN v_state ELSE x.error_code END,
            completed_at_ms = CASE WHEN x.status = 'pending' THEN o.now_ms ELSE x.completed_at_ms END,
            status = CASE WHEN x.status = 'pending' THEN 'orphaned' ELSE x.status END
          WHERE x.decision_id = h.decision_id;
          DELETE FROM idempotency x WHERE x.decision_id = h.decision_id AND x.status IS NULL;
        ELSE
          v_row := jsonb_populate_record(NULL::decisions, COALESCE(o.decision, '{}'));
          UPDATE decisions x SET
            cost_nanousd = COALESCE(x.cost_nanousd, 0) + v_owed, remaining_after_nanousd = v_available,
            usage_source = COALESCE(v_row.usage_source, x.usage_source), model = COALESCE(v_row.model, x.model),
            action = COALESCE(v_row.action, x.action), propensity = COALESCE(v_row.propensity, x.propensity),
            reason = COALESCE(v_row.reason, x.reason), completion_id = COALESCE(v_row.completion_id, x.completion_id),
            status = COALESCE(v_row.status, x.status), input_tokens = COALESCE(v_row.input_tokens, x.input_tokens),
            cached_tokens = COALESCE(v_row.cached_tokens, x.cached_tokens),
            output_tokens = COALESCE(v_row.output_tokens, x.output_tokens),
            latency_ms = COALESCE(v_row.latency_ms, x.latency_ms),
            first_byte_ms = COALESCE(v_row.first_byte_ms, x.first_byte_ms),
            finish_reason = COALESCE(v_row.finish_reason, x.finish_reason),
            error_code = COALESCE(v_row.error_code, x.error_code), signals = COALESCE(v_row.signals, x.signals),
            request_text = COALESCE(v_row.request_text, x.request_text),
            response_text = COALESCE(v_row.response_text, x.response_text),
            completed_at_ms = COALESCE(v_row.completed_at_ms, x.completed_at_ms)
          WHERE x.decision_id = h.decision_id;
          IF o.answer_status IS NOT NULL THEN
            UPDATE idempotency x SET status = o.answer_status, headers = o.answer_headers,
              body = decode(o.answer_body, 'base64')
            WHERE x.decision_id = h.decision_id AND x.status IS NULL;
          ELSIF o.op = 'release' AND o.drop_claim THEN
            DELETE FROM idempotency x WHERE x.decision_id = h.decision_id AND x.status IS NULL;
          END IF;
        END IF;
      END IF;
      result := jsonb_build_array(v_kind, v_over, s.granted_nanousd, s.reserved_nanousd, s.spent_nanousd,
        s.overage_nanousd, t.granted_nanousd, t.reserved_nanousd, t.spent_nanousd, t.overage_nanousd);

    WHEN 'reset' THEN
      result := 'false';
      IF o.key_id IS NULL THEN
        IF t.reset_at_ms <= o.now_ms THEN
          INSERT INTO ledger_entries (kind, scope, amount_nanousd, spent_delta_nanousd, overage_delta_nanousd,
            tenant_id,
            actor, created_at_ms)
          VALUES ('reset', 'tenant', t.spent_nanousd, -t.spent_nanousd, -t.overage_nanousd, t.tenant_id, 'sweeper',
            o.now_ms);
          t.spent_nanousd := 0;
          t.overage_nanousd := 0;
          t.reset_at_ms := seqroute_next_reset(t."window", o.now_ms);
          result := 'true';
        END IF;
      ELSE
        SELECT * INTO k FROM keys x WHERE x.key_id = o.key_id FOR UPDATE;
        IF k.reset_at_ms <= o.now_ms THEN
          INSERT INTO ledger_entries (kind, scope, amount_nanousd, spent_delta_nanousd, overage_delta_nanousd,
            tenant_id,
            key_id, actor, created_at_ms)
          VALUES ('reset', 'key', k.spent_nanousd, -k.spent_nanousd, -k.overage_nanousd, k.tenant_id, k.key_id,
            'sweeper',
            o.now_ms);
          UPDATE keys x SET spent_nanousd = 0, overage_nanousd = 0, reset_at_ms = seqroute_next_reset(k."window",
            o.now_ms)
          WHERE x.key_id = k.key_id;
          result := 'true';
        END IF;
      END IF;

    WHEN 'mark', 'checkpoint' THEN  -- 'mark': from a gateway of the revision before
      UPDATE holds x SET dispatched = 1,
        checkpoint_nanousd = LEAST(GREATEST(x.checkpoint_nanousd, o.amount), x.amount_nanousd),
        expires_at_ms = GREATEST(x.expires_at_ms, o.expires_at_ms)
      WHERE x.hold_id = (
        SELECT y.hold_id FROM holds y WHERE y.hold_id = o.hold_id AND y.state = 'open' FOR UPDATE SKIP LOCKED);
      result := to_jsonb(FOUND);

    WHEN 'standing' THEN
      SELECT jsonb_build_array(a.granted_nanousd, a.reserved_nanousd, a.spent_nanousd, a.overage_nanousd,
        b.session_id,
        b.granted_nanousd, b.reserved_nanousd, b.spent_nanousd, b.overage_nanousd, b.state, b.turns, b.expected_turns,
        b.memory, b.last_decision_id, b.quality_count, b.quality_sum, b.last_quality, b.created_at_ms,
          b.updated_at_ms)
      INTO result FROM tenants a LEFT JOIN sessions b ON b.tenant_id = a.tenant_id AND b.session_id = o.session_id
      WHERE a.tenant_id = o.tenant_id;

    WHEN 'claim' THEN
      SELECT jsonb_build_array('claim', encode(x.body_sha256, 'hex'), x.decision_id, x.status, x.headers,
        encode(x.body, 'base64'))
      INTO result FROM idempotency x
      WHERE x.tenant_id = o.tenant_id AND x.idempotency_key = o.claim_key AND x.expires_at_ms > o.now_ms;
    END CASE;

    results := array_append(results, result);
  END LOOP;

  IF t IS DISTINCT FROM v_was THEN
    UPDATE tenants x SET reserved_nanousd = t.reserved_nanousd, spent_nanousd = t.spent_nanousd,
      overage_nanousd = t.overage_nanousd, reset_at_ms = t.reset_at_ms
    WHERE x.tenant_id = t.tenant_id;
  END IF;
  RETURN to_jsonb(results);
END $$
"""
