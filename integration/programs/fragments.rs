//! Fragments follow their first (I11): each way to break the rule, both families.

use std::net::IpAddr;
use std::time::Duration;

use namegate::engine::bits::Bits;
use namegate::engine::endpoint::EndpointId;
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, PeerId, Protocol};
use namegate::kernel::abi::flag;
use namegate::kernel::rules::{EndpointRow, FlowLimits};
use namegate::kernel::sweep::Budgets;
use namegate::observe::Reason;

use super::bench::*;
use super::classes::{granted, other, pod_peer, ready, v4, v6, with_rows};
use super::frames::*;

use Direction::{Egress, Ingress};

/// A datagram in pieces, of the pod or to it.
#[derive(Clone, Copy)]
struct Datagram {
    direction: Direction,
    remote: IpAddr,
    protocol: u8,
    id: u16,
}

/// What the pod sends to `remote` over UDP.
fn datagram(remote: IpAddr, id: u16) -> Datagram {
    Datagram { direction: Egress, remote, protocol: UDP, id }
}

impl Datagram {
    fn frame(self, begin: usize, more: bool, octets: &[u8]) -> Vec<u8> {
        let place = Place { id: self.id, begin, more };
        let pod = pod_for(self.remote);
        let (from, to) = if self.direction == Egress { (pod, self.remote) } else { (self.remote, pod) };
        let (source, next) = if self.direction == Egress { (POD_MAC, NODE_MAC) } else { (NODE_MAC, POD_MAC) };
        ethernet(source, next, ethertype_of(pod), &fragment(from, to, self.protocol, place, octets))
    }

    #[track_caller]
    fn first(self, bench: &Bench, header: &[u8], wanted: Reason) {
        self.counts(bench, 0, true, header, wanted);
    }

    /// A later piece of 16 octets.
    #[track_caller]
    fn later(self, bench: &Bench, begin: usize, more: bool, wanted: Reason) {
        self.counts(bench, begin, more, &[b'y'; 16], wanted);
    }

    #[track_caller]
    fn counts(self, bench: &Bench, begin: usize, more: bool, octets: &[u8], wanted: Reason) {
        let found = bench.run(self.direction, &self.frame(begin, more, octets));
        assert_eq!(found.text(), wanted.text(), "octets from {begin} of number {}", self.id);
    }
}

/// The header of UDP to port 443 and 8 octets.
fn allowed() -> Vec<u8> {
    udp(40000, 443, 8)
}

#[track_caller]
fn under_way(bench: &Bench, wanted: usize) {
    let budget = bench.kernel.tables.budgets.get(&SLOT).unwrap();
    assert_eq!(bench.kernel.tables.fragments.rows().unwrap().len(), wanted);
    assert_eq!(budget.fragments as usize, wanted);
}

pub fn later_ones_follow_a_first_that_passed() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        for (protocol, header, wanted) in [
            (UDP, allowed(), Reason::Granted),
            (TCP, [tcp(40000, 443, 1, SYN), vec![1; 4]].concat(), Reason::Granted),
            (UDP, allowed(), Reason::Flow),
        ] {
            let pieces = Datagram { protocol, ..datagram(to, 1) };
            let end = header.len();
            pieces.first(&bench, &header, wanted);
            under_way(&bench, 1);
            // The last may come before one in the middle.
            pieces.later(&bench, end + 16, false, Reason::FragmentFollows);
            under_way(&bench, 1);
            pieces.later(&bench, end, true, Reason::FragmentFollows);
            // All of it is there: the number is free again, and nothing more follows.
            under_way(&bench, 0);
            pieces.later(&bench, end + 16, false, Reason::FragmentLone);
        }
    }
}

pub fn later_ones_of_a_refused_first_are_lone() {
    for family in [4, 6] {
        let bench = ready();
        for (to, header) in [(other(family), allowed()), (granted(family), udp(40000, 80, 8))] {
            datagram(to, 1).first(&bench, &header, Reason::NoGrant);
            datagram(to, 1).later(&bench, 16, false, Reason::FragmentLone);
        }
        under_way(&bench, 0);
    }
}

