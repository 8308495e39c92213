"""The transitions of the job ledger, in Lua: what Redis does in one step.

Each is safe to run twice. `worker.ledger` says what the keys hold; a script reads the time as `now`.
"""

SAYS = """
-- A number or a word of a JSON text, by its name. Not by cjson, which refuses the names of files that are no UTF-8; a
-- quotation mark within a string has a backslash before it, and so no such text is taken for a field.
local function says(text, name) return string.match(text or '', '"' .. name .. '":%s*"?([%w.+-]+)') end
"""

PRELUDE = (
    SAYS
    + """
local function ended(state) return state == 'completed' or state == 'failed' or state == 'cancelled' end
local function add(key, counters)
  for field, value in pairs(cjson.decode(counters)) do
    if string.sub(field, -4) == '_sum' then redis.call('HINCRBYFLOAT', key, field, value)
    elseif value ~= 0 then redis.call('HINCRBY', key, field, value) end
  end
end
-- Which other job writes to a place, into it, or to what holds it? Forgets those that Redis has forgotten.
local function other_writer(destinations, place, job)
  local flat = redis.call('HGETALL', destinations)
  for i = 1, #flat, 2 do
    local held, writer = flat[i] .. '/', flat[i + 1]
    local wanted = place .. '/'
    if writer ~= job and (string.sub(wanted, 1, #held) == held or string.sub(held, 1, #wanted) == wanted) then
      if redis.call('EXISTS', 'vdsr:{' .. writer .. '}:job') == 1 then return writer end
      redis.call('HDEL', destinations, flat[i])
    end
  end
end
"""
)

# KEYS: job, open, destinations. ARGV: spec, QUEUED_S, job id, place, work.
# -> {} if the job is there now, else {the job that writes to its place, 1 if that one does the same work}.
CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return {} end -- its reply was lost
local writer = other_writer(KEYS[3], ARGV[4], ARGV[3])
if writer then
  return {writer, redis.call('HGET', 'vdsr:{' .. writer .. '}:job', 'work') == ARGV[5] and 1 or 0}
end
redis.call('HSET', KEYS[1], 'spec', ARGV[1], 'state', 'queued', 'cursor', '', 'planned', 0, 'listed', 0,
           'chunks_done', 0, 'created', now, 'place', ARGV[4], 'work', ARGV[5])
redis.call('HSET', KEYS[3], ARGV[4], ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[2], 'plan')
return {}
"""

# KEYS: as CREATE. ARGV: job id, place.
FORGET = """
redis.call('DEL', KEYS[1], KEYS[2])
if redis.call('HGET', KEYS[3], ARGV[2]) == ARGV[1] then redis.call('HDEL', KEYS[3], ARGV[2]) end
"""

# A job as its record at the destination tells it, unless it is known and open. KEYS: as CREATE, lease, done.
# ARGV: as CREATE, then planned, cursor, listed, counters, numbers of done chunks, of others, a token of this call.
# -> as CREATE; the writer may be the job itself.
RESTORE = """
if redis.call('HGET', KEYS[1], 'restored') == ARGV[12] then return {} end -- its reply was lost
local writer = other_writer(KEYS[3], ARGV[4], ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 1 then
  if redis.call('EXISTS', KEYS[2]) == 1 or not ended(redis.call('HGET', KEYS[1], 'state')) then writer = ARGV[3] end
end
if writer then return {writer, 0} end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[4], KEYS[5])
local done, left = cjson.decode(ARGV[10]), cjson.decode(ARGV[11])
redis.call('HSET', KEYS[1], 'spec', ARGV[1], 'state', 'running', 'planned', ARGV[6], 'cursor', ARGV[7],
           'listed', ARGV[8], 'chunks_done', #done, 'created', says(ARGV[1], 'created'),
           'place', ARGV[4], 'work', ARGV[5], 'restored', ARGV[12])
