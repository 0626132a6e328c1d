//! Addresses outside the cluster: the regions between the blocks of two rule sets, in each of which every address has the
//! same verdicts.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::ports::Ranges;
use crate::engine::explain::words;

/// What lies in no narrower block.
pub(super) const OUTSIDE: &str = "outside the cluster";
/// Into how many blocks a region is taken apart rather than told as one block less others.
const APART: usize = 4;

/// A block less the narrower ones inside it.
pub(super) struct Region {
    network: IpNet,
    /// The widest of the narrower ones, in order.
    inside: Vec<usize>,
    parent: Option<usize>,
    /// An address of it; `None` if nothing is left.
    pub sample: Option<IpAddr>,
}

impl Region {
    /// Whether it is all that no narrower block has, as there is in either family.
    pub fn is_outermost(&self) -> bool {
        self.network.prefix_len() == 0
    }

    /// What it is called where nothing has to be told of those inside.
    pub fn label(&self) -> String {
        if self.is_outermost() { OUTSIDE.to_owned() } else { self.network.to_string() }
    }
}

/// The change in a region, as it is told.
pub(super) struct Told<'d> {
    pub label: String,
    pub v6: bool,
    /// See [`Region::is_outermost`].
    pub outermost: bool,
    pub ranges: &'d Ranges,
}

/// The regions of these blocks and of the rest of both families; a block comes before those inside it. `taken`: addresses
/// that no block means.
pub(super) fn regions(networks: impl Iterator<Item = IpNet>, taken: impl Fn(&IpAddr) -> bool) -> Vec<Region> {
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let all = all.into_iter().filter_map(|address| IpNet::new(address, 0).ok());
    let networks: BTreeSet<IpNet> = networks.map(|network| network.trunc()).chain(all).collect();
    // Sorted, a network comes after all that cover it: their chain is a stack.
    let mut regions: Vec<Region> = Vec::with_capacity(networks.len());
    let mut chain: Vec<usize> = Vec::new();
    for network in networks {
        while chain.last().is_some_and(|wider| !regions[*wider].network.contains(&network)) {
            chain.pop();
        }
        let (at, parent) = (regions.len(), chain.last().copied());
        if let Some(parent) = parent {
            regions[parent].inside.push(at);
        }
        regions.push(Region { network, inside: Vec::new(), parent, sample: None });
        chain.push(at);
    }
    for at in 0..regions.len() {
        let inside: Vec<IpNet> = regions[at].inside.iter().map(|inner| regions[*inner].network).collect();
        let v6 = regions[at].network.addr().is_ipv6();
        let mut free = gaps(regions[at].network, &inside)
            .into_iter()
            .filter_map(|(first, last)| (first..=last).map(|bits| address(bits, v6)).find(|address| !taken(address)));
        regions[at].sample = free.next();
    }
    regions
}

/// The blocks with a change; `changes`: that of each region, `None` where nothing is. A block whose region changes as that
/// around it does is not told again.
pub(super) fn told<'d>(regions: &[Region], changes: &[Option<&'d Ranges>]) -> Vec<Told<'d>> {
    static UNCHANGED: Ranges = Vec::new();
    let mut changes = changes.to_vec();
    // Where nothing is left but what is inside, that speaks.
    for at in (0..regions.len()).rev().filter(|at| regions[*at].sample.is_none()) {
        let mut inside = regions[at].inside.iter().filter_map(|inner| changes[*inner]);
        let first = inside.next();
        changes[at] = first.map(|first| if inside.all(|other| other == first) { first } else { &UNCHANGED });
    }
    let mut all = Vec::new();
    for (at, region) in regions.iter().enumerate() {
        let Some(ranges) = changes[at].filter(|ranges| !ranges.is_empty()) else { continue };
        if region.parent.is_some_and(|parent| changes[parent] == Some(ranges)) {
            continue;
        }
        let mut except = Vec::new();
        unlike(regions, &changes, at, ranges, &mut except);
        let (v6, outermost) = (region.network.addr().is_ipv6(), region.is_outermost());
        let labels = labels(region.network, &except, outermost).into_iter();
        all.extend(labels.map(|label| Told { label, v6, outermost, ranges }));
    }
    all
}

/// The widest blocks inside a region that change otherwise.
fn unlike(regions: &[Region], changes: &[Option<&Ranges>], at: usize, as_this: &Ranges, found: &mut Vec<IpNet>) {
    for inner in &regions[at].inside {
        match changes[*inner] {
            None => {}
            Some(ranges) if ranges == as_this => unlike(regions, changes, *inner, as_this, found),
            Some(_) => found.push(regions[*inner].network),
        }
    }
}

