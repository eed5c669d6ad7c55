"""Scripts that Redis runs on evaluations, each in one atomic step."""

from __future__ import annotations

KEEP = """
local results, counts, all_logprobs, engine_faults = unpack(KEYS)
local field, result, arm, right, life, cost_usd, run, logprobs, is_fault = unpack(ARGV)
if redis.call('HGET', counts, 'run') ~= run then return 0 end
if redis.call('HSETNX', results, field, result) == 0 then return 0 end
redis.call('HINCRBY', counts, 'done:' .. arm, 1)
redis.call('HINCRBY', counts, 'right:' .. arm, right)
if cost_usd ~= '' then redis.call('HINCRBYFLOAT', counts, 'cost_usd:' .. arm, cost_usd) end
if logprobs ~= '' then redis.call('HSET', all_logprobs, field, logprobs) end
if is_fault == '1' then redis.call('SADD', engine_faults, field) end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, life) end
return 1
"""
DROP = """
if (redis.call('GET', KEYS[1]) or '') == ARGV[1] then redis.call('ZREM', KEYS[2], ARGV[2]) end
"""
"""ARGV: an evaluation as it was read, and its id. KEYS[2] no longer lists it, unless it was begun again meanwhile."""
FORGET_FAULTS = """
for _, field in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  redis.call('HDEL', KEYS[2], field)
  redis.call('HINCRBY', KEYS[3], 'done:' .. string.match(field, ':(.*)'), -1)
end
redis.call('DEL', KEYS[1])
"""
MOVE = """
local evaluation, open, data, drafts, all_latest, all_models, all_comparisons = unpack(KEYS)
local before, after, life, status, created_at, id, draft, latest, version = unpack(ARGV, 1, 9)
local models, comparisons, read_comparisons = unpack(ARGV, 10)
if redis.call('GET', evaluation) ~= before then return 0 end
if comparisons ~= '' and (redis.call('HGET', all_comparisons, version) or '') ~= read_comparisons then return -1 end
redis.call('SET', evaluation, after, 'EX', life)
if status == 'running' then
  redis.call('ZADD', open, created_at, id)
else
  redis.call('ZREM', open, id)
  redis.call('DEL', data)
end
if draft ~= '' then redis.call('HSET', drafts, id, draft) end
if latest ~= '' then redis.call('HSET', all_latest, version, latest) end
if models ~= '' then redis.call('HSET', all_models, id, models) end
if comparisons ~= '' then redis.call('HSET', all_comparisons, version, comparisons) end
return 1
"""
