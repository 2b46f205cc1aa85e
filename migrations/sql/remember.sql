-- A session's memory after a turn, as in merge_memory of gateway/ledger/records.py.
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
