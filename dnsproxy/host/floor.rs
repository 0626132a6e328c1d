//! The floor: no packet before policy. An nftables table of ours drops whatever comes in from an interface that is to be
//! guarded and is not yet.
//!
//! ```text
//! table inet namegate {                        and the same in table bridge namegate, for ports of a bridge
//!   set guarded { type iface_index; }          interfaces on which our programs are, by number; and lo
//!   set names { type ifname; }                 the endpoints' interfaces, by name
//!   chain floor {
//!     type filter hook prerouting priority -500;
//!     iif @guarded accept
//!     iifname @names counter drop
//!     iifname "veth*" counter drop             one for each prefix in enforcement.floor_interfaces
//!   }
//! }
//! ```
//!
//! Shut is what has a name, open is what has a number: an interface that is deleted and made again has its old name and a
//! new number, so it is shut from its first packet on, whether namegate runs, hangs or is dead (I1, I12). Nobody has to
//! put anything back in time. But a number can come again: one that is moved in from another namespace keeps its own if that
//! is free, and `ip link add … index` chooses one. Namegate shuts the number when it hears that its interface is gone; while
//! it hangs or is dead, such an interface is open.
//!
//! A tc program runs before this hook, so what it drops never comes here, and what it passes is let through by number.
//! Each table is replaced as a whole in one transaction; tables of others are never touched.
//!
//! What it can't see: packets that go *to* an interface which is not guarded yet; frames of interfaces that neither route
//! nor bridge (Open vSwitch, macvlan); ARP to the node itself, which goes no further.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;

use super::links::LOOPBACK;
use super::nftables::{Attributes, Family, Message, Request, change, get, part, parts};

/// Names of interfaces: one, or all that begin alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum InterfaceNames {
    /// This one.
    One(String),
    /// All that begin so; written with a final `*`. Not empty.
    Prefix(String),
}

impl InterfaceNames {
    /// Whether the name is one of them.
    pub fn holds(&self, name: &str) -> bool {
        match self {
            InterfaceNames::One(one) => one == name,
            InterfaceNames::Prefix(start) => name.starts_with(start.as_str()),
        }
    }
}

impl fmt::Display for InterfaceNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InterfaceNames::One(name) => f.write_str(name),
            InterfaceNames::Prefix(start) => write!(f, "{start}*"),
        }
    }
}

/// What the floor is to be.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    /// Whose packets are dropped.
    pub names: BTreeSet<InterfaceNames>,
    /// The interfaces that are excepted, by number: programs of ours guard them.
    pub guarded: BTreeSet<u32>,
    /// Further ones that are excepted: they are no endpoint's and none of ours to shut.
    pub excepted: BTreeSet<u32>,
}

/// The floor as far as this process has laid it.
#[derive(Debug)]
pub struct Floor {
    wanted: Option<Wanted>,
    sides: [Side; 2],
}

/// Where it stands.
#[derive(Clone, Debug)]
struct Table {
    family: Family,
    name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} {}", self.family.text(), self.name)
    }
}

/// One of the two tables.
#[derive(Debug)]
struct Side {
    at: Table,
    laid: Option<Laid>,
    /// Why it is not as it should be; empty if it is.
    problem: String,
    /// A change of ours met a table that someone else had changed or removed, and wrote it anew; nobody was told yet.
    met_changed: bool,
    /// Packets that it dropped before it was written anew.
    dropped: u64,
}

#[derive(Debug)]
struct Laid {
    wanted: Wanted,
    seen: Seen,
}

/// What the kernel has.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    /// Table, chain and rules as the kernel tells them, but for the counters.
    rules: Vec<Vec<u8>>,
    elements: [BTreeSet<Vec<u8>>; 2],
    dropped: u64,
}

/// What the floor does, for status.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct FloorStatus {
    /// Whether it is wanted.
    pub wanted: bool,
    /// The tables that stand: `inet`, `bridge`.
    pub tables: Vec<String>,
    /// Names of interfaces whose packets are dropped until they are guarded.
    pub names: Vec<String>,
    /// How many interfaces are guarded.
    pub guarded: u32,
    /// Packets that it dropped since namegate started.
    pub dropped: u64,
    /// Why it is not as it should be; empty if it is.
    pub problem: String,
}

