-- The directory's tables. One text for SQLite and PostgreSQL: bigint, text and bytea only
-- (SQLite keeps a blob in a bytea column as it is), ids below 2^63, times in
-- microseconds since 1970, booleans as 0 and 1, roles and kinds by the log's numbers.

create table users (
    id            bigint primary key,
    login_name    text,
    login_key     text unique,
    display_name  text not null,
    issuer        text,
    subject       text,
    password_hash text,
    created       bigint not null,
    disabled      bigint not null default 0,
    unique (issuer, subject)
);

create table devices (
    id        bigint primary key,
    user_id   bigint not null references users (id),
    name      text not null,
    created   bigint not null,
    last_seen bigint not null
);
create index devices_by_user on devices (user_id, name);

create table blocks (
    user_id bigint not null references users (id),
    blocked bigint not null references users (id),
    primary key (user_id, blocked)
);

-- A sign-in is a family of refresh tokens: one of them is current, the others were used.
create table sign_ins (
    id        bigint primary key,
    user_id   bigint not null references users (id),
    device_id bigint not null references devices (id) on delete cascade,
    expires   bigint not null
);
create index sign_ins_by_user on sign_ins (user_id);
create index sign_ins_by_device on sign_ins (device_id);
create index sign_ins_by_expiry on sign_ins (expires);

create table refresh_tokens (
    hash    bytea primary key,
    sign_in bigint not null references sign_ins (id) on delete cascade,
    expires bigint not null,
    uses    bigint not null default 0
);
create index refresh_tokens_by_sign_in on refresh_tokens (sign_in);
create index refresh_tokens_by_expiry on refresh_tokens (expires);

create table api_keys (
    id      bigint primary key,
    secret  bytea not null,
    name    text not null,
    scopes  text not null,
    created bigint not null
);

-- kind: 0 a user, 1 a device, 2 a sign-in.
create table revocations (
    kind       bigint not null,
    subject    bigint not null,
    not_before bigint not null,
    revision   bigint not null unique,
    primary key (kind, subject)
);

-- Numbers given out in the order of commits, under the row's lock.
create table counters (
    name  text primary key,
    value bigint not null
);
insert into counters (name, value) values ('revocations', 0);

-- low and high: the pair of a direct conversation.
create table conversations (
    id        bigint primary key,
    kind      bigint not null,
    title     text not null,
    version   bigint not null,
    join_role bigint not null,
    low       bigint,
    high      bigint,
    created   bigint not null
);
create index conversations_open on conversations (id) where join_role > 0;

create table members (
    conversation bigint not null references conversations (id),
    user_id      bigint not null references users (id),
    role         bigint not null,
    since        bigint not null,
    primary key (conversation, user_id)
);
create index members_by_user on members (user_id, conversation);
-- Who may succeed a last owner, without reading a large conversation's members.
create index members_of_rank on members (conversation, role) where role >= 3;

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
    primary key (creator, key)
);

-- Changes of members that the log doesn't have for certain; record is the log record's payload.
create table outbox (
    conversation bigint not null references conversations (id),
    version      bigint not null,
    queued       bigint not null,
    record       bytea not null,
    primary key (conversation, version)
);
create index outbox_by_age on outbox (queued, conversation, version);