pub fn later_ones_of_another_datagram_are_lone() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        let known = datagram(to, 1);
        known.later(&bench, 16, true, Reason::FragmentLone);
        known.first(&bench, &allowed(), Reason::Granted);
        Datagram { id: 2, ..known }.later(&bench, 16, true, Reason::FragmentLone);
        Datagram { remote: other(family), ..known }.later(&bench, 16, true, Reason::FragmentLone);
        Datagram { direction: Ingress, ..known }.later(&bench, 16, true, Reason::FragmentLone);
        // What puts them together goes by the protocol in IPv4, and by that of the first in IPv6 (RFC 8200, 4.5).
        let wanted = if family == 4 { Reason::FragmentLone } else { Reason::FragmentFollows };
        Datagram { protocol: TCP, ..known }.later(&bench, 16, true, wanted);
        let second = [tcp(40000, 443, 1, SYN), vec![1; 4]].concat();
        let wanted = if family == 4 { Reason::Granted } else { Reason::FragmentOverlap };
        Datagram { protocol: TCP, ..known }.first(&bench, &second, wanted);
    }
}

pub fn a_first_without_its_whole_header_is_tiny() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        let mut long = tcp(40000, 443, 1, SYN);
        long[12] = 0xf0; // 60 octets
        long.resize(60, 1);
        for (protocol, header) in [
            (TCP, &tcp(40000, 443, 1, SYN)[..8]),
            (TCP, &tcp(40000, 443, 1, SYN)[..16]),
            (TCP, &long[..56]),
            (SCTP, &sctp(40000, 443)[..8]),
        ] {
            let pieces = Datagram { protocol, ..datagram(to, 1) };
            pieces.first(&bench, header, Reason::FragmentTiny);
            // Octets behind the packet are not its own: they look like the rest of the header here.
            let mut frame = pieces.frame(0, true, header);
            frame.truncate(14 + if family == 4 { 20 } else { 48 } + header.len());
            frame.extend([&tcp(40000, 443, 1, SYN)[8..], &[0; 40]].concat());
            assert_eq!(bench.run(Egress, &frame), Reason::FragmentTiny);
            pieces.later(&bench, 64, false, Reason::FragmentLone);
        }
        // The control: with the whole of it, they pass.
        long.resize(64, 1);
        Datagram { protocol: TCP, ..datagram(to, 1) }.first(&bench, &long, Reason::Granted);
        if family == 6 {
            // Destination options that go on in the next fragment.
            let header = [&[UDP, 1][..], &[0; 6]].concat();
            Datagram { protocol: 60, ..datagram(to, 3) }.first(&bench, &header, Reason::FragmentTiny);
        }
    }
}

pub fn nothing_reaches_into_a_first() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        let pieces = datagram(to, 1);
        pieces.first(&bench, &udp(40000, 443, 56), Reason::Granted);
        for begin in [8, 48, 56] {
            pieces.later(&bench, begin, true, Reason::FragmentOverlap);
        }
        pieces.first(&bench, &allowed(), Reason::FragmentOverlap);
        pieces.first(&bench, &udp(40000, 80, 8), Reason::FragmentOverlap);
        pieces.later(&bench, 64, true, Reason::FragmentFollows);
        under_way(&bench, 1);
    }
}

