//! Replies that one worker gave lately, ready to leave again: nothing that workers share is looked up but the
//! endpoint, and nothing is allocated.
//!
//! **Invariant:** a reply is hot only for the endpoint that it was made for, under the same directory and rule set, in
//! the same epoch of the endpoint's grants, and while these outlast what the reply promises (I4, I7).

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::engine::answer::Answer;
use crate::engine::endpoint::EndpointId;
use crate::engine::fqdn::Timing;
use crate::engine::grant::MonoNs;
use crate::engine::lifetime::{age, ttl_places};
use crate::engine::name::Name;
use crate::engine::query::Outline;
use crate::engine::reply;
use crate::engine::ruleset::RuleSet;
use crate::engine::wire::{self, HEADER, NAME_OCTETS};

use super::Packet;
use super::cache::Life;
use super::directory::Directory;
use super::record::Record;

/// Octets of one generation of replies; there are two. A worker's share of memory is twice this, if so much is hot.
const GENERATION: usize = 8 << 20;
/// Octets that an entry costs beside its reply.
const OVERHEAD: usize = 512;

/// One worker's ready replies: two generations, the older one forgotten when the younger one is full.
pub struct Hot {
    directory: Option<Arc<Directory>>,
    cleared: u64,
    young: HashMap<u64, Ready, BuildHasherDefault<Hashed>>,
    old: HashMap<u64, Ready, BuildHasherDefault<Hashed>>,
    octets: usize,
    hasher: RandomState,
}

/// What a query asks, as far as the reply depends on it; the name folded, on the stack.
pub(super) struct Asked {
    endpoint: EndpointId,
    local: IpAddr,
    name: [u8; NAME_OCTETS],
    octets: usize,
    qtype: u16,
    flags: u16,
    edns: Option<bool>,
    /// Octets that the asker takes: what is optional in a reply depends on it.
    limit: usize,
}

/// A reply that is ready. It holds nothing of the kept answer, which may be much longer and is to go when the cache says so.
struct Ready {
    endpoint: EndpointId,
    local: IpAddr,
    name: Name,
    qtype: u16,
    flags: u16,
    edns: Option<bool>,
    limit: usize,
    rules: Arc<RuleSet>,
    life: Life,
    promise: Promise,
    message: Box<[u8]>,
    /// Where its TTLs stand, and what they were when the answer was stored.
    places: Box<[(usize, u32)]>,
    /// The least of them in its answer section.
    ttl: u32,
    record: Record,
}

/// What a reply promises its asker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Promise {
    /// Addresses that the kernel holds until then, in this epoch of the endpoint's grants; their TTL, seconds.
    Held { until: MonoNs, epoch: u64, ttl: u32 },
    /// No address that needs a grant.
    Nothing,
    /// Something that must be looked at each time.
    Once,
}

impl Promise {
    /// With the TTL as it was `aged` seconds ago.
    fn when_stored(self, aged: u32) -> Promise {
        match self {
            Promise::Held { until, epoch, ttl } => Promise::Held { until, epoch, ttl: ttl.saturating_add(aged) },
            other => other,
        }
    }
}

impl Asked {
    /// `None`: such a query never has a ready reply.
    pub(super) fn new(endpoint: EndpointId, packet: &Packet<'_>, outline: &Outline) -> Option<Asked> {
        let wire = packet.bytes.get(HEADER..outline.name_end)?;
        if packet.tcp || outline.qclass != wire::CLASS_IN || outline.edns.is_some_and(|edns| edns.version > 0) {
            return None;
        }
        let mut name = [0; NAME_OCTETS];
        // Length octets are at most 63, so that folding can't touch them.
        name.get_mut(..wire.len())?.copy_from_slice(wire);
        name[..wire.len()].make_ascii_lowercase();
        Some(Asked {
            endpoint,
            local: packet.local,
            name,
            octets: wire.len(),
            qtype: outline.qtype,
            flags: outline.flags & (wire::RD | wire::AD | wire::CD),
            edns: outline.edns.map(|edns| edns.dnssec_ok),
            limit: reply::udp_limit(outline.edns),
        })
    }

    fn name(&self) -> &[u8] {
        &self.name[..self.octets]
    }
}

impl Hot {
    /// Empty.
    pub fn new() -> Hot {
        Hot {
            directory: None,
            cleared: 0,
            young: HashMap::default(),
            old: HashMap::default(),
            octets: 0,
            hasher: RandomState::default(),
        }
    }

    /// Forgets everything if who may ask what has been replaced, or the cache has been cleared (how often it was).
    pub(super) fn follow(&mut self, directory: &Arc<Directory>, cleared: u64) {
        let same = self.directory.as_ref().is_some_and(|known| Arc::ptr_eq(known, directory));
        if !same || self.cleared != cleared {
            self.directory = Some(directory.clone());
            self.cleared = cleared;
            self.young.clear();
            self.old.clear();
            self.octets = 0;
        }
    }