fn labels(network: IpNet, except: &[IpNet], outermost: bool) -> Vec<String> {
    if !outermost {
        let apart = gaps(network, except).into_iter();
        let apart: Vec<IpNet> = apart.flat_map(|gap| subnets(gap, network.addr().is_ipv6())).take(APART + 1).collect();
        if apart.len() <= APART {
            return apart.iter().map(ToString::to_string).collect();
        }
    }
    let whole = if outermost { OUTSIDE.to_owned() } else { network.to_string() };
    let except: Vec<String> = except.iter().map(ToString::to_string).collect();
    vec![if except.is_empty() { whole } else { format!("{whole} except {}", words::some(&except, " and ", "")) }]
}

/// What is left of a network without these, which are inside it, sorted and apart: the first and the last of each stretch.
fn gaps(network: IpNet, inside: &[IpNet]) -> Vec<(u128, u128)> {
    let mut gaps = Vec::new();
    let mut at = Some(bits(network.network()));
    for inner in inside {
        if let Some(from) = at
            && let first = bits(inner.network())
            && from < first
        {
            gaps.push((from, first - 1));
        }
        at = bits(inner.broadcast()).checked_add(1);
    }
    let last = bits(network.broadcast());
    gaps.extend(at.filter(|from| *from <= last).map(|from| (from, last)));
    gaps
}

fn subnets((first, last): (u128, u128), v6: bool) -> Box<dyn Iterator<Item = IpNet>> {
    match (address(first, v6), address(last, v6)) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Box::new(Ipv4Subnets::new(first, last, 0).map(IpNet::V4)),
        (IpAddr::V6(first), IpAddr::V6(last)) => Box::new(Ipv6Subnets::new(first, last, 0).map(IpNet::V6)),
        _ => Box::new(std::iter::empty()),
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(bits: u128, v6: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(v4) if !v6 => Ipv4Addr::from_bits(v4).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ruleset::Protocol;

    /// Which blocks are told, where those of `changed` change alike and the others don't.
    #[track_caller]
    fn tells(networks: &[&str], changed: &[&str], labels: &[&str]) {
        let networks: Vec<IpNet> = networks.iter().map(|text| text.parse().expect("a network")).collect();
        let regions = regions(networks.into_iter(), |address| address.to_string() == "192.0.2.0");
        let (some, none): (Ranges, Ranges) = (vec![(Protocol::Tcp, 1, 1)], Vec::new());
        let change = |region: &Region| {
            let is = changed.contains(&region.network.to_string().as_str());
            region.sample.map(|_| if is { &some } else { &none })
        };
        let changes: Vec<Option<&Ranges>> = regions.iter().map(change).collect();
        let told: Vec<String> = told(&regions, &changes).into_iter().map(|one| one.label).collect();
        assert_eq!(told, labels);
    }

    #[test]
    fn a_block_less_a_narrower_one_is_what_is_left() {
        tells(&["10.0.0.0/8", "10.0.0.0/9"], &["10.0.0.0/8"], &["10.128.0.0/9"]);
        tells(&["10.0.0.0/8", "10.0.0.0/9"], &["10.0.0.0/9"], &["10.0.0.0/9"]);
        tells(&["10.0.0.0/8", "10.0.0.0/9"], &["10.0.0.0/8", "10.0.0.0/9"], &["10.0.0.0/8"]);
        tells(&["10.0.0.0/8", "10.0.0.1/32"], &["10.0.0.0/8"], &["10.0.0.0/8 except 10.0.0.1/32"]);
        tells(
            &["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24"],
            &["10.0.0.0/8", "10.1.1.0/24"],
            &["10.0.0.0/8 except 10.1.0.0/16", "10.1.1.0/24"],
        );
    }

    #[test]
    fn a_block_of_which_nothing_is_left_is_what_is_inside() {
        let halves = ["10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9"];
        tells(&halves, &["10.0.0.0/9", "10.128.0.0/9"], &["10.0.0.0/8"]);
        tells(&halves, &["10.0.0.0/9"], &["10.0.0.0/9"]);
        // The address is a pod's: no block means it.
        tells(&["192.0.2.0/24", "192.0.2.0/32"], &["192.0.2.0/24"], &["192.0.2.0/24"]);
    }

    #[test]
    fn the_outermost_region_is_all_that_no_block_has() {
        tells(&["10.0.0.0/8"], &["0.0.0.0/0"], &["outside the cluster except 10.0.0.0/8"]);
        tells(&["10.0.0.0/8"], &["0.0.0.0/0", "::/0", "10.0.0.0/8"], &[OUTSIDE, OUTSIDE]);
        tells(&["0.0.0.0/1", "128.0.0.0/1"], &["128.0.0.0/1"], &["128.0.0.0/1"]);
    }
}
