//! Endpoints, and the rows that a rule set compiles to.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::KernelError;
use super::abi::{self, flag};
use super::load::Kernel;
use crate::engine::bits::Bits;
use crate::engine::endpoint::EndpointId;
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{PeerId, PortRow, RuleSet, ServiceRow, ServiceVerdict};

/// The most addresses that one endpoint can have (`struct endpoint`).
pub const ADDRESSES: usize = 4;

/// How many flows, and datagrams in fragments, endpoints may have at a time (I8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowLimits {
    /// No endpoint goes beyond this.
    pub limit: u32,
    /// Every endpoint is sure of this.
    pub share: u32,
    /// Beyond their shares, all endpoints together have this.
    pub pool: u32,
    /// Datagrams in fragments that every endpoint is sure of.
    pub fragment_share: u32,
    /// Beyond their shares, all endpoints together have this.
    pub fragment_pool: u32,
    /// How much longer than its timeout a conversation may idle and still go on. Whole seconds.
    pub idle_grace: Duration,
}

impl FlowLimits {
    /// Half of each table is shared out evenly, the other half goes to whoever needs it.
    pub fn new(max_flows: u32, max_fragments: u32, endpoints: usize, limit: u32, idle_grace: Duration) -> FlowLimits {
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX).max(1);
        FlowLimits {
            limit,
            share: (max_flows / 2 / endpoints).min(limit),
            pool: max_flows - max_flows / 2,
            fragment_share: max_fragments / 2 / endpoints,
            fragment_pool: max_fragments - max_fragments / 2,
            idle_grace,
        }
    }
}

/// The port of DNS.
const DNS: u16 = 53;
/// The port of DNS over TLS (RFC 7858 section 3.1).
const DNS_OVER_TLS: u16 = 853;

/// Where the proxy listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProxyPorts {
    /// For queries over UDP and TCP.
    pub dns: u16,
    /// For queries over TLS; 0: they are not steered, and their port is one as any other.
    pub tls: u16,
}

impl From<u16> for ProxyPorts {
    fn from(dns: u16) -> ProxyPorts {
        ProxyPorts { dns, tls: 0 }
    }
}

/// An endpoint's row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointRow {
    /// Its number.
    pub id: EndpointId,
    /// Its row in `budgets`, from 1.
    pub slot: u32,
    /// Which rows of `ports`, `cidr4` and so on are its.
    pub policy_id: u32,
    /// Higher by one with every change of policy: flows of an older one are judged anew.
    pub generation: u32,
    /// Its addresses; more than [`ADDRESSES`] are refused when the endpoint is read.
    pub addresses: Vec<IpAddr>,
    /// Its MAC, if it was given.
    pub mac: Option<[u8; 6]>,
    /// The bits of [`abi::flag`].
    pub flags: u32,
    /// Until when connections from before the first start go on, in seconds of the monotonic clock; 0: they don't.
    pub adopt_until: u32,
}

impl EndpointRow {
    /// The flags that a rule set asks for; the caller adds what the attachment does.
    pub fn flags_of(rules: &RuleSet) -> u32 {
        let bit = |on: bool, flag: u32| if on { flag } else { 0 };
        bit(rules.selected, flag::ENFORCE)
            | bit(rules.audit, flag::AUDIT)
            | bit(rules.deny_egress, flag::DENY_EGRESS)
            | bit(rules.deny_ingress, flag::DENY_INGRESS)
            | bit(rules.steered(), flag::STEER)
            | bit(!rules.cidrs.is_empty(), flag::HAS_CIDR)
            | bit(rules.ports.iter().any(|row| is_block(row.ports)), flag::HAS_PORT_BLOCKS)
    }

    fn value(&self) -> abi::endpoint {
        let mut addresses = [abi::address { octets: [0; 16] }; ADDRESSES];
        for (place, address) in addresses.iter_mut().zip(&self.addresses) {
            place.octets = abi::mapped(*address);
        }
        abi::endpoint {
            id: self.id.0,
            slot: self.slot,
            policy_id: self.policy_id,
            generation: self.generation,
            flags: self.flags | if self.mac.is_some() { flag::HAS_MAC } else { 0 },
            mac: self.mac.unwrap_or_default(),
            pad: [0; 2],
            adopt_until_s: self.adopt_until,
            addresses,
        }
    }
}

