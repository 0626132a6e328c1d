//! Endpoints and interfaces: an interface that appears is attached, one that goes is forgotten.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::discovery::Also;
use super::node::{Endpoint, Node};
use crate::clock;
use crate::config;
use crate::engine::endpoint::EndpointId;
use crate::engine::ruleset::RuleSet;
use crate::host::links::{Event, Events, Link};
use crate::kernel::KernelError;
use crate::kernel::abi::flag;
use crate::kernel::attach::{Attach, Method};
use crate::kernel::load::Kernel;
use crate::kernel::rules::{ADDRESSES, EndpointRow};

/// How many events of interfaces are acted on before anything else is looked at.
const EVENTS: usize = 256;

/// An endpoint on its interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attachment {
    /// The interface's number.
    pub ifindex: u32,
    /// How the programs are on it.
    pub method: Method,
    /// The bridge that it is a port of.
    pub bridge: Option<u32>,
    /// The row that the kernel has for it lets nothing pass.
    pub closed: bool,
    /// The programs were on it when they were last looked at.
    pub in_place: bool,
    /// The number of the pod's own side in its namespace, where what it receives is judged there.
    pub inside: Option<u32>,
}

impl Attachment {
    /// Not attached yet.
    pub fn new(ifindex: u32, bridge: Option<u32>, inside: Option<u32>) -> Attachment {
        Attachment { ifindex, method: Method::Tcx, bridge, closed: false, in_place: false, inside }
    }
}

impl Node {
    /// Looks at all interfaces: at start, after a reload, and when events may have been lost.
    pub async fn look_at_links(&mut self) {
        if self.discovery.is_some() {
            self.look_again().await;
            return self.publish().await;
        }
        match self.netlink.links().await {
            Ok(links) => self.links = links.into_iter().map(|link| (link.index, link)).collect(),
            Err(error) => return tracing::warn!(%error, "interfaces can't be listed"),
        }
        let renamed: BTreeSet<u32> = self.renamed().iter().map(|(ifindex, _)| *ifindex).collect();
        let stale: Vec<u32> = self
            .kernel
            .pinned_interfaces()
            .into_iter()
            .chain(self.kernel.endpoints().into_iter().flatten().map(|row| row.0))
            .filter(|ifindex| !self.is_named(*ifindex) && !renamed.contains(ifindex))
            .collect();
        for ifindex in stale {
            self.ground.floor.shut(ifindex);
            self.kernel.detach(ifindex);
            self.kernel.delete_endpoint(ifindex);
        }
        self.close_the_renamed();
        for endpoint in self.endpoints.values_mut() {
            endpoint.elsewhere = false;
        }
        for key in self.endpoints.keys().cloned().collect::<Vec<_>>() {
            self.meet(&key).await;
        }
        self.publish().await;
    }

    /// Where programs of an earlier run are in force they are told of this one's policy, and DNS is served, before there are
    /// new ones: the verifier takes its time for those.
    pub async fn resume(&mut self) {
        if self.discovery.is_some() {
            return self.publish().await; // whom the kernel had a row for has been told of already
        }
        let Ok(links) = self.netlink.links().await else { return };
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        for key in self.endpoints.keys().cloned().collect::<Vec<_>>() {
            let interface = &self.endpoints[&key].interface;
            let Some(link) = self.links.values().find(|link| link.name == *interface).cloned() else { continue };
            if !self.kernel.has_programs(link.index).unwrap_or(false) {
                continue;
            }
            let (bridge, _) = self.bridge_of(&link).await;
            let at = Attachment::new(link.index, bridge, None);
            if let Err(error) = self.introduce(&key, at) {
                tracing::warn!(pod = key, error = &error as &dyn std::error::Error, "its DNS waits for its programs");
            }
        }
        self.publish().await;
    }

    /// It has the name of an endpoint's interface.
    fn is_named(&self, ifindex: u32) -> bool {
        let name = self.links.get(&ifindex).map(|link| &link.name);
        self.endpoints.values().any(|endpoint| Some(&endpoint.interface) == name)
    }

