"""What the caretaker runs on the server: what dead workers, and stock ones, have left goes back. See `scripts`."""

from legit_embedding.broker.scripts import NOW, RETURN_ONE, Script

OVERDUE_LOOKS = 5000
"""How much one search for what is overdue looks at, up to one page more."""

# KEYS: leases, unacked, index, deliveries. ARGV: what the names of the owners' hashes begin with, messages at most.
# Of one line whose lease has run out. Newest first, so that the oldest message is taken first again.
# Returns how many went back, and whether there may be more.
RESTORE_DEAD = Script(
    "restore what the dead held",
    NOW
    + RETURN_ONE
    + """
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)
if #dead == 0 then return {0, 0} end
local owner = ARGV[1] .. dead[1]
local all, held = redis.call('HGETALL', owner), {}
for i = 1, #all, 2 do held[#held + 1] = {string.match(all[i + 1], '|(%d+)|'), all[i]} end
table.sort(held, function(a, b) return a[1] > b[1] end)
local returned = 0
for i = 1, math.min(#held, tonumber(ARGV[2])) do
  returned = returned + give_back(KEYS[2], KEYS[3], owner, KEYS[4], held[i][2], 'R', true, '')
end
if #held <= tonumber(ARGV[2]) then
  redis.call('DEL', owner)
  redis.call('ZREM', KEYS[1], dead[1])
end
return {returned, 1}
""",
)

# KEYS: index, unacked, mutex, leases. ARGV: visibility time-out in seconds, messages at most, a token, seconds of the
# mutex, what the names of the owners' hashes begin with.
# Returns {tag, value or false, ...} of what stock kombu would restore now, oldest first; nil where another one does it.
# What a living line holds is no stock worker's: its renewal is late. It is made young here, so that stock workers leave
# it alone, and so that neither this search nor the next one meets it again.
OVERDUE = Script(
    "find what is overdue",
    NOW
    + """
if not redis.call('SET', KEYS[3], ARGV[3], 'NX', 'EX', ARGV[4]) then return nil end
local living, lives = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. stamp, '+inf'), {}
for _, line in ipairs(living) do lives[line] = true end
local looked, heirs = 0, {}
local function holds(line, tag)
  looked = looked + 1
  return redis.call('HEXISTS', ARGV[5] .. line, tag) == 1
end
local function held(tag)
  local line = string.match(tag, '^(.*)%.%d+%.%d+$')
  if not line then return false end
  if lives[line] then return holds(line, tag) end
  -- Perhaps its connection was lost, and the next one of its process has taken it over, as the line's others.
  if heirs[line] and holds(heirs[line], tag) then return true end
  for _, other in ipairs(living) do
    if holds(other, tag) then
      heirs[line] = other
      return true
    end
  end
  return false
end
local most, out = tonumber(ARGV[2]), {}
-- A step is not to keep the server for long; where it ends too early, the next one goes on from there.
while #out < 2 * most and looked < __LOOKS__ do
  -- From the first one that was not found yet.
  local tags = redis.call(
    'ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]), 'LIMIT', #out / 2, most - #out / 2
  )
  if #tags == 0 then break end
  for _, tag in ipairs(tags) do
    if held(tag) then
      redis.call('ZADD', KEYS[1], 'XX', stamp, tag)
    else
      out[#out + 1], out[#out + 2] = tag, redis.call('HGET', KEYS[2], tag)
    end
  end
end
if #out == 0 then redis.call('DEL', KEYS[3]) end
return out
""".replace("__LOOKS__", str(OVERDUE_LOOKS)),
)

# KEYS: index, unacked, mutex, then lists. ARGV: the token, then (tag, number of the list or 0, text) of each message.
# A tag may come several times, one after the other, where its message goes to several queues.
RESTORE = Script(
    "restore what is overdue",
    """
local returned, last, held = 0, nil, false
for i = 2, #ARGV, 3 do
  local tag, list = ARGV[i], tonumber(ARGV[i + 1])
  if tag ~= last then
    held = redis.call('HEXISTS', KEYS[2], tag) == 1
    redis.call('ZREM', KEYS[1], tag)
    last = tag
    if held and list > 0 then returned = returned + 1 end
  end
  -- Pushed first: a list's key may be of another type, and the message must not be lost then.
  if held and list > 0 and type(redis.pcall('RPUSH', KEYS[3 + list], ARGV[i + 2])) == 'number' then
    redis.call('HDEL', KEYS[2], tag)
  end
end
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return returned
""",
)
