//! Endpoints with rules, grants and peers, and frames for them: the kernel programs, compiled for user space, do with each
//! frame what [`judge`] says. It reads octets, so frames may have any length and any content; a test run of the kernel
//! refuses the short ones.

mod checksum;
mod choices;
mod generate;
mod judge;
mod reading;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;

use namegate::engine::ruleset::Direction;
use namegate::kernel::abi::{self, Plain, flag};
use namegate::observe::Reason;
use namegate_frames::{Machine, Outcome, Settings, Skb};

use choices::Choices;
use judge::{EVENTS, Judge, PROBE, REJECTS, Ruling};
use reading::{Packet, TCP, UDP, word};
use world::{BRIDGE_MAC, SECOND, START, World, put_endpoint};

const SETTINGS: Settings = Settings { probe_mark: PROBE, events_per_second: EVENTS, rejects_per_second: REJECTS };
/// Frames of one world; by then its flows have met most of what can happen to them.
const FRAMES: usize = 400;

const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

/// One of 65 536 worlds, by the first two octets, and frames as the others choose them.
pub fn check(octets: &[u8]) {
    let Some((number, rest)) = octets.split_first_chunk() else { return };
    let world = &mut Choices::Seeded(u16::from_be_bytes(*number).into());
    play(&mut Machine::new(SETTINGS), world, Some(&mut Choices::Octets(rest)), &mut Seen::default());
}

/// What was judged, by [`Reason`].
#[derive(Default)]
pub struct Seen {
    pub frames: u64,
    pub by_reason: BTreeMap<Reason, u64>,
    pub steered: u64,
    pub rejected: u64,
    /// Dropped by the program of XDP already.
    pub early: u64,
    /// Worlds that were left at a frame with which the programs did something else.
    pub differences: u64,
}

/// After so many there is nothing more to learn.
const ENOUGH: u64 = 10;

/// At least so many frames, chosen by the seed. Says the world's seed and the frame where they differ.
pub fn differences(seed: u64, frames: u64) -> Seen {
    let mut machine = Machine::new(SETTINGS);
    let mut seen = Seen::default();
    let mut world = seed << 32;
    while seen.frames < frames && seen.differences < ENOUGH {
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            play(&mut machine, &mut Choices::Seeded(world), None, &mut seen);
        }));
        if held.is_err() {
            eprintln!("in world {world:#x}");
            seen.differences += 1;
        }
        world += 1;
    }
    seen
}