impl Kernel {
    /// Writes the rows of a rule set under `policy_id`. Nothing refers to them before an endpoint does.
    ///
    /// # Errors
    /// A map is full; what was written is to be removed with [`Kernel::delete_rules_except`].
    pub fn write_rules(&self, policy_id: u32, rules: &RuleSet) -> Result<(), KernelError> {
        let single = rules.ports.iter().filter(|row| !is_block(row.ports));
        self.tables.ports.put_all(single.map(|row| (port_key(policy_id, row), port_row(row))))?;
        for row in rules.ports.iter().filter(|row| is_block(row.ports)) {
            self.tables.port_blocks.put(&port_block_key(policy_id, row), &port_row(row))?;
        }
        let bits = |peer: &(PeerId, Bits)| (peer_key(policy_id, peer.0), peer.1.into());
        self.tables.peer_bits.put_all(rules.peers.iter().map(bits))?;
        self.tables
            .services
            .put_all(rules.services.iter().map(|row| (service_key(policy_id, row), service_value(row))))?;
        for (net, bits) in &rules.cidrs {
            match net {
                IpNet::V4(net) => self.tables.cidr4.put(&cidr4_key(policy_id, *net), &(*bits).into())?,
                IpNet::V6(net) => self.tables.cidr6.put(&cidr6_key(policy_id, *net), &(*bits).into())?,
            }
        }
        Ok(())
    }

    /// Removes the rows of every policy that is not in `live`.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn delete_rules_except(&self, live: &[u32]) -> Result<(), KernelError> {
        let stale = |policy_id: u32| !live.contains(&policy_id);
        self.tables.ports.delete_where(|key, _| stale(key.policy_id))?;
        self.tables.port_blocks.delete_where(|key, _| stale(u32::from_be(key.policy_id)))?;
        self.tables.peer_bits.delete_where(|key, _| stale(key.policy_id))?;
        self.tables.services.delete_where(|key, _| stale(key.policy_id))?;
        self.tables.cidr4.delete_where(|key, _| stale(u32::from_be(key.policy_id)))?;
        self.tables.cidr6.delete_where(|key, _| stale(u32::from_be(key.policy_id)))?;
        Ok(())
    }

    /// Puts `endpoint` behind the interface, in one step: a packet sees the old row or the new one.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_endpoint(&self, ifindex: u32, endpoint: &EndpointRow) -> Result<(), KernelError> {
        self.tables.endpoints.put(&ifindex, &endpoint.value())
    }

    /// Nobody is behind the interface any more.
    pub fn delete_endpoint(&self, ifindex: u32) {
        self.tables.endpoints.delete(&ifindex);
        self.tables.macs.delete(&ifindex);
        self.tables.bridges.delete(&ifindex);
    }

    /// The interfaces that have an endpoint, with id, policy and generation.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn endpoints(&self) -> Result<Vec<(u32, EndpointId, u32, u32)>, KernelError> {
        let rows = self.tables.endpoints.rows()?;
        Ok(rows.iter().map(|(ifindex, row)| (*ifindex, EndpointId(row.id), row.policy_id, row.generation)).collect())
    }

    /// Interfaces on which connections from before the first start go on, and until when ([`EndpointRow::adopt_until`]).
    ///
    /// # Errors
    /// The map can't be read.
    pub fn adopting(&self) -> Result<Vec<(u32, u32)>, KernelError> {
        let rows = self.tables.endpoints.rows()?;
        let adopting = rows.iter().map(|(ifindex, row)| (*ifindex, row.adopt_until_s));
        Ok(adopting.filter(|(_, until)| *until > 0).collect())
    }

    /// The link went down or was made anew: its MAC may be learned again.
    pub fn forget_mac(&self, ifindex: u32) {
        self.tables.macs.delete(&ifindex);
    }

    /// The MAC of the bridge that the interface is a port of.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_bridge(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), KernelError> {
        self.tables.bridges.put(&ifindex, &abi::bridge { mac, pad: [0; 2] })
    }

    /// Makes `peers` hold exactly these addresses: new and changed ones before `flip`, those that went after it.
    ///
    /// # Errors
    /// The map is full or can't be read.
    pub fn set_peers(
        &self,
        peers: &[(IpAddr, PeerId)],
        flip: impl FnOnce() -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let held: std::collections::HashMap<[u8; 16], u32> =
            self.tables.peers.rows()?.into_iter().map(|(address, peer)| (address.octets, peer)).collect();
        let wanted: std::collections::HashMap<[u8; 16], u32> =
            peers.iter().map(|(address, peer)| (abi::mapped(*address), peer.0)).collect();
        let fresh = wanted.iter().filter(|(octets, peer)| held.get(*octets) != Some(*peer));
        self.tables.peers.put_all(fresh.map(|(octets, peer)| (abi::address { octets: *octets }, *peer)))?;
        flip()?;
        for octets in held.keys().filter(|octets| !wanted.contains_key(*octets)) {
            self.tables.peers.delete(&abi::address { octets: *octets });
        }
        Ok(())
    }

    /// Makes the steering maps hold exactly these pairs of resolver and local address, each on its ports.
    ///
    /// # Errors
    /// A map is full or can't be read.
    pub fn set_steering(&self, pairs: &[(IpAddr, IpAddr)], ports: impl Into<ProxyPorts>) -> Result<(), KernelError> {
        let ProxyPorts { dns, tls } = ports.into();
        let key = |address: IpAddr, port: u16| abi::steer_key {
            addr: abi::mapped(address),
            port: port.to_be(),
            family: if address.is_ipv4() { 4 } else { 6 },
        };
        let to =
            |address: IpAddr, port: u16| abi::steer { addr: abi::mapped(address), port: port.to_be(), pad: [0; 2] };
        let ways = [(DNS, dns), (DNS_OVER_TLS, tls)].into_iter().filter(|(_, own)| *own > 0);
        let (mut known_to, mut known_from) = (Vec::new(), Vec::new());
        for (theirs, own) in ways {
            for (resolver, local) in pairs {
                self.tables.dns_from.put(&key(*local, own), &to(*resolver, theirs))?;
                self.tables.dns_to.put(&key(*resolver, theirs), &to(*local, own))?;
                known_to.push((abi::mapped(*resolver), theirs.to_be()));
                known_from.push((abi::mapped(*local), own.to_be()));
            }
        }
        self.tables.dns_to.delete_where(|key, _| !known_to.contains(&(key.addr, key.port)))?;
        self.tables.dns_from.delete_where(|key, _| !known_from.contains(&(key.addr, key.port)))?;
        Ok(())
    }

    /// What endpoints may have, and where the proxy listens.
    ///
    /// # Errors
    /// The call failed.
    pub fn set_limits(&self, flows: FlowLimits, ports: impl Into<ProxyPorts>) -> Result<(), KernelError> {
        let FlowLimits { limit, share, pool, fragment_share, fragment_pool, idle_grace } = flows;
        let ProxyPorts { dns, tls } = ports.into();
        let row = abi::limits {
            flow_limit: limit,
            flow_share: share,
            flow_pool: pool,
            idle_grace_seconds: u32::try_from(idle_grace.as_secs()).unwrap_or(u32::MAX),
            fragment_share,
            fragment_pool,
            steer_port: dns.to_be(),
            steer_tls_port: tls.to_be(),
        };
        self.tables.limits.put(&0, &row)
    }
}