add(KEYS[1], ARGV[9])
redis.call('HSET', KEYS[3], ARGV[4], ARGV[3])
for _, chunk in ipairs(done) do redis.call('SETBIT', KEYS[5], chunk, 1) end
for _, chunk in ipairs(left) do redis.call('ZADD', KEYS[2], now + ARGV[2], chunk) end
if ARGV[8] ~= '1' then redis.call('ZADD', KEYS[2], now + ARGV[2], 'plan')
elseif #left == 0 then redis.call('ZADD', KEYS[2], now + ARGV[2], 'finish') end
return {}
"""

# A chunk becomes known. KEYS: job, open. ARGV: its number, cursor behind it, counters, 1 if it is the last, QUEUED_S.
# -> number of open members, or -1 if another planner was first or the job has ended.
PLAN = """
if redis.call('HGET', KEYS[1], 'planned') ~= ARGV[1] then return -1 end
if ended(redis.call('HGET', KEYS[1], 'state')) or redis.call('HGET', KEYS[1], 'listed') == '1' then return -1 end
redis.call('HSET', KEYS[1], 'planned', ARGV[1] + 1, 'cursor', ARGV[2], 'listed', ARGV[4], 'state', 'running')
add(KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[5], ARGV[1])
if ARGV[4] == '1' then redis.call('ZREM', KEYS[2], 'plan')
else redis.call('ZADD', KEYS[2], now + ARGV[5], 'plan') end
return redis.call('ZCARD', KEYS[2])
"""

# The window is full: planning goes on when a commit asks for it. KEYS: open. ARGV: low water mark.
# -> 0 if commits have drained the window meanwhile, as none of them will ask again.
REST = """
if redis.call('ZCARD', KEYS[1]) <= tonumber(ARGV[1]) then return 0 end
redis.call('ZREM', KEYS[1], 'plan')
return 1
"""

# Whose turn is it, now that a worker has taken the message of a chunk? That of the job which has had least of the
# workers, by start-time fair queueing: a chunk costs its job a stride, and a job that comes or comes back begins where
# the clock stands, with neither debts nor savings. Looks at the other active jobs, whose keys it makes by itself.
# KEYS: active, turns. ARGV: job, chunk, 1 if it is this very chunk's turn in any case, QUEUED_S, strides by priority,
# SCHEMA: jobs of newer ones are left to newer workers.
# -> {job, chunk} to do now.
TURN = """
local function key(job, name) return 'vdsr:{' .. job .. '}:' .. name end
local clock = tonumber(redis.call('HGET', KEYS[2], 'clock') or '0')
local function start(job) return math.max(clock, tonumber(redis.call('HGET', KEYS[2], job) or '0')) end
local function spec(job, name) return says(redis.call('HGET', key(job, 'job'), 'spec'), name) end
local function waits(job)
  local state = redis.call('HGET', key(job, 'job'), 'state')
  if not state or ended(state) or redis.call('HEXISTS', key(job, 'job'), 'spec') == 0 then return false end
  if tonumber(spec(job, 'schema') or 0) > tonumber(ARGV[6]) then return false end
  local open = key(job, 'open')
  local n = redis.call('ZCARD', open) - redis.call('HLEN', key(job, 'lease'))
  for _, member in ipairs({'plan', 'finish'}) do if redis.call('ZSCORE', open, member) then n = n - 1 end end
  return n > 0
end
local function first_waiting(job)
  for at = 0, redis.call('ZCARD', key(job, 'open')), 100 do
    for _, member in ipairs(redis.call('ZRANGE', key(job, 'open'), at, at + 99)) do
      local chunk = member ~= 'plan' and member ~= 'finish'
      if chunk and redis.call('HEXISTS', key(job, 'lease'), member) == 0 then return member end
    end
  end
end

local job, chunk = ARGV[1], ARGV[2]
local state = redis.call('HGET', key(job, 'job'), 'state')
local spent = not state or ended(state) or redis.call('HEXISTS', key(job, 'lease'), chunk) == 1
if spent or redis.call('GETBIT', key(job, 'done'), chunk) == 1 then return {job, chunk} end -- nothing to give away
local best, from = job, start(job)
if ARGV[3] ~= '1' then
  for _, other in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local at = start(other)
    if (at < from or (at == from and other < best)) and waits(other) then best, from = other, at end
  end