const FAMILIES: [Family; 2] = [Family::Inet, Family::Bridge];
const CHAIN: &str = "floor";
/// Before fragments are put together (-400) and connections tracked (-200).
const PRIORITY: i32 = -500;

/// The name of the tables: of each `pin_dir` another, so that two namegates on a machine leave each other's alone.
pub fn table_of(pin_dir: &Path) -> String {
    let octets = pin_dir.as_os_str().as_encoded_bytes();
    if octets == b"/sys/fs/bpf/namegate" {
        return "namegate".into();
    }
    format!("namegate_{:08x}", crc32fast::hash(octets))
}

impl Floor {
    /// Nothing is laid yet. `table`: see [`table_of`].
    pub fn new(table: &str) -> Floor {
        let side = |family| Side {
            at: Table { family, name: table.to_owned() },
            laid: None,
            problem: String::new(),
            met_changed: false,
            dropped: 0,
        };
        Floor { wanted: None, sides: FAMILIES.map(side) }
    }

    /// Makes the floor what is wanted; none: there is to be none. Does nothing where it is that already.
    pub fn keep(&mut self, wanted: Option<&Wanted>) {
        let Some(wanted) = wanted else {
            if self.wanted.take().is_some() {
                self.take_away();
            }
            return;
        };
        self.wanted = Some(wanted.clone());
        for side in &mut self.sides {
            side.keep(wanted);
        }
    }

    /// An interface is not guarded any more. To be called before its programs go.
    pub fn shut(&mut self, ifindex: u32) {
        let Some(mut wanted) = self.wanted.take() else { return };
        wanted.guarded.remove(&ifindex);
        wanted.excepted.remove(&ifindex);
        self.keep(Some(&wanted));
    }

    /// Looks whether it is still as written; what someone else has changed is written again. Whether that was so since the
    /// last look.
    pub fn check(&mut self) -> bool {
        let mut changed = false;
        for side in &mut self.sides {
            changed |= side.check();
        }
        changed
    }

    /// Removes what any run has left.
    fn take_away(&mut self) {
        for side in &mut self.sides {
            side.put_away();
            side.problem = match remove(&side.at) {
                Ok(_) => String::new(),
                Err(error) => format!("{} can't be removed: {error}", side.at),
            };
        }
    }

    /// Why some of what is wanted is not so while a table stands that may cut workloads off; none: nothing of the kind.
    pub fn hindrance(&self) -> Option<&str> {
        let laid = |side: &&Side| side.laid.is_some() && !side.problem.is_empty();
        self.sides.iter().find(laid).map(|side| side.problem.as_str())
    }

    /// What it does.
    pub fn status(&self) -> FloorStatus {
        let laid = |side: &Side| side.laid.is_some().then(|| side.at.family.text().to_owned());
        let problems: Vec<&str> =
            self.sides.iter().map(|side| side.problem.as_str()).filter(|problem| !problem.is_empty()).collect();
        let mut status = FloorStatus {
            wanted: self.wanted.is_some(),
            tables: self.sides.iter().filter_map(laid).collect(),
            dropped: self.sides.iter().map(Side::dropped).sum(),
            problem: problems.join("; "),
            ..FloorStatus::default()
        };
        if let Some(wanted) = &self.wanted {
            status.names = wanted.names.iter().map(ToString::to_string).collect();
            status.guarded = wanted.guarded.len() as u32;
        }
        status
    }
}

/// Removes the floor that any run with this table has left. Whether there was one.
///
/// # Errors
/// The kernel refused.
pub fn remove_all(table: &str) -> io::Result<bool> {
    let mut found = false;
    for family in FAMILIES {
        found |= remove(&Table { family, name: table.to_owned() })?;
    }
    Ok(found)
}