/// A world chosen by `c`, and frames by `frames`, if it is other choices that they depend on.
fn play<'a>(machine: &mut Machine, c: &'a mut Choices<'a>, frames: Option<&'a mut Choices<'a>>, seen: &mut Seen) {
    machine.reset();
    let mut world = World::choose(c);
    let c = frames.unwrap_or(c);
    world.install(machine);
    let mut judge = Judge::default();
    let mut counted = [(0, 0); 128];
    let mut counted_early = [(0, 0); 128];
    let mut now = START;
    for number in 0..FRAMES {
        if c.is_over() {
            return;
        }
        change(machine, c, &mut world, &mut now);
        let frame = generate::frame(c, &world, &judge);
        let skb = frame.skb();
        // XDP's program comes first, and is not told what the kernel does not know so soon.
        let is_early = !skb.inbound && !skb.tagged && skb.gso_size == 0 && skb.mark != PROBE;
        let early = is_early.then(|| machine.run_early(skb, now));
        let outcome = machine.run(skb, now);
        let ruling = judge.rule(&world, &skb, now);
        let probe = skb.mark == PROBE;
        let row = ruling.reason as usize | usize::from(skb.inbound) << 6;
        if !probe {
            counted[row].0 += 1;
            counted[row].1 += skb.octets.len() as u64;
        }
        if let Some((true, event)) = early {
            assert!(!ruling.reason.passed() && !ruling.rejected, "frame {number}: early, but {ruling:?}\n{skb:x?}");
            let told = event.map_or(ruling.reason, |event| Told::read(&event).reason);
            assert_eq!(told, ruling.reason, "frame {number}: early\n{skb:x?}");
            counted_early[row].0 += 1;
            counted_early[row].1 += skb.octets.len() as u64;
            let found = counter(machine, "early_counters", row);
            assert_eq!(
                found, counted_early[row],
                "frame {number}: early, with another reason than {ruling:?}\n{skb:x?}"
            );
            seen.early += 1;
        }
        let found = counter(machine, "counters", row);
        assert!(
            found == counted[row],
            "frame {number}: {ruling:?}, but counted was {:?}\n{skb:x?}",
            moved(machine, &counted, row)
        );
        if let Err(difference) = same(&world, &skb, &ruling, &outcome) {
            panic!("frame {number}: {difference}\n{ruling:?}\n{skb:x?}\n{outcome:x?}");
        }
        assert_eq!(machine.rows("flows"), judge.flows.len() as u32, "frame {number}: flows after {ruling:?}\n{skb:x?}");
        assert_eq!(
            machine.rows("fragments"),
            judge.firsts.len() as u32,
            "frame {number}: first fragments after {ruling:?}\n{skb:x?}"
        );
        seen.frames += 1;
        *seen.by_reason.entry(ruling.reason).or_default() += 1;
        seen.steered += u64::from(outcome.action == NEXT && ruling.steered.is_some() && !probe);
        seen.rejected += u64::from(outcome.action == REDIRECT);
    }
    for (map, counted) in [("counters", counted), ("early_counters", counted_early)] {
        for (row, counted) in counted.iter().enumerate() {
            assert_eq!(counter(machine, map, row), *counted, "row {row} of {map}: each frame is counted once");
        }
    }
    let slots = judge.used.iter().map(|(slot, used)| (*slot, *used)).chain([(0, judge.pooled)]);
    for (slot, used) in slots {
        let octets = machine.get("budgets", slot.octets()).expect("a row of an array");
        let budget = abi::budget::from_octets(&octets).expect("a budget");
        assert_eq!((budget.flows, budget.fragments), (used.flows, used.fragments), "in use of slot {slot}");
    }
}

fn counter(machine: &Machine, map: &str, row: usize) -> (u64, u64) {
    let octets = machine.get(map, (row as u32).octets()).expect("a row of an array");
    let counter = abi::counter::from_octets(&octets).expect("a counter");
    (counter.packets, counter.octets)
}

/// The reasons that were counted otherwise than expected.
fn moved(machine: &Machine, counted: &[(u64, u64); 128], expected: usize) -> Vec<Reason> {
    let other = (0..128).filter(|row| *row != expected && counter(machine, "counters", *row) != counted[*row]);
    other.map(|row| Reason::from_number(row as u8 & 63)).collect()
}

/// Time goes on, and now and then a policy changes.
fn change(machine: &mut Machine, c: &mut Choices<'_>, world: &mut World, now: &mut u64) {
    match c.below(250) {
        0..20 => *now += SECOND / 4,
        20..24 => *now += c.of(&[1, 9, 11, 59, 61, 179, 181, 500, 8 * 3600]) * SECOND + 1,
        24..30 => {
            let (policy, at) = (c.below(3) as u32, c.below(3));
            let endpoint = &mut world.endpoints[at];
            endpoint.generation += 1;
            if c.chance(60) {
                endpoint.policy = policy;
                let blocks = flag::HAS_CIDR | flag::HAS_PORT_BLOCKS;
                let row = namegate::kernel::rules::EndpointRow::flags_of(&world.rules[policy as usize]);
                endpoint.flags = endpoint.flags & !blocks | row & blocks;
            }
            put_endpoint(machine, endpoint);
        }
        _ => {}
    }
}