/// Whether ports stand in `port_blocks`: not one port, nor all of them. Port 0 itself does: in `ports` it is every port.
pub fn is_block(ports: PortBlock) -> bool {
    ports != PortBlock::ANY && (ports.length() < 16 || ports.first() == 0)
}

fn port_key(policy_id: u32, row: &PortRow) -> abi::port_key {
    abi::port_key {
        policy_id,
        port: row.ports.first().to_be(),
        protocol: row.protocol.number(),
        direction: abi::direction(row.direction),
    }
}

fn port_block_key(policy_id: u32, row: &PortRow) -> abi::port_block_key {
    abi::port_block_key {
        prefix_len: 48 + u32::from(row.ports.length()),
        policy_id: policy_id.to_be(),
        direction: abi::direction(row.direction),
        protocol: row.protocol.number(),
        port: row.ports.first().to_be(),
    }
}

fn port_row(row: &PortRow) -> abi::port_row {
    abi::port_row { allow: row.allow.into(), deny: row.deny.into() }
}

pub(super) fn peer_key(policy_id: u32, peer: PeerId) -> abi::peer_bits_key {
    abi::peer_bits_key { policy_id, peer_id: peer.0 }
}

pub(super) fn service_key(policy_id: u32, row: &ServiceRow) -> abi::service_key {
    abi::service_key {
        policy_id,
        addr: abi::mapped(row.address),
        port: row.port.to_be(),
        protocol: row.protocol.number(),
        pad: 0,
    }
}

pub(super) fn service_value(row: &ServiceRow) -> abi::service {
    let verdict = match row.verdict {
        ServiceVerdict::Allow => 1,
        ServiceVerdict::Deny => 2,
    };
    abi::service { verdict }
}

pub(super) fn cidr4_key(policy_id: u32, net: Ipv4Net) -> abi::cidr4_key {
    abi::cidr4_key {
        prefix_len: 32 + u32::from(net.prefix_len()),
        policy_id: policy_id.to_be(),
        addr: net.network().octets(),
    }
}

pub(super) fn cidr6_key(policy_id: u32, net: Ipv6Net) -> abi::cidr6_key {
    abi::cidr6_key {
        prefix_len: 32 + u32::from(net.prefix_len()),
        policy_id: policy_id.to_be(),
        addr: net.network().octets(),
    }
}
