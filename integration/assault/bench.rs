//! Two worlds of one shape, one of them guarded, their canaries, and how an attempt is judged.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::lab::agent::client::Agent;
use crate::lab::agent::{Reply, Request};
use crate::lab::frame::{ethernet, ethertype, ip, udp};
use crate::lab::world::{Family, LAN_MAC, NODE_MAC, Options, PODS, Pod};
use crate::lab::{Daemon, Topology, World, clock, snapshot};
use crate::model::{self, Model, Place};
use crate::{beside, packets};

/// How long what may pass is waited for before it is a loss.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same where nobody guards: there its absence is no finding.
const CONTROL_PATIENCE: Duration = Duration::from_millis(700);
/// A frame of an attack holds this and the five digits of its number, in any case; so does a name.
const MARK: &[u8] = b"ngx";
/// The same, with seven digits and the sender's letter, of what may pass.
const PROBE: &[u8] = b"ngp";
/// At most so many findings of a kind are told one by one.
const MOST_TOLD: usize = 40;

/// One attempt.
pub struct Case {
    pub class: &'static str,
    pub name: String,
    /// In words, for whoever reads that it fell.
    pub tries: &'static str,
    /// Left out of the slice.
    pub long: bool,
    attack: Attack,
}

/// What an attempt does, given a world and the mark of its frames.
pub type Attack = Box<dyn Fn(&Side, &str) -> Shown>;

/// How to tell whether it arrived.
pub enum Shown {
    /// So many frames with the mark were sent: the canaries know.
    Frames(usize),
    /// The attempt knows itself.
    Told(bool),
    /// The load was there; and what the neighbour lost meanwhile.
    Endured { load: bool, lost: Vec<String> },
    /// The attempt had its control beside it, in the guarded world.
    Both { control: bool, arrived: bool },
}

/// One packet of the attacker's, with its mark: to a TCP or a UDP port, or a ping.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// A SYN that carries the mark.
    Segment(u16),
    Datagram(u16),
    Echo,
}

pub enum Verdict {
    Held,
    Fell(String),
    Invalid(String),
}

impl Case {
    pub fn new(
        class: &'static str,
        name: impl Into<String>,
        tries: &'static str,
        attack: impl Fn(&Side, &str) -> Shown + 'static,
    ) -> Case {
        Case { class, name: name.into(), tries, long: false, attack: Box::new(attack) }
    }

    #[must_use]
    pub fn long(mut self) -> Case {
        self.long = true;
        self
    }

    /// The same as one of another class.
    #[must_use]
    pub fn of(self, class: &'static str) -> Case {
        Case { name: format!("{}: {}", self.class, self.name), class, ..self }
    }

    pub fn title(&self, topology: Topology) -> String {
        let shape = if topology == Topology::Bridged { "bridged" } else { "routed" };
        format!("{}::{shape}::{}", self.class, self.name)
    }
}

/// The two worlds.
pub struct Pair {
    pub guarded: Side,
    unguarded: Side,
    last: u32,
}

impl Pair {
    pub fn new(topology: Topology, settings: &[String]) -> Pair {
        Pair { unguarded: Side::new(topology, None), guarded: Side::new(topology, Some(settings)), last: 0 }
    }

    /// The same with a namegate beside the workload, which has ordinary sockets only.
    pub fn beside(topology: Topology, settings: &[String]) -> Pair {
        Pair { unguarded: Side::beside(topology, None), guarded: Side::beside(topology, Some(settings)), last: 0 }
    }