end
if best ~= job then
  local found = first_waiting(best)
  if found then
    job, chunk = best, found
    redis.call('ZADD', key(job, 'open'), now + ARGV[4], chunk) -- the next to ask gets another one
  end
end
local priority = spec(job, 'priority') or 'normal'
local at, stride = start(job), cjson.decode(ARGV[5])[priority] or 10
redis.call('HSET', KEYS[2], job, at + stride)
if ARGV[3] ~= '1' then redis.call('HSET', KEYS[2], 'clock', at) end -- else others wait who would lose their due
return {job, chunk}
"""

# KEYS: job, open, lease, done, progress, promoted. ARGV: chunk, token, lease_s, SCHEMA.
# -> {verdict, spec, progress as a flat list, serial of the last promotion}; the verdict is 'granted', 'drain' (write
# down what is recorded, do no more) or why not. {'newer', its format}: nothing is changed.
LEASE = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'unknown'} end
local schema = tonumber(says(redis.call('HGET', KEYS[1], 'spec'), 'schema') or 0)
if schema > tonumber(ARGV[4]) then return {'newer', schema} end
if tonumber(ARGV[1]) >= tonumber(redis.call('HGET', KEYS[1], 'planned')) then return {'unplanned'} end
if redis.call('GETBIT', KEYS[4], ARGV[1]) == 1 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {'done'}
end
local verdict = 'granted'
if ended(state) then
  if redis.call('EXISTS', KEYS[5]) == 0 then return {'ended'} end
  verdict = 'drain'
end
local owner = redis.call('HGET', KEYS[3], ARGV[1])
if owner and owner ~= ARGV[2] then -- the same token asks twice if the first reply was lost
  local deadline = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if deadline and tonumber(deadline) > now then return {'leased'} end
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
if verdict == 'granted' then
  redis.call('HINCRBY', KEYS[5], 'leases', 1)
  redis.call('HDEL', KEYS[5], 'hand')
  redis.call('HSETNX', KEYS[1], 'started', now)
end
local serial = redis.call('HGET', KEYS[6], 'serial') or '0'
return {verdict, redis.call('HGET', KEYS[1], 'spec'), redis.call('HGETALL', KEYS[5]), serial}
"""

# Renew a lease; record images and the start of others in the same step.
# KEYS: job, open, lease, progress, count, promoted.
# ARGV: chunk, token, lease_s, how many are done, index, row and counters of each, indices of those that are begun.
# -> 'lost', 'ended', or the serial of the last promotion.
BEAT = """
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 'lost' end
local first = 5 + 3 * ARGV[4]
for i = 5, first - 1, 3 do
  if redis.call('HSETNX', KEYS[4], 'row:' .. ARGV[i], ARGV[i + 1]) == 1 then
    add(KEYS[5], ARGV[i + 2])
    redis.call('HSET', KEYS[4], 'leases', 0)
  end
end
if ended(redis.call('HGET', KEYS[1], 'state')) then return 'ended' end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
for i = first, #ARGV do redis.call('HINCRBY', KEYS[4], 'try:' .. ARGV[i], 1) end
if first <= #ARGV then
  local hand = redis.call('HGET', KEYS[4], 'hand') or ''
  redis.call('HSET', KEYS[4], 'hand', hand .. ' ' .. table.concat(ARGV, ' ', first))
end
return redis.call('HGET', KEYS[6], 'serial') or '0'
"""

# Give a chunk back at once. KEYS: open, lease, progress.
# ARGV: chunk, token, index that failed or '', why, QUEUED_S, 1 if this lease is not to count,
# then indices whose attempt is not to count.
RELEASE = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[3], 'why:' .. ARGV[3], ARGV[4])
  redis.call('HINCRBY', KEYS[3], 'fault:' .. ARGV[3], 1)
