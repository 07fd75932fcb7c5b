use proptest::prelude::*;

use super::super::item::Workers;
use super::*;

fn ids() -> impl Strategy<Value = Vec<ConversationId>> {
    prop::collection::vec(any::<u64>().prop_map(ConversationId), 0..20)
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..200u64, any::<u64>()]
}

fn cursor() -> impl Strategy<Value = CursorRow> {
    (any::<[u64; 2]>(), [number(), number()]).prop_map(|([c, u], [delivered, read])| CursorRow {
        conversation: ConversationId(c),
        user: UserId(u),
        delivered,
        read,
    })
}

fn cursors() -> impl Strategy<Value = Vec<CursorRow>> {
    prop::collection::vec(cursor(), 0..10)
}

fn heads() -> impl Strategy<Value = Arc<[(ConversationId, u64)]>> {
    let head = (any::<u64>().prop_map(ConversationId), number());
    prop::collection::vec(head, 0..20).prop_map(Arc::from)
}

fn role() -> impl Strategy<Value = Role> {
    (0..5u8).prop_map(|n| Role::from_number(n).expect("0 to 4 are roles"))
}

fn conversation_kind() -> impl Strategy<Value = ConversationKind> {
    (0..3u8).prop_map(|n| ConversationKind::from_number(n).expect("0 to 2 are kinds"))
}

fn grant() -> impl Strategy<Value = GrantState> {
    ([number(), number(), number()], role()).prop_map(|([grant, from, to], role)| GrantState {
        grant,
        role,
        visible_from: from,
        visible_to: to,
    })
}

fn before() -> impl Strategy<Value = Before> {
    prop_oneof![
        Just(Before::Nothing),
        number().prop_map(Before::Seq),
        any::<[u64; 5]>().prop_map(|[grant, counter, id, seq, ts]| Before::Row(SenderState {
            grant,
            counter,
            id: MessageKey(id),
            seq,
            ts,
        })),
    ]
}

fn members() -> impl Strategy<Value = Box<MembersBody>> {
    let change = (any::<u64>(), role(), grant()).prop_map(|(user, role, before)| MemberChange {
        user: UserId(user),
        role,
        before,
    });
    let changes = prop::collection::vec(change, 0..10);
    (number(), conversation_kind(), ".{0,20}", changes).prop_map(
        |(version, kind, title, changes)| {
            Box::new(MembersBody {
                version,
                kind,
                title,
                changes,
            })
        },
    )
}

fn row() -> impl Strategy<Value = Arc<EventRow>> {
    let body = prop::collection::vec(any::<u8>(), 0..200);
    (
        any::<([u64; 6], u32)>(),
        [number(), number(), number()],
        (0..4u8, 0..2u8),
        before(),
        body,
        prop::option::of(members()),
    )
        .prop_map(
            |(
                ([c, user, sender, id, ts, ts_before], epoch),
                [seq, offset, grant],
                (kind, encoding),
                before,
                body,
                members,
            )| {
                let position = Position { epoch, offset };
                Arc::new(EventRow {
                    user: UserId(user),
                    sender: SenderId(sender),
                    grant,
                    counter: seq ^ grant,
                    id: MessageKey(id),
                    before,
                    kind: Kind::from_number(kind).expect("0 to 3 are kinds"),
                    encoding: Encoding::from_number(encoding).expect("0 and 1 are encodings"),
                    body: body.into(),
                    members,
                    ..EventRow::empty(ConversationId(c), seq, position, ts, ts_before)
                })
            },
        )
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop::sample::select(vec![
        Verdict::Accepted,
        Verdict::Duplicate,
        Verdict::Stale,
        Verdict::Over,
        Verdict::Gap,
        Verdict::Fork,
    ])
}

fn answer() -> impl Strategy<Value = Answer> {
    (any::<[u64; 8]>(), verdict()).prop_map(
        |([conversation, sender, grant, counter, id, seq, ts, head], verdict)| Answer {
            conversation: ConversationId(conversation),
            sender: SenderId(sender),
            grant,
            verdict,
            counter,
            id: MessageKey(id),
            seq,
            ts,
            head,
        },
    )
}

fn to_router() -> impl Strategy<Value = ToRouter> {
    let handed = (any::<u64>(), number()).prop_map(|(c, seq)| Handed {
        conversation: ConversationId(c),
        seq,
    });
    prop_oneof![
        (number(), any::<u64>(), ids()).prop_map(|(request, user, conversations)| ToRouter::Open {
            request,
            user: UserId(user),
            conversations,
        }),
        (number(), ids()).prop_map(|(request, conversations)| ToRouter::Interest {
            request,
            conversations,
        }),
        ids().prop_map(ToRouter::Close),
        cursors().prop_map(ToRouter::Cursors),
        any::<(u64, u64, bool)>().prop_map(|(c, user, on)| ToRouter::Typing {
            conversation: ConversationId(c),
            user: UserId(user),
            on,
        }),
        any::<[u64; 3]>().prop_map(|[request, c, from]| ToRouter::Tail {
            request,
            conversation: ConversationId(c),
            from,
        }),
        prop::collection::vec(handed, 0..20).prop_map(ToRouter::FannedOut),
    ]
}