    pub fn next_id(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// Where nobody guards. Once more if frames are missing: one that has to wait for an ARP reply may be lost to that.
    fn control(&self, case: &Case, mark: &str, id: u32) -> Shown {
        let mut shown = (case.attack)(&self.unguarded, mark);
        self.unguarded.settle();
        if matches!(shown, Shown::Frames(count) if self.unguarded.arrived(id) < count) {
            shown = (case.attack)(&self.unguarded, mark);
            self.unguarded.settle();
        }
        shown
    }

    pub fn attempt(&self, case: &Case, id: u32) -> Verdict {
        let mark = format!("ngx{id:05}");
        if case.class != "local" {
            let shown = self.control(case, &mark, id);
            match shown {
                Shown::Frames(count) => {
                    let arrived = self.unguarded.arrived(id);
                    if count == 0 || arrived < count {
                        return Verdict::Invalid(format!("{arrived} of {count} frames arrived where nobody guards"));
                    }
                    // A node that routes takes off tags and rewrites headers: what is seen is not what was sent.
                    let as_sent = self.unguarded.world.options.topology == Topology::Bridged;
                    if as_sent && !self.unguarded.is_flagged(id) {
                        return Verdict::Invalid("the model would let it pass".into());
                    }
                }
                Shown::Told(false) => return Verdict::Invalid("it did not work where nobody guards".into()),
                Shown::Endured { load: false, .. } => return Verdict::Invalid("the load was not there".into()),
                Shown::Told(true) | Shown::Endured { .. } | Shown::Both { .. } => {}
            }
        }
        let shown = (case.attack)(&self.guarded, &mark);
        self.guarded.settle();
        match shown {
            Shown::Frames(count) => match self.guarded.arrived(id) {
                0 => Verdict::Held,
                arrived => Verdict::Fell(format!("{arrived} of {count} frames arrived")),
            },
            Shown::Told(arrived) | Shown::Both { control: true, arrived } => match arrived {
                true => Verdict::Fell("it worked".into()),
                false if self.guarded.arrived(id) > 0 => Verdict::Fell("its mark was seen".into()),
                false => Verdict::Held,
            },
            Shown::Both { control: false, .. } => Verdict::Invalid("the control did not work".into()),
            Shown::Endured { lost, .. } => {
                let verdict = if lost.is_empty() { Verdict::Held } else { Verdict::Fell(lost.join("; ")) };
                self.guarded.state.borrow_mut().loss.extend(lost);
                verdict
            }
        }
    }
}

/// One world, watched.
pub struct Side {
    /// None where nobody guards. Ends before the world does.
    pub daemon: Option<Daemon>,
    pub world: World,
    beside: bool,
    canaries: Vec<(Place, u32)>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    model: Model,
    /// Frames with a mark that were seen, by its number.
    arrivals: BTreeMap<u32, usize>,
    /// Marks on frames that policy would not allow.
    flagged: BTreeSet<u32>,
    probes: BTreeSet<String>,
    next_probe: u32,
    frames: usize,
    leaks: Vec<String>,
    loss: Vec<String>,
}

impl Side {
    /// Guarded by a namegate with these settings on the node; none: unguarded.
    pub fn new(topology: Topology, settings: Option<&[String]>) -> Side {
        let world = prepared(topology);
        let daemon = settings.map(|more| Daemon::start(&world, &with_short_times(more)));
        Side::of(world, daemon, false)
    }

    /// Guarded by a namegate beside the attacker, who is another container of its pod and has no capabilities.
    pub fn beside(topology: Topology, settings: Option<&[String]>) -> Side {
        let mut world = prepared(topology);
        beside::prepare(&world);
        let daemon = settings.map(|more| {
            beside::init(&world);
            let daemon = Daemon::beside(&world, beside::SHARED_PIDS, &with_short_times(more));
            daemon.wait_ready();
            daemon
        });
        world.pay = Agent::sibling(&world.namespace("pay"), beside::WORKLOAD, 0);
        Side::of(world, daemon, true)
    }

    fn of(world: World, daemon: Option<Daemon>, beside: bool) -> Side {
        let topology = world.options.topology;
        let mut canaries = vec![
            (Place::Outside, canary(&world, Place::Outside)),
            (Place::Neighbour, canary(&world, Place::Neighbour)),
        ];
        if topology == Topology::Bridged {
            canaries.push((Place::Lan, canary(&world, Place::Lan)));
        }
        let model = if beside { Model::beside() } else { Model::default() };
        let side = Side { daemon, world, beside, canaries, state: RefCell::new(State { model, ..State::default() }) };
        // Neighbours are resolved and MACs learned; what is lost before that is no loss.
        clock::wait_until(PATIENCE, || side.probe(CONTROL_PATIENCE).is_empty());
        side
    }

