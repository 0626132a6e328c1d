//! The floor under a pod that guards itself: what the pod sends is dropped until programs of ours are on its interface, and
//! again when they are taken off; and what goes past them is dropped always.
//!
//! ```text
//! table inet namegate_egress {                          table netdev namegate_egress {
//!   chain stamp {                                         chain floor {
//!     type filter hook postrouting priority 1000;           type filter hook egress device eth0 priority -500; policy drop;
//!     oif 2 meta mark set 0x6a3f…                            meta mark 0x6a3f… meta mark set 0 accept
//!   }                                                       @ll,96,16 0x0806 accept
//! }                                                         counter
//!                                                         }
//!                                                       }
//! ```
//!
//! The egress hook of netdev (kernel 5.16) stands before the programs of TC, and it sees what a packet socket sends with
//! PACKET_QDISC_BYPASS, which those don't. What the kernel's own stack has made bears a random mark; what a packet socket
//! makes does not, and goes no further. ARP has no postrouting, so it passes. While the floor is shut the two rules that
//! accept are missing.
//!
//! What it can't stop: a process with CAP_NET_ADMIN, which can remove it; one with CAP_NET_RAW that forges ARP, or guesses
//! the mark, for it may set any. Without the hook in the kernel there is no such floor: [`EgressFloor::problem`].

use std::io;

use super::nftables::{Attributes, Family, Message, Request, change_all, get, part, parts};

/// Both tables' name: a network namespace has one such floor, whoever laid it, an init container or the sidecar.
const TABLE: &str = "namegate_egress";

/// The floor as far as this process has laid it.
#[derive(Debug)]
pub struct EgressFloor {
    mark: u32,
    laid: Option<Laid>,
    problem: String,
    /// Packets dropped by tables that were written anew since.
    dropped: u64,
}

#[derive(Debug)]
struct Laid {
    device: String,
    ifindex: u32,
    open: bool,
    /// What the kernel had, once it was written.
    rules: Vec<Vec<u8>>,
    dropped: u64,
}

impl EgressFloor {
    /// Nothing is laid yet. `mark` is hard to guess and not zero.
    pub fn new(mark: u32) -> EgressFloor {
        EgressFloor { mark, laid: None, problem: String::new(), dropped: 0 }
    }

    /// Makes the floor under an interface what it is to be. `open`: programs guard it.
    pub fn keep(&mut self, device: &str, ifindex: u32, open: bool) {
        let there = |laid: &&Laid| (laid.device.as_str(), laid.ifindex, laid.open) == (device, ifindex, open);
        if self.laid.as_ref().filter(there).is_none() {
            self.lay(device, ifindex, open);
        }
    }

    /// Looks whether it is still as written; what someone else has changed is written again. Whether that was so.
    pub fn check(&mut self) -> bool {
        let Some(laid) = &mut self.laid else { return false };
        match look() {
            Ok((rules, dropped)) if rules == laid.rules => {
                laid.dropped = dropped;
                false
            }
            // It could not be looked at, for want of a descriptor or a moment: the next look tells.
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => false,
            _ => {
                let (device, ifindex, open) = (laid.device.clone(), laid.ifindex, laid.open);
                self.lay(&device, ifindex, open);
                true
            }
        }
    }

    /// Why it is not as it should be; empty if it is.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// Whether it stands.
    pub fn stands(&self) -> bool {
        self.laid.is_some()
    }

    /// Packets that it has dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped + self.laid.as_ref().map_or(0, |laid| laid.dropped)
    }

    fn lay(&mut self, device: &str, ifindex: u32, open: bool) {
        let written = change_all(&whole(self.mark, device, ifindex, open)).and_then(|()| look());
        match written {
            Ok((rules, dropped)) => {
                self.dropped = self.dropped();
                self.laid = Some(Laid { device: device.to_owned(), ifindex, open, rules, dropped });
                self.problem.clear();
            }
            Err(error) => {
                self.problem = format!("tables inet and netdev {TABLE} can't be written: {error}");
            }
        }
    }
}

/// Removes the floor that any run has left in this network namespace. Whether there was one.
///
/// # Errors
/// The kernel refused.
pub fn remove() -> io::Result<bool> {
    let mut found = false;
    for family in [Family::Netdev, Family::Inet] {
        let attributes = Attributes::new().text(TABLE_NAME, TABLE);
        match change_all(&[(family, Request { message: Message::DelTable, attributes })]) {
            Ok(()) => found = true,
            Err(error) if is_absence(&error) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT))
}