impl Side {
    fn keep(&mut self, wanted: &Wanted) {
        // Each prefix is a rule; only elements of the sets are changed in place.
        let prefixes = |wanted: &Wanted| -> Vec<InterfaceNames> {
            wanted.names.iter().filter(|names| matches!(names, InterfaceNames::Prefix(_))).cloned().collect()
        };
        let Some(laid) = self.laid.as_mut().filter(|laid| prefixes(&laid.wanted) == prefixes(wanted)) else {
            return self.lay(wanted);
        };
        if laid.wanted == *wanted {
            return;
        }
        let (old, elements) = (elements_of(&laid.wanted), elements_of(wanted));
        let mut requests = Vec::new();
        for (set, (old, new)) in Set::BOTH.into_iter().zip(old.iter().zip(&elements)) {
            let gone: Vec<Vec<u8>> = old.difference(new).cloned().collect();
            let added: Vec<Vec<u8>> = new.difference(old).cloned().collect();
            put_elements(&mut requests, Message::DelElement, set, &self.at, &gone);
            put_elements(&mut requests, Message::NewElement, set, &self.at, &added);
        }
        if requests.is_empty() {
            laid.wanted = wanted.clone();
            return;
        }
        match change(self.at.family, &requests) {
            Ok(()) => {
                laid.seen.elements = elements;
                laid.wanted = wanted.clone();
                self.problem = String::new();
            }
            Err(error) => {
                self.met_changed |= is_absence(&error);
                self.lay(wanted);
            }
        }
    }

    fn check(&mut self) -> bool {
        let met_changed = std::mem::take(&mut self.met_changed);
        let Some(laid) = &mut self.laid else { return met_changed };
        let wanted = laid.wanted.clone();
        match look(&self.at) {
            Ok(seen) if (&seen.rules, &seen.elements) == (&laid.seen.rules, &laid.seen.elements) => {
                laid.seen.dropped = seen.dropped;
                self.problem.clear(); // what could not be written for a moment is: keep() tells what is missing
                return met_changed;
            }
            // It could not be looked at, for want of a descriptor or a moment: the next look tells.
            Err(error) if !is_absence(&error) => return met_changed,
            _ => (),
        }
        self.lay(&wanted);
        true
    }

    fn lay(&mut self, wanted: &Wanted) {
        match change(self.at.family, &whole(&self.at, wanted)).and_then(|()| look(&self.at)) {
            Ok(seen) => {
                self.put_away();
                self.laid = Some(Laid { wanted: wanted.clone(), seen });
                self.problem = String::new();
            }
            // What stood before stands still, and the next call tries again.
            Err(error) => {
                let hint = if is_absence(&error) { " (this kernel may lack nf_tables for it)" } else { "" };
                self.problem = format!("{} can't be written: {error}{hint}", self.at);
            }
        }
    }

    /// The counters of what stands start anew.
    fn put_away(&mut self) {
        self.dropped = self.dropped();
        self.laid = None;
    }

    fn dropped(&self) -> u64 {
        self.dropped + self.laid.as_ref().map_or(0, |laid| laid.seen.dropped)
    }
}

/// Removes one table. Whether it was there.
fn remove(at: &Table) -> io::Result<bool> {
    let name = Attributes::new().text(table::NAME, &at.name);
    match change(at.family, &[Request { message: Message::DelTable, attributes: name }]) {
        Ok(()) => Ok(true),
        // Not there, or not a kernel that has such tables.
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT))
}

/// The two sets.
#[derive(Clone, Copy)]
enum Set {
    Guarded,
    Names,
}

impl Set {
    const BOTH: [Set; 2] = [Set::Guarded, Set::Names];

    fn name(self) -> &'static str {
        match self {
            Set::Guarded => "guarded",
            Set::Names => "names",
        }
    }

    /// What `nft` takes its elements for (TYPE_IFINDEX, TYPE_IFNAME of its datatype.h), and how many octets they have.
    fn key(self) -> (u32, u32) {
        match self {
            Set::Guarded => (20, 4),
            Set::Names => (41, NAME_OCTETS as u32),
        }
    }
}

const NAME_OCTETS: usize = 16; // IFNAMSIZ