end
if ARGV[6] == '1' then redis.call('HINCRBY', KEYS[3], 'leases', -1) end
for i = 7, #ARGV do redis.call('HINCRBY', KEYS[3], 'try:' .. ARGV[i], -1) end
redis.call('ZADD', KEYS[1], now + ARGV[5], ARGV[1])
return 1
"""

# A process has died, and its node tells of it: its chunks go back at once, and what it had in hand is suspected.
# KEYS: open, lease. ARGV: what the tokens of that process begin with, why, QUEUED_S, the progress keys' common part.
# -> chunks to queue.
DIED = """
local found, leases = {}, redis.call('HGETALL', KEYS[2])
for i = 1, #leases, 2 do
  local chunk, token = leases[i], leases[i + 1]
  if string.sub(token, 1, #ARGV[1]) == ARGV[1] then
    local progress, told = ARGV[4] .. chunk, {}
    for index in string.gmatch(redis.call('HGET', progress, 'hand') or '', '%d+') do
      if not told[index] and redis.call('HEXISTS', progress, 'row:' .. index) == 0 then
        told[index] = true -- a beat whose reply was lost has begun it twice
        redis.call('HINCRBY', progress, 'fault:' .. index, 1)
        redis.call('HSET', progress, 'why:' .. index, ARGV[2])
      end
    end
    redis.call('HDEL', KEYS[2], chunk)
    redis.call('ZADD', KEYS[1], now + ARGV[3], chunk)
    table.insert(found, chunk)
  end
end
return found
"""

# Attempts that ended with Redis away, not with the worker's death. It lost its lease meanwhile, so that no token is
# asked for; told twice, an image gets one attempt more. KEYS: progress. ARGV: indices.
ABSOLVE = """
for i = 1, #ARGV do
  local tries = redis.call('HGET', KEYS[1], 'try:' .. ARGV[i])
  if tries and tonumber(tries) > 0 then redis.call('HINCRBY', KEYS[1], 'try:' .. ARGV[i], -1) end
end
return 1
"""

# Count a chunk, once. KEYS: job, open, lease, done, progress, count.
# ARGV: chunk, token, counters, low water mark, QUEUED_S.
# -> 'lost', 'done' (by somebody, earlier), or what should be queued now: 'plan', 'finish' or ''.
COMMIT = """
if redis.call('GETBIT', KEYS[4], ARGV[1]) == 1 then return 'done' end
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 'lost' end
redis.call('SETBIT', KEYS[4], ARGV[1], 1)
add(KEYS[1], ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[5], KEYS[6])
local committed = redis.call('HINCRBY', KEYS[1], 'chunks_done', 1)
redis.call('HSET', KEYS[1], 'updated', now)
if ended(redis.call('HGET', KEYS[1], 'state')) then
  return redis.call('HLEN', KEYS[3]) == 0 and 'finish' or ''
end
if redis.call('HGET', KEYS[1], 'listed') == '1' then
  if committed < tonumber(redis.call('HGET', KEYS[1], 'planned')) then return '' end
  redis.call('ZADD', KEYS[2], now + ARGV[5], 'finish')
  return 'finish'
end
if redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[4]) then return '' end
if redis.call('ZADD', KEYS[2], 'NX', now + ARGV[5], 'plan') == 1 then return 'plan' end
return ''
"""

# Stop a job. KEYS: job, open, lease. ARGV: new state, error, the progress keys' common part.
# -> the state it was in.
STOP = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or ended(state) then return state end
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'error', ARGV[2], 'finished', now)
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if redis.call('EXISTS', ARGV[3] .. member) == 0 and redis.call('HEXISTS', KEYS[3], member) == 0 then
    redis.call('ZREM', KEYS[2], member) -- nothing of it is done: there is nothing to write down
  end
end
redis.call('ZADD', KEYS[2], now, 'finish')
return state
"""

# The last record is written. KEYS: job, open, lease, done, destinations, turns. ARGV: KEEP_S, job id.
# -> the final state, or 'busy' while a chunk is undone, or done and not yet written down.
FINISH = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'unknown' end
if ended(state) then
  redis.call('ZADD', KEYS[2], 'NX', now, 'finish')
  if redis.call('ZCARD', KEYS[2]) > 1 then return 'busy' end
