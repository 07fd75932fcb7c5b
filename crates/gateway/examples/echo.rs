//! Echoes every message through the gateway's own WebSocket code, for conformance runs.
//!
//! `echo [--listen ADDRESS] [--message-bytes-max N] [--frames-per-second N]`
//!
//! Prints the address it listens on and runs until its standard input ends.

use std::error::Error;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidings_gateway::worker::{
    CloseReason, Handler, Io, OpenInfo, Parts, Pool, PoolLimits, Token, Worker, WorkerConfig, bind,
};
use tidings_gateway::ws::handshake::Policy;
use tidings_gateway::ws::{Limits, Opcode, server_frame};

struct Echo {
    stop: Arc<AtomicBool>,
}

impl Handler for Echo {
    fn on_open(&mut self, _: &mut Io, _: Token, _: &OpenInfo<'_>) {}

    fn on_message(&mut self, io: &mut Io, token: Token, opcode: Opcode, payload: &mut [u8]) {
        io.send(token, server_frame(opcode, payload));
    }

    fn on_close(&mut self, _: &mut Io, _: Token, _: CloseReason) {}

    fn on_overflow(&mut self, io: &mut Io, token: Token) {
        io.close(token, 4004, "reads too slowly");
    }

    fn on_wake(&mut self, io: &mut Io) {
        if self.stop.load(Ordering::Acquire) {
            io.stop();
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut listen: SocketAddr = ([127, 0, 0, 1], 0).into();
    // The largest Autobahn cases are of 16 MiB.
    let mut message_bytes_max = 32 << 20;
    let mut frames_per_second = 0;
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--listen" => listen = value.parse()?,
            "--message-bytes-max" => message_bytes_max = value.parse()?,
            "--frames-per-second" => frames_per_second = value.parse()?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }

    let listener = bind(listen)?;
    let address = listener.local_addr()?;
    let config = WorkerConfig {
        policy: Policy {
            path: "/".into(),
            ..Policy::default()
        },
        limits: Limits {
            frame_bytes_max: message_bytes_max,
            message_bytes_max,
            // Cases 9.3.1 and 9.4.1 send 4 MiB in fragments of 64 bytes.
            fragments_max: 1 << 20,
        },
        auth_ms: 0,
        queue_bytes_max: u32::try_from(message_bytes_max.saturating_mul(2))?,
        queue_frames_max: 1 << 20,
        frames_per_second,
        ..WorkerConfig::default()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let parts = Parts {
        config,
        pool: Arc::new(Pool::new(PoolLimits {
            exempt_loopback: true,
            ..PoolLimits::of(1000)
        })),
        listener,
        tls: None,
        // Nothing but echoes here: the connection is closed.
        http: Box::new(drop),
    };
    let worker = Worker::new(
        parts,
        Echo {
            stop: Arc::clone(&stop),
        },
    )?;
    let waker = worker.waker();
    let thread = std::thread::Builder::new()
        .name("echo".into())
        .spawn(move || worker.run())?;

    let mut output = std::io::stdout();
    writeln!(output, "{address}")?;
    output.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    stop.store(true, Ordering::Release);
    waker.wake();
    match thread.join() {
        Ok(result) => drop(result?),
        Err(_) => return Err("the worker panicked".into()),
    }
    Ok(())
}
