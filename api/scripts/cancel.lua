-- CANCEL (protocol line 16): ends a job that nobody runs, flags one that a live worker runs.
-- KEYS: job hash          ARGV: id
-- -> 'ended' (the caller must CLOSE) | 'flagged' | 'final' | 'missing'
local verdict = cancel_job(KEYS[1], ARGV[1])
publish_announced()
return verdict