else
  if redis.call('HGET', KEYS[1], 'listed') ~= '1' then return 'busy' end
  if redis.call('HGET', KEYS[1], 'chunks_done') ~= redis.call('HGET', KEYS[1], 'planned') then return 'busy' end
  redis.call('HSET', KEYS[1], 'state', 'completed', 'finished', now)
  state = 'completed'
end
redis.call('ZREM', KEYS[2], 'finish')
redis.call('HDEL', KEYS[6], ARGV[2])
local span = redis.call('HMGET', KEYS[1], 'started', 'finished')
if span[1] and span[2] then
  redis.call('HINCRBYFLOAT', KEYS[1], 'seconds', span[2] - span[1])
  redis.call('HDEL', KEYS[1], 'started')
end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[1]) end
local place = redis.call('HGET', KEYS[1], 'place')
if place and redis.call('HGET', KEYS[5], place) == ARGV[2] then redis.call('HDEL', KEYS[5], place) end
return state
"""

# What is overdue loses its lease, in the same step as it is taken for queueing again.
# KEYS: job, open, lease. ARGV: 1 if the queue is empty, QUEUED_S, PATIENCE_S.
# -> members to queue, state, number of open ones.
SWEEP = """
local found = {}
local function again(member, wait)
  redis.call('ZADD', KEYS[2], now + wait, member)
  table.insert(found, member)
end
for _, member in ipairs(redis.call('HKEYS', KEYS[3])) do
  local deadline = redis.call('ZSCORE', KEYS[2], member)
  if not deadline or tonumber(deadline) <= now then
    redis.call('HDEL', KEYS[3], member)
    if deadline then again(member, ARGV[2]) end
  end
end
-- While other messages wait, a chunk that is not taken probably waits too: it is repeated late and seldom. Plans and
-- last records wait behind no chunk: who has not taken one has lost it, or all workers are busy and it does no harm.
local empty = ARGV[1] == '1'
for _, member in ipairs({'plan', 'finish'}) do
  local deadline = redis.call('ZSCORE', KEYS[2], member)
  if deadline and tonumber(deadline) <= now then again(member, ARGV[2]) end
end
local latest = empty and now or now - ARGV[3]
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', latest, 'LIMIT', 0, 1000)) do
  if redis.call('HEXISTS', KEYS[3], member) == 0 then again(member, empty and ARGV[2] or 6 * ARGV[3]) end
end
return {found, redis.call('HGET', KEYS[1], 'state'), redis.call('ZCARD', KEYS[2])}
"""

# Chunks that are overdue, nobody's, and in no message. KEYS: open, lease. ARGV: QUEUED_S, chunks that messages name.
# -> chunks to queue.
LOST = """
local waits, found = {}, {}
for i = 2, #ARGV do waits[ARGV[i]] = true end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  if not waits[member] and redis.call('HEXISTS', KEYS[2], member) == 0 then
    redis.call('ZADD', KEYS[1], now + ARGV[1], member)
    table.insert(found, member)
  end
end
return found
"""

# A new pass over failed images, as more chunks. KEYS: job, open, lease, done, destinations.
# ARGV: planned as the caller saw it, chunks, QUEUED_S, job id.
# -> '', the job that writes to its place by now, or 'changed'.
REOPEN = """
if redis.call('HGET', KEYS[1], 'planned') ~= ARGV[1] then return 'changed' end
if redis.call('HGET', KEYS[1], 'state') ~= 'completed' then return 'changed' end
local place = redis.call('HGET', KEYS[1], 'place')
if place then
  local writer = other_writer(KEYS[5], place, ARGV[4])
  if writer then return writer end
  redis.call('HSET', KEYS[5], place, ARGV[4])
end
redis.call('HSET', KEYS[1], 'planned', ARGV[1] + ARGV[2], 'state', 'running')
redis.call('HDEL', KEYS[1], 'finished')
for i = 0, ARGV[2] - 1 do redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1] + i) end
for i = 1, 4 do redis.call('PERSIST', KEYS[i]) end
return ''
"""
