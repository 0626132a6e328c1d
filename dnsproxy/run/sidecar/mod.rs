//! Beside one workload, in its pod's network namespace: what is other than on a node.
//!
//! The endpoint is this pod, whoever asks: its interface is looked at from its own side, its queries come over loopback.
//! Everything else is a node's with one endpoint; see [`super::node`].

mod podinfo;
mod siblings;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::node::Node;
use super::reload::cluster_dns;
use super::steering::{Steering, can_be_resolver};
use super::watch::Watch;
use crate::cluster::snapshot::{LastGood, OnInvalid, read};
use crate::config::{Attach, Config, EndpointSetting, Siblings};
use crate::engine::ruleset::{Protocol, RuleSet};
use crate::engine::world::{Pod, Search, World};
use crate::host::capabilities::{self, Capability};
use crate::host::egress::{self, EgressFloor};
use crate::host::floor::FloorStatus;
use crate::host::links::{self, Link, Netlink};
use crate::kernel::proxy::PROXY_PORTS;
use crate::listen;
use crate::operate::metrics::Repair;
use crate::operate::{Advisory, AdvisoryStatus};
use crate::serve::Served;

use podinfo::PodInfo;

/// Where DNS is served.
pub(super) const DNS_PORT: u16 = 53;
/// What a workload puts into resolv.conf, by `dnsConfig`.
const LOCAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What a namegate beside its workload knows of it.
pub(super) struct Sidecar {
    info: PodInfo,
    watch: Watch,
    /// Why the newest podinfo does not hold; empty if it does.
    problem: String,
    interface: String,
    ifindex: u32,
    mac: Option<[u8; 6]>,
    addresses: Vec<IpAddr>,
    lo: u32,
    /// FIB rules bring every query here, whoever it is for.
    redirected: bool,
    egress: EgressFloor,
    advisory: BTreeMap<Advisory, String>,
    /// Where the interface's default routes lead: the node.
    gateways: Vec<IpAddr>,
}

impl Sidecar {
    /// Looks where it is and who the pod is, before anything is touched.
    ///
    /// # Errors
    /// It must not run here, can't do what the settings ask for, or the pod is not known.
    pub async fn start(config: &Config, mark: u32) -> anyhow::Result<Sidecar> {
        refuse_where_it_must_not_be(Path::new("/proc"))?;
        refuse_settings(config)?;
        let podinfo = &config.sidecar.podinfo;
        // Before it is read: what changes meanwhile is told.
        let watch = Watch::start(podinfo);
        let info = PodInfo::read(podinfo).context("reading who the pod is")?;
        let (netlink, _events) = links::open().context("opening a netlink socket")?;
        let links = netlink.links().await.context("listing interfaces")?;
        let interface = &config.sidecar.interface;
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let link = links.iter().find(|link| link.name == *interface).with_context(|| {
            format!("sidecar.interface is {interface}; found {}, one of them is allowed", names.join(", "))
        })?;
        let lo = links.iter().find(|link| link.name == "lo").map_or(1, |link| link.index);
        let addresses = match &config.sidecar.addresses[..] {
            [] => addresses_of(&netlink, link.index).await.context("listing addresses")?,
            set => set.to_vec(),
        };
        refuse_the_nodes_network(config, &info, &addresses)?;
        let redirected = netlink.is_redirected().await.context("listing routing rules")?;
        let mut sidecar = Sidecar {
            info,
            watch,
            problem: String::new(),
            interface: interface.clone(),
            ifindex: link.index,
            mac: link.mac,
            addresses,
            lo,
            redirected,
            egress: EgressFloor::new(mark),
            advisory: BTreeMap::new(),
            gateways: netlink.gateways().await.context("listing routes")?,
        };
        tracing::info!(
            pod = %sidecar.info.pod,
            interface,
            dns = if redirected { "every resolver, by FIB rules" } else { "127.0.0.1 and ::1" },
            "beside its workload"
        );
        tracing::debug!(addresses = ?sidecar.addresses, gateways = ?sidecar.gateways, "the pod and its node");
        sidecar.look_around(config, &in_use(&links), true);
        Ok(sidecar)
    }

    /// Where queries are listened for.
    pub fn listens_at(&self) -> listen::At {
        if self.redirected { listen::At::Redirected } else { listen::At::Loopback }
    }

    /// The one endpoint.
    pub fn endpoint(&self) -> EndpointSetting {
        EndpointSetting { interface: self.interface.clone(), pod: self.info.pod.clone(), mac: self.mac }
    }

