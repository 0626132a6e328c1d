//! Are the programs there, first in the chain, and do they do what they are for? What is not so is set right.

use super::attachments::Attachment;
use super::node::Node;
use crate::clock;
use crate::kernel::KernelError;
use crate::kernel::attach::Hook;
use crate::kernel::repair::{Damage, Fault};
use crate::operate::metrics::Repair;

impl Node {
    /// Looks at pins and programs. What somebody took away comes back; what can't is a reason not to be ready.
    pub(super) async fn look_at_programs(&mut self) {
        let mut reasons = Vec::new();
        match self.kernel.pin_again() {
            Ok(maps) if maps.is_empty() => (),
            Ok(maps) => {
                tracing::error!("somebody removed the pins of {}; they are there again", maps.join(", "));
                self.metrics.repaired(Repair::Pin);
            }
            Err(error) => reasons.push(words(error)),
        }
        for key in self.endpoints.keys().cloned().collect::<Vec<_>>() {
            let looked = self.look_at_endpoint(&key);
            let Some(endpoint) = self.endpoints.get_mut(&key) else { continue };
            if let Some(at) = &mut endpoint.attachment {
                at.in_place = looked.is_ok() || self.kernel.has_programs(at.ifindex).unwrap_or(at.in_place);
            }
            endpoint.damage = looked.err().unwrap_or_default();
            for problem in [&endpoint.link_problem, &endpoint.damage].into_iter().filter(|text| !text.is_empty()) {
                reasons.push(format!("{}: {problem}", endpoint.interface));
            }
            if self.discovery.is_some() {
                self.catch_up().await; // who comes does not wait for all to be looked at
                self.publish_what_was_found().await;
            }
        }
        reasons.extend(self.look_at_others());
        if !reasons.is_empty() && reasons.iter().any(|reason| !self.readiness.reasons().contains(reason)) {
            tracing::error!("not in force: {}", reasons.join("; "));
        }
        self.readiness.set("attach", reasons);
    }

    /// An error is what is still wrong after all that could be done, for status and log.
    fn look_at_endpoint(&mut self, key: &str) -> Result<(), String> {
        let Some(at) = self.endpoints.get(key).and_then(|endpoint| endpoint.attachment) else { return Ok(()) };
        self.look_at_programs_of(Some(key), at)?;
        self.probe(key, at)?;
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            endpoint.looked_at = clock::mono();
        }
        Ok(())
    }

    /// The same of an endpoint's programs on one of its interfaces; without a key of an interface that nobody is behind.
    pub(super) fn look_at_programs_of(&mut self, key: Option<&str>, at: Attachment) -> Result<(), String> {
        let found = self.kernel.examine(at.ifindex, at.method).map_err(words)?;
        if found.iter().any(|damage| damage.fault == Fault::Detached) {
            self.ground.floor.shut(at.ifindex);
            self.shut_egress();
        }
        if !found.is_empty() {
            // Before, so that nothing that was opened meanwhile passes once the programs are back; after, for what was
            // opened in between.
            let judge_anew = |node: &mut Node| key.map_or(Ok(()), |key| node.judge_anew(key, &found));
            judge_anew(self).map_err(words)?;
            self.mend(at, &found).map_err(|why| format!("{}; {why}", list(&found)))?;
            judge_anew(self).map_err(words)?;
            match key {
                Some(key) => self.in_force_again(key, &found),
                None => tracing::error!(ifindex = at.ifindex, "not shut: {}; it is again", list(&found)),
            }
        }
        key.map_or(Ok(()), |key| self.look_inside(key, at))
    }

    fn mend(&self, at: Attachment, found: &[Damage]) -> Result<(), String> {
        let mut left = found.to_vec();
        // Twice: what was put back may have to be put first.
        for _ in 0..2 {
            self.kernel.repair(at.ifindex, at.method, &left).map_err(words)?;
            left = self.kernel.examine(at.ifindex, at.method).map_err(words)?;
            if left.is_empty() {
                return Ok(());
            }
        }
        Err(format!("after a repair: {}", list(&left)))
    }

    /// What was opened while a program was missing is judged by the rules, not by the flow that it has become.
    pub(super) fn judge_anew(&mut self, key: &str, found: &[Damage]) -> Result<(), KernelError> {
        let missing: Vec<Hook> = missing(found).collect();
        let (kernel, reject) = (self.kernel.clone(), self.config.enforcement.reject);
        let Some(endpoint) = self.endpoints.get_mut(key).filter(|_| !missing.is_empty()) else { return Ok(()) };
        kernel.turn_round(endpoint.id, &missing, endpoint.looked_at)?;
        endpoint.generation = endpoint.generation.wrapping_add(1);
        endpoint.write_row(&kernel, reject, &self.steering.servers)
    }

    /// Counts and tells.
    pub(super) fn in_force_again(&self, key: &str, found: &[Damage]) {
        let Some(endpoint) = self.endpoints.get(key) else { return };
        for damage in found {
            self.metrics.repaired(damage.fault.into());
        }
        let dark = clock::mono().0.saturating_sub(endpoint.looked_at.0) as f64 / 1e9;
        let (pod, interface, what) = (endpoint.pod.to_string(), &endpoint.interface, list(found));
        if missing(found).next().is_none() {
            tracing::error!(pod, interface, "somebody removed a pin or a link: {what}; it is there again");
        } else {
            tracing::error!(
                pod,
                interface,
                "not in force: {what}; repaired after up to {dark:.1} s without enforcement, connections are judged anew"
            );
        }
    }

    /// Two frames through both programs. A wrong row of the endpoint is written once more.
    fn probe(&self, key: &str, at: Attachment) -> Result<(), String> {
        let Some(endpoint) = self.endpoints.get(key) else { return Ok(()) };
        let enforced = endpoint.rules.as_ref().is_none_or(|rules| rules.selected);
        let inside = endpoint.attachment.is_some_and(|at| at.inside.is_some());
        let probe = || match inside {
            true => self.kernel.probe_inside(at.ifindex, at.closed, enforced),
            false => self.kernel.probe(at.ifindex, at.closed, enforced),
        };
        let Err(why) = probe() else { return Ok(()) };
        let Some(row) = &endpoint.written else { return Err(why) };
        self.kernel.set_endpoint(at.ifindex, row).map_err(words)?;
        probe()?;
        self.metrics.repaired(Repair::Row);
        tracing::error!(pod = %endpoint.pod, "not in force: {why}; its row was not as written, and is again");
        Ok(())
    }
}

impl From<Fault> for Repair {
    fn from(fault: Fault) -> Repair {
        match fault {
            Fault::Detached | Fault::NotEarly => Repair::Detached,
            Fault::Displaced => Repair::Displaced,
            Fault::Unpinned => Repair::Pin,
        }
    }
}

/// Programs without which something may have passed.
fn missing(found: &[Damage]) -> impl Iterator<Item = Hook> + '_ {
    let is_gap = |fault| matches!(fault, Fault::Detached | Fault::Displaced);
    found.iter().filter(move |damage| is_gap(damage.fault)).map(|damage| damage.hook)
}

fn list(found: &[Damage]) -> String {
    let each: Vec<String> = found.iter().map(Damage::to_string).collect();
    each.join(", ")
}

pub(super) fn words(error: KernelError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
