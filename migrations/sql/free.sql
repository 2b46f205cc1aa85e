-- What is available beside an amount kept for a last answer; a deficit stays what it is. As gateway.ledger.types has it.
CREATE OR REPLACE FUNCTION seqroute_free(p_available bigint, p_kept bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT LEAST(p_available, GREATEST(0, p_available - p_kept))
$$