/// Everything anew, in one transaction.
fn whole(at: &Table, wanted: &Wanted) -> Vec<Request> {
    let of_table = || Attributes::new().text(table::NAME, &at.name);
    let ask = |message, attributes| Request { message, attributes };
    // Made so that it can be deleted, deleted with all that is in it, made again.
    let mut requests = vec![
        ask(Message::NewTable, of_table()),
        ask(Message::DelTable, of_table()),
        ask(Message::NewTable, of_table()),
    ];
    // For whoever lists it: the kernel keeps this for nft (NFTNL_UDATA_SET_KEYBYTEORDER, four octets, this machine's order).
    let host_order = [&[0, 4][..], &1u32.to_ne_bytes()].concat();
    for (number, set) in Set::BOTH.into_iter().enumerate() {
        let (kind, octets) = set.key();
        let attributes = Attributes::new()
            .text(set::TABLE, &at.name)
            .text(set::NAME, set.name())
            .number(set::FLAGS, 0)
            .number(set::KEY_TYPE, kind)
            .number(set::KEY_LENGTH, octets)
            .number(set::ID, 1 + number as u32)
            .octets(set::USER_DATA, &host_order);
        requests.push(ask(Message::NewSet, attributes));
    }
    for (set, elements) in Set::BOTH.into_iter().zip(elements_of(wanted)) {
        put_elements(&mut requests, Message::NewElement, set, at, &Vec::from_iter(elements));
    }
    let hook = Attributes::new().number(hook::NUMBER, 0).number(hook::PRIORITY, PRIORITY as u32);
    let attributes = Attributes::new()
        .text(chain::TABLE, &at.name)
        .text(chain::NAME, CHAIN)
        .nest(chain::HOOK, &hook)
        .number(chain::POLICY, ACCEPT)
        .text(chain::TYPE, "filter");
    requests.push(ask(Message::NewChain, attributes));
    let mut rule = |expressions: &[Attributes]| {
        let list = expressions.iter().fold(Attributes::new(), |list, each| list.nest(LIST_ELEMENT, each));
        let attributes =
            Attributes::new().text(rule::TABLE, &at.name).text(rule::CHAIN, CHAIN).nest(rule::EXPRESSIONS, &list);
        requests.push(ask(Message::NewRule, attributes));
    };
    rule(&[meta(META_IIF), lookup(Set::Guarded), verdict(ACCEPT)]);
    rule(&[meta(META_IIFNAME), lookup(Set::Names), counter(), verdict(DROP)]);
    for names in &wanted.names {
        if let InterfaceNames::Prefix(start) = names {
            rule(&[meta(META_IIFNAME), begins(start), counter(), verdict(DROP)]);
        }
    }
    requests
}

/// The elements of both sets.
fn elements_of(wanted: &Wanted) -> [BTreeSet<Vec<u8>>; 2] {
    let guarded = wanted.guarded.iter().chain(&wanted.excepted).chain([&LOOPBACK]).map(number).collect();
    let names = wanted.names.iter().filter_map(|names| match names {
        InterfaceNames::One(name) => {
            let mut octets = name.as_bytes().to_vec();
            octets.resize(NAME_OCTETS, 0);
            Some(octets)
        }
        InterfaceNames::Prefix(_) => None,
    });
    [guarded, names.collect()]
}

fn number(ifindex: &u32) -> Vec<u8> {
    ifindex.to_ne_bytes().to_vec()
}

fn put_elements(requests: &mut Vec<Request>, message: Message, set: Set, at: &Table, elements: &[Vec<u8>]) {
    // A list may have 64 KiB.
    for some in elements.chunks(1_000) {
        let list = some.iter().fold(Attributes::new(), |list, element| {
            let value = Attributes::new().octets(DATA_VALUE, element);
            list.nest(LIST_ELEMENT, &Attributes::new().nest(elements::KEY, &value))
        });
        let attributes = of_set(at, set).nest(elements::ELEMENTS, &list);
        requests.push(Request { message, attributes });
    }
}

fn of_set(at: &Table, set: Set) -> Attributes {
    Attributes::new().text(elements::TABLE, &at.name).text(elements::SET, set.name())
}