    /// Puts the pod into the world as its own files tell of it. Its object, if the snapshot has it, adds what they don't.
    pub fn place(&self, world: &mut World, config: &Config) {
        let known = world.pods.get(&self.info.pod).cloned();
        let pod = Pod {
            uid: Some(self.info.uid.clone()).filter(|uid| !uid.is_empty()),
            labels: self.info.labels.clone(),
            service_account: config
                .sidecar
                .service_account
                .clone()
                .or_else(|| known.as_ref().and_then(|pod| pod.service_account.clone())),
            addresses: self.addresses.clone(),
            node: known.as_ref().and_then(|pod| pod.node.clone()).or_else(|| Some(config.node_name.clone())),
            host_network: false,
            finished: false,
            search: known.as_ref().map_or_else(Search::default, |pod| pod.search.clone()),
            nameservers: known.as_ref().map_or_else(Vec::new, |pod| pod.nameservers.clone()),
            ports: known.as_ref().map_or_else(Vec::new, |pod| pod.ports.clone()),
            mode: self.info.mode,
            readable: true,
            place: config.sidecar.podinfo.join("labels").display().to_string(),
        };
        world.pods.insert(self.info.pod.clone(), pod);
    }

    /// The endpoint as its queries show it: they come over loopback, from any local address.
    pub fn as_seen_inside(&self, served: &Served) -> Arc<Served> {
        let mut inside = Served { interface: self.lo, bridge: None, ..served.clone() };
        inside.addresses.extend(LOCAL);
        inside.into()
    }

    /// Where it stands open or shut.
    fn keep_egress(&mut self, open: bool) {
        let before = self.egress.problem().to_owned();
        self.egress.keep(&self.interface, self.ifindex, open);
        let problem = self.egress.problem();
        if !problem.is_empty() && problem != before {
            tracing::warn!("no floor under what the pod sends: {problem} (it needs kernel 5.16 and nf_tables)");
        }
    }

    /// What may get past, and why; said when it changes.
    fn look_around(&mut self, config: &Config, interfaces: &[&str], is_pinned: bool) {
        let siblings = siblings::look(Path::new("/proc"));
        let mut found: BTreeMap<Advisory, String> =
            siblings.able.iter().map(|able| (*able, able.words().to_owned())).collect();
        if siblings.count == 0 && config.sidecar.siblings == Siblings::Unknown {
            found.insert(Advisory::Unseen, Advisory::Unseen.words().to_owned());
        }
        let others: Vec<&str> =
            interfaces.iter().copied().filter(|name| !["lo", self.interface.as_str()].contains(name)).collect();
        if !others.is_empty() {
            let words = format!("{}: {}", Advisory::OtherInterface.words(), others.join(", "));
            found.insert(Advisory::OtherInterface, words);
        }
        if !is_pinned {
            found.insert(Advisory::NoBpffs, Advisory::NoBpffs.words().to_owned());
        }
        if found == self.advisory {
            return;
        }
        for (what, words) in found.iter().filter(|(what, words)| self.advisory.get(what) != Some(words)) {
            tracing::warn!(reason = what.text(), "advisory: {words}");
        }
        for gone in self.advisory.keys().filter(|what| !found.contains_key(what)) {
            tracing::info!(reason = gone.text(), "no longer advisory for this reason");
        }
        self.advisory = found;
    }

    /// For status.
    pub fn advisory(&self) -> Vec<AdvisoryStatus> {
        let status = |(reason, text): (&Advisory, &String)| AdvisoryStatus { reason: *reason, text: text.clone() };
        self.advisory.iter().map(status).collect()
    }

    /// Adds the floor under what the pod sends.
    pub fn add_floor(&self, status: &mut FloorStatus) {
        if self.egress.stands() {
            status.tables.push("netdev".into());
        }
        status.dropped += self.egress.dropped();
        if !self.egress.problem().is_empty() {
            let and = if status.problem.is_empty() { "" } else { "; " };
            status.problem = format!("{}{and}{}", status.problem, self.egress.problem());
        }
    }
}

/// Returns when the files that tell who the pod is may have changed; never where there are none.
pub(super) async fn changed(sidecar: &mut Option<Sidecar>) {
    match sidecar {
        Some(sidecar) => drop(sidecar.watch.changed().await),
        None => std::future::pending().await,
    }
}

