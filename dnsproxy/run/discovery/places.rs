//! From events to endpoints on their interfaces: one interface at a time, by what is known of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use super::super::attachments::Attachment;
use super::super::checkpoint;
use super::super::node::{Endpoint, Node};
use super::{Also, Class, Discovery, Found, LOOK_AGAIN, PATIENCE, Told, Unknown};
use crate::clock;
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::host::links::{Event, Link, Peer};
use crate::host::paths::{Path, Paths};
use crate::kernel::abi::flag;
use crate::kernel::rules::EndpointRow;

impl Node {
    /// First of all: what is here, and which endpoints an earlier run left. Changes no interface.
    pub async fn begin_discovery(&mut self) -> anyhow::Result<()> {
        if self.discovery.is_none() {
            return Ok(());
        }
        let links = self.netlink.links().await?;
        let paths = self.netlink.paths().await?;
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        let leave_alone = self.config.discovery.leave_alone.clone();
        let Some(discovery) = &mut self.discovery else { return Ok(()) };
        discovery.paths = Paths::new(paths);
        let directory = discovery.cache.directory().to_owned();
        match discovery.cache.read_all(clock::wall()) {
            Err(error) => tracing::warn!(%error, directory = %directory.display(), "the CNI's cache can't be read"),
            Ok(_) if !directory.exists() => {
                tracing::warn!(directory = %directory.display(), "the CNI's cache is not there: only routes say whose an interface is");
            }
            Ok(_) => (),
        }
        let is_ours = |link: &&Link| !matches!(discovery.identify(link, &leave_alone), Class::NotOurs(_));
        for link in self.links.values().filter(|link| link.veth == Some(Peer::Elsewhere) && !is_ours(link)) {
            let why = discovery.paths.uplink(link.index).unwrap_or_else(|| "discovery.leave_alone names it".to_owned());
            tracing::info!(interface = link.name, "left as it is, no pod's: {why}");
        }
        discovery.excepted = self.links.values().filter(|link| !is_ours(link)).map(|link| link.index).collect();
        self.inherit_endpoints().await?;
        let held: BTreeSet<u32> = self.guarded_links().collect();
        if let Some(discovery) = &mut self.discovery {
            discovery.excepted.retain(|index| !held.contains(index));
        }
        Ok(())
    }