/// What the kernel has.
fn look(at: &Table) -> io::Result<Seen> {
    let family = at.family;
    let mut rules = get(family, Message::GetTable, &Attributes::new().text(table::NAME, &at.name), false)?;
    let of_chain = Attributes::new().text(chain::TABLE, &at.name).text(chain::NAME, CHAIN);
    rules.extend(get(family, Message::GetChain, &of_chain, false)?);
    let of_rules = Attributes::new().text(rule::TABLE, &at.name).text(rule::CHAIN, CHAIN);
    let mut dropped = 0;
    for found in get(family, Message::GetRule, &of_rules, true)? {
        for (_, expression) in parts(part(&found, rule::EXPRESSIONS).unwrap_or_default()) {
            match part(expression, expression::NAME) {
                Some(b"counter\0") => dropped += packets(part(expression, expression::DATA).unwrap_or_default()),
                _ => rules.push(expression.to_vec()),
            }
        }
    }
    let read = |set: Set| -> io::Result<BTreeSet<Vec<u8>>> {
        let messages = get(family, Message::GetElement, &of_set(at, set), true)?;
        let keys = messages.iter().flat_map(|message| parts(part(message, elements::ELEMENTS).unwrap_or_default()));
        Ok(keys.filter_map(|(_, element)| Some(part(part(element, elements::KEY)?, DATA_VALUE)?.to_vec())).collect())
    };
    Ok(Seen { rules, elements: [read(Set::Guarded)?, read(Set::Names)?], dropped })
}

fn packets(counter: &[u8]) -> u64 {
    let value = part(counter, counter::PACKETS).and_then(|octets| octets.first_chunk::<8>());
    value.map_or(0, |octets| u64::from_be_bytes(*octets))
}

fn meta(key: u32) -> Attributes {
    expression("meta", &Attributes::new().number(meta::TO, REGISTER).number(meta::KEY, key))
}

fn lookup(set: Set) -> Attributes {
    expression("lookup", &Attributes::new().text(lookup::SET, set.name()).number(lookup::FROM, REGISTER))
}

fn begins(start: &str) -> Attributes {
    let data = Attributes::new().octets(DATA_VALUE, start.as_bytes());
    let equal = 0;
    expression(
        "cmp",
        &Attributes::new().number(cmp::FROM, REGISTER).number(cmp::OPERATION, equal).nest(cmp::DATA, &data),
    )
}

fn counter() -> Attributes {
    expression("counter", &Attributes::new())
}

fn verdict(code: u32) -> Attributes {
    let data = Attributes::new().nest(DATA_VERDICT, &Attributes::new().number(VERDICT_CODE, code));
    let register = 0; // NFT_REG_VERDICT
    expression("immediate", &Attributes::new().number(immediate::TO, register).nest(immediate::DATA, &data))
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::new().text(expression::NAME, name).nest(expression::DATA, data)
}

// Numbers of linux/netfilter/nf_tables.h.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const REGISTER: u32 = 1; // NFT_REG_1
const META_IIF: u32 = 4;
const META_IIFNAME: u32 = 6;
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

mod table {
    pub const NAME: u16 = 1;
}
mod chain {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
}
mod hook {
    pub const NUMBER: u16 = 1;
    pub const PRIORITY: u16 = 2;
}
mod rule {
    pub const TABLE: u16 = 1;
    pub const CHAIN: u16 = 2;
    pub const EXPRESSIONS: u16 = 4;
}
mod set {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LENGTH: u16 = 5;
    pub const ID: u16 = 10;
    pub const USER_DATA: u16 = 13;
}
mod elements {
    pub const TABLE: u16 = 1;
    pub const SET: u16 = 2;
    pub const ELEMENTS: u16 = 3;
    pub const KEY: u16 = 1;
}
mod expression {
    pub const NAME: u16 = 1;
    pub const DATA: u16 = 2;
}
mod meta {
    pub const TO: u16 = 1;
    pub const KEY: u16 = 2;
}
mod lookup {
    pub const SET: u16 = 1;
    pub const FROM: u16 = 2;
}
mod cmp {
    pub const FROM: u16 = 1;
    pub const OPERATION: u16 = 2;
    pub const DATA: u16 = 3;
}
mod immediate {
    pub const TO: u16 = 1;
    pub const DATA: u16 = 2;
}
mod counter {
    pub const PACKETS: u16 = 2;
}
