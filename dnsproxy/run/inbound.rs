//! What pods receive, judged on their own side: `enforcement.inbound = "pod"`.

use std::path::Path;

use super::attachments::Attachment;
use super::node::Node;
use crate::config::{Attach, Config, Inbound};
use crate::host::capabilities::{Capability, require};
use crate::host::links::Link;
use crate::kernel::inside::is_possible;

/// Whether that can be, where it is asked for.
///
/// # Errors
/// It can't: nothing is to start that would not enforce what it is told to.
pub(super) fn check(config: &Config, beside: bool) -> anyhow::Result<()> {
    if config.enforcement.inbound == Inbound::Host {
        return Ok(());
    }
    let key = "enforcement.inbound is pod";
    anyhow::ensure!(!beside, "{key}: a sidecar is on the pod's own interface anyway; allowed there is host");
    anyhow::ensure!(
        config.endpoints.is_empty(),
        "{key}, and endpoints are named: of those nobody says which network namespace they are in; allowed with them is host"
    );
    anyhow::ensure!(
        config.enforcement.attach != Attach::Clsact,
        "{key} and enforcement.attach is clsact: on the pods' side only TCX links can be taken off again; allowed is auto, tcx \
         or xdp"
    );
    require(Path::new("/proc"), key, &[Capability::SysAdmin])?;
    anyhow::ensure!(is_possible(), "{key}: that needs TCX, and this kernel has none (6.6 is the first that does)");
    Ok(())
}

/// How what is wrong on the pod's side begins, as [`crate::kernel::repair::Damage`] says it.
const INSIDE: &str = "the pod's side";

impl Node {
    /// Puts the program on the pod's side of an interface, where that is wanted: its number there. What is wrong goes to
    /// `problem`: then the endpoint is shut, for what it receives might be judged by nobody.
    pub(super) fn reach_inside(&self, link: &Link, namespace: Option<&Path>, problem: &mut String) -> Option<u32> {
        if !self.kernel.judges_inside() {
            return None;
        }
        let known = || self.kernel.inside_of(link.index);
        let unknown =
            || "enforcement.inbound is pod, and the CNI's cache does not say in which network namespace it is";
        let reached = match namespace {
            Some(namespace) => self.kernel.attach_inside(link.index, namespace).map_err(super::repair::words),
            None => known().ok_or_else(|| unknown().to_owned()),
        };
        match reached {
            Ok(index) => Some(index),
            Err(why) => {
                if problem.is_empty() {
                    *problem = why;
                }
                known()
            }
        }
    }

    /// Looks whether it is there and first, and sets it right; what is still wrong after that.
    pub(super) fn look_inside(&mut self, key: &str, at: Attachment) -> Result<(), String> {
        if !self.kernel.judges_inside() {
            return Ok(());
        }
        let Some(endpoint) = self.endpoints.get(key) else { return Ok(()) };
        let Some(namespace) = endpoint.namespace_of(at.ifindex).map(Path::to_owned) else {
            // It is said already when there never was one.
            let lost = at.inside.is_some() && self.kernel.inside_of(at.ifindex).is_none();
            return if lost { Err("the pod's side: no program is attached".to_owned()) } else { Ok(()) };
        };
        let Some(found) = self.kernel.examine_inside(at.ifindex, &namespace).map_err(super::repair::words)? else {
            return Ok(());
        };
        let what = found.to_string();
        let found = [found];
        self.judge_anew(key, &found).map_err(super::repair::words)?;
        let put = self.kernel.attach_inside(at.ifindex, &namespace).map_err(super::repair::words);
        let inside = put.as_ref().ok().copied();
        // Where it can't be judged there it is shut, for what it receives may be judged by nobody.
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            match &put {
                Ok(_) if endpoint.link_problem.starts_with(INSIDE) => endpoint.link_problem.clear(),
                Err(error) if endpoint.link_problem.is_empty() => {
                    endpoint.link_problem = format!("{what}; {error}");
                }
                _ => (),
            }
            let also = endpoint.also.iter_mut().map(|also| &mut also.at);
            let held = endpoint.attachment.iter_mut().chain(also).find(|held| held.ifindex == at.ifindex);
            held.into_iter().for_each(|held| held.inside = inside);
        }
        self.judge_anew(key, &found).map_err(super::repair::words)?;
        put.map_err(|error| format!("{what}; {error}"))?;
        self.in_force_again(key, &found);
        Ok(())
    }
}
