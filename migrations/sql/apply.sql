-- The ledger's rules as a Postgres function, so that a group of operations costs one round trip.
--
-- The branches match gateway/ledger/sqlite_reserve.py and sqlite_resolve.py; one test suite runs against both. Time is
-- the database's (seqroute_now_ms), read again after each wait for a lock: operations carry durations only, so that no
-- gateway's clock affects another's money.
--
-- Lock order: a tenant's row first, then its sessions, keys and holds. Moving a tenant's money requires that lock. A
-- group may contain operations of several tenants, one tenant after the other; it then takes their locks without
-- waiting (SKIP LOCKED) and answers "busy" for a tenant locked by another transaction. Such operations are retried in a
-- group of one tenant, which waits (p_wait) and holds no other lock, so that no deadlock is possible. Checkpoints take
-- no tenant lock and never wait: a locked hold is being resolved.
--
-- A tenant's row is read and written once per group. New rows are collected and inserted by one statement per table at
-- the end: starting a statement and reading its table's CHECK constraints costs three times as much as a row. No
-- operation can refer to a hold before its group was answered, so none misses a row that is not inserted yet.
CREATE OR REPLACE FUNCTION seqroute_apply(p_locking boolean, p_wait boolean, p_again boolean, p_ops jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  o record;
  t tenants%ROWTYPE;
  s sessions%ROWTYPE;
  p sessions%ROWTYPE;
  v_chain sessions[];
  v_parent text;
  v_room bigint;
  v_kept bigint;
  k keys%ROWTYPE;
  h holds%ROWTYPE;
  c idempotency%ROWTYPE;
  e ledger_entries%ROWTYPE;
  v_blank ledger_entries%ROWTYPE;
  v_entries ledger_entries[] := '{}';
  v_holds holds[] := '{}';
  v_decisions decisions[] := '{}';
  results jsonb[] := '{}';
  result jsonb;
  v_found boolean;
  v_by_header boolean;
  v_again boolean;
  v_now_ms bigint := seqroute_now_ms();
  v_counted boolean;
  v_key_counted boolean;
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
  v_found_rows jsonb;
  v_was tenants%ROWTYPE;
BEGIN
  IF NOT p_locking THEN
    PERFORM set_config('synchronous_commit', 'off', true);
  ELSIF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;

  v_blank.granted_delta_nanousd := 0; v_blank.reserved_delta_nanousd := 0; v_blank.spent_delta_nanousd := 0;
  v_blank.overage_delta_nanousd := 0; v_blank.usage_source := 'none';

  FOR o IN SELECT * FROM jsonb_to_recordset(p_ops) AS x(
    op text, again boolean, hold_id text, attempt_id text, decision_id text, session_id text, key_id text, model text,
    amount bigint, ttl_ms bigint, first_nanousd bigint, ceiling_nanousd bigint, asked text, times_by_hand int,
    expected_turns int, max_turns int, parent_session_id text, checkpoint bigint, decision jsonb, claim_key text,
    claim_sha text, claim_kept_ms bigint, usage_source text, memory text, close_session boolean, answer_status int,
    answer_headers text, answer_body text, drop_claim boolean, tenant_id text, beginning jsonb, digests jsonb,
    answers jsonb, limits jsonb, limit_mask int, limit_key text, limit_tokens bigint, tokens bigint,
    lease_ms bigint, kept bigint, closing boolean)
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
            overage_nanousd = t.overage_nanousd, reset_at_ms = t.reset_at_ms, last_reset_at_ms = t.last_reset_at_ms
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
        v_now_ms := seqroute_now_ms();
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
            t.overage_nanousd, CASE WHEN s.parent_session_id IS NOT NULL
              THEN seqroute_move_above(t.tenant_id, o.session_id, 0, 0, 0, NULL) END);
        END IF;
      END IF;
      IF result IS NULL AND o.claim_key IS NOT NULL THEN
        SELECT * INTO c FROM idempotency x WHERE x.tenant_id = t.tenant_id AND x.idempotency_key = o.claim_key;
        IF FOUND THEN
          IF c.expires_at_ms <= v_now_ms THEN
            DELETE FROM idempotency x WHERE x.tenant_id = t.tenant_id AND x.idempotency_key = o.claim_key;
          ELSE
            result := jsonb_build_array('claim', encode(c.body_sha256, 'hex'), c.decision_id, c.status, c.headers,
              encode(c.body, 'base64'));
          END IF;
        END IF;
      END IF;
      IF result IS NULL AND t.reset_at_ms <= v_now_ms THEN
        e := v_blank;
        e.kind := 'reset'; e.scope := 'tenant'; e.actor := 'sweeper'; e.created_at_ms := v_now_ms;
        e.tenant_id := t.tenant_id; e.amount_nanousd := t.spent_nanousd;
        e.spent_delta_nanousd := -t.spent_nanousd; e.overage_delta_nanousd := -t.overage_nanousd;
        v_entries := array_append(v_entries, e);
        t.spent_nanousd := 0;
        t.overage_nanousd := 0;
        t.reset_at_ms := seqroute_next_reset(t."window", v_now_ms);
        t.last_reset_at_ms := v_now_ms;
      END IF;
      IF result IS NULL THEN
        SELECT * INTO s FROM sessions x WHERE x.tenant_id = t.tenant_id AND x.session_id = o.session_id FOR UPDATE;
        v_found := FOUND;
        IF v_found AND (o.decision IS NOT NULL OR o.again) THEN
          IF s.state <> 'open' THEN
            result := jsonb_build_array('closed', s.state);
          ELSIF s.turns >= o.max_turns THEN
            result := jsonb_build_array('closed', 'max_turns');
          END IF;
        END IF;
      END IF;
      IF result IS NULL AND o.limits IS NOT NULL AND o.decision IS NOT NULL THEN
        result := seqroute_limit(o.limits, o.limit_tokens, v_now_ms / 1000, t.tenant_id,
          (SELECT count(*) FROM unnest(v_holds) x WHERE x.tenant_id = t.tenant_id AND x.limited IS NOT NULL),
          o.limit_key, (SELECT count(*) FROM unnest(v_holds) x WHERE x.limit_key_id = o.limit_key));
      END IF;
      IF result IS NULL THEN
        -- The sessions above, the parent first; the tenant's lock keeps their money still.
        v_chain := NULL;
        v_parent := CASE WHEN v_found THEN s.parent_session_id ELSE o.parent_session_id END;
        IF o.parent_session_id <> COALESCE(v_parent, '') OR v_parent = o.session_id THEN
          result := jsonb_build_array('parent', 'other');
        ELSIF v_parent IS NOT NULL THEN
          SELECT array_agg(x ORDER BY l.distance) INTO v_chain FROM (
            SELECT v_parent AS id, 0 AS distance WHERE NOT v_found
            UNION ALL SELECT a.ancestor_id, a.distance FROM session_ancestors a
            WHERE a.tenant_id = t.tenant_id
              AND a.session_id = CASE WHEN v_found THEN o.session_id ELSE v_parent END) l
          JOIN sessions x ON x.tenant_id = t.tenant_id AND x.session_id = l.id;
          IF NOT v_found AND NOT EXISTS (
            SELECT FROM sessions x WHERE x.tenant_id = t.tenant_id AND x.session_id = v_parent) THEN
            result := jsonb_build_array('parent', 'unknown');
          ELSIF cardinality(v_chain) > 16 THEN
            result := jsonb_build_array('parent', 'depth');
          END IF;
        END IF;
      END IF;
      IF result IS NULL THEN
        IF NOT v_found THEN
          s.memory := '{}';
        END IF;
        v_by_header := o.ceiling_nanousd IS NOT NULL;
        IF v_by_header THEN
          SELECT CASE WHEN x.changes THEN o.ceiling_nanousd END, x.memory INTO o.ceiling_nanousd, s.memory
          FROM seqroute_budget_header(s.memory, COALESCE(o.asked, o.ceiling_nanousd::text), COALESCE(o.times_by_hand, 0)) x;
        END IF;
        v_granted := COALESCE(o.ceiling_nanousd, CASE WHEN v_found THEN s.granted_nanousd ELSE o.first_nanousd END);
        IF NOT v_found OR o.ceiling_nanousd IS NOT NULL THEN
          v_granted := LEAST(v_granted, t.max_session_nanousd);  -- LEAST ignores a NULL: no limit
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
          s.kept_nanousd := 0;
        END IF;
        IF v_chain IS NOT NULL THEN
          -- A child's limit is at most what the sessions above have; without one it has its parent's budget.
          IF o.ceiling_nanousd IS NULL THEN
            v_granted := CASE WHEN NOT v_found THEN v_chain[1].granted_nanousd
              WHEN s.own_limit = 1 THEN s.granted_nanousd
              ELSE GREATEST(s.granted_nanousd, v_chain[1].granted_nanousd) END;
          ELSE
            SELECT GREATEST(0, min(seqroute_free(x.granted_nanousd - x.reserved_nanousd - x.spent_nanousd,
              x.kept_nanousd))) INTO v_room
            FROM unnest(v_chain) x;
            v_granted := LEAST(v_granted, GREATEST(
              CASE WHEN v_found AND s.own_limit = 1 THEN s.granted_nanousd ELSE 0 END,
              s.reserved_nanousd + s.spent_nanousd + v_room));
            IF v_found THEN
              v_granted := GREATEST(v_granted, LEAST(s.granted_nanousd, s.reserved_nanousd + s.spent_nanousd));
            END IF;
          END IF;
        END IF;
        v_available := v_granted - s.reserved_nanousd - s.spent_nanousd;
        -- A turn raises what is kept, or gives it up with 0. A gateway of before 0029 says nothing about its turn: it
        -- may be the last answer, so nothing is kept from it.
        s.kept_nanousd := CASE WHEN o.kept = 0 THEN 0 ELSE GREATEST(s.kept_nanousd, o.kept) END;
        v_kept := CASE WHEN COALESCE(o.closing, true) THEN 0 ELSE s.kept_nanousd END;
        IF seqroute_free(v_available, v_kept) < o.amount THEN
          result := jsonb_build_array('refused', 'session', v_granted, s.reserved_nanousd, s.spent_nanousd,
            s.overage_nanousd, v_kept);
        END IF;
      END IF;
      IF result IS NULL AND v_chain IS NOT NULL THEN
        IF o.decision IS NOT NULL OR o.again THEN
          FOREACH p IN ARRAY v_chain LOOP
            IF p.state <> 'open' THEN
              result := jsonb_build_array('closed', 'parent_' || p.state);
              EXIT;
            END IF;
          END LOOP;
        END IF;
        IF result IS NULL THEN
          FOREACH p IN ARRAY v_chain LOOP
            IF seqroute_free(p.granted_nanousd - p.reserved_nanousd - p.spent_nanousd, p.kept_nanousd) < o.amount THEN
              result := jsonb_build_array('refused', 'parent', p.granted_nanousd, p.reserved_nanousd,
                p.spent_nanousd, p.overage_nanousd, p.kept_nanousd);
              EXIT;
            END IF;
          END LOOP;
        END IF;
      END IF;
      IF result IS NULL THEN
        v_key := NULL;
        IF o.key_id IS NOT NULL THEN
          SELECT * INTO k FROM keys x WHERE x.key_id = o.key_id AND x.has_budget = 1 FOR UPDATE;
          IF FOUND THEN
            v_key := k.key_id;
            IF k.reset_at_ms <= v_now_ms THEN
              e := v_blank;
              e.kind := 'reset'; e.scope := 'key'; e.actor := 'sweeper'; e.created_at_ms := v_now_ms;
              e.tenant_id := k.tenant_id; e.key_id := k.key_id; e.amount_nanousd := k.spent_nanousd;
              e.spent_delta_nanousd := -k.spent_nanousd; e.overage_delta_nanousd := -k.overage_nanousd;
              v_entries := array_append(v_entries, e);
              UPDATE keys x SET spent_nanousd = 0, overage_nanousd = 0, last_reset_at_ms = v_now_ms,
                reset_at_ms = seqroute_next_reset(k."window", v_now_ms)
              WHERE x.key_id = k.key_id RETURNING * INTO k;
            END IF;
            IF seqroute_free(k.granted_nanousd - k.reserved_nanousd - k.spent_nanousd, v_kept) < o.amount THEN
              result := jsonb_build_array('refused', 'key', k.granted_nanousd, k.reserved_nanousd, k.spent_nanousd,
                k.overage_nanousd, v_kept);
            END IF;
          END IF;
        END IF;
      END IF;
      IF result IS NULL
        AND seqroute_free(t.granted_nanousd - t.reserved_nanousd - t.spent_nanousd, v_kept) < o.amount THEN
        result := jsonb_build_array('refused', 'tenant', t.granted_nanousd, t.reserved_nanousd, t.spent_nanousd,
          t.overage_nanousd, v_kept);
      END IF;
      IF result IS NULL THEN
        IF NOT v_found OR v_granted <> s.granted_nanousd THEN
          v_owed := v_granted - CASE WHEN v_found THEN s.granted_nanousd ELSE 0 END;
          e := v_blank;
          e.kind := 'grant'; e.scope := 'session'; e.actor := 'client'; e.created_at_ms := v_now_ms;
          e.tenant_id := t.tenant_id; e.session_id := o.session_id;
          e.amount_nanousd := v_owed; e.granted_delta_nanousd := v_owed;
          v_entries := array_append(v_entries, e);
        END IF;
        e := v_blank;
        e.kind := 'reserve'; e.scope := 'turn'; e.created_at_ms := v_now_ms; e.model := o.model;
        e.tenant_id := t.tenant_id; e.session_id := o.session_id; e.key_id := v_key;
        e.hold_id := o.hold_id; e.attempt_id := o.attempt_id; e.decision_id := o.decision_id;
        e.amount_nanousd := o.amount; e.reserved_delta_nanousd := o.amount;
        v_entries := array_append(v_entries, e);
        h := NULL;
        h.hold_id := o.hold_id; h.attempt_id := o.attempt_id; h.decision_id := o.decision_id; h.model := o.model;
        h.tenant_id := t.tenant_id; h.session_id := o.session_id; h.key_id := v_key;
        h.state := 'open'; h.amount_nanousd := o.amount; h.posted_nanousd := 0; h.late := 0;
        h.dispatched := CASE WHEN o.checkpoint IS NULL THEN 0 ELSE 1 END;
        h.checkpoint_nanousd := LEAST(COALESCE(o.checkpoint, 0), o.amount);
        h.expires_at_ms := v_now_ms + o.ttl_ms; h.created_at_ms := v_now_ms;
        h.limited := o.limit_mask; h.limit_key_id := o.limit_key; h.limit_tokens := o.limit_tokens;
        v_holds := array_append(v_holds, h);
        v_turn := s.turns;
        IF o.decision IS NOT NULL THEN
          v_row := jsonb_populate_record(NULL::decisions, o.decision);
          v_row.turn := v_turn;
          v_row.created_at_ms := v_now_ms;
          v_row.previous_decision_id := s.last_decision_id;
          v_row.session_budget_nanousd := v_granted;
          v_row.remaining_before_nanousd := v_available;
          v_decisions := array_append(v_decisions, v_row);
        ELSE
          SELECT x.turn INTO v_turn FROM decisions x WHERE x.decision_id = o.decision_id;
          v_turn := COALESCE(v_turn, s.turns);
        END IF;
        IF v_found THEN
          UPDATE sessions x SET granted_nanousd = v_granted, reserved_nanousd = x.reserved_nanousd + o.amount,
            turns = x.turns + CASE WHEN o.decision IS NULL THEN 0 ELSE 1 END,
            last_decision_id = CASE WHEN o.decision IS NULL THEN x.last_decision_id ELSE o.decision_id END,
            expected_turns = COALESCE(o.expected_turns, x.expected_turns), updated_at_ms = v_now_ms,
            own_limit = CASE WHEN o.ceiling_nanousd IS NULL THEN x.own_limit ELSE 1 END,
            kept_nanousd = s.kept_nanousd, memory = CASE WHEN v_by_header THEN s.memory ELSE x.memory END
          WHERE x.tenant_id = t.tenant_id AND x.session_id = o.session_id;
        ELSE
          INSERT INTO sessions (tenant_id, session_id, granted_nanousd, reserved_nanousd, turns, last_decision_id,
            expected_turns, created_at_ms, updated_at_ms, parent_session_id, own_limit, kept_nanousd, memory)
          VALUES (t.tenant_id, o.session_id, v_granted, o.amount, CASE WHEN o.decision IS NULL THEN 0 ELSE 1 END,
            CASE WHEN o.decision IS NULL THEN NULL ELSE o.decision_id END, o.expected_turns, v_now_ms, v_now_ms,
            v_parent, CASE WHEN v_parent IS NOT NULL AND o.ceiling_nanousd IS NULL THEN 0 ELSE 1 END, s.kept_nanousd,
            s.memory);
        END IF;
        v_room := NULL;
        IF v_chain IS NOT NULL THEN
          IF NOT v_found THEN
            INSERT INTO session_ancestors (tenant_id, session_id, ancestor_id, distance)
            SELECT t.tenant_id, o.session_id, v_parent, 1
            UNION ALL SELECT a.tenant_id, o.session_id, a.ancestor_id, a.distance + 1 FROM session_ancestors a
            WHERE a.tenant_id = t.tenant_id AND a.session_id = v_parent;
          END IF;
          v_room := seqroute_move_above(t.tenant_id, o.session_id, o.amount, 0, 0, v_now_ms);
        END IF;
        IF v_key IS NOT NULL THEN
          UPDATE keys x SET reserved_nanousd = x.reserved_nanousd + o.amount WHERE x.key_id = v_key;
        END IF;
        t.reserved_nanousd := t.reserved_nanousd + o.amount;
        IF o.claim_key IS NOT NULL THEN
          INSERT INTO idempotency (tenant_id, idempotency_key, body_sha256, decision_id, created_at_ms, expires_at_ms)
          VALUES (t.tenant_id, o.claim_key, decode(o.claim_sha, 'hex'), o.decision_id, v_now_ms,
            v_now_ms + o.claim_kept_ms);
        END IF;
        result := jsonb_build_array('reserved', v_turn, v_granted, s.reserved_nanousd + o.amount, s.spent_nanousd,
          s.overage_nanousd, t.granted_nanousd, t.reserved_nanousd, t.spent_nanousd, t.overage_nanousd, v_room);
        IF o.limits IS NOT NULL THEN
          result := result || jsonb_build_array(seqroute_count(o.limits,
            CASE WHEN o.decision IS NULL THEN 0 ELSE 1 END, o.limit_tokens, v_now_ms / 1000), v_now_ms / 1000);
        END IF;
      END IF;

    WHEN 'settle', 'release', 'sweep' THEN
      v_kind := NULL;
      v_room := NULL;
      v_over := 0;
      v_counted := true;
      v_key_counted := true;
      v_source := COALESCE(o.usage_source, 'none');
      IF h.state = 'open' THEN
        -- v_owed: amount posted in total; v_fits: the part that is held or available; v_over: the rest.
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
        ELSIF h.expires_at_ms = o.lease_ms THEN
          -- The lease was not renewed since the sweeper saw that it is over.
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
        v_owed := o.amount - h.posted_nanousd;
        IF v_owed < 0 AND v_source = 'reported' THEN
          v_kind := 'refund';
        END IF;
        v_owed := CASE WHEN v_kind = 'refund' THEN v_owed ELSE GREATEST(0, v_owed) END;
        v_fits := LEAST(v_owed, s.granted_nanousd - s.reserved_nanousd - s.spent_nanousd,
          t.granted_nanousd - t.reserved_nanousd - t.spent_nanousd);
        IF s.parent_session_id IS NOT NULL THEN
          -- What is spent already may take what is kept for a last answer: it is no overage.
          SELECT LEAST(v_fits, min(x.granted_nanousd - x.reserved_nanousd - x.spent_nanousd)) INTO v_fits
          FROM session_ancestors a JOIN sessions x ON x.tenant_id = a.tenant_id AND x.session_id = a.ancestor_id
          WHERE a.tenant_id = h.tenant_id AND a.session_id = h.session_id;
        END IF;
        IF h.key_id IS NOT NULL THEN
          SELECT LEAST(v_fits, x.granted_nanousd - x.reserved_nanousd - x.spent_nanousd) INTO v_fits
          FROM keys x WHERE x.key_id = h.key_id;
        END IF;
        v_fits := CASE WHEN v_kind = 'refund' THEN v_owed ELSE GREATEST(0, v_fits) END;
      ELSIF o.op = 'release' AND h.state = 'orphaned' AND h.late = 0 AND h.posted_nanousd > 0 THEN
        v_kind := 'refund';
        v_state := h.state;
        v_owed := -h.posted_nanousd;
        v_fits := v_owed;
      END IF;
      IF v_kind = 'refund' THEN
        -- An account whose window was reset since the sweeper posted no longer counts that post.
        v_counted := t.last_reset_at_ms IS NULL OR t.last_reset_at_ms < h.resolved_at_ms;
        IF h.key_id IS NOT NULL THEN
          SELECT x.last_reset_at_ms IS NULL OR x.last_reset_at_ms < h.resolved_at_ms INTO v_key_counted
          FROM keys x WHERE x.key_id = h.key_id;
        END IF;
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
        IF s.parent_session_id IS NOT NULL THEN
          v_room := seqroute_move_above(h.tenant_id, h.session_id, 0, 0, 0, NULL);
        END IF;
      ELSE
        IF h.limited IS NOT NULL AND h.state = 'open' AND o.op <> 'sweep' THEN
          PERFORM seqroute_recount(h, COALESCE(o.tokens, 0), v_now_ms / 1000);
        END IF;
        v_over := v_owed - v_fits;
        v_available := CASE WHEN h.state = 'open' THEN h.amount_nanousd ELSE 0 END;
        e := v_blank;
        e.kind := v_kind; e.scope := 'turn'; e.created_at_ms := v_now_ms; e.model := h.model;
        e.tenant_id := h.tenant_id; e.session_id := h.session_id; e.key_id := h.key_id;
        e.hold_id := h.hold_id; e.attempt_id := h.attempt_id; e.decision_id := h.decision_id;
        e.amount_nanousd := CASE WHEN v_kind IN ('release', 'expire') THEN h.amount_nanousd ELSE abs(v_fits) END;
        e.reserved_delta_nanousd := -v_available; e.spent_delta_nanousd := v_fits; e.usage_source := v_source;
        IF NOT (v_counted AND v_key_counted) THEN
          e.scope := 'session';
        END IF;
        v_entries := array_append(v_entries, e);
        IF e.scope = 'session' THEN
          e.session_id := NULL; e.key_id := NULL; e.hold_id := NULL; e.attempt_id := NULL; e.decision_id := NULL;
          e.model := NULL;
          IF v_counted THEN
            e.scope := 'tenant';
            v_entries := array_append(v_entries, e);
          END IF;
          IF h.key_id IS NOT NULL AND v_key_counted THEN
            e.scope := 'key'; e.key_id := h.key_id;
            v_entries := array_append(v_entries, e);
          END IF;
        END IF;
        IF v_over > 0 THEN
          e.kind := 'overage'; e.amount_nanousd := v_over; e.reserved_delta_nanousd := 0;
          e.spent_delta_nanousd := v_over; e.overage_delta_nanousd := v_over;
          v_entries := array_append(v_entries, e);
        END IF;
        UPDATE sessions x SET reserved_nanousd = x.reserved_nanousd - v_available,
          spent_nanousd = x.spent_nanousd + v_owed, overage_nanousd = x.overage_nanousd + v_over,
          memory = seqroute_remember(x.memory, o.memory),
          state = CASE WHEN o.close_session THEN 'closed' ELSE x.state END, updated_at_ms = v_now_ms
        WHERE x.tenant_id = h.tenant_id AND x.session_id = h.session_id RETURNING * INTO s;
        IF s.parent_session_id IS NOT NULL THEN
          v_room := seqroute_move_above(h.tenant_id, h.session_id, -v_available, v_owed, v_over, v_now_ms);
        END IF;
        IF h.key_id IS NOT NULL AND v_key_counted THEN
          UPDATE keys x SET reserved_nanousd = x.reserved_nanousd - v_available,
            spent_nanousd = x.spent_nanousd + v_owed, overage_nanousd = x.overage_nanousd + v_over
          WHERE x.key_id = h.key_id;
        END IF;
        t.reserved_nanousd := t.reserved_nanousd - v_available;
        t.spent_nanousd := t.spent_nanousd + CASE WHEN v_counted THEN v_owed ELSE 0 END;
        t.overage_nanousd := t.overage_nanousd + v_over;
        UPDATE holds x SET state = v_state, posted_nanousd = x.posted_nanousd + v_owed,
          late = CASE WHEN v_kind IN ('late_post', 'refund') THEN 1 ELSE 0 END,
          resolved_at_ms = COALESCE(x.resolved_at_ms, v_now_ms)
        WHERE x.hold_id = h.hold_id;
        v_available := s.granted_nanousd - s.reserved_nanousd - s.spent_nanousd;
        IF o.op = 'sweep' THEN
          UPDATE decisions x SET cost_nanousd = COALESCE(x.cost_nanousd, 0) + v_owed,
            usage_source = COALESCE(x.usage_source, v_source), remaining_after_nanousd = v_available,
            error_code = CASE WHEN x.status = 'pending' THEN v_state ELSE x.error_code END,
            completed_at_ms = CASE WHEN x.status = 'pending' THEN v_now_ms ELSE x.completed_at_ms END,
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
            failures = COALESCE(v_row.failures, x.failures),
            request_text = COALESCE(v_row.request_text, x.request_text),
            response_text = COALESCE(v_row.response_text, x.response_text),
            completed_at_ms = CASE WHEN v_row.status IS NULL THEN x.completed_at_ms ELSE v_now_ms END
          WHERE x.decision_id = h.decision_id;
          IF o.beginning IS NOT NULL THEN
            INSERT INTO conversation_beginnings AS x
              (tenant_id, key_id, digest, session_id, messages, opening, answer, at_ms)
            VALUES (h.tenant_id, o.beginning->>'key_id', o.beginning->>'digest', h.session_id,
              (o.beginning->>'messages')::int, (o.beginning->>'opening')::int, o.beginning->>'answer', v_now_ms)
            ON CONFLICT (tenant_id, key_id, digest, session_id)
            DO UPDATE SET answer = excluded.answer, continued = NULL, at_ms = excluded.at_ms;
            IF o.beginning->>'continues' IS NOT NULL THEN
              UPDATE conversation_beginnings x SET continued = o.beginning->>'continued_with'
              WHERE x.tenant_id = h.tenant_id AND x.key_id = o.beginning->>'key_id'
                AND x.digest = o.beginning->>'continues' AND x.session_id = h.session_id;
            END IF;
          END IF;
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
        s.overage_nanousd, t.granted_nanousd, t.reserved_nanousd, t.spent_nanousd, t.overage_nanousd, v_room);

    WHEN 'reset' THEN
      result := 'false';
      IF o.key_id IS NULL THEN
        IF t.reset_at_ms <= v_now_ms THEN
          e := v_blank;
          e.kind := 'reset'; e.scope := 'tenant'; e.actor := 'sweeper'; e.created_at_ms := v_now_ms;
          e.tenant_id := t.tenant_id; e.amount_nanousd := t.spent_nanousd;
          e.spent_delta_nanousd := -t.spent_nanousd; e.overage_delta_nanousd := -t.overage_nanousd;
          v_entries := array_append(v_entries, e);
          t.spent_nanousd := 0;
          t.overage_nanousd := 0;
          t.reset_at_ms := seqroute_next_reset(t."window", v_now_ms);
          t.last_reset_at_ms := v_now_ms;
          result := 'true';
        END IF;
      ELSE
        SELECT * INTO k FROM keys x WHERE x.key_id = o.key_id FOR UPDATE;
        IF k.reset_at_ms <= v_now_ms THEN
          e := v_blank;
          e.kind := 'reset'; e.scope := 'key'; e.actor := 'sweeper'; e.created_at_ms := v_now_ms;
          e.tenant_id := k.tenant_id; e.key_id := k.key_id; e.amount_nanousd := k.spent_nanousd;
          e.spent_delta_nanousd := -k.spent_nanousd; e.overage_delta_nanousd := -k.overage_nanousd;
          v_entries := array_append(v_entries, e);
          UPDATE keys x SET spent_nanousd = 0, overage_nanousd = 0, last_reset_at_ms = v_now_ms,
            reset_at_ms = seqroute_next_reset(k."window", v_now_ms)
          WHERE x.key_id = k.key_id;
          result := 'true';
        END IF;
      END IF;

    WHEN 'checkpoint' THEN
      UPDATE holds x SET dispatched = 1,
        checkpoint_nanousd = LEAST(GREATEST(x.checkpoint_nanousd, o.amount), x.amount_nanousd),
        expires_at_ms = v_now_ms + o.ttl_ms
      WHERE x.hold_id = (
        SELECT y.hold_id FROM holds y WHERE y.hold_id = o.hold_id AND y.state = 'open' FOR UPDATE SKIP LOCKED);
      result := to_jsonb(FOUND);

    -- 'standing' and 'snapshot' are what gateways before revision 0029 ask for, 'accounts' those before 0034.
    WHEN 'standing', 'snapshot', 'accounts', 'family' THEN
      -- A window that has ended is shown as it will be reset: else its first turn would be refused before it could.
      SELECT jsonb_build_array(a.granted_nanousd, a.reserved_nanousd,
        CASE WHEN a.reset_at_ms <= v_now_ms THEN 0 ELSE a.spent_nanousd END,
        CASE WHEN a.reset_at_ms <= v_now_ms THEN 0 ELSE a.overage_nanousd END,
        b.session_id,
        b.granted_nanousd, b.reserved_nanousd, b.spent_nanousd, b.overage_nanousd, b.state, b.turns, b.expected_turns,
        b.memory, b.last_decision_id, b.quality_count, b.quality_sum, b.last_quality, b.created_at_ms,
        b.updated_at_ms, v_now_ms)
        || CASE WHEN o.op <> 'standing' THEN jsonb_build_array(b.parent_session_id, b.own_limit) ELSE '[]' END
        || CASE WHEN o.op IN ('accounts', 'family') THEN jsonb_build_array(b.kept_nanousd) ELSE '[]' END
        || CASE WHEN o.op <> 'standing' THEN jsonb_build_array(
          CASE WHEN b.parent_session_id IS NOT NULL THEN (
            SELECT jsonb_build_array(
              min(seqroute_free(x.granted_nanousd - x.reserved_nanousd - x.spent_nanousd, x.kept_nanousd)),
              min(seqroute_free(x.granted_nanousd - x.spent_nanousd, x.kept_nanousd)),
              min(x.granted_nanousd) FILTER (WHERE l.distance = 1), count(*))
              || CASE WHEN o.op = 'family' THEN jsonb_build_array(
                (array_agg(l.ancestor_id ORDER BY l.distance DESC))[1]) ELSE '[]' END
            FROM session_ancestors l JOIN sessions x ON x.tenant_id = l.tenant_id AND x.session_id = l.ancestor_id
            WHERE l.tenant_id = b.tenant_id AND l.session_id = b.session_id) END) ELSE '[]' END
      INTO result FROM tenants a LEFT JOIN sessions b ON b.tenant_id = a.tenant_id AND b.session_id = o.session_id
      WHERE a.tenant_id = o.tenant_id;

    WHEN 'beginnings' THEN
      result := '[]';
      FOR v_turn IN 0 .. jsonb_array_length(o.digests) - 1 LOOP
        SELECT jsonb_agg(jsonb_build_array(z.digest, z.session_id, z.messages, z.opening, z.answer, z.continued,
          z.at_ms)) INTO v_found_rows
        FROM (
          SELECT * FROM (
            SELECT * FROM conversation_beginnings x
            WHERE x.tenant_id = o.tenant_id AND x.key_id = o.key_id AND x.digest = o.digests->>v_turn
            ORDER BY x.session_id DESC LIMIT 64) y
          ORDER BY (y.answer IS NOT DISTINCT FROM o.answers->>v_turn) DESC, y.at_ms DESC LIMIT 4) z;
        IF v_found_rows IS NOT NULL THEN
          result := result || v_found_rows;
          EXIT WHEN v_turn > 0;
        END IF;
      END LOOP;

    WHEN 'claim' THEN
      SELECT jsonb_build_array('claim', encode(x.body_sha256, 'hex'), x.decision_id, x.status, x.headers,
        encode(x.body, 'base64'))
      INTO result FROM idempotency x
      WHERE x.tenant_id = o.tenant_id AND x.idempotency_key = o.claim_key AND x.expires_at_ms > v_now_ms;
    END CASE;

    results := array_append(results, result);
  END LOOP;

  IF cardinality(v_holds) > 0 THEN
    INSERT INTO decisions SELECT x.* FROM unnest(v_decisions) x;
    INSERT INTO holds (hold_id, tenant_id, session_id, key_id, decision_id, attempt_id, model, amount_nanousd, state,
      dispatched, checkpoint_nanousd, posted_nanousd, late, expires_at_ms, created_at_ms, limited, limit_key_id,
      limit_tokens)
    SELECT x.hold_id, x.tenant_id, x.session_id, x.key_id, x.decision_id, x.attempt_id, x.model, x.amount_nanousd,
      x.state, x.dispatched, x.checkpoint_nanousd, x.posted_nanousd, x.late, x.expires_at_ms, x.created_at_ms,
      x.limited, x.limit_key_id, x.limit_tokens
    FROM unnest(v_holds) x;
  END IF;
  IF cardinality(v_entries) > 0 THEN
    INSERT INTO ledger_entries (kind, scope, amount_nanousd, granted_delta_nanousd, reserved_delta_nanousd,
      spent_delta_nanousd, overage_delta_nanousd, tenant_id, session_id, key_id, hold_id, attempt_id, decision_id,
      model, usage_source, actor, created_at_ms)
    SELECT x.kind, x.scope, x.amount_nanousd, x.granted_delta_nanousd, x.reserved_delta_nanousd,
      x.spent_delta_nanousd, x.overage_delta_nanousd, x.tenant_id, x.session_id, x.key_id, x.hold_id, x.attempt_id,
      x.decision_id, x.model, x.usage_source, x.actor, x.created_at_ms
    FROM unnest(v_entries) x;
  END IF;
  IF t IS DISTINCT FROM v_was THEN
    UPDATE tenants x SET reserved_nanousd = t.reserved_nanousd, spent_nanousd = t.spent_nanousd,
      overage_nanousd = t.overage_nanousd, reset_at_ms = t.reset_at_ms, last_reset_at_ms = t.last_reset_at_ms
    WHERE x.tenant_id = t.tenant_id;
  END IF;
  RETURN to_jsonb(results);
END $$