/// What the program did beside counting: let pass, dropped, steered, answered, told.
fn same(world: &World, skb: &Skb<'_>, ruling: &Ruling, outcome: &Outcome) -> Result<(), String> {
    let unchanged = outcome.octets == skb.octets;
    let probe = skb.mark == PROBE;
    let told = told(world, skb, ruling);
    let event = outcome.event.as_deref().map(Told::read);
    if event != told {
        return Err(format!("told was {event:?}, not {told:?}"));
    }
    match (ruling.reason.passed(), ruling.steered) {
        (true, Some(_)) if ruling.reason == Reason::Steered && !probe => return steered(world, skb, ruling, outcome),
        (true, _) if outcome.action == NEXT && unchanged => return Ok(()),
        (true, _) => return Err(format!("passes, but action {} with octets unchanged: {unchanged}", outcome.action)),
        _ => {}
    }
    if !ruling.rejected {
        return match outcome.action {
            DROP => Ok(()),
            action => Err(format!("is dropped, but action {action}")),
        };
    }
    answered(skb, ruling.packet.as_ref().expect("what is answered was read"), outcome)
}

/// An event's fields that say something of the frame.
#[derive(PartialEq, Eq, Debug)]
struct Told {
    reason: Reason,
    direction: u8,
    endpoint: u32,
    audited: u8,
    rejected: bool,
    octets: u32,
    ends: Option<([u8; 16], [u8; 16], u8)>,
    ports: (u16, u16),
}

impl Told {
    fn read(octets: &[u8]) -> Told {
        let event = abi::flow_event::from_octets(octets).expect("an event");
        let ends = (event.source.octets, event.destination.octets, event.family);
        Told {
            reason: Reason::from_number(event.reason),
            direction: event.direction,
            endpoint: event.endpoint_id,
            audited: event.audited,
            rejected: event.rejected != 0,
            octets: event.octets,
            ends: (event.family != 0).then_some(ends),
            ports: (u16::from_be(event.source_port), u16::from_be(event.destination_port)),
        }
    }
}

fn told(world: &World, skb: &Skb<'_>, ruling: &Ruling) -> Option<Told> {
    let packet = ruling.packet;
    let family = |address: IpAddr| if address.is_ipv4() { 4 } else { 6 };
    ruling.told.then(|| Told {
        reason: ruling.reason,
        direction: abi::direction(if skb.inbound { Direction::Ingress } else { Direction::Egress }),
        endpoint: world.at(skb.ifindex).map_or(0, |endpoint| endpoint.id),
        audited: ruling.audited.map_or(0, |reason| reason as u8),
        rejected: ruling.rejected,
        octets: skb.octets.len() as u32,
        ends: packet.map(|packet| (abi::mapped(packet.source), abi::mapped(packet.destination), family(packet.source))),
        ports: packet.map_or((0, 0), |packet| packet.ports),
    })
}

/// The query has gone to the proxy, or its reply seems to come from the resolver; nothing else has changed.
fn steered(world: &World, skb: &Skb<'_>, ruling: &Ruling, outcome: &Outcome) -> Result<(), String> {
    let (to, packet) = (ruling.steered.expect("it is steered"), ruling.packet.expect("it was read"));
    let v4 = packet.source.is_ipv4();
    let address = match (v4, skb.inbound) {
        (true, false) => 30,
        (true, true) => 26,
        (false, false) => 38,
        (false, true) => 22,
    };
    let is_right = if skb.unfinished > 0 { checksum::is_begun } else { checksum::is_right };
    let mut wanted = skb.octets.to_vec();
    match to.address {
        IpAddr::V4(to) => wanted[address..address + 4].copy_from_slice(&to.octets()),
        IpAddr::V6(to) => wanted[address..address + 16].copy_from_slice(&to.octets()),
    }
    let port = packet.at + if skb.inbound { 0 } else { 2 };
    wanted[port..port + 2].copy_from_slice(&to.port.to_be_bytes());
    let bridged = world.at(skb.ifindex).is_some_and(|endpoint| endpoint.is(flag::BRIDGED)) && !skb.inbound;
    if bridged {
        wanted[..6].copy_from_slice(&BRIDGE_MAC);
    }
    // The checksums are judged by themselves.
    let sum = packet.at + if packet.protocol == UDP { 6 } else { 16 };
    let mut found = outcome.octets.clone();
    for octets in [&mut found, &mut wanted] {
        if let Some(place) = octets.get_mut(sum..sum + 2) {
            place.fill(0);
        }
        if v4 {
            octets[24..26].fill(0);
        }
    }
    match () {
        () if outcome.action != NEXT || outcome.to_host != bridged => Err("a steered frame goes on".into()),
        () if found != wanted => Err(format!("steered, it should be {wanted:x?}")),
        () if is_right(skb.octets) == Some(true) && is_right(&outcome.octets) != Some(true) => {
            Err("its checksums were right and are wrong".into())
        }
        () => Ok(()),
    }
}