pub fn lengths_that_no_datagram_has_are_malformed() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        let pieces = datagram(to, 1);
        pieces.first(&bench, &udp(40000, 443, 5), Reason::FragmentMalformed);
        pieces.first(&bench, &[], Reason::FragmentMalformed);
        pieces.first(&bench, &allowed(), Reason::Granted);
        pieces.counts(&bench, 16, true, &[1; 9], Reason::FragmentMalformed);
        pieces.counts(&bench, 16, false, &[], Reason::FragmentMalformed);
        pieces.later(&bench, 65_528, false, Reason::FragmentMalformed);
        pieces.later(&bench, 65_528, true, Reason::FragmentMalformed);
        // The most that fits: 65 535 octets, with the header in IPv4.
        let most: &[u8] = if family == 4 { &[1; 3] } else { &[1; 7] };
        let begin = if family == 4 { 65_512 } else { 65_528 };
        pieces.counts(&bench, begin, false, &[most, &[1]].concat(), Reason::FragmentMalformed);
        pieces.counts(&bench, begin, false, most, Reason::FragmentFollows);
    }
}

pub fn an_atomic_fragment_is_dropped() {
    let (bench, to) = (ready(), granted(6));
    datagram(to, 1).counts(&bench, 0, false, &allowed(), Reason::FragmentAtomic);
    datagram(to, 1).later(&bench, 16, false, Reason::FragmentLone);
}

pub fn questions_over_icmp_may_be_long_and_errors_not() {
    for (family, protocol, named, ask, answer, error) in
        [(4, ICMP, Protocol::Icmp, 8, 0, 3), (6, ICMPV6, Protocol::Icmpv6, 128, 129, 1)]
    {
        let to = granted(family);
        let types = [ask, error].map(PortBlock::icmp_type);
        let bench = with_rows(family, &[(Egress, named, &types)]);
        let pieces = Datagram { protocol, ..datagram(to, 1) };
        let long = |kind| [echo(kind, 5), vec![1; 4]].concat();
        pieces.first(&bench, &long(ask), Reason::Peer);
        pieces.later(&bench, 16, false, Reason::FragmentFollows);
        let back = Datagram { direction: Ingress, ..pieces };
        back.first(&bench, &long(answer), Reason::Flow);
        back.later(&bench, 16, false, Reason::FragmentFollows);
        pieces.first(&bench, &long(error), Reason::FragmentMalformed);
        if family == 6 {
            let solicit = neighbour(135, v6(pod6()), POD_MAC);
            pieces.first(&bench, &solicit, Reason::FragmentMalformed);
        }
    }
}

pub fn a_query_in_fragments_is_not_steered_and_does_not_pass_the_proxy_by() {
    for family in [4, 6] {
        let mut bench = ready();
        let (resolver, local) = (other(family), pod_peer(family));
        bench.kernel.set_steering(&[(resolver, local)], 15353).unwrap();
        bench.kernel.set_peers(&[(local, PeerId::STEERING)], || Ok(())).unwrap();
        // Even where egress is open.
        for off in [0, flag::DENY_EGRESS | flag::DENY_INGRESS] {
            bench.flags(flag::STEER, off);
            for (protocol, header) in [(UDP, udp(40000, 53, 8)), (TCP, [tcp(40000, 53, 1, SYN), vec![0; 4]].concat())] {
                let query = Datagram { protocol, ..datagram(resolver, 1) };
                query.first(&bench, &header, Reason::FragmentSteered);
                query.later(&bench, 24, false, Reason::FragmentLone);
                for direction in [Egress, Ingress] {
                    let direct = Datagram { direction, protocol, ..datagram(local, 2) };
                    direct.first(&bench, &header, Reason::SteeringAddress);
                    direct.later(&bench, 24, false, Reason::SteeringAddress);
                }
            }
        }
        bench.flags(flag::DENY_EGRESS, 0);
        datagram(granted(family), 3).first(&bench, &udp(40000, 53, 8), Reason::UnknownResolver);
        // The control: whole, it is steered; and without steering a policy would let it pass.
        let whole = from_pod(pod_for(resolver), resolver, UDP, &udp(40000, 53, 8));
        assert_eq!(bench.run(Egress, &whole), Reason::Steered);
        bench.flags(0, flag::STEER | flag::DENY_EGRESS);
        datagram(resolver, 1).first(&bench, &udp(40000, 53, 8), Reason::DefaultAllow);
    }
}