    /// Interfaces that the kernel knows as an endpoint's, by a name that is no endpoint's, though the configuration names the
    /// same one as before.
    fn renamed(&self) -> Vec<(u32, &Endpoint)> {
        let rows = self.kernel.endpoints().unwrap_or_default();
        let find = |(ifindex, id, _, _): (u32, EndpointId, u32, u32)| {
            let endpoint = self.endpoints.values().find(|endpoint| endpoint.id == id && !endpoint.elsewhere)?;
            (self.links.contains_key(&ifindex) && !self.is_named(ifindex)).then_some((ifindex, endpoint))
        };
        rows.into_iter().filter_map(find).collect()
    }

    /// A workload does not leave its policy because someone renames its interface: what was attached when that happened goes
    /// on as it was; what was found so is shut.
    fn close_the_renamed(&self) {
        for (ifindex, endpoint) in self.renamed() {
            if endpoint.attachment.is_none_or(|at| at.ifindex != ifindex) {
                self.close_row(ifindex, endpoint);
            }
        }
    }

    fn close_row(&self, ifindex: u32, endpoint: &Endpoint) {
        let row = EndpointRow { flags: flag::CLOSED | flag::ENFORCE, ..endpoint.row(None, false, &BTreeSet::new()) };
        let name = self.links.get(&ifindex).map_or("?", |link| &link.name);
        match self.kernel.set_endpoint(ifindex, &row) {
            Ok(()) => {
                tracing::warn!(pod = %endpoint.pod, interface = endpoint.interface, "its interface is called {name} now: shut");
            }
            Err(error) => tracing::error!(ifindex, error = &error as &dyn std::error::Error, "not shut"),
        }
    }

