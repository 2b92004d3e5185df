-- CANCEL (protocol line 16): ends a job that no live worker runs; sets the cancel flag of a running one.
-- KEYS: job hash          ARGV: id, '1': cancel only if queued
-- -> 'ended' (the caller must CLOSE) | 'flagged' | 'running' (not queued, so nothing was done) | 'final' | 'missing'
local verdict
if ARGV[2] == '1' and redis.call('HGET', KEYS[1], 'state') == 'R' then
  verdict = 'running'
else
  verdict = cancel_job(KEYS[1], ARGV[1])
end
publish_announced()
return verdict
