//! Random policies, compiled and loaded: what the programs make of a packet is what the policies say. The worlds are those of
//! the compiler's own property tests, and the judge is the same: `engine::reference`, which knows no rows and no maps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use namegate::engine::bits::Bits;
use namegate::engine::compile::Compiler;
use namegate::engine::reference::{self, Attempt};
use namegate::engine::ruleset::{Direction, PacketVerdict, Protocol, RuleSet};
use namegate::engine::world::PeerIds;
use namegate::kernel::abi::flag;
use namegate::kernel::rules::{ADDRESSES, EndpointRow};
use namegate::observe::Reason;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::bench::*;
use super::frames::*;
use super::worlds::{Case, Question, case};

/// How many questions a world is asked.
const QUESTIONS: usize = 30;
/// Each verdict must come at least this often, in percent, or the test says little.
const LEAST: [(&str, f64); 5] =
    [("Denied", 1.0), ("NotAllowed", 5.0), ("Allowed", 3.0), ("DefaultAllowed", 5.0), ("Host", 0.3)];

/// How many packets are judged: 10 000 unless NAMEGATE_CASES says otherwise (`make test-long`).
fn wanted() -> u32 {
    std::env::var("NAMEGATE_CASES").map_or(10_000, |text| text.parse().expect("NAMEGATE_CASES is a number"))
}

pub fn the_programs_do_what_random_policies_say() {
    let bench = RefCell::new(Bench::new());
    let seen: RefCell<BTreeMap<String, u64>> = RefCell::default();
    let began = namegate::clock::now();
    let config = Config { failure_persistence: None, max_shrink_iters: 5000, ..Config::with_cases(wanted() / 15) };
    let outcome = TestRunner::new(config).run(&case(QUESTIONS), |Case { world, questions, granted }| {
        let compiler = Compiler::new(&world, &mut PeerIds::default());
        let bench = &mut *bench.borrow_mut();
        let peers: Vec<_> = compiler.peers().iter().map(|(address, peer)| (*address, *peer)).collect();
        bench.kernel.set_peers(&peers, || Ok(())).expect("peers are written");
        let mut by_subject: BTreeMap<_, Vec<&Question>> = BTreeMap::new();
        for question in &questions {
            by_subject.entry(&question.subject).or_default().push(question);
        }
        for (subject, questions) in by_subject {
            let pod = &world.pods[subject];
            if pod.host_network || pod.addresses.len() > ADDRESSES {
                continue;
            }
            let rules = compiler.compile(subject, &[]).map_err(|error| TestCaseError::fail(error.to_string()))?;
            load(bench, &rules, &pod.addresses);
            for (number, question) in questions.iter().enumerate() {
                let Question { direction, address, protocol, port, .. } = **question;
                let Some(own) = pod.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4()) else { continue };
                let names = if direction == Direction::Egress { granted.as_slice() } else { &[] };
                let attempt = Attempt { direction, address, protocol, port, granted: names };
                let verdict = reference::verdict(&world, subject, attempt).expect("the pod is there");
                let bits = names.iter().fold(Bits::NONE, |bits, name| bits | rules.groups_of(name));
                prop_assert_eq!(rules.evaluate(direction, address, protocol, port, bits), verdict);
                bench.grant(address, bits, later());
                let frame = frame(question, *own, 20_000 + number as u16);
                let reason = bench.run(direction, &frame);
                prop_assert!(
                    means(reason, verdict, &rules),
                    "{:?} in the kernel, {:?} by the policies: {:?}\n{:#?}",
                    reason,
                    verdict,
                    question,
                    rules
                );
                *seen.borrow_mut().entry(format!("{verdict:?}")).or_default() += 1;
            }
        }
        Ok(())
    });
    if let Err(failed) = outcome {
        panic!("{failed}");
    }
    let seen = seen.into_inner();
    let all: u64 = seen.values().sum();
    let line = serde_json::json!({
        "test": "the_programs_do_what_random_policies_say",
        "judged": all,
        "seconds": began.elapsed().as_secs_f64(),
        "answers": seen,
    });
    println!("{line}");
    for (verdict, percent) in LEAST {
        let share = seen.get(verdict).copied().unwrap_or_default() as f64 * 100.0 / all as f64;
        assert!(share >= percent, "{verdict}: {share:.2} % of {all}, not {percent} %: {seen:?}");
    }
}

/// Puts the rules in force for the one endpoint, whose addresses are these; it has no flows and no grants.
fn load(bench: &mut Bench, rules: &RuleSet, addresses: &[IpAddr]) {
    bench.forget_flows();
    bench.kernel.delete_all_grants().expect("grants are deleted");
    bench.row.policy_id += 1;
    bench.row.generation += 1;
    // The proxy has a test of its own: here port 53 is a port as any other.
    bench.row.flags = EndpointRow::flags_of(rules) & !flag::STEER;
    bench.row.addresses = addresses.to_vec();
    bench.rules(rules);
    bench.flip();
    bench.kernel.delete_rules_except(&[bench.row.policy_id]).expect("old rows are removed");
}

/// A packet that belongs to no flow.
fn frame(question: &Question, own: IpAddr, fresh: u16) -> Vec<u8> {
    let Question { direction, address, protocol, port, .. } = *question;
    let number = (port >> 8) as u8;
    let payload = match protocol {
        Protocol::Tcp => tcp(fresh, port, 1, SYN),
        Protocol::Udp => udp(fresh, port, 12),
        Protocol::Sctp => sctp(fresh, port),
        // An error that quotes nothing of ours.
        Protocol::Icmp if number == 3 => {
            icmp(number, 1, &[&[0; 4][..], &ip(own, address, TCP, &tcp(1, 2, 1, SYN))].concat())
        }
        Protocol::Icmpv6 if number == 1 => {
            icmp(number, 1, &[&[0; 4][..], &ip(own, address, TCP, &tcp(1, 2, 1, SYN))].concat())
        }
        Protocol::Icmp | Protocol::Icmpv6 => echo(number, fresh),
        Protocol::Any => unreachable!("no packet is of any protocol"),
    };
    match direction {
        Direction::Egress => from_pod(own, address, protocol.number(), &payload),
        Direction::Ingress => to_pod(address, own, protocol.number(), &payload),
    }
}

/// Whether the kernel's reason is the policies' verdict.
fn means(reason: Reason, verdict: PacketVerdict, rules: &RuleSet) -> bool {
    if !rules.selected {
        return reason == Reason::Unenforced && verdict == PacketVerdict::DefaultAllowed;
    }
    match verdict {
        PacketVerdict::Denied | PacketVerdict::NotAllowed if rules.audit => reason == Reason::Audit,
        PacketVerdict::Denied => reason == Reason::PolicyDeny,
        PacketVerdict::NotAllowed => {
            [Reason::NoGrant, Reason::Protocol, Reason::IcmpUnrelated, Reason::NotAReply].contains(&reason)
        }
        PacketVerdict::Allowed => [Reason::Granted, Reason::Cidr, Reason::Peer, Reason::Service].contains(&reason),
        PacketVerdict::DefaultAllowed => reason == Reason::DefaultAllow,
        PacketVerdict::Host => reason == Reason::Host,
    }
}