    fn hash(&self, asked: &Asked) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(asked.name());
        hasher.write_u64(u64::from(asked.endpoint.0) << 32 | u64::from(asked.qtype) << 16 | u64::from(asked.flags));
        match asked.local {
            IpAddr::V4(local) => hasher.write(&local.octets()),
            IpAddr::V6(local) => hasher.write(&local.octets()),
        }
        hasher.write_u32((asked.limit as u32) << 2 | asked.edns.map_or(2, u32::from));
        hasher.finish()
    }

    /// Writes the reply to `out` if one is ready and as good as it was; then its record, to be closed.
    pub(super) fn again(
        &mut self,
        asked: &Asked,
        now: Now<'_>,
        packet: &Packet<'_>,
        outline: &Outline,
        out: &mut Vec<u8>,
    ) -> Option<&Record> {
        let hash = self.hash(asked);
        if !self.young.contains_key(&hash) {
            let ready = self.old.remove(&hash)?;
            self.insert(hash, ready);
        }
        if self.young.get(&hash).is_some_and(|ready| !ready.is_good(&now)) {
            self.young.remove(&hash);
        }
        let ready = self.young.get_mut(&hash).filter(|ready| ready.answers(asked))?;
        ready.write(now.at, packet, outline, out)?;
        ready.record.again(packet, ready.ttl.min(ready.life.ceiling).saturating_sub(ready.life.age(now.at)));
        Some(&ready.record)
    }

    /// Keeps a reply that has just been made from a kept answer.
    pub(super) fn keep(&mut self, asked: &Asked, fresh: Fresh<'_>) {
        if fresh.promise == Promise::Once {
            return;
        }
        let Ok(answer) = Answer::parse(fresh.message) else { return };
        if answer.truncated() {
            return;
        }
        let Ok(name) = Name::from_wire(asked.name()) else { return };
        // As they were when the answer was stored; what came back has already aged.
        let aged = fresh.life.age(fresh.now);
        let places = ttl_places(&answer).map(|(at, ttl)| (at, ttl.saturating_add(aged))).collect();
        let ready = Ready {
            endpoint: asked.endpoint,
            local: asked.local,
            name,
            qtype: asked.qtype,
            flags: asked.flags,
            edns: asked.edns,
            limit: asked.limit,
            rules: fresh.rules,
            life: fresh.life,
            promise: fresh.promise.when_stored(aged),
            message: fresh.message.into(),
            places,
            ttl: answer.ttl().saturating_add(aged),
            record: fresh.record,
        };
        self.insert(self.hash(asked), ready);
    }

    fn insert(&mut self, hash: u64, ready: Ready) {
        let weight = ready.message.len() + ready.places.len() * size_of::<(usize, u32)>() + OVERHEAD;
        if self.octets + weight > GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            self.octets = 0;
        }
        self.octets += weight;
        self.young.insert(hash, ready);
    }
}

impl Default for Hot {
    fn default() -> Hot {
        Hot::new()
    }
}

/// What a ready reply is held against.
pub(super) struct Now<'a> {
    pub at: MonoNs,
    pub rules: &'a Arc<RuleSet>,
    pub epoch: u64,
    pub timing: &'a Timing,
}

/// A reply that has just been made from a kept answer.
pub(super) struct Fresh<'a> {
    pub now: MonoNs,
    pub rules: Arc<RuleSet>,
    pub life: Life,
    pub promise: Promise,
    pub message: &'a [u8],
    pub record: Record,
}

impl Ready {
    fn answers(&self, asked: &Asked) -> bool {
        (self.endpoint, self.local, self.qtype, self.flags, self.edns, self.limit)
            == (asked.endpoint, asked.local, asked.qtype, asked.flags, asked.edns, asked.limit)
            && self.name.as_wire() == asked.name()
    }

    /// The grants outlast the reply's TTL (or the least one that they are reckoned with) and what comes on top.
    fn is_good(&self, now: &Now<'_>) -> bool {
        if now.at >= self.life.ends() || !Arc::ptr_eq(&self.rules, now.rules) {
            return false;
        }
        match self.promise {
            Promise::Nothing => true,
            Promise::Once => false,
            Promise::Held { until, epoch, ttl } => {
                let left = Duration::from_secs(ttl.saturating_sub(self.life.age(now.at)).into());
                epoch == now.epoch && now.at.after(left.max(now.timing.min_ttl)).after(now.timing.grace) <= until
            }
        }
    }

    /// The asker's ID and letters, and the TTLs of now.
    fn write(&self, now: MonoNs, packet: &Packet<'_>, outline: &Outline, out: &mut Vec<u8>) -> Option<()> {
        out.clear();
        out.extend_from_slice(&self.message);
        out.get_mut(..2)?.copy_from_slice(&outline.id.to_be_bytes());
        let question = HEADER..outline.name_end;
        out.get_mut(question.clone())?.copy_from_slice(packet.bytes.get(question)?);
        age(out, self.places.iter().copied(), self.life.age(now), self.life.ceiling);
        Some(())
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys are numbers");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