/// Both tables anew, in one transaction.
fn whole(mark: u32, device: &str, ifindex: u32, open: bool) -> Vec<(Family, Request)> {
    let mut requests = Vec::new();
    for family in [Family::Inet, Family::Netdev] {
        // Made so that it can be deleted, deleted with all that is in it, made again.
        for message in [Message::NewTable, Message::DelTable, Message::NewTable] {
            requests.push((family, Request { message, attributes: Attributes::new().text(TABLE_NAME, TABLE) }));
        }
    }
    let mut chain = |family, name: &str, hook: &Attributes, policy| {
        let attributes = Attributes::new()
            .text(CHAIN_TABLE, TABLE)
            .text(CHAIN_NAME, name)
            .nest(CHAIN_HOOK, hook)
            .number(CHAIN_POLICY, policy)
            .text(CHAIN_TYPE, "filter");
        requests.push((family, Request { message: Message::NewChain, attributes }));
    };
    let postrouting = Attributes::new().number(HOOK_NUMBER, POSTROUTING).number(HOOK_PRIORITY, 1_000);
    chain(Family::Inet, STAMP, &postrouting, ACCEPT);
    let egress = Attributes::new()
        .number(HOOK_NUMBER, NETDEV_EGRESS)
        .number(HOOK_PRIORITY, -500i32 as u32)
        .text(HOOK_DEVICE, device);
    chain(Family::Netdev, FLOOR, &egress, DROP);
    let mut rule = |family, chain: &str, expressions: &[Attributes]| {
        let list = expressions.iter().fold(Attributes::new(), |list, each| list.nest(LIST_ELEMENT, each));
        let attributes =
            Attributes::new().text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain).nest(RULE_EXPRESSIONS, &list);
        requests.push((family, Request { message: Message::NewRule, attributes }));
    };
    let (mark, none, ifindex) = (mark.to_ne_bytes(), 0u32.to_ne_bytes(), ifindex.to_ne_bytes());
    rule(Family::Inet, STAMP, &[read(META_OIF), is(&ifindex), load(&mark), write(META_MARK)]);
    if open {
        rule(Family::Netdev, FLOOR, &[read(META_MARK), is(&mark), load(&none), write(META_MARK), verdict(ACCEPT)]);
        rule(Family::Netdev, FLOOR, &[ethertype(), is(&ARP), verdict(ACCEPT)]);
    }
    rule(Family::Netdev, FLOOR, &[counter()]); // the chain's policy drops it
    requests
}

/// What the kernel has, and how much it has dropped.
fn look() -> io::Result<(Vec<Vec<u8>>, u64)> {
    let (mut rules, mut dropped) = (Vec::new(), 0);
    for (family, chain) in [(Family::Inet, STAMP), (Family::Netdev, FLOOR)] {
        let of_chain = Attributes::new().text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, chain);
        for found in get(family, Message::GetChain, &of_chain, false)? {
            rules.extend(part(&found, CHAIN_HOOK).map(<[u8]>::to_vec));
            rules.extend(part(&found, CHAIN_POLICY).map(<[u8]>::to_vec));
        }
        let of_rules = Attributes::new().text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain);
        for found in get(family, Message::GetRule, &of_rules, true)? {
            for (_, expression) in parts(part(&found, RULE_EXPRESSIONS).unwrap_or_default()) {
                match part(expression, EXPRESSION_NAME) {
                    Some(b"counter\0") => {
                        let packets = part(part(expression, EXPRESSION_DATA).unwrap_or_default(), COUNTER_PACKETS);
                        let packets = packets.and_then(|octets| octets.first_chunk::<8>());
                        dropped += packets.map_or(0, |octets| u64::from_be_bytes(*octets));
                    }
                    _ => rules.push(expression.to_vec()),
                }
            }
        }
    }
    Ok((rules, dropped))
}

fn read(key: u32) -> Attributes {
    expression("meta", &Attributes::new().number(META_TO, REGISTER).number(META_KEY, key))
}

fn write(key: u32) -> Attributes {
    expression("meta", &Attributes::new().number(META_KEY, key).number(META_FROM, REGISTER))
}

fn is(octets: &[u8]) -> Attributes {
    let equal = 0;
    let data = Attributes::new().octets(DATA_VALUE, octets);
    expression("cmp", &Attributes::new().number(CMP_FROM, REGISTER).number(CMP_OPERATION, equal).nest(CMP_DATA, &data))
}

fn load(octets: &[u8]) -> Attributes {
    let data = Attributes::new().octets(DATA_VALUE, octets);
    expression("immediate", &Attributes::new().number(IMMEDIATE_TO, REGISTER).nest(IMMEDIATE_DATA, &data))
}

/// As it stands in the frame: the one that the socket gives beside it may be another.
fn ethertype() -> Attributes {
    let link_layer = 0;
    let place = Attributes::new()
        .number(PAYLOAD_TO, REGISTER)
        .number(PAYLOAD_BASE, link_layer)
        .number(PAYLOAD_OFFSET, 12)
        .number(PAYLOAD_OCTETS, 2);
    expression("payload", &place)
}

fn counter() -> Attributes {
    expression("counter", &Attributes::new())
}

fn verdict(code: u32) -> Attributes {
    let data = Attributes::new().nest(DATA_VERDICT, &Attributes::new().number(VERDICT_CODE, code));
    let register = 0; // NFT_REG_VERDICT
    expression("immediate", &Attributes::new().number(IMMEDIATE_TO, register).nest(IMMEDIATE_DATA, &data))
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::new().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data)
}

const STAMP: &str = "stamp";
const FLOOR: &str = "floor";
const ARP: [u8; 2] = [8, 6];

// Numbers of linux/netfilter/nf_tables.h and linux/netfilter.h.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const REGISTER: u32 = 1; // NFT_REG_1
const POSTROUTING: u32 = 4; // NF_INET_POST_ROUTING
const NETDEV_EGRESS: u32 = 1;
const META_MARK: u32 = 3;
const META_OIF: u32 = 5;
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const META_TO: u16 = 1;
const META_KEY: u16 = 2;
const META_FROM: u16 = 3;
const CMP_FROM: u16 = 1;
const CMP_OPERATION: u16 = 2;
const CMP_DATA: u16 = 3;
const IMMEDIATE_TO: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const PAYLOAD_TO: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_OCTETS: u16 = 4;
const COUNTER_PACKETS: u16 = 2;
