//! What is done within Redis in one step.
//!
//! Sessions of a user are one hash, `user_session:{user}`: session -> "device gateway state order
//! expiry". State is 0 offline, 1 away, 2 online; order (when the session came) and expiry are
//! microseconds by Redis's own clock, so servers' clocks don't matter. Each entry runs out by
//! itself; the hash goes at three times the time to live, so that whoever looks in between still sees
//! when the last session was refreshed last, and keeps it as last-seen.
//!
//! Numbers are doubles in Lua: exact up to 2^53, which microseconds reach in the year 2255 and
//! seqs never. Ids are text.

use redis::Script;

/// `now()`, and `live(now, ttl, keep, channel, user)`: the entries in the order they came; those that ran out
/// are removed and told.
const PRELUDE: &str = r"
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end
local function live(now, ttl, keep, channel, user)
  local all = redis.call('HGETALL', KEYS[1])
  local kept, gone, last = {}, 0, 0
  for i = 1, #all, 2 do
    local d, g, s, o, e = string.match(all[i + 1], '^(%x+) (%d+) (%d) (%d+) (%d+)$')
    if e and tonumber(e) > now then
      kept[#kept + 1] = { id = all[i], device = d, gateway = g, state = s, order = tonumber(o) }
    else
      redis.call('HDEL', KEYS[1], all[i])
      gone = gone + 1
      if e and tonumber(e) > last then last = tonumber(e) end
    end
  end
  if gone > 0 then
    if #kept == 0 and last > ttl then
      redis.call('SET', KEYS[2], string.format('%.0f', last - ttl), 'PX', keep)
    end
    redis.call('PUBLISH', channel, user)
  end
  table.sort(kept, function(a, b)
    if a.order ~= b.order then return a.order < b.order end
    return a.id < b.id
  end)
  return kept
end
";

/// Arguments 1–4 of each script below: time to live (µs), how long last-seen is kept (ms), channel, user.
const PUT: &str = r"
local now, ttl = now(), tonumber(ARGV[1])
local id, device, gateway, max = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local state, order, new = '2', string.format('%.0f', now), 1
local old = redis.call('HGET', KEYS[1], id)
if old then
  local s, o, e = string.match(old, '^%x+ %d+ (%d) (%d+) (%d+)$')
  if e and tonumber(e) > now then state, order, new = s, o, 0 end
end
if new == 1 and redis.call('HLEN', KEYS[1]) >= max then
  local kept = live(now, ttl, ARGV[2], ARGV[3], ARGV[4])
  for i = 1, #kept - max + 1 do redis.call('HDEL', KEYS[1], kept[i].id) end
end
redis.call('HSET', KEYS[1], id,
  device .. ' ' .. gateway .. ' ' .. state .. ' ' .. order .. ' ' .. string.format('%.0f', now + ttl))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ttl * 3 / 1000))
if new == 1 then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return new
";

const REMOVE: &str = r"
if redis.call('HDEL', KEYS[1], ARGV[5]) == 0 then return 0 end
if #live(now(), tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]) == 0 then
  redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[2])
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
";

const READ: &str = r"
local answer = { '' }
for _, entry in ipairs(live(now(), tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4])) do
  answer[#answer + 1] = entry.id .. ' ' .. entry.device .. ' ' .. entry.gateway .. ' ' .. entry.state
end
answer[1] = redis.call('GET', KEYS[2]) or ''
return answer
";

const SET_STATE: &str = r"
local old = redis.call('HGET', KEYS[1], ARGV[5])
if not old then return 0 end
local d, g, s, o, e = string.match(old, '^(%x+) (%d+) (%d) (%d+) (%d+)$')
if not e or tonumber(e) <= now() or s == ARGV[6] then return 0 end
redis.call('HSET', KEYS[1], ARGV[5], d .. ' ' .. g .. ' ' .. ARGV[6] .. ' ' .. o .. ' ' .. e)
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
";

/// Key: a user's marks. Arguments: time to live (ms), the most marks, then pairs of conversation and seq.
const PUT_MARKS: &str = r"
local room = tonumber(ARGV[2]) - redis.call('HLEN', KEYS[1])
for i = 3, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if old then
    if tonumber(old) < tonumber(ARGV[i + 1]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  elseif room > 0 then
    room = room - 1
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
";

/// Key: a user's marks. Arguments: conversation, seq.
const CLEAR_MARK: &str = r"
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and tonumber(old) <= tonumber(ARGV[2]) then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
";

/// Key: a conversation's recent events, by seq. Arguments: seq, bytes behind their seq, the most events,
/// time to live (ms). A later put of a seq replaces the earlier one, so a redacted body goes.
const PUT_RECENT: &str = r"
redis.call('ZREMRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
";

/// Key: a conversation's members. Arguments: version, users or nothing, time to live (ms). Only a
/// later version replaces what is there. Without users it says that earlier lists are out of date,
/// so that a slow reader can't put one back.
const PUT_MEMBERS: &str = r"
local old = redis.call('HGET', KEYS[1], 'version')
local version = tonumber(ARGV[1])
if old and tonumber(old) > version then return 0 end
if ARGV[2] == '' then
  if old and tonumber(old) == version then return 0 end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'version', ARGV[1])
else
  redis.call('HSET', KEYS[1], 'version', ARGV[1], 'users', ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
";

/// The scripts, each known to Redis by its hash and sent again where Redis has lost it.
pub(super) struct Scripts {
    pub put: Script,
    pub remove: Script,
    pub read: Script,
    pub set_state: Script,
    pub put_marks: Script,
    pub clear_mark: Script,
    pub put_recent: Script,
    pub put_members: Script,
}

impl Scripts {
    pub fn new() -> Scripts {
        let with_prelude = |code: &str| Script::new(&format!("{PRELUDE}{code}"));
        Scripts {
            put: with_prelude(PUT),
            remove: with_prelude(REMOVE),
            read: with_prelude(READ),
            set_state: with_prelude(SET_STATE),
            put_marks: Script::new(PUT_MARKS),
            clear_mark: Script::new(CLEAR_MARK),
            put_recent: Script::new(PUT_RECENT),
            put_members: Script::new(PUT_MEMBERS),
        }
    }
}