    /// Shuts interfaces of endpoints that no earlier run has guarded: nothing is in force that they could be let through by.
    pub async fn close_what_is_new(&mut self) {
        if self.discovery.is_some() {
            return self.shut_what_is_new().await;
        }
        let links = self.netlink.links().await.unwrap_or_default();
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        let known: Vec<u32> = self.kernel.endpoints().into_iter().flatten().map(|row| row.0).collect();
        let is_new = |name: &str| self.links.values().any(|link| link.name == name && !known.contains(&link.index));
        let new = self.endpoints.iter().filter(|(_, endpoint)| is_new(&endpoint.interface));
        for key in new.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.meet(&key).await;
        }
    }

    /// What has happened to interfaces meanwhile, and come of the CNI's cache.
    pub async fn catch_up(&mut self) {
        if self.link_events.is_none() {
            return; // not before there are programs
        }
        // The task that reads the socket runs on this thread too: once until it is woken, once until it has run.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        for _ in 0..EVENTS {
            self.drain_cache().await;
            let Some(event) = self.link_events.as_mut().and_then(Events::ready) else { return };
            self.link_event(event).await;
        }
    }

    /// Something happened to an interface.
    pub async fn link_event(&mut self, event: Event) {
        if self.discovery.is_some() {
            return self.discovery_event(event).await;
        }
        match event {
            Event::Leads { .. } | Event::Address { .. } => (),
            Event::Recheck | Event::Lost => self.upkeep.look_soon(),
            Event::Gone(ifindex) => {
                self.links.remove(&ifindex);
                self.forget(ifindex).await;
            }
            Event::Present(link) => {
                let index = link.index;
                let known = self.links.insert(index, link.clone());
                if known.as_ref() == Some(&link) {
                    return;
                }
                if known.is_some_and(|known| known.up) && !link.up {
                    self.kernel.forget_mac(index);
                }
                let attached = |endpoint: &&Endpoint| endpoint.attachment.is_some_and(|at| at.ifindex == index);
                if let Some(endpoint) = self.endpoints.values().find(attached).filter(|e| e.interface != link.name) {
                    let Endpoint { pod, interface, .. } = endpoint;
                    tracing::warn!(%pod, interface, "its interface is called {} now; it is guarded as before", link.name);
                }
                let key = self.endpoints.iter().find(|(_, endpoint)| endpoint.interface == link.name);
                if let Some(key) = key.map(|(key, _)| key.clone()) {
                    self.meet(&key).await;
                    self.publish().await;
                }
            }
        }
    }

    async fn forget(&mut self, ifindex: u32) {
        self.ground.floor.shut(ifindex);
        if self.kernel.pinned_interfaces().contains(&ifindex) {
            self.kernel.detach(ifindex); // its links are severed, their pins would stay
        }
        self.kernel.delete_endpoint(ifindex);
        let Some(endpoint) =
            self.endpoints.values_mut().find(|endpoint| endpoint.attachment.is_some_and(|at| at.ifindex == ifindex))
        else {
            return;
        };
        endpoint.attachment = None;
        tracing::info!(pod = %endpoint.pod, interface = endpoint.interface, "the interface is gone");
        self.publish().await;
    }

    /// Takes an endpoint off its interface: it is none any more.
    pub fn let_go(&mut self, endpoint: &mut Endpoint) {
        if let Some(at) = endpoint.attachment.take() {
            self.ground.floor.shut(at.ifindex);
            self.kernel.detach(at.ifindex);
            self.kernel.delete_endpoint(at.ifindex);
        }
    }

    /// Puts an endpoint on its interface, if that is there: first the row, then the programs that read it.
    async fn meet(&mut self, key: &str) {
        let Some(endpoint) = self.endpoints.get(key) else { return };
        let Some(link) = self.links.values().find(|link| link.name == endpoint.interface).cloned() else { return };
        self.meet_on(key, &link).await;
    }

    /// The same, on this interface.
    pub(super) async fn meet_on(&mut self, key: &str, link: &Link) {
        let link = &self.port_as_it_is(key, link).await;
        let (bridge, mut problem) = self.bridge_of(link).await;
        if let Some(mac) = bridge.and_then(|index| self.links.get(&index)?.mac)
            && let Err(error) = self.kernel.set_bridge(link.index, mac)
        {
            tracing::warn!(bridge, error = &error as &dyn std::error::Error, "the bridge's MAC was not written");
        }
        // First: its row says where it is judged.
        let namespace = self.endpoints.get(key).and_then(|endpoint| endpoint.namespace.clone());
        let inside = self.reach_inside(link, namespace.as_deref(), &mut problem);
        let Some(endpoint) = self.endpoints.get_mut(key) else { return };
        let is_new = std::mem::replace(&mut endpoint.link_problem, problem) != endpoint.link_problem;
        let at = Attachment::new(link.index, bridge, inside);
        let is_as = |old: Attachment| (old.ifindex, old.bridge, old.inside) == (at.ifindex, at.bridge, at.inside);
        if endpoint.attachment.is_some_and(|old| old.in_place && is_as(old)) {
            let reject = self.config.enforcement.reject;
            if is_new && let Err(error) = endpoint.write_row(&self.kernel, reject, &self.steering.servers) {
                tracing::error!(pod = key, error = &error as &dyn std::error::Error, "its row was not written");
            }
            return;
        }
        // Another interface has its name now: the one that had it stays guarded, and is shut.
        let before =
            endpoint.attachment.filter(|old| old.ifindex != link.index && self.links.contains_key(&old.ifindex));
        if let (Some(before), Some(endpoint)) = (before, self.endpoints.get(key)) {
            self.close_row(before.ifindex, endpoint);
        }
        // It had the name of another endpoint's interface: whose row it was does not write there any more.
        for (_, other) in self.endpoints.iter_mut().filter(|(other, _)| *other != key) {
            other.attachment.take_if(|held| held.ifindex == link.index);
        }
        let attached = self.introduce(key, at).and_then(|()| self.kernel.attach(link.index, self.attach_way()));
        let Some(endpoint) = self.endpoints.get_mut(key) else { return };
        match (attached, &mut endpoint.attachment) {
            (Ok(method), Some(at)) => {
                (at.method, at.in_place) = (method, true);
                endpoint.looked_at = clock::mono();
                tracing::info!(pod = %endpoint.pod, interface = link.name, ifindex = link.index, ?method, "attached");
            }
            (Ok(_), None) => {}
            (Err(error), attachment) => {
                *attachment = None;
                let error = anyhow::Error::from(error);
                endpoint.link_problem = format!("{error:#}");
                tracing::error!(pod = %endpoint.pod, interface = link.name, "not enforced: {error:#}");
            }
        }
        self.keep_floor(); // opens what is guarded now
        self.upkeep.look_soon();
    }

    /// The interface, which a CNI may have made a port of a bridge, or of another one, since the last event of it that was read:
    /// a query of a port that is not known for one is sent on to the bridge.
    pub(super) async fn port_as_it_is(&mut self, key: &str, link: &Link) -> Link {
        let said = self.port_of(link);
        let held = self.endpoints.get(key).and_then(|endpoint| endpoint.attachment_on(link.index));
        let as_told = match held {
            Some(at) => at.bridge == said,
            None => said.is_some() || !self.links.values().any(|link| link.bridge),
        };
        if !as_told && let Ok(Some(now)) = self.netlink.link(link.index).await {
            self.links.insert(now.index, now.clone());
            return now;
        }
        link.clone()
    }

    /// The bridge that an interface is a port of.
    pub(super) fn port_of(&self, link: &Link) -> Option<u32> {
        link.controller.filter(|index| self.links.get(index).is_some_and(|link| link.bridge))
    }

    /// How programs are to be attached.
    pub(super) fn attach_way(&self) -> Attach {
        attach(self.config.enforcement.attach)
    }

    /// Lets kernel and proxy know the interface of an endpoint, which its programs are not on yet.
    fn introduce(&mut self, key: &str, at: Attachment) -> Result<(), KernelError> {
        let Some(endpoint) = self.endpoints.get_mut(key) else { return Ok(()) };
        if let Some(served) = &endpoint.served {
            let mut served = (**served).clone();
            (served.interface, served.bridge) = (at.ifindex, at.bridge);
            endpoint.served = Some(served.into());
        }
        endpoint.adopt_until = self.adopting.until(at.ifindex);
        let row = endpoint.row(Some(at), self.config.enforcement.reject, &self.steering.servers);
        self.kernel.set_endpoint(at.ifindex, &row)?;
        endpoint.attachment = Some(Attachment { closed: row.flags & flag::CLOSED != 0, ..at });
        endpoint.written = Some(row);
        Ok(())
    }

    /// The bridge of a port, and what is wrong with it: steered replies leave by the bridge's own address.
    pub(super) async fn bridge_of(&self, link: &Link) -> (Option<u32>, String) {
        let Some(bridge) = self.port_of(link).and_then(|index| self.links.get(&index)) else {
            return (None, String::new());
        };
        let is_own = |(index, address, _): &(u32, IpAddr, u8)| {
            *index == bridge.index && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
        };
        let mut found = self.own_addresses().await.unwrap_or_default().iter().any(is_own);
        if !found {
            // A bridge gets its address after its first port, and the event may not have been read yet.
            found = self.netlink.addresses().await.unwrap_or_default().iter().any(is_own);
        }
        let problem = match found {
            true => String::new(),
            false => format!(
                "bridge {} has no address of its own; a bridged endpoint needs one on the pods' subnet for its DNS replies",
                bridge.name
            ),
        };
        (Some(bridge.index), problem)
    }
}