    /// Endpoints whose interface is still there go on under their number. Of those whose is not, nothing may be used again.
    async fn inherit_endpoints(&mut self) -> anyhow::Result<()> {
        let rows = self.kernel.endpoints()?;
        let mut old = std::mem::take(&mut self.state.endpoints);
        let keys: BTreeMap<EndpointId, String> = old.iter().map(|(key, state)| (state.id, key.clone())).collect();
        for (ifindex, id, policy_id, _) in rows {
            self.state.last_endpoint_id = self.state.last_endpoint_id.max(id.0);
            self.state.last_policy_id = self.state.last_policy_id.max(policy_id);
            let Some(link) = self.links.get(&ifindex).cloned() else { continue };
            let inherited = keys.get(&id).and_then(|key| {
                let (namespace, name) = key.split_once('/')?;
                let pod = PodRef { namespace: namespace.to_owned(), name: name.to_owned() };
                let discovery = self.discovery.as_ref()?;
                let found = match discovery.identify(&link, &self.config.discovery.leave_alone) {
                    Class::Pod(found) => Some(found),
                    // As while it runs: whoever is behind it is so until it is gone, whatever routes say by now.
                    Class::Unknown(_) | Class::NotOurs(false) => None,
                    Class::NotOurs(true) | Class::BothHere => return None,
                };
                let known = old.get(key).or_else(|| self.state.endpoints.get(key))?;
                let is_it = match &found {
                    Some(found) => found.pod == pod,
                    None => known.interface == link.name, // else somebody renamed it: it is shut
                };
                is_it.then(|| (key.clone(), pod, found))
            });
            let Some((key, pod, found)) = inherited else {
                self.kernel.set_endpoint(ifindex, &closed())?;
                continue;
            };
            if let Some(known) = old.remove(&key) {
                self.state.endpoints.insert(key.clone(), known);
                let endpoint = Endpoint::known(&self.state, &pod);
                self.endpoints.extend(endpoint.map(|endpoint| (key.clone(), endpoint)));
            }
            let (bridge, problem) = self.bridge_of(&link).await;
            let at = Attachment::new(ifindex, bridge, self.kernel.inside_of(ifindex));
            let Some(endpoint) = self.endpoints.get_mut(&key) else { continue };
            let addresses = found.iter().flat_map(|found| found.given().to_vec()).collect();
            let namespace = found.as_ref().and_then(|found| found.namespace.clone());
            if endpoint.attachment.is_none() {
                (endpoint.attachment, endpoint.interface) = (Some(at), link.name);
                (endpoint.given, endpoint.link_problem) = (addresses, problem);
                (endpoint.uid, endpoint.namespace) = (found.and_then(|found| found.uid), namespace);
            } else {
                let (written, damage) = (None, String::new());
                endpoint.also.push(Also { interface: link.name, at, namespace, addresses, written, problem, damage });
            }
        }
        for (key, state) in &old {
            checkpoint::forget(&self.config.state_dir, state.id);
            // One that never had an interface has lost none, nor has one whose interface is still there (after `detach`).
            let is_there = self.links.values().any(|link| link.name == state.interface);
            let had = key.split_once('/').filter(|_| !state.interface.is_empty() && !is_there);
            if let Some(((namespace, name), discovery)) = had.zip(self.discovery.as_mut()) {
                discovery.lost.push(PodRef { namespace: namespace.to_owned(), name: name.to_owned() });
            }
        }
        let known: Vec<EndpointId> = self.endpoints.values().map(|endpoint| endpoint.id).collect();
        self.kernel.delete_grants_except(&known)?;
        let slots: Vec<(EndpointId, u32)> = self.endpoints.values().map(|each| (each.id, each.slot)).collect();
        self.kernel.set_slots(&slots)?;
        Ok(())
    }

    /// Looks at everything: at start, after a reload of settings, every few seconds, and when events were lost.
    pub async fn look_again(&mut self) {
        let (links, paths) = match self.list().await {
            Ok(both) => both,
            Err(error) => return tracing::warn!(%error, "interfaces and routes can't be listed"),
        };
        let Some(discovery) = &mut self.discovery else { return };
        discovery.look_again_at = clock::now() + LOOK_AGAIN;
        discovery.paths = Paths::new(paths);
        if let Err(error) = discovery.cache.read_all(clock::wall()) {
            tracing::warn!(%error, directory = %discovery.cache.directory().display(), "the CNI's cache can't be read");
        }
        let links: BTreeMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
        let gone: Vec<u32> = self.links.keys().filter(|index| !links.contains_key(index)).copied().collect();
        for index in gone {
            self.link_gone(index).await;
        }
        self.links = links;
        for index in self.links.keys().copied().collect::<Vec<_>>() {
            self.place(index).await;
        }
        // What nobody is behind any more.
        let ours: BTreeSet<u32> = self.guarded_links().collect();
        let rows = self.kernel.endpoints().into_iter().flatten().map(|row| row.0);
        // An endpoint's programs could not be put on anew: those of an earlier run are better than none.
        let is_named = |index: &u32| {
            let name = self.links.get(index).map(|link| &link.name);
            self.endpoints.values().any(|endpoint| Some(&endpoint.interface) == name)
        };
        let pinned = self.kernel.pinned_interfaces().into_iter().chain(rows);
        let stale: BTreeSet<u32> = pinned.filter(|index| !ours.contains(index) && !is_named(index)).collect();
        for index in stale {
            self.unguard(index);
        }
        self.keep_floor();
    }

    async fn list(&mut self) -> std::io::Result<(Vec<Link>, Vec<(u32, Path)>)> {
        let links = self.netlink.links().await?;
        let addresses = self.netlink.addresses().await?;
        self.has_addresses(addresses.into_iter().collect());
        Ok((links, self.netlink.paths().await?))
    }

