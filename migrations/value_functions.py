"""The ledger's Postgres functions that read no table: when a window ends, what a session remembers after a turn.

They say what `gateway/ledger/windows.py` and `gateway/ledger/records.py: remembered` say in Python; tests compare them.
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
