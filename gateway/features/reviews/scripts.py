"""Scripts that Redis runs on the reviews of a task, each in one atomic step.

KEYS[1] is the prefix of the task's keys; ARGV[1] the time in milliseconds (-1: Redis's own clock). A task has:
`waiting` (ids by arrival), `leases` (id to reviewer and end of the lease), `held` (reviewer to id), `shared` (ids that
several have answered) and `kept_on` (ids by the time of a wrong label). The numbers by hour are in `drawn`, `answered`,
`skipped` and `expired`. A review's texts are under `apprentice:review:ID`; once judged wrong, under
`apprentice:reviewed:ID`. The first line of both is the task; if several people are to review it, a tab and their number
follow. `apprentice:review:ID:by` names those who have reviewed it. `apprentice:given:REVIEWER:ID` exists once the audit
says that the reviewer got it.
"""

from __future__ import annotations

from monitoring.text_stream import IS_FORGOTTEN

HOURS = 168
"""Draws within this many whole hours before the present one count against the budget of a week."""

_BEGIN = f"""
local root, now = KEYS[1], tonumber(ARGV[1])
if now < 0 then
  local told = redis.call('TIME')
  now = tonumber(told[1]) * 1000 + math.floor(tonumber(told[2]) / 1000)
end
local hour = math.floor(now / 3600000)
local function week(kind)
  local found, sum, first = redis.call('HGETALL', root .. kind), 0, hour
  for i = 1, #found, 2 do
    local at, count = tonumber(found[i]), tonumber(found[i + 1])
    if not at or not count or at < hour - {HOURS} then
      redis.call('HDEL', root .. kind, found[i])
    else
      sum = sum + count
      first = math.min(first, at)
    end
  end
  return sum, first
end
local function tally(kind, count)
  if count == 0 then return end
  week(kind)
  redis.call('HINCRBY', root .. kind, hour, count)
  redis.call('EXPIRE', root .. kind, {(HOURS + 24) * 3600})
end
local function lease_of(id)
  local found = redis.call('HGET', root .. 'leases', id)
  if not found then return nil, 0 end
  local by, till = string.match(found, '^([^\\n]*)\\n(.*)$')
  return by, tonumber(till) or 0
end
local function release(id)
  local by = lease_of(id)
  if not by then return end
  redis.call('HDEL', root .. 'leases', id)
  if redis.call('HGET', root .. 'held', by) == id then redis.call('HDEL', root .. 'held', by) end
end
local function remove(id)
  release(id)
  redis.call('ZREM', root .. 'waiting', id)
  redis.call('DEL', 'apprentice:review:' .. id, 'apprentice:review:' .. id .. ':by')
end
local function sweep(retention)
  local over = redis.call('ZRANGEBYSCORE', root .. 'waiting', '-inf', now - retention, 'LIMIT', 0, 1000)
  for _, id in ipairs(over) do remove(id) end
  tally('expired', #over)
  return #over
end
"""

KEEP = (
    _BEGIN
    + IS_FORGOTTEN
    + f"""
local id, retention, waiting_max, budget = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local expired = sweep(retention)
if redis.call('ZSCORE', root .. 'waiting', id) then return {{'same', 0, 0, expired}} end
if is_forgotten(ARGV[8], tonumber(ARGV[7])) then return {{'forgotten', 0, 0, expired}} end
local drawn, first = week('drawn')
if drawn >= budget then
  return {{'spent', budget == 0 and 0 or (first + {HOURS} + 1) * 3600000 - now, 0, expired}}
end
tally('drawn', 1)
redis.call('ZADD', root .. 'waiting', now, id)
redis.call('SET', 'apprentice:review:' .. id, ARGV[3], 'PX', retention)
local dropped = redis.call('ZCARD', root .. 'waiting') - waiting_max
if dropped > 0 then
  for _, oldest in ipairs(redis.call('ZRANGE', root .. 'waiting', 0, dropped - 1)) do remove(oldest) end
end
for _, name in ipairs({{'waiting', 'leases', 'held'}}) do redis.call('PEXPIRE', root .. name, retention + 86400000) end
return {{'kept', 0, math.max(0, dropped), expired}}
"""
)
"""ARGV: id, texts, retention in milliseconds, most that may wait, budget of a week, and when its
request was made and the names that may be erased (IS_FORGOTTEN). Returns the outcome, the milliseconds
until the budget has room, the number of older ones deleted for it, and the number of expired ones."""