/// RFC 1122, 3.2.2: no error about a fragment that does not begin its datagram. It has no header to make a reset of, either.
pub fn a_later_fragment_is_never_answered() {
    for family in [4, 6] {
        let mut bench = ready();
        let (resolver, local) = (other(family), pod_peer(family));
        bench.kernel.set_steering(&[(resolver, local)], 15353).unwrap();
        bench.kernel.set_peers(&[(local, PeerId::STEERING)], || Ok(())).unwrap();
        bench.flags(flag::REJECT, 0);
        let question = if family == 4 { (ICMP, echo(8, 5)) } else { (ICMPV6, echo(128, 5)) };
        let question = (question.0, [question.1, vec![0; 4]].concat());
        let segment = (TCP, [tcp(40000, 443, 1, SYN), vec![0; 4]].concat());
        for (protocol, header) in [question, segment, (UDP, udp(40000, 443, 8))] {
            let direct = Datagram { protocol, ..datagram(local, 2) };
            let answered = |begin, octets: &[u8]| {
                let (reason, action, _) = bench.run_whole(Egress, &direct.frame(begin, true, octets));
                assert_eq!(reason.text(), Reason::SteeringAddress.text());
                action == 7
            };
            // The control: its first is answered.
            assert!(answered(0, &header), "the first of protocol {protocol}");
            assert!(!answered(24, &[0; 24]), "a later one of protocol {protocol}");
        }
    }
}

pub fn what_comes_in_is_judged_as_any_packet() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        let back = Datagram { direction: Ingress, ..datagram(to, 9) };
        let header = udp(443, 40000, 8);
        back.first(&bench, &header, Reason::NoGrant);
        back.later(&bench, 16, false, Reason::FragmentLone);
        datagram(to, 9).first(&bench, &allowed(), Reason::Granted);
        back.first(&bench, &header, Reason::Flow);
        back.later(&bench, 16, true, Reason::FragmentFollows);
        back.later(&bench, 8, true, Reason::FragmentOverlap);
        back.later(&bench, 32, false, Reason::FragmentFollows);
        // The pod's own datagram of that number is another one.
        under_way(&bench, 1);
        let foreign = Place { id: 9, begin: 16, more: false };
        let stray = fragment(to, other(family), UDP, foreign, &[0; 16]);
        let frame = ethernet(NODE_MAC, POD_MAC, ethertype_of(to), &stray);
        assert_eq!(bench.run(Ingress, &frame), Reason::OtherDestination);
        let forged = fragment(other(family), to, UDP, foreign, &[0; 16]);
        let frame = ethernet(POD_MAC, NODE_MAC, ethertype_of(to), &forged);
        assert_eq!(bench.run(Egress, &frame), Reason::SpoofedAddress);
    }
}

pub fn fragments_of_audited_packets_pass() {
    for family in [4, 6] {
        let (mut bench, to) = (ready(), other(family));
        bench.flags(flag::AUDIT, 0);
        datagram(to, 1).first(&bench, &allowed(), Reason::Audit);
        datagram(to, 1).later(&bench, 16, false, Reason::FragmentFollows);
        datagram(to, 2).later(&bench, 16, false, Reason::Audit);
        bench.flags(0, flag::AUDIT | flag::ENFORCE);
        datagram(to, 3).later(&bench, 16, false, Reason::Unenforced);
    }
}

