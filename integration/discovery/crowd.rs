//! Very many pods: their ends of the pairs are in one namespace, where one agent sends for all of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::yard::{Colour, Pod, Yard};
use crate::lab::agent::client::{Agent, Capture, Pending};
use crate::lab::agent::{Frame, Reply, Request, Spray, SprayFrom, Sprayed, hex};
use crate::lab::clock;
use crate::lab::frame::{ethernet, ethertype, ip, udp};
use crate::lab::process::{IpBatch, ip_batch, must, must_inside};
use crate::lab::world::{FAMILIES, Family, LAN_MAC, NODE_MAC};

pub struct Crowd<'y> {
    yard: &'y Yard,
    namespace: String,
    agent: Rc<Agent>,
    /// What plugs in, and what unplugs, where a pod comes after the other.
    hands: [Arc<Mutex<IpBatch>>; 2],
}

/// Pods that come, and go, together.
pub struct Burst {
    pub pods: Vec<Pod>,
    /// Of their interfaces: those of a group go at once, as those of a namespace do.
    group: u32,
    /// When each one's CNI result was there; nanoseconds since 1970.
    written_ns: Vec<u64>,
    plugging: Option<std::thread::JoinHandle<Vec<u64>>>,
    sending: Option<Pending>,
}

/// What was seen of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Nanoseconds since 1970: of the interface, or of the CNI's result if that came later.
    pub event_ns: u64,
    /// Frames that left it.
    pub sent: u64,
}

/// Frames that got out.
#[derive(Default)]
pub struct Out {
    /// By name: when the first datagram that policy allows was seen outside.
    pub first_ns: BTreeMap<String, u64>,
    /// Those that policy denies, in words.
    pub denied: Vec<String>,
}

/// How the pods of a burst come, and go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rhythm {
    /// All at once.
    Together,
    /// One after the other, with so much between them.
    Every(Duration),
}

/// In which order things happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The CNI's result is there before the interface.
    ResultFirst,
    /// It is written the moment that the interface is complete.
    LinkFirst,
}

impl<'y> Crowd<'y> {
    #[track_caller]
    pub fn new(yard: &'y Yard) -> Crowd<'y> {
        let namespace = yard.world.namespace("crowd");
        must(&format!("ip netns add {namespace}"));
        // What they send is what they are told to send.
        must_inside(&namespace, "sysctl -eqw net.ipv6.conf.default.disable_ipv6=1");
        let agent = Rc::new(Agent::start(&namespace));
        let node = yard.world.namespace("node");
        let hands = [(); 2].map(|()| Arc::new(Mutex::new(IpBatch::start(&node))));
        Crowd { yard, namespace, agent, hands }
    }

    /// Pods under these numbers that are not there yet; `colour` says which one has which.
    pub fn burst(&self, group: u32, numbers: impl Iterator<Item = usize>, colour: impl Fn(usize) -> Colour) -> Burst {
        let crowd = (self.namespace.as_str(), &self.agent);
        let pods = numbers
            .map(|number| self.yard.one_of_many(number, &format!("crowd-{group}-{number}"), crowd, colour(number)))
            .collect();
        Burst { pods, group, written_ns: Vec::new(), plugging: None, sending: None }
    }

    /// Their Pod objects, in one file, as a collector's steps.
    #[track_caller]
    pub fn write_pods(&self, burst: &Burst, addresses: bool) {
        self.yard.write_pods(&file_of(burst), &burst.pods, addresses);
    }

    /// They are plugged in meanwhile; each sends, denied and allowed, from the moment that its interface is there.
    #[track_caller]
    pub fn appear(&self, burst: &mut Burst, order: Order, send_for_ms: u64, rhythm: Rhythm) {
        let from = burst.pods.iter().map(|pod| self.sprays(pod)).collect();
        burst.sending = Some(self.agent.begin(Request::Spray(Spray { from, for_ms: send_for_ms })));
        let files = burst.pods.iter().map(|pod| self.yard.cache_entry(pod));
        let lines = burst.pods.iter().map(|pod| self.plugging(pod, burst.group));
        let each: Vec<_> = files.zip(lines).collect();
        let (node, hand) = (self.yard.world.namespace("node"), self.hands[0].clone());
        burst.plugging = Some(std::thread::spawn(move || match rhythm {
            Rhythm::Together => {
                let (files, lines): (Vec<_>, Vec<_>) = each.into_iter().unzip();
                let mut written = vec![0; files.len()];
                plug(order, &files, || ip_batch(&node, &lines.concat()), &mut written);
                written
            }
            Rhythm::Every(gap) => {
                let mut written = vec![0; each.len()];
                let mut hand = hand.lock().expect("no panic while locked");
                let start = clock::now();
                for (place, (file, lines)) in each.into_iter().enumerate() {
                    sleep_until(start, gap * place as u32);
                    plug(order, &[file], || hand.run(&lines), &mut written[place..=place]);
                }
                written
            }
        }));
    }

    /// Waits until all of them are plugged in.
    #[track_caller]
    pub fn is_there(&self, burst: &mut Burst) {
        if let Some(plugging) = burst.plugging.take() {
            burst.written_ns = plugging.join().expect("they can be plugged in");
        }
    }

    /// Their interfaces and the CNI's results go, meanwhile.
    #[track_caller]
    pub fn vanish(&self, burst: &mut Burst, rhythm: Rhythm) -> std::thread::JoinHandle<()> {
        self.is_there(burst);
        let (node, line) = (self.yard.world.namespace("node"), format!("link del group {}\n", burst.group));
        let (hosts, files): (Vec<_>, Vec<_>) =
            burst.pods.iter().map(|pod| (pod.host.clone(), self.yard.cache_file(pod, "eth0"))).unzip();
        let hand = self.hands[1].clone();
        std::thread::spawn(move || match rhythm {
            Rhythm::Together => {
                ip_batch(&node, &line);
                files.iter().for_each(|file| drop(fs::remove_file(file)));
            }
            Rhythm::Every(gap) => {
                let mut hand = hand.lock().expect("no panic while locked");
                let start = clock::now();
                for (place, (host, file)) in hosts.iter().zip(&files).enumerate() {
                    sleep_until(start, gap * place as u32);
                    hand.run(&format!("link del {host}\n"));
                    drop(fs::remove_file(file));
                }
            }
        })
    }

    #[track_caller]
    pub fn remove_pods(&self, burst: &Burst) {
        fs::remove_file(self.yard.world.directory.join("snapshot").join(file_of(burst))).expect("it is there");
    }

    /// What was seen of each, once it has sent for so long.
    #[track_caller]
    pub fn seen(&self, burst: &mut Burst) -> Vec<Option<Seen>> {
        self.is_there(burst);
        let Some(Reply::Sprayed(sprayed)) = burst.sending.take().map(Pending::wait) else { return Vec::new() };
        let seen = |(one, written): (&Sprayed, &u64)| {
            let event_ns = one.appeared_ns?.max(*written);
            Some(Seen { event_ns, sent: one.sent })
        };
        sprayed.iter().zip(&burst.written_ns).map(seen).collect()
    }

    /// Records what comes out of the node.
    #[track_caller]
    pub fn capture(&self) -> Capture<'y> {
        self.yard.world.outside.capture(if self.yard.is_bridged() { "lan0" } else { "eth0" })
    }

