"""What happens on the server in one step each. Lua, for Redis from 6.2 and Valkey from 7.2; by the server's clock.

Beside kombu's own keys, `unacked` (a hash: tag to `[message, exchange, routing key]`) and `unacked_index` (a sorted
set: tag by when it was taken), there are three of ours, which stock kombu does not look at:

`unacked_leases`, a sorted set: a line to the broker, by when it is taken for dead unless it renews its lease.
`unacked_lease.<line>`, a hash: the tags that this line has taken, each with `length|order|list`.
`unacked_deliveries`, a hash: how often a message was given back before, by the SHA-1 of its text.

A tag is made anew for each take, and names its line: whoever holds a tag that is recorded no more can harm nobody. The
message itself is never decoded here, so never changed either: cjson would turn `[]` into `{}`.
"""

from dataclasses import dataclass, field
from hashlib import sha1

TAKE_MAX = 1000
"""Messages one take may ask for: Lua passes at most some 8,000 values to a command, and each message is three pairs."""

DELIVERIES_TTL_S = 7 * 24 * 3600
"""How long the counts outlive the last message that was given back."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name that a server knows it by once it has seen it."""

    name: str
    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # Not a signature: the server itself names scripts like this.
        object.__setattr__(self, "sha", sha1(self.text.encode(), usedforsecurity=False).hexdigest())


NOW = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local stamp = string.format('%d.%06d', tonumber(clock[1]), tonumber(clock[2]))
"""

RETURN_ONE = """
-- The order is a string of fixed width: as a number it would be longer than Lua's are exact.
-- Puts one message back into the list that it came from, on the side where it is taken next ('R') or last ('L').
-- `counted`: somebody may have worked on it. `text`: what to put there instead, '' for the message as it is.
local function give_back(unacked, index, owner, deliveries, tag, side, counted, text)
  local value = redis.call('HGET', unacked, tag)
  local record = redis.call('HGET', owner, tag)
  if not record then return 0 end
  redis.call('HDEL', owner, tag)
  redis.call('ZREM', index, tag)
  if not value then return 0 end
  local length, list = string.match(record, '^(%d+)|%d+|(.*)$')
  local message = string.sub(value, 2, 1 + tonumber(length))
  if text == '' then text = message end
  if counted then
    local before = redis.sha1hex(message)
    local count = tonumber(redis.call('HGET', deliveries, before) or '0') + 1
    if text ~= message then redis.call('HDEL', deliveries, before) end
    redis.call('HSET', deliveries, redis.sha1hex(text), count)
    redis.call('EXPIRE', deliveries, __TTL__)
  end
  -- By pcall: where the list's key has become of another type, the message stays in `unacked`, and the rest goes on.
  if type(redis.pcall(side == 'L' and 'LPUSH' or 'RPUSH', list, text)) ~= 'number' then return 0 end
  redis.call('HDEL', unacked, tag)
  return 1
end
""".replace("__TTL__", str(DELIVERIES_TTL_S))

# KEYS: unacked, index, leases, owner, deliveries, then the lists: of each priority, of each queue.
# ARGV: number of queues, messages wanted, bytes wanted, '1' to go round the queues, line, first part of the tags,
# then of each queue what ends its record in `unacked`.
# Returns nil where the line has no lease; else {list number, message, ...}, and how often each was given back before,
# where anything was at all.
# RPOP before everything else that writes: a script that has written goes on although the memory is used up.
TAKE = Script(
    "take",
    NOW
    + """