impl Endpoint {
    /// How it is on that interface.
    fn attachment_on(&self, ifindex: u32) -> Option<Attachment> {
        let also = self.also.iter().map(|also| also.at);
        self.attachment.into_iter().chain(also).find(|at| at.ifindex == ifindex)
    }

    /// Puts rules in force whose rows are already there under this policy number.
    pub fn put(
        &mut self,
        (policy_id, rules): (u32, Arc<RuleSet>),
        kernel: &Kernel,
        reject: bool,
        servers: &BTreeSet<IpAddr>,
    ) -> Result<(), KernelError> {
        self.policy_id = policy_id;
        self.rules = Some(rules);
        self.write_row(kernel, reject, servers)
    }

    /// Lets the kernel have its row as it is now, if it is on an interface.
    pub fn write_row(&mut self, kernel: &Kernel, reject: bool, servers: &BTreeSet<IpAddr>) -> Result<(), KernelError> {
        self.write_also(kernel, reject, servers)?;
        let Some(mut at) = self.attachment else { return Ok(()) };
        let row = self.row(Some(at), reject, servers);
        kernel.set_endpoint(at.ifindex, &row)?;
        at.closed = row.flags & flag::CLOSED != 0;
        self.attachment = Some(at);
        self.written = Some(row);
        Ok(())
    }

