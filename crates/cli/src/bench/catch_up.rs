//! A device that knows nothing pulls a long conversation, page by page.

use super::http::Api;
use super::order::{Order, RawOrder, SendPlan};
use super::report::{Judged, Report, Rounds};
use super::{Run, Stage};

/// Events of a page.
const PAGE: usize = 500;
/// Messages of a frame while the conversation is filled.
const BURST: u32 = 200;

pub fn run(run: &Run<'_>, report: &mut Report) -> anyhow::Result<()> {
    let (messages, readers) = (run.args.messages, run.args.rounds);
    let mut stage = Stage::new(run, "catch-up")?;
    let mut api = Api::connect(stage.server.address, &stage.server.api_key)?;
    let users = api.users(0..readers + 1)?;
    let conversation = api.conversation("group", &users)?;
    drop(api);
    stage.open(0, 1, false)?;
    let bursts = messages.div_ceil(BURST as usize) as u64;
    let (body, seconds) = (run.args.body, 120.0);
    let filled = stage.run(Order::Send(SendPlan {
        first: 0,
        count: 1,
        conversation,
        burst: BURST,
        in_flight: 2_000,
        bursts,
        seconds,
        body,
        ..SendPlan::default()
    }))?;
    anyhow::ensure!(
        filled.acked == filled.sent,
        "only {} of {} messages were acknowledged",
        filled.acked,
        filled.sent
    );
    let address = stage.raw.address;
    stage.run(Order::OpenRaw {
        address,
        count: 1,
        window: 1,
        upgrade: false,
        seconds: 10.0,
    })?;

    let (mut rounds, mut first_page, mut bytes_each) = (Rounds::default(), Vec::new(), Vec::new());
    let mut page_bytes = PAGE * (run.args.body + 60);
    for reader in 1..=readers {
        let pages = filled.sent / PAGE as u64;
        stage.raw.tell(&RawOrder::Fan {
            writes: pages,
            bytes: page_bytes,
            interval_us: 1_000,
        })?;
        stage.run(Order::AwaitRaw {
            bytes: pages * page_bytes as u64,
            seconds: 30.0,
        })?;
        let bare = stage.raw.hear()?.cpu_ns as f64 / 1e3 / (pages * PAGE as u64) as f64;
        let order = Order::Open {
            first: reader,
            count: 1,
            window: 1,
            whole: true,
            seconds: 120.0,
        };
        let (cost, done) = stage.cost(order, |done| done.paged)?;
        anyhow::ensure!(
            done.opened == 1 && done.paged >= filled.sent,
            "{} of {} events came",
            done.paged,
            filled.sent
        );
        rounds.add(cost, bare);
        first_page.push(done.first_page_us as f64 / 1e3);
        bytes_each.push(done.bytes as f64 / done.paged as f64);
        page_bytes = done.bytes as usize / done.paged as usize * PAGE;
    }
    report.beside(
        "catch-up",
        "CPU per message",
        "µs",
        &rounds,
        Judged::AtMost(2.0, 1.0),
    );
    report.plain(
        "catch-up",
        "first page after",
        "ms",
        &first_page,
        Judged::AtMost(5.0, 5.0),
    );
    report.plain(
        "catch-up",
        "bytes per message",
        "B",
        &bytes_each,
        Judged::Told,
    );
    stage.check(report)
}