NEXT = (
    _BEGIN
    + """
local reviewer, lease, sealed, keys = ARGV[2], tonumber(ARGV[3]), 0, {}
for at = 5, #ARGV do keys[ARGV[at]] = true end
local function give(id, new)
  local key = string.match(redis.call('GETRANGE', 'apprentice:review:' .. id, 0, 255), '^[^\\n]*\\n{"key":"([^"]*)"')
  if key and not keys[key] then sealed = sealed + 1 return nil end
  local texts = redis.call('GET', 'apprentice:review:' .. id)
  if not texts then return nil end
  redis.call('HSET', root .. 'leases', id, reviewer .. '\\n' .. (now + lease))
  redis.call('HSET', root .. 'held', reviewer, id)
  for _, name in ipairs({'leases', 'held'}) do redis.call('PEXPIRE', root .. name, ARGV[4] + 86400000) end
  return {texts, now + lease, new, redis.call('EXISTS', 'apprentice:given:' .. reviewer .. ':' .. id), id}
end
local mine = redis.call('HGET', root .. 'held', reviewer)
if mine and lease_of(mine) == reviewer and redis.call('ZSCORE', root .. 'waiting', mine) then
  local found = give(mine, 0)
  if found then return found end
  release(mine)
  sealed = 0
end
local leased, skipped, at = 0, 0, 0
while true do
  local some = redis.call('ZRANGE', root .. 'waiting', at, at + 99)
  for _, id in ipairs(some) do
    local by, till = lease_of(id)
    if by and by ~= reviewer and till > now then
      leased = leased + 1
    elseif redis.call('SISMEMBER', root .. 'skipped_by:' .. reviewer, id) == 1 then
      skipped = skipped + 1
    else
      if by then release(id) end
      local found = give(id, 1)
      if found then return found end
    end
  end
  if #some < 100 then return {'', leased, skipped, sealed, ''} end
  at = at + 100
end
"""
)
"""ARGV: the reviewer, the lease and the retention in milliseconds, and the names of the known keys. The texts, the
lease's end, whether the lease is new, whether the audit has it, and its id; else an empty text, how many others
hold, how many this reviewer has skipped, and how many lie under other keys."""

SKIP = (
    _BEGIN
    + """
local id, reviewer = ARGV[2], ARGV[3]
if not redis.call('ZSCORE', root .. 'waiting', id) then return 'gone' end
if lease_of(id) ~= reviewer then return 'other' end
release(id)
redis.call('SADD', root .. 'skipped_by:' .. reviewer, id)
redis.call('PEXPIRE', root .. 'skipped_by:' .. reviewer, ARGV[5])
redis.call('LPUSH', root .. 'skips', now .. '\\n' .. ARGV[4])
redis.call('LTRIM', root .. 'skips', 0, 99)
redis.call('PEXPIRE', root .. 'skips', ARGV[5])
tally('skipped', 1)
return 'skipped'
"""
)
"""ARGV: id, the reviewer, the skip as JSON, the retention in milliseconds."""