    /// Sends one packet with a mark: as a frame, or by an ordinary socket.
    pub fn sends(&self, way: Way, to: IpAddr, mark: &str) {
        if self.beside {
            // What its kernel refuses does not arrive.
            self.world.pay.tries(beside::sending(way, to, mark));
            return;
        }
        let frame = match way {
            Way::Segment(port) => packets::syn(self, to, port, mark),
            Way::Datagram(port) => packets::datagram(self, to, port, mark),
            Way::Echo => packets::echo(self, to, mark),
        };
        self.world.pay.inject("eth0", &[frame]);
    }

    pub fn is_guarded(&self) -> bool {
        self.daemon.is_some()
    }

    /// namegate stands in the attacker's own namespace.
    pub fn is_beside(&self) -> bool {
        self.beside
    }

    /// Where frames of the workloads go first.
    pub fn next_hop(&self) -> &'static str {
        if self.world.options.topology == Topology::Bridged { LAN_MAC } else { NODE_MAC }
    }

    /// The world's answers made this address the attacker's to reach.
    pub fn learns(&self, address: IpAddr) {
        self.state.borrow_mut().model.learns(address);
    }

    /// That is over.
    pub fn forgets(&self, address: IpAddr) {
        self.state.borrow_mut().model.forgets(address);
    }

    /// The world has sent the attacker something from there.
    pub fn is_asked_by(&self, address: IpAddr) {
        self.state.borrow_mut().model.is_asked_by(address);
    }

    /// The MAC of the node's interface to the outside.
    pub fn uplink(&self) -> String {
        let said = self.world.must("node", "ip -o link show dev wan0");
        let mac = said.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        mac.unwrap_or_else(|| panic!("no MAC: {said}")).to_owned()
    }

    /// Sends what may pass from both workloads, waits for it, and reads the canaries.
    pub fn settle(&self) {
        let patience = if self.is_guarded() { PATIENCE } else { CONTROL_PATIENCE };
        let lost = self.probe(patience);
        if self.is_guarded() {
            self.state.borrow_mut().loss.extend(lost);
        }
    }

    /// Frames with the mark of this number that were seen so far.
    pub fn arrived(&self, id: u32) -> usize {
        self.state.borrow().arrivals.get(&id).copied().unwrap_or(0)
    }

    /// Whether a frame with text of one's own was seen.
    pub fn sees(&self, limit: Duration, text: &str) -> bool {
        clock::wait_until(limit, || {
            self.drain();
            self.state.borrow().probes.contains(text)
        })
    }

    /// A text that [`Side::sees`] knows, for what may pass: [`PROBE`], seven digits, a letter.
    pub fn fresh_probe(&self, letter: char) -> String {
        let mut state = self.state.borrow_mut();
        state.next_probe += 1;
        format!("ngp{:07}{letter}", state.next_probe)
    }

    /// What an attempt expected to arrive and did not.
    pub fn loses(&self, what: String) {
        self.state.borrow_mut().loss.push(what);
    }

    /// Frames recorded, leaks and losses.
    pub fn findings(&self) -> (usize, Vec<String>, Vec<String>) {
        let state = self.state.borrow();
        (state.frames, state.leaks.clone(), state.loss.clone())
    }

    fn is_flagged(&self, id: u32) -> bool {
        self.state.borrow().flagged.contains(&id)
    }

    fn probe(&self, patience: Duration) -> Vec<String> {
        let text = self.fresh_probe('a');
        let other = text.replace('a', "n");
        if self.beside {
            self.sends(Way::Datagram(9), Family::V4.outside(200), &text);
        } else {
            self.world.pay.inject("eth0", &[self.may_pass(&PODS[0], 200, &text)]);
        }
        self.world.rep.inject("eth0", &[self.may_pass(&PODS[1], 202, &other)]);
        let all = || {
            self.drain();
            let probes = &self.state.borrow().probes;
            probes.contains(&text) && probes.contains(&other)
        };
        if clock::wait_until(patience, all) {
            return Vec::new();
        }
        let probes = &self.state.borrow().probes;
        let lost = [(text, "the attacker's"), (other, "the neighbour's")].into_iter();
        lost.filter(|(text, _)| !probes.contains(text))
            .map(|(text, whose)| format!("{whose} datagram {text}"))
            .collect()
    }

