//! The load processes: clients, the bare server and the bare group-commit loop. Each takes
//! orders on its standard input and answers on its standard output, one line each.

mod clients;
mod commit;
mod ledger;
mod pages;
mod raw;
mod sending;
mod session;
mod sockets;
mod wire;

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A process that `bench` starts; not for hands.
#[derive(clap::Args)]
pub struct LoadArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Sessions and bare sockets.
    Clients {
        #[arg(long, value_delimiter = ',', required = true)]
        server: Vec<SocketAddr>,
        /// PKCS#8 file of the key that signs tokens.
        #[arg(long)]
        key: PathBuf,
        /// Source addresses from 127.0.0.2 on.
        #[arg(long, default_value_t = 60)]
        addresses: u16,
        /// What sessions tell a balancer in place of their users, in turn.
        #[arg(long, value_delimiter = ',')]
        hints: Vec<String>,
    },
    /// The raw probe of sockets: accepts, answers upgrades, writes to all.
    Raw,
    /// The raw probe of durable sends.
    Commit {
        #[arg(long)]
        file: PathBuf,
        #[arg(long)]
        rate: f64,
        #[arg(long)]
        bytes: usize,
        #[arg(long)]
        seconds: f64,
    },
}

/// Runs a load process until its standard input ends.
pub fn run_load(args: LoadArgs) -> anyhow::Result<ExitCode> {
    match args.role {
        Role::Clients {
            server,
            key,
            addresses,
            hints,
        } => clients::run(server, &key, addresses, hints)?,
        Role::Raw => raw::run()?,
        Role::Commit {
            file,
            rate,
            bytes,
            seconds,
        } => answer(&commit::run(&file, rate, bytes, seconds)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush().context("can't answer")
}

/// Orders as they come; `wake` is called behind each. The channel ends with the input.
fn orders<T: DeserializeOwned + Send + 'static>(wake: impl Fn() + Send + 'static) -> Receiver<T> {
    let (to, orders) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let order = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            if order.is_none_or(|order| to.send(order).is_err()) {
                break;
            }
            wake();
        }
        drop(to);
        wake();
    });
    orders
}