impl Node {
    /// The files that tell who the pod is have changed.
    pub(super) async fn read_podinfo(&mut self) {
        let Some(sidecar) = &mut self.sidecar else { return };
        let problem = match PodInfo::read(&self.config.sidecar.podinfo) {
            Ok(info) if info.pod != sidecar.info.pod => {
                format!(
                    "{} is another pod's: {}, not {}",
                    self.config.sidecar.podinfo.display(),
                    info.pod,
                    sidecar.info.pod
                )
            }
            Ok(info) => {
                let changed = info != sidecar.info;
                sidecar.info = info;
                sidecar.problem.clear();
                if changed {
                    tracing::info!("the pod's labels or annotations have changed");
                    self.reload().await;
                }
                self.readiness.set("podinfo", Vec::new());
                return;
            }
            Err(error) => format!("{:#}", anyhow::Error::new(error)),
        };
        if sidecar.problem != problem {
            tracing::error!("who the pod is can't be read, what was read before holds: {problem}");
        }
        self.readiness.set("podinfo", vec![format!("podinfo: {problem}")]);
        sidecar.problem = problem;
    }

    /// Which server is asked by each local address that queries come to.
    pub(super) fn answer_locally(&mut self, resolvers: &BTreeSet<IpAddr>, rules: Option<&RuleSet>, world: &World) {
        let Some(sidecar) = &self.sidecar else { return };
        let in_order: Vec<IpAddr> = self
            .config
            .dns
            .resolvers
            .iter()
            .copied()
            .chain(cluster_dns(world))
            .chain(
                rules.into_iter().flat_map(RuleSet::resolvers).filter(|(_, _, ports)| ports.holds(53)).map(|row| row.0),
            )
            .chain(self.config.dns.upstreams.iter().map(|server| server.socket.ip()))
            .filter(|address| can_be_resolver(*address))
            .filter(|address| sidecar.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4()))
            .collect();
        let named = |address: IpAddr| rules.is_some_and(|rules| rules.trusts(address, Protocol::Udp, 53));
        let mut pairs: Vec<(IpAddr, IpAddr)> =
            LOCAL.into_iter().filter_map(|local| Some((stands_for(local, &in_order, named)?, local))).collect();
        let nobody = pairs.is_empty() && !sidecar.redirected;
        let reason = "dns: no resolver is known to ask; allowed are dns.resolvers, the Service kube-system/kube-dns in the \
                      snapshot, a rule that names one on port 53, or dns.upstreams";
        self.readiness.set("dns", nobody.then(|| reason.to_owned()).into_iter().collect());
        if sidecar.redirected {
            // Each is asked for itself. One that nobody names is answered with a refusal, not with silence.
            let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            let all: BTreeSet<IpAddr> = resolvers.iter().copied().chain(nameservers(&text)).collect();
            pairs.extend(all.into_iter().filter(|address| can_be_resolver(*address)).map(|address| (address, address)));
        }
        self.steering = Steering { pairs, ..Steering::default() };
    }

    /// Who is the host, seen from inside: the pod's own addresses are not.
    pub(super) fn hosts(&self) -> Option<&[IpAddr]> {
        self.sidecar.as_ref().map(|sidecar| &sidecar.gateways[..])
    }

    /// Opens the floor under what the pod sends while programs guard it, and shuts it otherwise.
    pub(super) fn keep_egress(&mut self, inherited: &BTreeSet<u32>) {
        let Some(sidecar) = &mut self.sidecar else { return };
        if !self.config.enforcement.floor {
            if let Err(error) = egress::remove() {
                tracing::warn!(%error, "the floor of an earlier run can't be removed");
            }
            return;
        }
        let at = self.endpoints.values().find_map(|endpoint| endpoint.attachment);
        sidecar.ifindex = at.map_or(sidecar.ifindex, |at| at.ifindex);
        let open = at
            .map_or_else(|| inherited.contains(&sidecar.ifindex), |at| at.in_place || inherited.contains(&at.ifindex));
        sidecar.keep_egress(open);
    }

    /// The programs are gone.
    pub(super) fn shut_egress(&mut self) {
        if let Some(sidecar) = self.sidecar.as_mut().filter(|_| self.config.enforcement.floor) {
            sidecar.keep_egress(false);
        }
    }

    /// Looks whether the floor under what the pod sends is as written, and who else is here.
    pub(super) fn look_beside(&mut self) {
        let Some(sidecar) = &mut self.sidecar else { return };
        if self.config.enforcement.floor && sidecar.egress.check() {
            self.metrics.repaired(Repair::Floor);
            tracing::error!("someone else changed or removed the floor under what the pod sends; it was written again");
        }
        sidecar.look_around(&self.config, &in_use(self.links.values()), self.kernel.is_pinned());
        for reason in Advisory::ALL {
            self.metrics.advisory(*reason, sidecar.advisory.contains_key(reason));
        }
    }
}

