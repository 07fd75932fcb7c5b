//! `tidings`: the server, and its operator's commands.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tidings::config::{self, Flags, Loaded};
use tidings::dead_letters::{self, At, KeyArg, Outcome};
use tidings_core::ids::Partition;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Messages that arrive: a chat server. Without a command it serves, with everything embedded.
#[derive(Parser)]
#[command(
    name = "tidings",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Settings: flags win over the environment (TIDINGS_SECTION__KEY), that over the file, that over defaults."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Settings: flags win over the environment (TIDINGS_SECTION__KEY), that over the file, that over defaults.
#[derive(Args, Clone)]
struct SettingsArgs {
    /// Configuration file [default: tidings.toml in the working folder, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of durable data (data.dir) [default: data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Address and port of page, API and WebSocket (server.listen) [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address and port of health and metrics (admin.listen) [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Any other setting, e.g. --set limits.sends_per_second=50; `tidings config` lists them
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (what happens without a command, too)
    Serve(Serve),
    /// Make and upgrade what a cluster's engines hold: topics, tables, bucket, keys
    Migrate(Serve),
    /// Print the effective settings and where each came from
    Config(SettingsArgs),
    /// Make an API key for a server of yours; it is printed once
    ApiKey(ApiKey),
    /// Look at records that could not be read, and replay those that can be read now
    DeadLetters(DeadLetters),
    /// Store what the log holds, trim and merge the files of a server that doesn't run, and print their sizes
    Compact(SettingsArgs),
    Replay(tidings_cli::replay::Args),
    /// Measure a server of its own beside raw probes
    Bench(tidings_cli::bench::Args),
    Journeys(tidings_cli::journeys::Args),
    /// What `bench` starts
    #[command(hide = true)]
    BenchLoad(tidings_cli::bench::LoadArgs),
    /// What `cluster/cost` starts
    #[command(hide = true)]
    BenchCluster(tidings_cli::bench::ClusterArgs),
    /// What `cluster/overload` starts
    #[command(hide = true)]
    BenchOverload(tidings_cli::bench::OverloadArgs),
    /// What `cluster/storm` starts
    #[command(hide = true)]
    BenchStorm(tidings_cli::bench::StormArgs),
    Verify(tidings_cli::verify::Args),
}

#[derive(Args)]
struct Serve {
    /// Wait so many seconds for engines that don't answer yet, instead of failing at once
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "300", default_value = "0")]
    wait: u64,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Args)]
struct ApiKey {
    #[command(subcommand)]
    what: ApiKeyCommand,
}