    fn plugging(&self, pod: &Pod, group: u32) -> String {
        let Pod { host, inner, mac, namespace, v4, v6, .. } = pod;
        let veth =
            format!("link add {host} group {group} type veth peer name {inner} address {mac} netns {namespace}\n");
        veth + &self.yard.leading(host, [v4, v6])
    }

    fn sprays(&self, pod: &Pod) -> SprayFrom {
        let next_hop = if self.yard.is_bridged() { LAN_MAC } else { NODE_MAC };
        let frame = |family: Family, colour: Colour| {
            let (from, to) = (pod.address(family), family.outside(colour.0));
            let packet = ip(from, to, 17, &udp((from, 4_000), (to, 9), mark(&pod.name, colour).as_bytes()));
            hex(&ethernet(next_hop, &pod.mac, ethertype(from), &packet))
        };
        let frames = |colour: Colour| FAMILIES.map(|family| frame(family, colour)).to_vec();
        let (denied, allowed) = (frames(pod.colour.other()), frames(pod.colour));
        SprayFrom { interface: pod.inner.clone(), denied, allowed }
    }
}

impl Out {
    /// Adds what came out; `burst` finds a pod's colour by its name.
    pub fn add(&mut self, frames: &[Frame], colour: impl Fn(&str) -> Option<Colour>) {
        for frame in frames.iter().filter(|frame| !frame.outgoing) {
            let octets = frame.octets();
            let Some((name, to)) = marked(&octets) else { continue };
            if colour(&name).is_some_and(|own| own.word() == to) {
                self.first_ns.entry(name).or_insert(frame.wall_ns);
            } else {
                self.denied.push(format!("{name} to {to}"));
            }
        }
    }
}

/// Plugs in pods with these files; `written`: when each file was there.
fn plug(order: Order, files: &[(PathBuf, String)], make: impl FnOnce(), written: &mut [u64]) {
    let write = |written: &mut [u64]| {
        for ((file, text), written) in files.iter().zip(written) {
            fs::write(file, text).expect("a file can be written");
            *written = clock::wall_ns();
        }
    };
    match order {
        Order::ResultFirst => {
            write(written);
            make();
        }
        Order::LinkFirst => {
            make();
            write(written);
        }
    }
}

fn file_of(burst: &Burst) -> String {
    format!("crowd-{}.json", burst.group)
}

/// What a pod's datagrams carry.
fn mark(name: &str, to: Colour) -> String {
    format!("[{name} to {}]", to.word())
}

/// The pod and the colour that a datagram is marked with.
fn marked(octets: &[u8]) -> Option<(String, String)> {
    let begin = octets.iter().rposition(|octet| *octet == b'[')?;
    let text = std::str::from_utf8(&octets[begin + 1..]).ok()?;
    let (name, to) = text.split(']').next()?.split_once(" to ")?;
    Some((name.to_owned(), to.to_owned()))
}

/// Waits until the clock is there.
pub fn sleep_until(start: std::time::Instant, after: Duration) {
    std::thread::sleep((start + after).saturating_duration_since(clock::now()));
}