/// Prepares a pod whose resolv.conf is left as it is: an init container runs this and ends. Every query is brought to
/// the sidecar that will be here, and nothing leaves until it guards the interface.
///
/// # Errors
/// It must not run here, or the kernel refused.
pub fn init(config: &Config) -> anyhow::Result<()> {
    refuse_where_it_must_not_be(Path::new("/proc"))?;
    capabilities::require(Path::new("/proc"), "namegate sidecar --init", &[Capability::NetAdmin])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (netlink, _events) = links::open().context("opening a netlink socket")?;
        let links = netlink.links().await.context("listing interfaces")?;
        let interface = &config.sidecar.interface;
        let link = links.iter().find(|link| link.name == *interface).with_context(|| {
            let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
            format!("sidecar.interface is {interface}; found {}, one of them is allowed", names.join(", "))
        })?;
        let addresses = match &config.sidecar.addresses[..] {
            [] => addresses_of(&netlink, link.index).await.context("listing addresses")?,
            set => set.to_vec(),
        };
        refuse_a_nodes_address(config, &addresses)?;
        netlink.redirect_queries(PROXY_PORTS).await.context("setting routing rules (needs CAP_NET_ADMIN)")?;
        if config.enforcement.floor {
            let mut floor = EgressFloor::new(1);
            floor.keep(interface, link.index, false);
            if !floor.problem().is_empty() {
                tracing::warn!("the pod may send before it is guarded: {}", floor.problem());
            }
        }
        warn_of_ports(Path::new("/proc"));
        tracing::info!(interface, "every query to port 53 ends in this pod now");
        Ok(())
    })
}

/// Ports that the kernel gives to workloads by itself are not the proxy's.
fn warn_of_ports(proc: &Path) {
    let text = fs::read_to_string(proc.join("sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    let last = text.split_whitespace().nth(1).and_then(|last| last.parse::<u16>().ok());
    if let Some(last) = last.filter(|last| last >= PROXY_PORTS.start()) {
        tracing::warn!(
            "net.ipv4.ip_local_port_range goes up to {last}: queries from {} on are dropped; 60999 is allowed",
            PROXY_PORTS.start()
        );
    }
}

/// # Errors
/// This is no pod's network, or no pod in which the kernel would let us do anything.
fn refuse_where_it_must_not_be(proc: &Path) -> anyhow::Result<()> {
    let map = fs::read_to_string(proc.join("self/uid_map")).context("reading /proc/self/uid_map")?;
    let whole = ["0", "0", "4294967295"];
    anyhow::ensure!(
        map.split_whitespace().eq(whole),
        "this is a user namespace (hostUsers: false): the kernel takes programs from the first one only (bpf(2)), so \
         nothing can be enforced from here; allowed is hostUsers: true, or `namegate node`"
    );
    // One of the settings that the kernel shows in its first network namespace only (net/core/sysctl_net_core.c).
    anyhow::ensure!(
        !proc.join("sys/net/core/netdev_budget").exists(),
        "this is the node's own network (hostNetwork: true): a sidecar would cut off the node; allowed is a pod's network"
    );
    Ok(())
}

fn refuse_settings(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        config.enforcement.attach != Attach::Xdp,
        "enforcement.attach is xdp; beside a workload allowed is auto, tcx or clsact: XDP sees nothing of what the pod sends"
    );
    anyhow::ensure!(
        config.dns.tls_port == 0,
        "dns.tls_port is {}; beside a workload allowed is 0: its queries don't leave the pod",
        config.dns.tls_port
    );
    anyhow::ensure!(config.endpoints.is_empty(), "endpoint is set; a sidecar has one, its own pod");
    Ok(())
}

/// # Errors
/// The snapshot says that this is the node's network.
fn refuse_the_nodes_network(config: &Config, info: &PodInfo, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let world = read(&config.snapshot, &LastGood::default(), OnInvalid::Refuse).world;
    let shares = world.pods.get(&info.pod).is_some_and(|pod| pod.host_network);
    anyhow::ensure!(
        !shares,
        "pod {} has hostNetwork: true: a sidecar would cut off the node; allowed is a pod's own network",
        info.pod
    );
    refuse_address_of(&world, addresses)
}

fn refuse_a_nodes_address(config: &Config, addresses: &[IpAddr]) -> anyhow::Result<()> {
    refuse_address_of(&read(&config.snapshot, &LastGood::default(), OnInvalid::Refuse).world, addresses)
}

fn refuse_address_of(world: &World, addresses: &[IpAddr]) -> anyhow::Result<()> {
    for (name, node) in world.nodes.iter() {
        if let Some(address) = addresses.iter().find(|address| node.addresses.contains(address)) {
            anyhow::bail!(
                "{address} is node {name}'s (hostNetwork: true): a sidecar would cut off the node; allowed is a pod's \
                 own network"
            );
        }
    }
    Ok(())
}

/// The resolver that a workload asks by asking `local`: one that a rule names, of the same family if there is such a one.
fn stands_for(local: IpAddr, in_order: &[IpAddr], named: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let alike = |address: &IpAddr| address.is_ipv4() == local.is_ipv4();
    let by_rule = || in_order.iter().copied().filter(|address| named(*address));
    by_rule()
        .find(alike)
        .or_else(|| by_rule().next())
        .or_else(|| in_order.iter().copied().find(alike))
        .or_else(|| in_order.first().copied())
}

/// Tunnel modules leave devices in every namespace that nobody has set up.
fn in_use<'a>(links: impl IntoIterator<Item = &'a Link>) -> Vec<&'a str> {
    links.into_iter().filter(|link| link.up).map(|link| link.name.as_str()).collect()
}