/// The frame is answered with a reset or an error, to its sender, from its receiver.
fn answered(skb: &Skb<'_>, packet: &Packet, outcome: &Outcome) -> Result<(), String> {
    let v4 = packet.source.is_ipv4();
    let header = if v4 { 20 } else { 40 };
    // With options the ports lie behind what is quoted.
    if v4 && packet.protocol != TCP && packet.at != 34 {
        return if outcome.action == DROP { Ok(()) } else { Err("options are answered with silence".into()) };
    }
    // The kernel takes nothing off that it has still to sum up.
    let left = if packet.protocol == TCP { 14 + header + 20 } else { 14 + header + 8 };
    if left < skb.unfinished {
        return if outcome.action == DROP { Ok(()) } else { Err("the frame can't be cut off so far".into()) };
    }
    if outcome.action != REDIRECT || outcome.redirected != Some(skb.ifindex) {
        return Err(format!("is answered, but action {}", outcome.action));
    }
    let answer = Skb { octets: &outcome.octets, linear: outcome.octets.len(), gso_size: 0, tagged: false, ..*skb };
    let (Some(read), reading::Class::Understood) = reading::read(&answer) else {
        return Err("the answer is not understood".into());
    };
    if (read.source, read.destination) != (packet.destination, packet.source)
        || outcome.octets[..6] != skb.octets[6..12]
        || outcome.octets[6..12] != skb.octets[..6]
    {
        return Err("the answer goes back where it came from".into());
    }
    if checksum::is_right(&outcome.octets) != Some(true) {
        return Err("the answer's checksums are wrong".into());
    }
    if packet.protocol == TCP {
        return reset(skb, packet, &read, &outcome.octets);
    }
    let wanted = if v4 { (3, 13) } else { (1, 1) };
    let quoted = &outcome.octets[14 + header + 8..];
    match () {
        () if (read.kind, read.code) != wanted => Err("prohibited is what it says".into()),
        () if *quoted != skb.octets[14..14 + header + 8] => Err("it quotes the header and 8 octets".into()),
        () => Ok(()),
    }
}

/// RFC 9293, 3.10.7.1.
fn reset(skb: &Skb<'_>, refused: &Packet, answer: &Packet, octets: &[u8]) -> Result<(), String> {
    use reading::{ACK, FIN, RST, SYN};
    let long = |octets: &[u8], at: usize| u32::from_be_bytes(octets[at..at + 4].try_into().expect("four octets"));
    let end = match (refused.source.is_ipv4(), word(skb.octets, if refused.source.is_ipv4() { 16 } else { 18 })) {
        (_, Some(0)) => return Ok(()), // cut up later: how long it is does not stand in it
        (true, Some(total)) => 14 + usize::from(total),
        (false, Some(length)) => 54 + usize::from(length),
        (_, None) => return Err("no length".into()),
    };
    let header = usize::from(skb.octets[refused.at + 12] >> 4) * 4;
    let taken = (end - refused.at - header) as u32
        + [SYN, FIN].map(|flag| u32::from(refused.flags & flag != 0)).iter().sum::<u32>();
    let (flags, sequence, acknowledged) = match refused.flags & ACK != 0 {
        true => (RST, long(skb.octets, refused.at + 8), 0),
        false => (RST | ACK, 0, refused.sequence.wrapping_add(taken)),
    };
    let found = (answer.flags, answer.sequence, long(octets, answer.at + 8), answer.ports);
    let wanted = (flags, sequence, acknowledged, (refused.ports.1, refused.ports.0));
    if found == wanted { Ok(()) } else { Err(format!("the reset is {found:?}, not {wanted:?}")) }
}
