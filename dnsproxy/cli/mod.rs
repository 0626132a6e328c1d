//! What a person types.
//!
//! Exit codes: 0 it is done, or all is well; 1 it failed, is not ready, or something was refused; 2 the command line or
//! the configuration is wrong.

mod check;
#[cfg(feature = "collect")]
mod collect;
mod endpoint;
mod explain;
mod fqdn;
mod node;
mod offline;
mod policy;
mod policy_test;
mod ready;
mod settings;
mod sidecar;
mod status;
mod table;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::builder::styling::Styles;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::operate::log;

/// It failed, is not ready, or something was refused.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const USAGE: u8 = 2;

/// A DNS-aware egress firewall: a workload may reach only the names its policy allows.
#[derive(Parser, Debug)]
#[command(name = "namegate", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or all is well
  1  failed, not ready, or something was refused or found
  2  the command line or the configuration is wrong

Every setting of the configuration file can also be given as a variable (NAMEGATE_DNS_MIN_TTL=10s) and as a flag
(--set dns.min_ttl=10s); `namegate settings` lists them.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Guard the workloads of this node until SIGTERM; enforcement stays in the kernel unless --detach
    Node(node::NodeArgs),
    /// Guard the pod that this runs in, beside its workload, until SIGTERM
    Sidecar(sidecar::SidecarArgs),
    /// Keep a snapshot directory fresh from a Kubernetes API server until SIGTERM
    #[cfg(feature = "collect")]
    Collect(collect::CollectArgs),
    /// Remove everything that `namegate node` or `sidecar` left in the kernel and on the machine
    Detach(node::CommonArgs),
    /// Ask the running namegate whether it is ready; print why not
    Ready(ready::ReadyArgs),
    /// Show what the running namegate does
    Status(status::StatusArgs),
    /// Show what the running namegate has learned of names
    #[command(subcommand)]
    Fqdn(fqdn::FqdnCommand),
    /// Show what policies are in force, whom they select, and what a change would change
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Show the endpoints and what their policies come to
    #[command(subcommand)]
    Endpoint(endpoint::EndpointCommand),
    /// Say whether a workload may reach something, by which rules, and what would allow it
    Explain(explain::ExplainArgs),
    /// Run unit tests of policies
    Test(policy_test::TestArgs),
    /// Read policies and the objects they speak of as the node would; say what would be refused, and what will bite
    Check(check::CheckArgs),
    /// List every setting with its default, range, variable and when a change takes effect
    Settings(settings::SettingsArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// How a listing is printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Output {
    /// Columns, for people
    #[default]
    Table,
    /// JSON, for programs
    Json,
}

/// How a finding is printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Form {
    /// For people
    #[default]
    Text,
    /// JSON, for programs
    Json,
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    match parse(std::env::args_os()) {
        Ok(cli) => cli.run(),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE))
        }
    }
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        command = command.styles(Styles::plain());
    }
    command.try_get_matches_from(words).and_then(|found| Cli::from_arg_matches(&found))
}

impl Cli {
    fn run(self) -> ExitCode {
        match self.command {
            Command::Node(args) => {
                let source = args.source();
                configured(&source, |config| crate::run::node(config, source.clone()))
            }
            Command::Sidecar(args) => {
                let source = args.source();
                configured(&source, |config| match args.init {
                    true => crate::run::sidecar_init(&config),
                    false => crate::run::sidecar(config, source.clone()),
                })
            }
            #[cfg(feature = "collect")]
            Command::Collect(args) => args.run(),
            Command::Detach(args) => configured(&args.source(), |config| crate::run::detach(&config)),
            Command::Ready(args) => args.run(),
            Command::Status(args) => args.run(),
            Command::Fqdn(command) => command.run(),
            Command::Policy(command) => command.run(),
            Command::Endpoint(command) => command.run(),
            Command::Explain(args) => args.run(),
            Command::Test(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Settings(args) => args.run(),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "namegate", &mut script);
                print(&script)
            }
        }
    }
}

/// Does `work` with the configuration and the log set up.
fn configured(
    source: &crate::config::Source,
    work: impl FnOnce(crate::config::Config) -> anyhow::Result<()>,
) -> ExitCode {
    let config = match source.load() {
        Ok(config) => config,
        Err(errors) => return usage(&errors),
    };
    log::start(&config.observe);
    match work(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}")); // the whole chain
            ExitCode::from(FAILED)
        }
    }
}

/// Tells what is wrong with the configuration, one line each.
fn usage(errors: &crate::config::ConfigErrors) -> ExitCode {
    complain(&errors.to_string());
    ExitCode::from(USAGE)
}

/// `error: …` on standard error, red on a terminal.
fn complain(text: &str) {
    let plain = !io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let (on, off) = if plain { ("", "") } else { ("\x1b[1;31m", "\x1b[0m") };
    for line in text.lines() {
        let _ = writeln!(io::stderr(), "{on}error:{off} {}", crate::observe::text::clean(line));
    }
}

/// Writes to standard output. A reader that went away (`| head`) is no failure.
fn print(octets: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(octets).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("writing to standard output: {error}"));
            ExitCode::from(FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests;