if not redis.call('ZSCORE', KEYS[3], ARGV[5]) then return nil end
local queues, bytes, rotate = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[4] == '1'
if queues < 1 then return {{}} end -- with steps of none the loop below would never end, and block the server
local room, refused = math.min(tonumber(ARGV[2]), __MOST__), nil
local order = string.format('%d%06d', tonumber(clock[1]), tonumber(clock[2]))
local out, messages, records, scores, tags, from, turn = {}, {}, {}, {}, {}, {}, {}
for i = 1, queues do turn[i] = i end
for first = 5, #KEYS - 1, queues do
  local live = {}
  for i = 1, queues do live[i] = turn[i] end
  while room > 0 and bytes > 0 and #live > 0 do
    local queue = live[1]
    local list = KEYS[first + queue]
    local message = redis.pcall('RPOP', list)
    if type(message) ~= 'string' then
      if message then refused = message end -- a key of another type: the other queues go on
      table.remove(live, 1)
    else
      room, bytes = room - 1, bytes - #message
      if rotate and queues > 1 then
        table.remove(live, 1)
        live[#live + 1] = queue
        for i = 1, queues do
          if turn[i] == queue then table.remove(turn, i) break end
        end
        turn[queues] = queue
      end
      local number = #from + 1
      local tag = ARGV[6] .. number
      from[number], tags[number] = list, tag
      messages[2 * number - 1], messages[2 * number] = tag, '[' .. message .. ARGV[6 + queue]
      records[2 * number - 1] = tag
      records[2 * number] = string.format('%d|%s%04d|%s', #message, order, number, list)
      scores[2 * number - 1], scores[2 * number] = stamp, tag
      out[2 * number - 1], out[2 * number] = first - 5 + queue, message
    end
  end
end
if #from == 0 then return refused or {out} end
local done = redis.pcall('HSET', KEYS[1], unpack(messages))
if type(done) ~= 'table' then done = redis.pcall('ZADD', KEYS[2], unpack(scores)) end
if type(done) ~= 'table' then done = redis.pcall('HSET', KEYS[4], unpack(records)) end
if type(done) == 'table' and done.err then
  for i = #from, 1, -1 do redis.call('RPUSH', from[i], out[2 * i]) end
  redis.pcall('HDEL', KEYS[1], unpack(tags))
  redis.pcall('ZREM', KEYS[2], unpack(tags))
  redis.pcall('HDEL', KEYS[4], unpack(tags))
  return done
end
if redis.call('HLEN', KEYS[5]) == 0 then return {out} end
local counts = {}
for i = 1, #from do counts[i] = tonumber(redis.call('HGET', KEYS[5], redis.sha1hex(out[2 * i])) or '0') end
return {out, counts}
""".replace("__MOST__", str(TAKE_MAX)),
)

# KEYS: unacked, index, owner, deliveries. ARGV: (tag, side, '1' if counted, text) of each message.
GIVE_BACK = Script(
    "give back",
    RETURN_ONE
    + """
local returned = 0
for i = 1, #ARGV, 4 do
  local counted = ARGV[i + 2] == '1'
  returned = returned + give_back(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[i], ARGV[i + 1], counted, ARGV[i + 3])
end
return returned
""",
)

# KEYS: unacked, index, leases, owner, owner before, deliveries. ARGV: line, lease in seconds, the line before or '',
# then the tags of that one that are still worked on. All others of that one go back, uncounted: their takes' replies
# were lost. It has no lease any more, so that a take of its that is still on its way takes nothing.
OPEN = Script(
    "open",
    NOW
    + RETURN_ONE
    + """
local returned = 0
if ARGV[3] ~= '' then
  redis.call('ZREM', KEYS[3], ARGV[3])
  local keep, rest = {}, {}
  for i = 4, #ARGV do keep[ARGV[i]] = true end
  local all = redis.call('HGETALL', KEYS[5])
  for i = 1, #all, 2 do
    if keep[all[i]] then
      redis.call('HSET', KEYS[4], all[i], all[i + 1])
    else
      rest[#rest + 1] = {string.match(all[i + 1], '|(%d+)|'), all[i]}
    end
  end
  table.sort(rest, function(a, b) return a[1] > b[1] end)
  for _, each in ipairs(rest) do
    returned = returned + give_back(KEYS[1], KEYS[2], KEYS[5], KEYS[6], each[2], 'R', false, '')
  end
  redis.call('DEL', KEYS[5])
end
redis.call('ZREM', KEYS[3], '') -- as above: a script that has written goes on although the memory is used up
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
return returned
""",
)

# KEYS: leases, index, owner. ARGV: line, lease in seconds, '1' to renew what stock kombu's time-out reads, too.
# Returns 0 where the lease has run out.
RENEW = Script(
    "renew",
    NOW
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZREM', KEYS[1], '') -- as above
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
if ARGV[3] == '1' then
  local tags = redis.call('HKEYS', KEYS[3])
  for first = 1, #tags, 1000 do
    local scores = {}
    for i = first, math.min(first + 999, #tags) do
      scores[#scores + 1] = stamp
      scores[#scores + 1] = tags[i]
    end
    redis.call('ZADD', KEYS[2], 'XX', unpack(scores))
  end
end
return 1
""",
)
