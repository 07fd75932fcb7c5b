-- The directory's tables: the same as the embedded directory's, with the indexes that many servers need.
-- Ids are below 2^63, times microseconds since 1970, roles and kinds the log's numbers.
--
-- A migration runs beside servers of the version before it: it only adds, with defaults; what is no longer used goes one
-- version later. The row 'oldest_schema' below says which servers still get along with the tables.

create table users (
    id            bigint primary key,                       -- users by id
    login_name    text,
    login_key     text constraint users_login_key unique,   -- sign-in; who takes a name first has it
    display_name  text not null,
    issuer        text,
    subject       text,
    password_hash text,
    created       bigint not null,
    disabled      boolean not null default false,
    constraint users_subject unique (issuer, subject)       -- the account of an external subject
) with (fillfactor = 90);                                   -- room to change a row without touching the indexes

create table devices (
    id        bigint primary key,
    user_id   bigint not null references users (id),
    name      text not null,
    created   bigint not null,
    last_seen bigint not null
) with (fillfactor = 80);                                   -- last_seen changes with every visit
create index devices_by_user on devices (user_id, name);    -- a user's devices; the one with a name

create table blocks (
    user_id bigint not null references users (id),
    blocked bigint not null references users (id),
    primary key (user_id, blocked)                          -- pages of a user's blocks, in order; one block
);

-- A sign-in is a family of refresh tokens: one of them is current, the others were used.
create table sign_ins (
    id        bigint primary key,
    user_id   bigint not null references users (id),
    device_id bigint not null references devices (id) on delete cascade,
    expires   bigint not null
);
create index sign_ins_by_user on sign_ins (user_id);        -- a user's end all at once
create index sign_ins_by_device on sign_ins (device_id);    -- a device's too, and the cascade
create index sign_ins_by_expiry on sign_ins (expires);      -- what is forgotten

create table refresh_tokens (
    hash    bytea primary key,
    sign_in bigint not null references sign_ins (id) on delete cascade,
    expires bigint not null,
    uses    bigint not null default 0
) with (fillfactor = 90);                                   -- each is used once
create index refresh_tokens_by_sign_in on refresh_tokens (sign_in); -- the cascade
create index refresh_tokens_by_expiry on refresh_tokens (expires);  -- what is forgotten

create table api_keys (
    id      bigint primary key,
    secret  bytea not null,
    name    text not null,
    scopes  text not null,
    created bigint not null                                 -- the list is short: sorted without an index
);

-- kind: 0 a user, 1 a device, 2 a sign-in.
create table revocations (
    kind       bigint not null,
    subject    bigint not null,
    not_before bigint not null,
    revision   bigint not null unique,                      -- readers go on from the last one they saw
    primary key (kind, subject)
);

-- Numbers given out in the order of commits, under the row's lock.
create table counters (
    name  text primary key,
    value bigint not null
) with (fillfactor = 10);                                   -- one row a page, changed in place
insert into counters (name, value) values ('revocations', 0);
-- The schema version of the oldest servers that these tables still serve.
insert into counters (name, value) values ('oldest_schema', 1);

-- low and high: the pair of a direct conversation.
create table conversations (
    id        bigint primary key,                           -- also the arbiter of a pair's simultaneous creation
    kind      bigint not null,
    title     text not null,
    version   bigint not null,
    join_role bigint not null,
    low       bigint,
    high      bigint,
    created   bigint not null
) with (fillfactor = 85);                                   -- version changes with every change of members
create index conversations_open on conversations (id) where join_role > 0;  -- pages of what can be joined

create table members (
    conversation bigint not null references conversations (id),
    user_id      bigint not null references users (id),
    role         bigint not null,
    since        bigint not null,
    primary key (conversation, user_id)                     -- pages of members, in order; one member
);
create index members_by_user on members (user_id, conversation);    -- pages of a user's conversations, in order
-- The next in line when an owner leaves, without reading a large conversation's members.
create index members_in_line on members (conversation, role desc, since, user_id);

create table bans (
    conversation bigint not null references conversations (id),
    user_id      bigint not null references users (id),
    primary key (conversation, user_id)
);

-- What a creation under an idempotency key made, and of what request.
create table creations (
    creator      bigint not null references users (id),
    key          text not null,
    fingerprint  bytea not null,
    conversation bigint not null references conversations (id),
    primary key (creator, key)                              -- also the arbiter of simultaneous repeats
);

-- Changes of members that the log doesn't have for certain; record is the log record's payload. A queue: rows come and go,
-- so it is vacuumed by the count of dead rows and not by their share, else the reading end grows slow.
create table outbox (
    conversation bigint not null references conversations (id),
    version      bigint not null,
    queued       bigint not null,
    record       bytea not null,
    primary key (conversation, version)                     -- what is done goes, by conversation
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index outbox_by_age on outbox (queued, conversation, version);   -- pending, oldest first