    /// The same for its further interfaces.
    pub fn write_also(&mut self, kernel: &Kernel, reject: bool, servers: &BTreeSet<IpAddr>) -> Result<(), KernelError> {
        for number in 0..self.also.len() {
            let row = self.row_of(&self.also[number], reject, servers);
            let also = &mut self.also[number];
            kernel.set_endpoint(also.at.ifindex, &row)?;
            also.at.closed = row.flags & flag::CLOSED != 0;
            also.written = Some(row);
        }
        Ok(())
    }

    /// What the kernel is to know of a further interface of it: its number, policy and state, with the addresses there.
    pub fn row_of(&self, also: &Also, reject: bool, servers: &BTreeSet<IpAddr>) -> EndpointRow {
        let fine = also.problem.is_empty() && !also.addresses.is_empty();
        let row = self.row_with(fine, Some(also.at), reject, servers);
        EndpointRow { addresses: also.addresses.iter().copied().take(ADDRESSES).collect(), mac: None, ..row }
    }

    /// What the kernel is to know of it where it is attached.
    pub fn row(&self, at: Option<Attachment>, reject: bool, servers: &BTreeSet<IpAddr>) -> EndpointRow {
        let fine = self.link_problem.is_empty() && !self.addresses.is_empty();
        self.row_with(fine, at, reject, servers)
    }

    fn row_with(&self, fine: bool, at: Option<Attachment>, reject: bool, servers: &BTreeSet<IpAddr>) -> EndpointRow {
        let mut flags = match &self.rules {
            Some(rules) if fine => EndpointRow::flags_of(rules),
            _ => flag::CLOSED | flag::ENFORCE,
        };
        // The cluster's DNS servers ask their own upstreams; steering them would be a loop. Nobody else is left out: that some
        // rule lets a pod be asked on port 53 must not lift its own rules for names.
        if self.addresses.iter().any(|address| servers.contains(address)) {
            flags &= !flag::STEER;
        }
        let (bridged, inside) = (at.and_then(|at| at.bridge).is_some(), at.and_then(|at| at.inside).is_some());
        for (is_so, flag) in [(bridged, flag::BRIDGED), (inside, flag::INSIDE), (reject, flag::REJECT)] {
            flags |= if is_so { flag } else { 0 };
        }
        EndpointRow {
            id: self.id,
            slot: self.slot,
            policy_id: self.policy_id,
            generation: self.generation,
            addresses: self.addresses.iter().copied().take(ADDRESSES).collect(),
            mac: self.mac,
            flags,
            adopt_until: self.adopt_until,
        }
    }
}

fn attach(setting: config::Attach) -> Attach {
    match setting {
        config::Attach::Auto => Attach::Auto,
        config::Attach::Tcx => Attach::Tcx,
        config::Attach::Clsact => Attach::Clsact,
        config::Attach::Xdp => Attach::Xdp,
    }
}
