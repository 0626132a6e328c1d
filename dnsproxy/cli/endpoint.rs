//! `namegate endpoint list`.

use std::process::ExitCode;

use clap::Subcommand;

use super::offline::Offline;
use super::policy::ListArgs;
use super::table::Table;
use crate::engine::explain::Explainer;
use crate::engine::explain::overview::{EndpointRow, endpoint};
use crate::operate::explain::PolicyAsked;

/// What `namegate endpoint` can do.
#[derive(Subcommand, Debug)]
pub(super) enum EndpointCommand {
    /// List the endpoints of the node, or the pods of a snapshot: the policies that select them and what these come to
    List(ListArgs),
}

impl EndpointCommand {
    pub(super) fn run(self) -> ExitCode {
        let EndpointCommand::List(args) = self;
        let offline = |offline: &Offline| {
            let explainer = Explainer::new(&offline.world, offline.surroundings());
            offline.endpoints().iter().map(|pod| endpoint(&explainer, pod)).collect()
        };
        args.show(&PolicyAsked::Endpoints, offline, |rows: &Vec<EndpointRow>| text(rows))
    }
}

/// The endpoints for people.
pub(super) fn text(rows: &[EndpointRow]) -> String {
    let heading =
        ["POD", "NODE", "EGRESS", "INGRESS", "STEERED", "MODE", "GROUPS", "NAMES", "LEARNED", "POLICIES", "PROBLEM"];
    let mut table = Table::new(&heading);
    let shut = |shut: bool| if shut { "default deny" } else { "open" }.to_owned();
    for row in rows {
        table.row([
            row.pod.clone(),
            row.node.clone().unwrap_or_default(),
            shut(row.egress_default_deny),
            shut(row.ingress_default_deny),
            if row.steered { "yes" } else { "no" }.to_owned(),
            if row.audit { "audit" } else { "enforce" }.to_owned(),
            row.groups.to_string(),
            row.names.to_string(),
            row.learned.map(|learned| learned.to_string()).unwrap_or_default(),
            row.policies.join(", "),
            row.problem.clone(),
        ]);
    }
    if table.is_empty() { "no endpoints\n".to_owned() } else { table.text() }
}
