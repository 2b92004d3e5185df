-- CANCEL (protocol line 16): ends a job that nobody runs, flags one that a live worker runs.
-- KEYS: job hash          ARGV: id, 1: only while it is queued
-- -> 'ended' (the caller must CLOSE) | 'flagged' | 'running', where it was to be queued | 'final' | 'missing'
local verdict
if ARGV[2] == '1' and redis.call('HGET', KEYS[1], 'state') == 'R' then
  verdict = 'running'
else
  verdict = cancel_job(KEYS[1], ARGV[1])
end
publish_announced()
return verdict
