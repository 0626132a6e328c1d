//! From the kernel's events to records for those who watch.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::mpsc;

use super::explain::Seen;
use crate::clock;
use crate::engine::endpoint::EndpointId;
use crate::engine::ruleset::Direction;
use crate::kernel::abi::{flow_event, unmapped};
use crate::observe::{PacketRecord, Reason, Watchers};
use crate::serve::Served;

/// Who is behind which number, and what its interface is called.
#[derive(Clone, Default)]
pub(super) struct People {
    by_number: Arc<ArcSwap<ByNumber>>,
    seen: Arc<ArcSwapOption<Seen>>,
}

/// The endpoint behind a number, and its interface's name.
type ByNumber = HashMap<EndpointId, (Arc<Served>, String)>;

impl People {
    /// Takes over who is there now.
    pub fn know(&self, people: ByNumber) {
        self.by_number.store(Arc::new(people));
    }

    /// Takes over what is in force now.
    pub fn see(&self, seen: Seen) {
        self.seen.store(Some(Arc::new(seen)));
    }

    /// What is in force; none before the first snapshot.
    pub fn seen(&self) -> Option<Arc<Seen>> {
        self.seen.load_full()
    }

    /// Everyone, by pod.
    pub fn everyone(&self) -> Vec<(String, Arc<Served>)> {
        let mut everyone: Vec<_> =
            self.by_number.load().values().map(|(served, _)| (served.pod.to_string(), served.clone())).collect();
        everyone.sort_by(|one, other| one.0.cmp(&other.0));
        everyone
    }
}

/// Who asked which server that nothing names.
pub(super) type Unnamed = (EndpointId, IpAddr);

/// What to do with each event.
pub(super) fn teller(
    watchers: Arc<Watchers>,
    people: People,
    unnamed: mpsc::Sender<Unnamed>,
) -> impl FnMut(&flow_event) + Send + 'static {
    move |event| {
        let audited = event.reason == Reason::Audit as u8 && event.audited == Reason::UnknownResolver as u8;
        if audited || event.reason == Reason::UnknownResolver as u8 {
            // Full: whoever is dropped asks again.
            let _ = unnamed.try_send((EndpointId(event.endpoint_id), unmapped(event.destination.octets)));
        }
        watchers.packet(record(event, &people));
    }
}

fn record(event: &flow_event, people: &People) -> PacketRecord {
    let people = people.by_number.load();
    let person = people.get(&EndpointId(event.endpoint_id));
    let direction = if event.direction == 0 { Direction::Egress } else { Direction::Ingress };
    let ip = event.family != 0;
    let address = |octets: [u8; 16], port: u16| ip.then(|| SocketAddr::new(unmapped(octets), u16::from_be(port)));
    let remote: IpAddr = unmapped(match direction {
        Direction::Egress => event.destination.octets,
        Direction::Ingress => event.source.octets,
    });
    let names = person.filter(|_| ip).map_or_else(Vec::new, |(served, _)| {
        let table = served.table();
        table.names_of(remote).map(ToString::to_string).collect()
    });
    // The event carries the kernel's monotonic time; people want the wall's.
    let ago = Duration::from_nanos(clock::mono().0.saturating_sub(event.time_mono_ns));
    PacketRecord {
        time: clock::wall().checked_sub(ago).unwrap_or_else(clock::wall),
        endpoint: person.map(|(served, _)| (served.id, served.pod.clone())),
        ifindex: event.ifindex,
        interface: person.map_or_else(String::new, |(_, interface)| interface.clone()),
        source: address(event.source.octets, event.source_port),
        destination: address(event.destination.octets, event.destination_port),
        protocol: event.protocol,
        tcp_flags: event.tcp_flags,
        icmp_type: event.icmp_type,
        direction,
        reason: Reason::from_number(event.reason),
        audited: (event.reason == Reason::Audit as u8).then(|| Reason::from_number(event.audited)),
        rejected: event.rejected != 0,
        reply: event.reply != 0,
        octets: event.octets,
        policy_id: event.policy_id,
        generation: event.generation,
        suppressed: event.suppressed,
        names,
        policies: Vec::new(),
    }
}