pub fn no_more_datagrams_are_under_way_than_the_budget_has() {
    for family in [4, 6] {
        let (mut bench, to) = (ready(), granted(family));
        bench.kernel.set_limits(FlowLimits { fragment_share: 2, fragment_pool: 1, ..limits() }, 15353).unwrap();
        bench.flags(0, flag::DENY_EGRESS);
        let send = |bench: &Bench, id, wanted| datagram(to, id).first(bench, &allowed(), wanted);
        send(&bench, 1, Reason::Granted);
        send(&bench, 2, Reason::Flow);
        send(&bench, 3, Reason::Flow);
        send(&bench, 4, Reason::FragmentBudget);
        datagram(to, 4).later(&bench, 16, false, Reason::FragmentLone);
        // The neighbour has its share, and whole packets pass.
        bench.row = EndpointRow { id: EndpointId(8), slot: SLOT + 1, ..bench.row.clone() };
        bench.flip();
        send(&bench, 1, Reason::DefaultAllow);
        send(&bench, 2, Reason::Flow);
        send(&bench, 3, Reason::FragmentBudget);
        assert_eq!(bench.run(Egress, &from_pod(pod_for(to), to, UDP, &allowed())), Reason::Flow);
        bench.row = EndpointRow { id: ENDPOINT, slot: SLOT, ..bench.row.clone() };
        bench.flip();
        // One that is complete makes room, also in the pool.
        datagram(to, 3).later(&bench, 16, false, Reason::FragmentFollows);
        send(&bench, 4, Reason::Flow);
        send(&bench, 5, Reason::FragmentBudget);
    }
}

/// Makes everything that is remembered over.
fn age(bench: &Bench) {
    for (key, first) in bench.kernel.tables.fragments.rows().unwrap() {
        let first = namegate::kernel::abi::first_fragment { until_mono_ns: 1, ..first };
        bench.kernel.tables.fragments.put(&key, &first).unwrap();
    }
}

pub fn a_first_is_remembered_for_30_seconds() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        let pieces = datagram(to, 1);
        pieces.first(&bench, &allowed(), Reason::Granted);
        let (_, first) = bench.kernel.tables.fragments.rows().unwrap()[0];
        let left = Duration::from_nanos(first.until_mono_ns - namegate::clock::mono().0);
        assert!(left > Duration::from_secs(25) && left <= Duration::from_secs(30), "{left:?}");
        age(&bench);
        pieces.later(&bench, 16, true, Reason::FragmentLone);
        under_way(&bench, 0);
        // The same number once more.
        pieces.first(&bench, &allowed(), Reason::Flow);
        age(&bench);
        pieces.first(&bench, &allowed(), Reason::Flow);
        under_way(&bench, 1);
    }
}

pub fn a_reload_ends_what_is_under_way() {
    let (mut bench, to) = (ready(), granted(4));
    datagram(to, 1).first(&bench, &allowed(), Reason::Granted);
    bench.row.generation += 1;
    bench.flip();
    datagram(to, 1).later(&bench, 16, false, Reason::FragmentLone);
}

pub fn the_sweep_removes_what_is_over() {
    let (bench, to) = (ready(), granted(4));
    bench.kernel.set_limits(FlowLimits { fragment_share: 1, ..limits() }, 15353).unwrap();
    let budgets = Budgets::map(&bench.kernel).unwrap();
    let known = |endpoint| (endpoint == ENDPOINT).then_some(SLOT);
    let sweep = |slot_of: &dyn Fn(EndpointId) -> Option<u32>| {
        bench.kernel.sweep(&settings(), Duration::ZERO, &budgets, slot_of, namegate::clock::mono()).unwrap();
        (budgets.fragments(SLOT), budgets.fragments(0))
    };
    datagram(to, 1).first(&bench, &allowed(), Reason::Granted);
    datagram(to, 2).first(&bench, &allowed(), Reason::Flow);
    assert_eq!(sweep(&known), (2, 1), "they are under way");
    age(&bench);
    datagram(to, 3).first(&bench, &allowed(), Reason::Flow);
    assert_eq!(sweep(&known), (1, 1));
    under_way(&bench, 1);
    bench
        .kernel
        .tables
        .budgets
        .put(&SLOT, &namegate::kernel::abi::budget { flows: 7, grants: 0, fragments: 7, pad: 0 })
        .unwrap();
    bench.kernel.recount(&budgets, &known).unwrap();
    assert_eq!((budgets.flows(SLOT), budgets.fragments(SLOT), budgets.fragments(0)), (1, 1, 1));
    // Its endpoint is no more.
    assert_eq!(sweep(&|_| None).1, 0);
    assert!(bench.kernel.tables.fragments.rows().unwrap().is_empty());
}

