//! `namegate fqdn list`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::node::CommonArgs;
use super::table::Table;
use super::{FAILED, Output, complain, print, usage};
use crate::operate::client;
use crate::operate::names::{AddressStatus, NameStatus, NamesAsked, NamesPage, PAGE};

/// What `namegate fqdn` can do.
#[derive(Subcommand, Debug)]
pub(super) enum FqdnCommand {
    /// List the names that workloads have learned, their addresses, and how long new connections are let to them
    List(ListArgs),
}

/// What `namegate fqdn list` takes.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Of this workload only
    #[arg(long, value_name = "NAMESPACE/POD")]
    endpoint: Option<String>,
    /// Names that this pattern selects only, as in a policy's matchPattern
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// How many names to list at most; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    limit: usize,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The list as JSON has it.
#[derive(Serialize, Debug)]
pub(super) struct Listing {
    /// By endpoint, then by name.
    pub names: Vec<NameStatus>,
    /// Whether there are more than the limit let through.
    pub more: bool,
}

impl FqdnCommand {
    pub(super) fn run(self) -> ExitCode {
        let FqdnCommand::List(args) = self;
        let config = match args.common.source().load() {
            Ok(config) => config,
            Err(errors) => return usage(&errors),
        };
        match args.ask(&config.admin_socket()) {
            Ok(listing) if args.output == Output::Table => print(text(&listing).as_bytes()),
            Ok(listing) => {
                let mut text = serde_json::to_vec(&listing).expect("a listing has no map keys that are no strings");
                text.push(b'\n');
                print(&text)
            }
            Err(why) => {
                complain(&why);
                ExitCode::from(FAILED)
            }
        }
    }
}

impl ListArgs {
    /// Asks for page after page.
    fn ask(&self, socket: &Path) -> Result<Listing, String> {
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        let (endpoint, pattern) = (self.endpoint.clone(), self.name.clone());
        let mut asked = NamesAsked { endpoint, pattern, after: None, count: PAGE.min(limit) };
        let mut names: Vec<NameStatus> = Vec::new();
        loop {
            let answer = client::get(socket, &format!("/names?{}", asked.to_query()), Duration::from_secs(10))
                .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
            if answer.status != 200 {
                return Err(answer.body.trim_end().to_owned());
            }
            let page: NamesPage =
                serde_json::from_str(&answer.body).map_err(|error| format!("reading namegate's names: {error}"))?;
            names.extend(page.names);
            let left = limit.saturating_sub(names.len());
            match page.next {
                Some(next) if left > 0 => (asked.after, asked.count) = (Some(next), PAGE.min(left)),
                next => return Ok(Listing { more: next.is_some() || names.len() > limit, names }),
            }
        }
    }
}

/// The list for people: a line an address.
pub(super) fn text(listing: &Listing) -> String {
    let mut table = Table::new(&["ENDPOINT", "NAME", "ADDRESS", "LEFT", "POLICIES"]);
    for name in &listing.names {
        for address in &name.addresses {
            let cells = [&name.endpoint, &name.name, &address.address.to_string(), &left(address)];
            table.row(cells.into_iter().cloned().chain([name.policies.join(", ")]));
        }
    }
    let mut text = table.text();
    if listing.more {
        text.push_str(&format!("{} names are listed and there are more: --limit 0 lists all\n", listing.names.len()));
    }
    text
}

fn left(address: &AddressStatus) -> String {
    match (address.seconds_left, address.connections) {
        (0, true) => "while its connections live".to_owned(),
        (0, false) => "over".to_owned(),
        (seconds, _) => format!("{seconds}s"),
    }
}