    /// This machine has an address, or has it no more.
    fn own_address(&mut self, at: (u32, IpAddr, u8), now: bool) {
        let change = |addresses: &mut BTreeSet<(u32, IpAddr, u8)>| match now {
            true => addresses.insert(at),
            false => addresses.remove(&at),
        };
        if is_scoped(&at.1) {
            self.addresses.as_mut().map(change);
        } else if let Some(mut addresses) = self.addresses.clone() {
            change(&mut addresses);
            self.has_addresses(addresses);
        }
    }

    /// These are this machine's addresses now: no name may stand for one, and no network open one.
    pub(in crate::run) fn has_addresses(&mut self, now: BTreeSet<(u32, IpAddr, u8)>) {
        let told = |addresses: &BTreeSet<(u32, IpAddr, u8)>| -> BTreeSet<IpAddr> {
            addresses.iter().map(|each| each.1).filter(|address| !is_scoped(address)).collect()
        };
        let differ = self.addresses.as_ref().is_some_and(|was| told(was) != told(&now));
        self.addresses = Some(now);
        if let Some(discovery) = self.discovery.as_mut().filter(|_| differ) {
            discovery.unpublished = true;
            discovery.reload_soon();
        }
    }

    /// Every interface that programs are to be on.
    fn guarded_links(&self) -> impl Iterator<Item = u32> + '_ {
        let of_endpoints = self.endpoints.values().flat_map(Endpoint::interfaces).map(|(index, _)| index);
        let unknown = self.discovery.iter().flat_map(|discovery| discovery.unknown.keys().copied());
        of_endpoints.chain(unknown)
    }

    /// Something happened to an interface, or to what leads over one.
    pub async fn discovery_event(&mut self, event: Event) {
        match event {
            Event::Recheck => self.upkeep.look_soon(),
            Event::Lost => {
                tracing::warn!("the kernel's events were too many, and some are lost: everything is looked at");
                self.look_again().await;
            }
            Event::Gone(index) => self.link_gone(index).await,
            Event::Present(link) => {
                let known = self.links.insert(link.index, link.clone());
                if known.as_ref() == Some(&link) {
                    return;
                }
                if known.is_some_and(|known| known.up) && !link.up {
                    self.kernel.forget_mac(link.index);
                }
                self.place(link.index).await;
            }
            Event::Leads { paths, now } => self.leads(paths, now).await,
            Event::Address { at, path, now } => {
                self.own_address(at, now);
                self.leads(path.into_iter().map(|path| (at.0, path)).collect(), now).await;
            }
        }
    }

    async fn leads(&mut self, paths: Vec<(u32, Path)>, now: bool) {
        let Some(discovery) = &mut self.discovery else { return };
        discovery.paths.change(&paths, now);
        for (over, path) in paths {
            let Some(discovery) = &self.discovery else { return };
            let decides = match path {
                Path::Host(..) => discovery.unknown.contains_key(&over),
                Path::Default(_) | Path::Network(_) => true,
            };
            if decides {
                self.place(over).await;
            }
        }
    }

    /// A file of the CNI's cache was written or removed.
    pub async fn cache_event(&mut self, told: Told) {
        let Some(discovery) = &mut self.discovery else { return };
        let changed = match told {
            Told::File(file) => discovery.cache.read(&file),
            Told::Anything => discovery.cache.read_all(clock::wall()).unwrap_or_default(),
        };
        let named = self.links.values().filter(|link| changed.contains(&link.name)).map(|link| link.index);
        for index in named.collect::<Vec<_>>() {
            self.place(index).await;
        }
    }

    /// What has come of the CNI's cache meanwhile: it says more than routes do.
    pub async fn drain_cache(&mut self) {
        while let Some(told) = self.discovery.as_mut().and_then(|discovery| discovery.watch.ready()) {
            self.cache_event(told).await;
        }
    }

    /// What was found is told to the proxy.
    pub async fn publish_what_was_found(&mut self) {
        if self.discovery.as_mut().is_some_and(|discovery| std::mem::take(&mut discovery.unpublished)) {
            self.publish().await;
        }
    }

    /// What is due every second.
    pub async fn look_after_discovery(&mut self) {
        let Some(discovery) = &mut self.discovery else { return };
        let watched = discovery.watch.keep();
        for (index, unknown) in &mut discovery.unknown {
            if !unknown.told && clock::now() >= unknown.since + PATIENCE {
                unknown.told = true;
                tracing::warn!(interface = unknown.interface, ifindex = index, "shut, nothing passes: {}", unknown.why);
            }
        }
        if clock::now() >= discovery.look_again_at {
            self.look_again().await;
        } else if !watched {
            self.cache_event(Told::Anything).await;
        }
        self.publish_what_was_found().await;
        self.clear_away();
    }

    /// Shuts what no earlier run has guarded: there is nothing yet that it could be let through by.
    pub async fn shut_what_is_new(&mut self) {
        let links = self.netlink.links().await.unwrap_or_default();
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        let known: Vec<u32> = self.kernel.endpoints().into_iter().flatten().map(|row| row.0).collect();
        for index in self.links.keys().copied().filter(|index| !known.contains(index)).collect::<Vec<_>>() {
            self.place(index).await;
        }
    }

    async fn link_gone(&mut self, index: u32) {
        self.links.remove(&index);
        let Some(discovery) = &mut self.discovery else { return };
        discovery.paths.forget(index);
        discovery.excepted.remove(&index);
        let was_unknown = discovery.unknown.remove(&index).is_some();
        let holder = self.holder_of(index).cloned();
        if was_unknown || holder.is_some() {
            self.unguard(index); // its links are severed, their pins would stay
        }
        if let Some(key) = holder {
            tracing::info!(pod = key, ifindex = index, "the interface is gone");
            self.take_off(&key, index);
        }
        self.keep_floor();
        // Of a pair whose other end was here, that end may be somewhere else now.
        let other = self.links.values().find(|link| link.veth == Some(Peer::Here(index))).map(|link| link.index);
        if let Some(other) = other
            && let Ok(Some(link)) = self.netlink.link(other).await
        {
            self.links.insert(other, link);
            self.place(other).await;
        }
    }

    /// Nobody is behind it any more, as far as we are concerned.
    fn unguard(&mut self, index: u32) {
        self.ground.floor.shut(index);
        self.kernel.detach(index);
        self.kernel.delete_endpoint(index);
    }

    /// The endpoint that has the interface.
    fn holder_of(&self, index: u32) -> Option<&String> {
        self.endpoints.iter().find(|(_, endpoint)| endpoint.is_on(index)).map(|(key, _)| key)
    }

    /// Lets an interface be what it is found to be now.
    pub(super) async fn place(&mut self, index: u32) {
        let Some(mut link) = self.links.get(&index).cloned() else { return };
        let Some(discovery) = &self.discovery else { return };
        let mut class = discovery.identify(&link, &self.config.discovery.leave_alone);
        let holder = self.holder_of(index).cloned();
        // Of what is guarded an event that was queued before the last look is not believed: the other end may have been here
        // then, and be a pod's by now.
        if class == Class::BothHere
            && (holder.is_some() || discovery.unknown.contains_key(&index))
            && let Ok(Some(now)) = self.netlink.link(index).await
        {
            class = discovery.identify(&now, &self.config.discovery.leave_alone);
            self.links.insert(index, now.clone());
            link = now;
        }
        match (class, holder) {
            // Who was behind it is so still: nobody has said otherwise.
            (Class::NotOurs(false) | Class::Unknown(_), Some(key)) => self.join(&key, &link, None).await,
            (Class::NotOurs(_), holder) => self.leave(&link, holder, true),
            (Class::BothHere, holder) => self.leave(&link, holder, false),
            (Class::Unknown(why), None) => self.shut(&link, why),
            (Class::Pod(found), holder) => self.place_pod(&link, found, holder).await,
        }
    }

    /// It is none of ours, or not yet.
    fn leave(&mut self, link: &Link, holder: Option<String>, excepted: bool) {
        let Some(discovery) = &mut self.discovery else { return };
        let mut changed = discovery.unknown.remove(&link.index).is_some() || holder.is_some();
        if changed {
            self.unguard(link.index);
        }
        if let Some(key) = holder {
            self.take_off(&key, link.index);
        }
        let Some(discovery) = &mut self.discovery else { return };
        changed |=
            if excepted { discovery.excepted.insert(link.index) } else { discovery.excepted.remove(&link.index) };
        if changed {
            if let Some(why) = discovery.paths.uplink(link.index).filter(|_| excepted && link.veth.is_some()) {
                tracing::info!(interface = link.name, "left as it is, no pod's: {why}");
            }
            self.keep_floor();
        }
    }

    async fn place_pod(&mut self, link: &Link, found: Found, holder: Option<String>) {
        let key = found.pod.to_string();
        if let Some(other) = holder.as_ref().filter(|holder| **holder != key) {
            tracing::warn!(interface = link.name, "it was that of {other}, and is that of {key} now");
            self.take_off(other, link.index);
        }
        let Some(discovery) = &self.discovery else { return };
        if let Some(why) = discovery.why_not(&found) {
            // Its pod may be on its way out, or the snapshot behind: what it had goes with its interface. Another pod of this
            // name may not have it.
            let is_there = discovery.here.as_ref().is_some_and(|here| here.contains_key(&found.pod));
            if holder.as_ref() == Some(&key) && !is_there {
                return;
            }
            if holder.as_ref() == Some(&key) {
                self.take_off(&key, link.index);
            }
            return self.shut(link, why);
        }
        if !self.endpoints.contains_key(&key) {
            if !self.create(&found.pod) {
                let max = self.config.enforcement.max_endpoints;
                return self.shut(link, format!("no room for {key}: enforcement.max_endpoints is {max}"));
            }
            self.discovery.iter_mut().for_each(Discovery::reload_soon);
        }
        // Another sandbox of the same pod: the newer one is the pod.
        let others: Vec<u32> =
            self.endpoints[&key].interfaces().map(|(index, _)| index).filter(|at| *at != link.index).collect();
        if let (Some((sandbox, written)), Some((old, before))) = (&found.sandbox, &self.endpoints[&key].sandbox)
            && sandbox != old
            && !others.is_empty()
        {
            let why = || format!("{key} has a newer sandbox");
            if written < before {
                return self.shut(link, why());
            }
            for index in others {
                self.take_off(&key, index);
                if let Some(old) = self.links.get(&index).cloned() {
                    self.shut(&old, why());
                }
            }
        }
        self.join(&key, link, Some(found)).await;
    }

    /// Puts the endpoint on the interface, or lets it know what is new about it.
    async fn join(&mut self, key: &str, link: &Link, found: Option<Found>) {
        let bridge = self.port_of(link);
        let Some(discovery) = &mut self.discovery else { return };
        let uid_here = found.as_ref().and_then(|found| discovery.here.as_ref()?.get(&found.pod)?.clone());
        discovery.unknown.remove(&link.index);
        discovery.excepted.remove(&link.index);
        let Some(endpoint) = self.endpoints.get_mut(key) else { return };
        let is_first = endpoint.attachment.is_none_or(|at| at.ifindex == link.index);
        let addresses = found.as_ref().map(|found| if is_first { found.given() } else { &found.addresses }.to_vec());
        let mut namespace = None;
        if let Some(found) = found {
            endpoint.uid = found.uid.or(uid_here);
            endpoint.sandbox = found.sandbox.or(endpoint.sandbox.take());
            namespace = found.namespace;
        }
        if is_first {
            let before = (endpoint.attachment, endpoint.given.clone());
            endpoint.interface.clone_from(&link.name);
            endpoint.namespace = namespace.or(endpoint.namespace.take());
            if before.0.is_none() {
                discovery.reload_soon(); // so that the state knows where it is
            }
            if let Some(addresses) = addresses.filter(|addresses| *addresses != endpoint.given) {
                if !addresses.is_empty() {
                    endpoint.addresses.clone_from(&addresses);
                }
                endpoint.given = addresses;
                discovery.reload_soon(); // others are to know him by them
            }
            let (kernel, reject) = (self.kernel.clone(), self.config.enforcement.reject);
            if before.1 != endpoint.given
                && let Err(error) = endpoint.write_row(&kernel, reject, &self.steering.servers)
            {
                tracing::error!(pod = key, error = &error as &dyn std::error::Error, "its addresses were not written");
            }
            let as_it_was = endpoint.attachment.is_some_and(|at| at.in_place && at.bridge == bridge);
            if as_it_was && before.1 == endpoint.given && endpoint.link_problem.is_empty() {
                return;
            }
            self.meet_on(key, link).await;
            let Some(endpoint) = self.endpoints.get(key) else { return };
            if before == (endpoint.attachment, endpoint.given.clone()) {
                return;
            }
        } else if !self.meet_also(key, link, namespace, addresses).await {
            return;
        }
        self.discovery.iter_mut().for_each(|discovery| discovery.unpublished = true);
    }

    /// A further interface of an endpoint. Whether anything is new.
    async fn meet_also(
        &mut self,
        key: &str,
        link: &Link,
        namespace: Option<PathBuf>,
        addresses: Option<Vec<IpAddr>>,
    ) -> bool {
        let bridge = self.port_of(link);
        let is_as_it_was = |also: &Also| {
            also.at.ifindex == link.index
                && also.at.in_place
                && also.at.bridge == bridge
                && also.interface == link.name
                && addresses.as_ref().is_none_or(|addresses| *addresses == also.addresses)
                && also.problem.is_empty()
        };
        if self.endpoints.get(key).is_some_and(|endpoint| endpoint.also.iter().any(is_as_it_was)) {
            return false;
        }
        let link = &self.port_as_it_is(key, link).await;
        let (bridge, mut problem) = self.bridge_of(link).await;
        if let Some(mac) = bridge.and_then(|index| self.links.get(&index)?.mac)
            && let Err(error) = self.kernel.set_bridge(link.index, mac)
        {
            tracing::warn!(bridge, error = &error as &dyn std::error::Error, "the bridge's MAC was not written");
        }
        let known = self
            .endpoints
            .get(key)
            .and_then(|endpoint| endpoint.namespace_of(link.index))
            .map(std::path::Path::to_owned);
        let namespace = namespace.or(known);
        let inside = self.reach_inside(link, namespace.as_deref(), &mut problem);
        let at = Attachment::new(link.index, bridge, inside);
        let (attach, reject) = (self.attach_way(), self.config.enforcement.reject);
        let Some(endpoint) = self.endpoints.get_mut(key) else { return false };
        let known = endpoint.also.iter().position(|also| also.at.ifindex == link.index);
        let mut also = match known {
            Some(known) => endpoint.also.remove(known),
            None => Also {
                interface: link.name.clone(),
                at,
                namespace: None,
                addresses: Vec::new(),
                written: None,
                problem: String::new(),
                damage: String::new(),
            },
        };
        let addresses = addresses.unwrap_or_else(|| also.addresses.clone());
        (also.at, also.addresses, also.problem, also.namespace) = (at, addresses, problem, namespace);
        also.interface.clone_from(&link.name);
        endpoint.also.push(also);
        let attached = endpoint
            .write_also(&self.kernel, reject, &self.steering.servers)
            .and_then(|()| self.kernel.attach(link.index, attach));
        if let Some(also) = endpoint.also.last_mut() {
            match attached {
                Ok(method) => {
                    (also.at.method, also.at.in_place) = (method, true);
                    tracing::info!(
                        pod = key,
                        interface = link.name,
                        ifindex = link.index,
                        "attached: a further interface"
                    );
                }
                Err(error) => {
                    also.problem = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(pod = key, interface = link.name, "not enforced: {}", also.problem);
                }
            }
        }
        self.keep_floor();
        true
    }

    /// The interface is not that of the endpoint that has it; it is to be placed anew.
    pub(super) fn give_up(&mut self, index: u32) {
        if let Some(key) = self.holder_of(index).cloned() {
            self.take_off(&key, index);
        }
    }

    /// The interface is not the endpoint's any more. What the kernel has for it stays for the caller to change.
    fn take_off(&mut self, key: &str, index: u32) {
        let Some(endpoint) = self.endpoints.get_mut(key) else { return };
        endpoint.also.retain(|also| also.at.ifindex != index);
        if endpoint.attachment.is_some_and(|at| at.ifindex == index) {
            endpoint.attachment = None;
            if !endpoint.also.is_empty() {
                let Also { interface, at, namespace, addresses, written, problem, damage } = endpoint.also.remove(0);
                endpoint.namespace = namespace;
                (endpoint.interface, endpoint.attachment, endpoint.written) = (interface, Some(at), written);
                (endpoint.given, endpoint.link_problem, endpoint.damage) = (addresses.clone(), problem, damage);
                endpoint.addresses = addresses;
            }
        }
        if endpoint.attachment.is_none() {
            self.begin_anew(key);
        }
        self.discovery.iter_mut().for_each(|discovery| discovery.unpublished = true);
    }

    /// Nothing passes, in neither direction: by its row, and by the floor in case there is no program.
    fn shut(&mut self, link: &Link, why: String) {
        let attach = self.attach_way();
        let Some(discovery) = &mut self.discovery else { return };
        discovery.excepted.remove(&link.index);
        if let Some(known) = discovery.unknown.get_mut(&link.index)
            && known.method.is_some()
        {
            known.why = why;
            if known.interface != link.name {
                known.interface.clone_from(&link.name);
                self.keep_floor();
            }
            return;
        }
        let done =
            self.kernel.set_endpoint(link.index, &closed()).and_then(|()| self.kernel.attach(link.index, attach));
        let (method, why) = match done {
            Ok(method) => (Some(method), why),
            Err(error) => (None, format!("{why}; no program is on it: {:#}", anyhow::Error::from(error))),
        };
        tracing::debug!(interface = link.name, ifindex = link.index, "shut: {why}");
        let (interface, since) = (link.name.clone(), clock::now());
        discovery.unknown.insert(link.index, Unknown { interface, why, method, since, told: false });
        self.keep_floor();
    }

    /// Looks whether programs are where they belong on interfaces that are unknown or an endpoint's second: what is wrong.
    pub(in crate::run) fn look_at_others(&mut self) -> Vec<String> {
        let mut reasons = Vec::new();
        let unknown = self.discovery.iter().flat_map(|discovery| &discovery.unknown);
        let unknown = unknown.filter_map(|(index, unknown)| Some((*index, unknown.interface.clone(), unknown.method?)));
        for (index, interface, method) in unknown.collect::<Vec<_>>() {
            let at = Attachment { method, closed: true, in_place: true, ..Attachment::new(index, None, None) };
            if let Err(why) = self.look_at_programs_of(None, at) {
                reasons.push(format!("{interface}: {why}"));
            }
        }
        for key in self.endpoints.keys().cloned().collect::<Vec<_>>() {
            for number in 0..self.endpoints[&key].also.len() {
                let at = self.endpoints[&key].also[number].at;
                let looked = self.look_at_programs_of(Some(&key), at);
                let in_place = looked.is_ok() || self.kernel.has_programs(at.ifindex).unwrap_or(at.in_place);
                let Some(also) = self.endpoints.get_mut(&key).and_then(|endpoint| endpoint.also.get_mut(number)) else {
                    continue;
                };
                also.at.in_place = in_place;
                also.damage = looked.err().unwrap_or_default();
                for problem in [&also.problem, &also.damage].into_iter().filter(|text| !text.is_empty()) {
                    reasons.push(format!("{}: {problem}", also.interface));
                }
            }
        }
        reasons
    }
}

/// Every pod's interface has a link-local address, which no name and no network means.
fn is_scoped(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl Found {
    /// What the CNI gave it. A route speaks of some addresses of its pod; all that the Pod object lists hold.
    fn given(&self) -> &[std::net::IpAddr] {
        if self.sandbox.is_some() { &self.addresses } else { &[] }
    }
}

/// The row of an interface that nobody is known to be behind.
fn closed() -> EndpointRow {
    EndpointRow {
        id: EndpointId(0),
        slot: 0,
        policy_id: 0,
        generation: 0,
        addresses: Vec::new(),
        mac: None,
        flags: flag::CLOSED | flag::ENFORCE,
        adopt_until: 0,
    }
}