fn to_gateway() -> impl Strategy<Value = ToGateway> {
    let opened = (
        any::<u64>(),
        number(),
        conversation_kind(),
        grant(),
        cursor(),
    )
        .prop_map(|(conversation, head, kind, grant, cursor)| Opened {
            conversation: ConversationId(conversation),
            head,
            kind,
            grant,
            cursor,
        });
    prop_oneof![
        (number(), answer(), number()).prop_map(|(session, answer, taken)| ToGateway::Answer {
            session: SessionId(session),
            answer,
            taken,
        }),
        (row(), number(), number()).prop_map(|(row, except, taken)| ToGateway::Event {
            row,
            except: SessionId(except),
            taken,
        }),
        (number(), prop::collection::vec(opened, 0..10), ids()).prop_map(
            |(request, states, later)| ToGateway::Opened {
                request,
                states,
                later,
            }
        ),
        (number(), number(), heads()).prop_map(|(request, digest, heads)| ToGateway::Interested {
            request,
            digest,
            heads
        }),
        any::<u32>().prop_map(|partition| ToGateway::TookOver {
            partition: Partition(partition),
        }),
        (number(), prop::collection::vec(row(), 0..4))
            .prop_map(|(request, rows)| ToGateway::Tail { request, rows }),
        (any::<u64>(), cursors()).prop_map(|(c, cursors)| ToGateway::Receipts {
            conversation: ConversationId(c),
            cursors: cursors.into(),
        }),
        any::<(u64, u64, bool)>().prop_map(|(user, other, is_blocked)| ToGateway::BlockChanged {
            user: UserId(user),
            other: UserId(other),
            is_blocked,
        }),
        (any::<(u64, u64)>(), number()).prop_map(|((user, c), seq)| ToGateway::Delayed {
            user: UserId(user),
            conversation: ConversationId(c),
            seq,
        }),
        (any::<(u64, u64)>(), 0..3).prop_map(|((id, revision), kind)| {
            let subject = match kind {
                0 => RevocationSubject::User(UserId(id)),
                1 => RevocationSubject::Device(DeviceId(id)),
                _ => RevocationSubject::SignIn(SignInId(id)),
            };
            ToGateway::Revoked(Revocation {
                revision,
                subject,
                not_before: id / 2,
            })
        }),
        any::<u64>().prop_map(|session| ToGateway::Replaced {
            session: SessionId(session),
        }),
        any::<(u64, u64, bool)>().prop_map(|(c, user, on)| ToGateway::Typing {
            conversation: ConversationId(c),
            user: UserId(user),
            on,
        }),
        (any::<u32>(), number(), heads(), heads()).prop_map(|(p, number, heads, changes)| {
            ToGateway::Digest {
                partition: Partition(p),
                number,
                heads,
                changes,
            }
        }),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let to = prop_oneof![
        Just(To::All),
        any::<u8>().prop_map(|worker| To::Some(Workers::one(worker)))
    ];
    prop_oneof![
        1 => any::<(u32, u32, u64, u64)>().prop_map(|(p, epoch, offset, since)| Item::TookOver {
            partition: Partition(p),
            term: Term { epoch, offset, since },
        }),
        1 => to_gateway().prop_map(|message| Item::Notice { message }),
        1 => any::<u32>().prop_map(|p| Item::Resigned { partition: Partition(p) }),
        6 => (any::<(u8, u32)>(), to_router()).prop_map(|((worker, p), message)| Item::ToRouter {
            worker,
            partition: Partition(p),
            message,
        }),
        9 => (any::<u32>(), to, to_gateway()).prop_map(|(p, to, message)| Item::ToGateway {
            partition: Partition(p),
            to,
            message,
        }),
    ]
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_received(items in prop::collection::vec(item(), 1..6)) {
        let mut frame = Vec::new();
        items.iter().for_each(|item| item.put(&mut frame));
        let mut r = Reader::new(&frame, "test");
        for item in &items {
            prop_assert_eq!(&Item::get(&mut r).expect("what was written"), item);
        }
        prop_assert!(r.is_empty());
    }

    #[test]
    fn cut_or_damaged_frames_are_errors_and_nothing_worse(item in item(), cut: prop::sample::Index, flip: prop::sample::Index, bits in 1..255u8) {
        let mut frame = Vec::new();
        item.put(&mut frame);
        let short = &frame[..cut.index(frame.len())];
        prop_assert!(Item::get(&mut Reader::new(short, "test")).is_err());
        let at = flip.index(frame.len());
        frame[at] ^= bits;
        _ = Item::get(&mut Reader::new(&frame, "test"));
    }
}

#[test]
fn workers_of_one_server_share_an_event_and_other_events_stay_apart() {
    let event = |row: &Arc<EventRow>, worker: u8| Item::ToGateway {
        partition: Partition(1),
        to: To::Some(Workers::one(worker)),
        message: ToGateway::Event {
            row: Arc::clone(row),
            except: SessionId(0),
            taken: 9,
        },
    };
    let row = || {
        Arc::new(EventRow::empty(
            ConversationId(1),
            1,
            Position::default(),
            1,
            0,
        ))
    };
    let (one, other) = (row(), row());
    let mut merged = event(&one, 1);
    for worker in [255, 64, 63] {
        assert!(merged.merge(&event(&one, worker)));
    }
    for apart in [event(&other, 2), event(&one, 64)] {
        assert!(!merged.merge(&apart));
    }
    let mut frame = Vec::new();
    merged.put(&mut frame);
    let read = Item::get(&mut Reader::new(&frame, "test")).expect("what was written");
    let Item::ToGateway {
        to: To::Some(workers),
        ..
    } = read
    else {
        panic!("{read:?}");
    };
    assert_eq!(workers.iter().collect::<Vec<_>>(), [1, 63, 64, 255]);
}