ANSWER = (
    _BEGIN
    + """
local id = ARGV[2]
local texts = redis.call('GET', 'apprentice:review:' .. id)
if not texts or not redis.call('ZSCORE', root .. 'waiting', id) then return 0 end
local place = string.match(texts, '^[^\\n]*')
local reviewers = tonumber(string.match(place, '\\t(%d+)$') or '') or 1
if reviewers > 1 then
  local by = 'apprentice:review:' .. id .. ':by'
  if redis.call('SADD', by, ARGV[6]) == 0 then return 0 end
  redis.call('SADD', root .. 'skipped_by:' .. ARGV[7], id)
  redis.call('ZREMRANGEBYSCORE', root .. 'shared', '-inf', now - ARGV[5])
  redis.call('ZADD', root .. 'shared', now, id)
  redis.call('ZREMRANGEBYRANK', root .. 'shared', 0, -ARGV[8] - 1)
  redis.call('PEXPIRE', root .. 'shared', ARGV[5])
  for _, key in ipairs({by, root .. 'skipped_by:' .. ARGV[7]}) do redis.call('PEXPIRE', key, ARGV[4]) end
  if redis.call('SCARD', by) < reviewers then
    if lease_of(id) == ARGV[7] then release(id) end
    tally('answered', 1)
    return 1
  end
end
if ARGV[3] == '1' then
  redis.call('SET', 'apprentice:reviewed:' .. id, texts, 'PX', ARGV[4])
  redis.call('ZREMRANGEBYSCORE', root .. 'kept_on', '-inf', now - ARGV[4])
  redis.call('ZADD', root .. 'kept_on', now, id)
  redis.call('PEXPIRE', root .. 'kept_on', ARGV[4])
end
redis.call('SET', 'apprentice:answered:' .. id, place, 'PX', ARGV[5])
remove(id)
tally('answered', 1)
return 1
"""
)
"""ARGV: id, whether its texts are kept on, the retention, for how long it is known that it was answered, both in
milliseconds; the rater and the rater's caller, and how many that several answer are known. Whether it waited for this
rater until now."""

DELETE = (
    _BEGIN
    + """
local function named(name)
  if ARGV[2] == '' then return redis.call('ZRANGE', root .. name, 0, tonumber(ARGV[3]) - 1) end
  return redis.call('ZSCORE', root .. name, ARGV[2]) and {ARGV[2]} or {}
end
local waiting, kept, answered = named('waiting'), named('kept_on'), 0
for _, id in ipairs(waiting) do remove(id) end
for _, id in ipairs(kept) do
  answered = answered + redis.call('DEL', 'apprentice:reviewed:' .. id)
  redis.call('ZREM', root .. 'kept_on', id)
end
if #waiting + answered > 0 or ARGV[6] == '1' then
  local draft = string.gsub(string.gsub(ARGV[5], '"@waiting"', #waiting), '"@answered"', answered)
  redis.call('HSET', KEYS[2], ARGV[4], draft)
end
return {#waiting, answered, #waiting + #kept}
"""
)
"""KEYS[2]: the audit's drafts. ARGV: id (empty: all), most deletions of each kind in one step, the draft's name, the
draft, and 1 to write it even if nothing was deleted. In the draft, "@waiting" and "@answered" become the numbers.
Returns the numbers of deleted waiting reviews, of deleted ones that were judged
wrong, and of ids that were looked at."""

COUNT = (
    _BEGIN
    + """
local expired, leased, skips = sweep(tonumber(ARGV[2])), 0, redis.call('LRANGE', root .. 'skips', 0, 19)
for _, lease in ipairs(redis.call('HVALS', root .. 'leases')) do
  if (tonumber(string.match(lease, '\\n(.*)$') or '') or 0) > now then leased = leased + 1 end
end
local oldest = redis.call('ZRANGE', root .. 'waiting', 0, 0, 'WITHSCORES')[2] or ''
local told = {redis.call('ZCARD', root .. 'waiting'), leased, oldest, expired}
for _, kind in ipairs({'drawn', 'answered', 'skipped', 'expired'}) do table.insert(told, (week(kind))) end
return {told, skips}
"""
)
"""ARGV: the retention in milliseconds."""