    fn may_pass(&self, pod: &Pod, last: u8, text: &str) -> Vec<u8> {
        let (from, to) = (Family::V4.of(pod), Family::V4.outside(last));
        let packet = ip(from, to, 17, &udp((from, 4000), (to, 9), text.as_bytes()));
        ethernet(self.next_hop(), pod.mac, ethertype(from), &packet)
    }

    fn drain(&self) {
        for (place, capture) in &self.canaries {
            let frames = match place.agent(&self.world).call(Request::Drain { capture: *capture }) {
                Reply::Frames(frames) => frames,
                other => panic!("{other:?}"),
            };
            let state = &mut *self.state.borrow_mut();
            for frame in frames.iter().filter(|frame| !frame.outgoing) {
                state.note(*place, &frame.octets(), self.is_guarded());
            }
        }
    }
}

impl State {
    fn note(&mut self, place: Place, frame: &[u8], guarded: bool) {
        self.frames += 1;
        let folded = frame.to_ascii_lowercase();
        let ids: BTreeSet<u32> = texts(&folded, MARK, 5).filter_map(|text| text[MARK.len()..].parse().ok()).collect();
        self.probes.extend(texts(&folded, PROBE, 8));
        for id in &ids {
            *self.arrivals.entry(*id).or_default() += 1;
        }
        if let Err(why) = self.model.judge(place, frame) {
            self.flagged.extend(&ids);
            if guarded && self.leaks.len() < MOST_TOLD {
                let octets = crate::lab::agent::hex(&frame[..frame.len().min(96)]);
                self.leaks.push(format!("{place:?}: {why}: {octets}"));
            }
        }
    }
}

/// Every place in `octets` where `prefix` and so many letters or digits stand.
fn texts<'a>(octets: &'a [u8], prefix: &'a [u8], more: usize) -> impl Iterator<Item = String> + 'a {
    octets
        .windows(prefix.len() + more)
        .filter(move |window| window.starts_with(prefix) && window.iter().all(u8::is_ascii_alphanumeric))
        .map(|window| String::from_utf8_lossy(window).into_owned())
}

/// A world with the servers and policies of all cases, in which nobody guards yet.
fn prepared(topology: Topology) -> World {
    let world = World::new(Options { topology });
    if topology == Topology::Bridged {
        // Else the bridge itself would put fragments together and trim padding.
        world.must("node", "sysctl -eqw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
    }
    let snapshot = world.directory.join("snapshot");
    snapshot::with_policy(&snapshot, &model::policy());
    let at = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    world.outside.done(Request::ServeOctets { at: vec![at(model::RESOLVER), at(model::FOREIGN_RESOLVER)] });
    world.outside.say_addresses("*.neigh.example", &[Family::V4.outside(40)], 5);
    let own = ["198.51.100.1", "198.18.255.1", "2001:db8:1::1", "2001:db8:ff::1"];
    for (part, addresses) in [(&world.node, &own[..]), (&world.rep, &[PODS[1].v4, PODS[1].v6])] {
        for address in addresses {
            let at = SocketAddr::new(address.parse().expect("an address"), 9999);
            part.done(Request::ServeTcp { at });
            part.done(Request::ServeUdp { at });
        }
    }
    crate::resources::prepare(&world);
    world
}

fn with_short_times(more: &[String]) -> Vec<&str> {
    let short = ["--set", "dns.min_ttl=1s", "--set", "dns.grace=1s"];
    short.into_iter().chain(more.iter().map(String::as_str)).collect()
}

fn canary(world: &World, place: Place) -> u32 {
    match place.agent(world).call(Request::Capture { interface: place.interface().into() }) {
        Reply::Capturing { capture } => capture,
        other => panic!("{other:?}"),
    }
}
