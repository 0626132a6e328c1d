//! What an earlier run left: its state, the last good objects, grants and their names.

use std::collections::BTreeMap;

use anyhow::Context;

use super::checkpoint;
use super::journal::{self, Journal};
use super::node::{Endpoint, Node};
use super::publish;
use super::state::{self, State};
use crate::clock;
use crate::config::Config;
use crate::engine::endpoint::EndpointId;
use crate::engine::fqdn::{FqdnTable, Meaning};
use crate::engine::grant::GrantWrite;
use crate::kernel::load::Kernel;

impl Node {
    /// Finds what an earlier run left: grants with their names, and budgets that a crash may have left miscounted.
    pub(super) fn inherit(&mut self) -> anyhow::Result<()> {
        let mut left: BTreeMap<EndpointId, Vec<GrantWrite>> = BTreeMap::new();
        for (id, grant) in self.kernel.grants()? {
            left.entry(id).or_default().push(grant);
        }
        // They may have been raised since the state was written.
        for (_, id, _, generation) in self.kernel.endpoints()? {
            for endpoint in self.endpoints.values_mut().filter(|endpoint| endpoint.id == id) {
                endpoint.generation = generation;
            }
        }
        let now = clock::mono();
        let mut slept = None;
        for (key, endpoint) in &mut self.endpoints {
            let rows = left.remove(&endpoint.id).unwrap_or_default();
            let names = read_names(&self.config, endpoint)?;
            slept = slept.max(names.as_ref().map(|names| names.slept));
            let names = names.unwrap_or_default().rows;
            let meaning = Meaning::of(&self.state.endpoints[key].groups);
            endpoint.adopted = FqdnTable::new(publish::caps(&self.config));
            for row in &rows {
                endpoint.adopted.adopt(row, names.get(&row.address), &meaning, now);
            }
            if !rows.is_empty() {
                let unnamed = endpoint.adopted.unnamed().count();
                tracing::info!(pod = key, grants = rows.len(), unnamed, "grants of an earlier run stay");
            }
        }
        self.checkpoint.slept(self.upkeep.slept_before(slept));
        self.kernel.recount(&self.budgets, &self.slot_of())?;
        Ok(())
    }
}

/// The names that an earlier run had written down for an endpoint.
fn read_names(config: &Config, endpoint: &Endpoint) -> anyhow::Result<Option<checkpoint::Names>> {
    match checkpoint::read(&config.state_dir, endpoint.id).context("reading the names of an earlier run")? {
        checkpoint::Read::Good(names) => Ok(Some(names)),
        checkpoint::Read::Missing => Ok(None),
        checkpoint::Read::Damaged(aside, why) => {
            tracing::warn!(
                pod = %endpoint.pod,
                "the file of its names was damaged ({why}) and is now {}: what is open stays so without names, until \
                 its deadline or until its group changes",
                aside.display()
            );
            Ok(None)
        }
    }
}

/// The state of an earlier run; without one, nothing that is pinned means anything. And whether there was none ever.
pub(super) fn read_state(config: &Config, kernel: &Kernel) -> anyhow::Result<(State, bool)> {
    let why = match state::read(&config.state_dir).context("reading the state")? {
        state::Read::Good(state) => return Ok((state, false)),
        state::Read::Missing if !kernel.adopted && !kernel.has_others() => return Ok((State::default(), true)),
        state::Read::Missing => "there is no state file".to_owned(),
        state::Read::Damaged(aside, why) => {
            format!("the state file was damaged ({why}) and is now {}", aside.display())
        }
    };
    let grants = kernel.delete_all_grants()?;
    let flows = kernel.delete_all_flows()?;
    if kernel.adopted {
        tracing::warn!(grants, flows, "{why}: pinned grants and flows mean nothing and were deleted");
    }
    // Numbers of rows that are still pinned are not given out again.
    let mut state = State::default();
    for (_, id, policy_id, _) in kernel.endpoints()? {
        state.last_endpoint_id = state.last_endpoint_id.max(id.0);
        state.last_policy_id = state.last_policy_id.max(policy_id);
    }
    Ok((state, false))
}

/// The last good version of each object. One that an older namegate wrote into the state stays until there is a journal.
pub(super) fn read_journal(config: &Config, state: &mut State) -> anyhow::Result<Journal> {
    let journal = match Journal::open(&config.state_dir).context("reading the last good objects")? {
        journal::Read::Missing(journal) => return Ok(journal),
        journal::Read::Good(journal) => journal,
        journal::Read::Damaged(journal, aside, why) => {
            tracing::warn!(
                "the file of the last good objects was damaged ({why}) and is now {}: an object that is wrong now is shut",
                aside.display()
            );
            journal
        }
    };
    state.last_good = journal.said().clone();
    Ok(journal)
}
