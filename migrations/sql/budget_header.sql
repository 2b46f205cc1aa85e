-- Whether a turn's header changes a session's budget, and the session's memory with its value; as `apply_header` of
-- gateway/ledger/budget_headers.py.
CREATE OR REPLACE FUNCTION seqroute_budget_header(
  p_memory text, p_asked text, p_times int, OUT changes boolean, OUT memory text
)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  stored jsonb := p_memory::jsonb;
  budget jsonb := COALESCE(stored->'budget', '{}');
  asked jsonb := COALESCE(budget->'asked', '[]');
  by_hand boolean := COALESCE((budget->>'by_hand')::boolean, false);
BEGIN
  changes := COALESCE((budget->>'times_by_hand')::int, 0) = p_times
    AND (NOT by_hand OR NOT asked ? p_asked);
  memory := p_memory;
  IF asked->>-1 IS DISTINCT FROM p_asked OR (by_hand AND changes) THEN
    memory := stored || jsonb_build_object('budget', budget || jsonb_build_object(
      'asked', jsonb_path_query_array((asked - p_asked) || to_jsonb(p_asked), '$[last - 15 to last]'),
      'by_hand', by_hand AND NOT changes));
  END IF;
END $$
