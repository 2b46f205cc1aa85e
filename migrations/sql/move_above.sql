-- Move money on every session above a child, and tell the least that they have beside what they keep for their last
-- answers; without a time only tell it.
-- The caller holds the tenant's lock, which every movement of money of its sessions requires.
CREATE OR REPLACE FUNCTION seqroute_move_above(p_tenant text, p_session text, p_reserved bigint, p_spent bigint,
  p_overage bigint, p_now_ms bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  v_least bigint;
BEGIN
  IF p_now_ms IS NOT NULL THEN
    UPDATE sessions x SET reserved_nanousd = x.reserved_nanousd + p_reserved,
      spent_nanousd = x.spent_nanousd + p_spent, overage_nanousd = x.overage_nanousd + p_overage,
      updated_at_ms = p_now_ms
    FROM session_ancestors a
    WHERE a.tenant_id = p_tenant AND a.session_id = p_session AND x.tenant_id = a.tenant_id
      AND x.session_id = a.ancestor_id;
  END IF;
  SELECT min(seqroute_free(x.granted_nanousd - x.reserved_nanousd - x.spent_nanousd, x.kept_nanousd)) INTO v_least
  FROM session_ancestors a JOIN sessions x ON x.tenant_id = a.tenant_id AND x.session_id = a.ancestor_id
  WHERE a.tenant_id = p_tenant AND a.session_id = p_session;
  RETURN v_least;
END $$