pub fn an_error_about_a_first_fragment_belongs_to_its_flow() {
    for (family, protocol, kind) in [(4, ICMP, 3), (6, ICMPV6, 2)] {
        let (bench, to) = (ready(), granted(family));
        let quoting = |begin| {
            let place = Place { id: 1, begin, more: true };
            let quoted = fragment(pod_for(to), to, UDP, place, &allowed());
            to_pod(other(family), pod_for(to), protocol, &icmp(kind, 4, &[&[0; 4][..], &quoted].concat()))
        };
        assert_eq!(bench.run(Ingress, &quoting(0)), Reason::IcmpUnrelated);
        datagram(to, 1).first(&bench, &allowed(), Reason::Granted);
        assert_eq!(bench.run(Ingress, &quoting(0)), Reason::IcmpRelated);
        assert_eq!(bench.run(Ingress, &quoting(1480)), Reason::IcmpUnrelated);
    }
}

pub fn a_dry_run_of_fragments_leaves_no_trace() {
    let (bench, to) = (ready(), granted(4));
    let pieces = datagram(to, 1);
    let before = bench.kernel.counted();
    let dry = |begin, more, wanted| {
        let frame = pieces.frame(begin, more, &allowed());
        assert_eq!(bench.kernel.run(Egress, &frame, IFINDEX, 1, true).unwrap().action, wanted);
    };
    dry(0, true, -1);
    dry(16, false, 2);
    under_way(&bench, 0);
    pieces.first(&bench, &allowed(), Reason::Granted);
    let counted = bench.kernel.counted();
    dry(16, false, -1);
    under_way(&bench, 1);
    assert_eq!(bench.kernel.counted(), counted);
    assert_ne!(before, counted);
}

pub fn options_and_extension_headers_do_not_hide_a_fragment() {
    let (bench, to) = (ready(), granted(4));
    let with = |field, options: &[u8]| {
        let packet = ip4(v4(pod4()), v4(to), UDP, field, options, &allowed());
        bench.run(Egress, &ethernet(POD_MAC, NODE_MAC, 0x0800, &packet))
    };
    assert_eq!(with(0x2000, &[1, 1, 1, 0]), Reason::Granted);
    assert_eq!(with(0x2002, &[1, 1, 1, 0]), Reason::FragmentFollows);
    assert_eq!(with(0x2004, &[131, 3, 4, 0]), Reason::SourceRoute);
    assert_eq!(with(0x4000, &[]), Reason::Flow, "may not be fragmented, and is not");
    let to = granted(6);
    bench.grant(to, Bits::of(1), later());
    let send = |first: u8, headers: &[&[u8]]| bench.run(Egress, &from_pod(pod6(), to, first, &headers.concat()));
    let header = |next, field: u16| [&[next, 0][..], &field.to_be_bytes(), &[0, 0, 0, 9]].concat();
    let (options, payload) = (|next| extension(next, &[]), allowed());
    assert_eq!(send(60, &[&options(44), &header(60, 1), &options(UDP), &payload]), Reason::Granted);
    assert_eq!(send(60, &[&options(44), &header(60, 16), &payload]), Reason::FragmentOverlap);
    assert_eq!(send(60, &[&options(44), &header(60, 24), &payload]), Reason::FragmentFollows);
    assert_eq!(send(44, &[&header(44, 1), &header(UDP, 1), &payload]), Reason::ExtensionHeader);
    let routed = extension(44, &[0, 1]);
    assert_eq!(send(43, &[&routed, &header(UDP, 1), &payload]), Reason::SourceRoute);
}
