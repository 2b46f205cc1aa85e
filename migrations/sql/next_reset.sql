-- End of a budget window, as in gateway/ledger/windows.py; a test compares the two.
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