#[derive(Subcommand)]
enum ApiKeyCommand {
    /// Make a key
    Create {
        /// What it is for
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

#[derive(Args)]
struct DeadLetters {
    #[command(subcommand)]
    what: DeadLettersCommand,
}

#[derive(Subcommand)]
enum DeadLettersCommand {
    /// List them in the order of partition and position
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// Only those behind this one
        #[arg(long, value_name = "PARTITION/EPOCH:OFFSET")]
        after: Option<KeyArg>,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Show one: what can be read of it, and its bytes
    Show {
        /// The log's partition
        partition: u32,
        /// EPOCH:OFFSET, as the list has it
        position: At,
        /// Print all bytes, however many there are
        #[arg(long)]
        whole: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Append their records again, if this program can read them
    Replay {
        /// The log's partition
        partition: u32,
        /// EPOCH:OFFSET, as the list has it
        #[arg(required = true)]
        positions: Vec<At>,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

impl SettingsArgs {
    fn load(self) -> anyhow::Result<Loaded> {
        let mut values = Vec::new();
        for (flag, name, value) in [
            ("--data", "data.dir", self.data),
            ("--listen", "server.listen", self.listen),
            ("--admin-listen", "admin.listen", self.admin_listen),
        ] {
            values.extend(value.map(|value| (name.to_owned(), value, flag.to_owned())));
        }
        for set in self.set {
            let Some((name, value)) = set.split_once('=') else {
                anyhow::bail!("--set {set}: write it as NAME=VALUE");
            };
            values.push((name.trim().to_owned(), value.to_owned(), "--set".to_owned()));
        }
        Ok(config::load(
            &Flags {
                file: self.config,
                values,
            },
            std::env::vars(),
        )?)
    }
}

/// Sets up the log: lines for a terminal, JSON for everything else.
///
/// # Errors
///
/// `RUST_LOG` isn't a list of levels and `target=level`.
fn logging() -> anyhow::Result<()> {
    use std::io::IsTerminal;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::prelude::*;
    let levels =
        std::env::var("RUST_LOG").unwrap_or_else(|_| "info,refinery_core=warn,scylla=warn".into());
    let levels: Targets = levels.parse().map_err(|e| {
        anyhow::anyhow!("RUST_LOG: {e}; write it as `info` or `info,tidings=debug`")
    })?;
    let registry = tracing_subscriber::registry().with(levels);
    if std::io::stderr().is_terminal() {
        registry.with(layer().with_writer(std::io::stderr)).init();
    } else {
        let json = layer().json().with_writer(std::io::stderr);
        registry.with(json).init();
    }
    Ok(())
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let serve = Serve {
        wait: 0,
        settings: cli.settings,
    };
    match cli.command.unwrap_or(Command::Serve(serve)) {
        Command::Serve(Serve { wait, settings }) => {
            let loaded = settings.load()?;
            logging()?;
            tidings::serve::run(&loaded.config, Duration::from_secs(wait))?;
        }
        Command::Migrate(Serve { wait, settings }) => {
            let loaded = settings.load()?;
            logging()?;
            for line in tidings::offline::migrate(&loaded.config, Duration::from_secs(wait))? {
                println!("{line}");
            }
        }
        Command::Config(settings) => print!("{}", settings.load()?),
        Command::ApiKey(ApiKey {
            what: ApiKeyCommand::Create { name, settings },
        }) => {
            println!(
                "{}",
                tidings::offline::create_api_key(&settings.load()?.config, &name)?
            );
        }
        Command::DeadLetters(DeadLetters { what }) => return look_at_dead_letters(what),
        Command::Replay(args) => return tidings_cli::replay::run(args),
        Command::Journeys(args) => return tidings_cli::journeys::run(args),
        Command::Bench(args) => return tidings_cli::bench::run(args),
        Command::BenchLoad(args) => return tidings_cli::bench::run_load(args),
        Command::BenchCluster(args) => return tidings_cli::bench::run_cluster(args),
        Command::BenchOverload(args) => return tidings_cli::bench::run_overload(args),
        Command::BenchStorm(args) => return tidings_cli::bench::run_storm(args),
        Command::Verify(args) => return tidings_cli::verify::run(args),
        Command::Compact(settings) => {
            logging()?;
            let sizes = tidings::offline::compact(&settings.load()?.config)?;
            println!("log        {:>12} bytes", sizes.log);
            println!("store      {:>12} bytes", sizes.store);
            println!("directory  {:>12} bytes", sizes.directory);
            println!("blobs      {:>12} bytes", sizes.blobs);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn look_at_dead_letters(command: DeadLettersCommand) -> anyhow::Result<ExitCode> {
    logging()?;
    match command {
        DeadLettersCommand::List {
            limit,
            after,
            settings,
        } => {
            let config = settings.load()?.config;
            let after = after.map(|KeyArg(key)| key);
            for line in dead_letters::list(&config, after, limit)? {
                println!("{line}");
            }
        }
        DeadLettersCommand::Show {
            partition,
            position,
            whole,
            settings,
        } => {
            let key = (Partition(partition), position.0);
            let config = settings.load()?.config;
            for line in dead_letters::show(&config, key, whole)? {
                println!("{line}");
            }
        }
        DeadLettersCommand::Replay {
            partition,
            positions,
            settings,
        } => {
            let keys = positions.iter().map(|at| (Partition(partition), at.0));
            let config = settings.load()?.config;
            let outcomes = dead_letters::replay(&config, keys.collect())?;
            for outcome in &outcomes {
                println!("{outcome}");
            }
            if outcomes.iter().any(Outcome::is_refused) {
                anyhow::bail!("not all of them were replayed");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Huge pages make every half-used page of the allocator resident: 15 MB of an empty server, and
/// 2 KB of each idle session at 15,000 (docs/benchmarks.md).
fn use_small_pages() {
    // SAFETY: sets a flag of this process; no memory is passed. Where it isn't known nothing changes.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Freed memory of a thread that sleeps stays with it otherwise, as does what is free in all threads
/// until somebody allocates much: a good half of what 15,000 idle sessions cost.
fn give_memory_back() {
    tidings_backends::lsm::forget_context();
    // SAFETY: frees only what nobody uses, of the calling thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

fn main() -> ExitCode {
    use_small_pages();
    tidings_core::in_process::on_rest(give_memory_back);
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tidings: {error:#}");
            // EX_CONFIG of sysexits(3) for settings, EX_UNAVAILABLE for the rest.
            ExitCode::from(if error.is::<config::ConfigError>() {
                78
            } else {
                69
            })
        }
    }
}