/// Those that a peer can send to.
async fn addresses_of(netlink: &Netlink, ifindex: u32) -> std::io::Result<Vec<IpAddr>> {
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let all = netlink.addresses().await?;
    Ok(all.into_iter().filter(|row| row.0 == ifindex).map(|row| row.1).filter(|address| !link_local(address)).collect())
}

/// Those of a resolv.conf(5).
fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(uid_map: &str, first_network: bool) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("self")).unwrap();
        fs::create_dir_all(proc.path().join("sys/net/core")).unwrap();
        fs::write(proc.path().join("self/uid_map"), uid_map).unwrap();
        if first_network {
            fs::write(proc.path().join("sys/net/core/netdev_budget"), "300\n").unwrap();
        }
        proc
    }

    #[test]
    fn it_runs_in_a_pods_network_and_in_the_first_user_namespace_only() {
        let all = "         0          0 4294967295\n";
        refuse_where_it_must_not_be(proc(all, false).path()).unwrap();
        let said = |uid_map, first| refuse_where_it_must_not_be(proc(uid_map, first).path()).unwrap_err().to_string();
        assert!(said(all, true).contains("hostNetwork"));
        assert!(said("         0     100000      65536\n", false).contains("hostUsers: false"));
        assert!(said("0 0 65536\n65536 65536 1\n", false).contains("hostUsers: false"));
    }

    #[test]
    fn a_local_address_stands_for_the_resolver_that_a_rule_names() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = ["198.51.100.53", "203.0.113.53", "2001:db8::53"].map(address);
        let stands = |local: &str, known: &[IpAddr], named: &[IpAddr]| {
            stands_for(address(local), known, |address| named.contains(&address))
        };
        assert_eq!(stands("127.0.0.1", &all, &[]), Some(all[0]));
        assert_eq!(stands("::1", &all, &[]), Some(all[2]));
        assert_eq!(stands("127.0.0.1", &all, &all[1..]), Some(all[1]));
        assert_eq!(
            stands("::1", &all, &all[1..2]),
            Some(all[1]),
            "a name server that counts, though of the other family"
        );
        assert_eq!(stands("::1", &all[..1], &[]), Some(all[0]));
        assert_eq!(stands("::1", &[], &[]), None);
    }

    #[test]
    fn name_servers_are_read_as_a_resolver_library_reads_them() {
        let text = "# nameserver 203.0.113.9\nsearch a b\nnameserver 198.18.0.10\nnameserver 2001:db8::a \noptions x\n\
                    nameserver\n";
        let found: Vec<String> = nameservers(text).map(|address| address.to_string()).collect();
        assert_eq!(found, ["198.18.0.10", "2001:db8::a"]);
    }
}
