//! Random worlds: what is compiled, asked as the kernel asks, must say what the policies say.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::engine::bits::Bits;
use crate::engine::name::Name;
use crate::engine::policy::{Peers, Policy, Port, PortRule, Ports, Section, Subject};
use crate::engine::port::PortBlock;
use crate::engine::reference::{self, Attempt};
use crate::engine::ruleset::{GroupKey, PacketVerdict, Protocol};
use crate::engine::verdict::{Allowance, RuleText};
use worlds::{Case, NAMES, Question, addresses, at, case, ip, plain_pod, world};

#[path = "../../../integration/worlds.rs"]
pub(in crate::engine) mod worlds;

/// How many questions a world is asked.
const QUESTIONS: usize = 30;

/// How many packets the property tests judge: 10 000 unless NAMEGATE_CASES says otherwise (`make test-long`: a million).
pub(in crate::engine) fn wanted() -> u32 {
    std::env::var("NAMEGATE_CASES").map_or(10_000, |text| text.parse().expect("NAMEGATE_CASES is a number"))
}

#[track_caller]
fn for_every<S: Strategy>(worlds: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { failure_persistence: None, max_shrink_iters: 20_000, ..Config::with_cases(worlds) };
    if let Err(failed) = TestRunner::new(config).run(&strategy, test) {
        panic!("{failed}");
    }
}

/// How often each answer came. Each must come often enough, or the test says little.
#[derive(Default)]
struct Seen(RefCell<BTreeMap<String, u64>>);

impl Seen {
    fn note(&self, what: impl std::fmt::Debug) {
        *self.0.borrow_mut().entry(format!("{what:?}")).or_default() += 1;
    }

    #[track_caller]
    fn check(&self, test: &str, began: Instant, wanted: &[(&str, f64)]) {
        let seen = self.0.borrow();
        let all: u64 = seen.values().sum();
        // One JSON line a test, for `make test-long`.
        let seconds = began.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({"test": test, "judged": all, "seconds": seconds, "answers": *seen}));
        for (answer, percent) in wanted {
            let share = seen.get(*answer).copied().unwrap_or_default() as f64 * 100.0 / all as f64;
            assert!(share >= *percent, "{answer}: {share:.2} % of {all}, not {percent} %: {seen:?}");
        }
    }
}

fn attempt<'a>(question: &Question, granted: &'a [Name]) -> Attempt<'a> {
    let Question { direction, address, protocol, port, .. } = *question;
    let granted = if direction == Direction::Egress { granted } else { &[] };
    Attempt { direction, address, protocol, port, granted }
}

#[test]
fn the_compiled_rows_say_what_the_policies_say() {
    let (seen, began) = (Seen::default(), crate::clock::now());
    for_every(wanted() / 15, case(QUESTIONS), |Case { world, questions, granted }| {
        let mut ids = PeerIds::default();
        let compiler = Compiler::new(&world, &mut ids);
        for question in questions {
            let Question { subject, direction, address, protocol, port } = &question;
            let compiled = compiler.compile(subject, &[]);
            if world.pods[subject].host_network {
                prop_assert_eq!(compiled, Err(CompileError::HostNetwork(subject.clone())));
                continue;
            }
            let rules = compiled.map_err(|error| TestCaseError::fail(error.to_string()))?;
            let attempt = attempt(&question, &granted);
            let expected = reference::verdict(&world, subject, attempt).expect("the pod is there");
            let grants = attempt.granted.iter().fold(Bits::NONE, |bits, name| bits | rules.groups_of(name));
            let verdict = rules.evaluate(*direction, *address, *protocol, *port, grants);
            prop_assert_eq!(verdict, expected, "{:?}\n{:#?}", question, rules);
            prop_assert_eq!(rules.audit, rules.selected && world.mode_of(subject) == Mode::Audit);
            seen.note(verdict);

            // What each item says comes to the same.
            let service = rules.known.get(address) == Some(&PeerId::SERVICE);
            if !(service && *direction == Direction::Egress) {
                let spoken = compiler.spoken(subject, *direction, *address, (*protocol, *port), attempt.granted);
                let decides = |deny| spoken.iter().any(|one| one.deny == deny && one.decides());
                let said = (decides(true), !decides(true) && decides(false));
                let is = (verdict == PacketVerdict::Denied, verdict == PacketVerdict::Allowed);
                prop_assert_eq!(said, is, "{:?}\n{:#?}", question, spoken);
            }
        }
        Ok(())
    });
    let least = [("Denied", 1.0), ("NotAllowed", 5.0), ("Allowed", 3.0), ("DefaultAllowed", 5.0), ("Host", 0.3)];
    seen.check("the_compiled_rows_say_what_the_policies_say", began, &least);
}

#[test]
fn whom_a_workload_may_ask_is_what_the_policies_say() {
    let (seen, began) = (Seen::default(), crate::clock::now());
    // Denials stand in few worlds, and many in each: one run of a third as many worlds had none.
    for_every(wanted() / 15, world(), |world| {
        let compiler = Compiler::new(&world, &mut PeerIds::default());
        let names: Vec<Name> = NAMES.iter().map(|name| Name::parse(name).expect("a name")).collect();
        for (subject, _) in world.pods.iter().filter(|(_, pod)| !pod.host_network) {
            let rules = compiler.compile(subject, &[]).map_err(|error| TestCaseError::fail(error.to_string()))?;
            if !rules.steered() {
                continue;
            }
            for server in addresses(&world) {
                if rules.known.get(&server) == Some(&PeerId::SERVICE) {
                    continue;
                }
                for (protocol, port) in [(Protocol::Udp, 53), (Protocol::Tcp, 53), (Protocol::Udp, 5353)] {
                    for name in &names {
                        let attempt =
                            Attempt { direction: Direction::Egress, address: server, protocol, port, granted: &[] };
                        let expected = reference::may_ask(&world, subject, attempt, name);
                        let answer = rules.may_ask(server, protocol, port, name);
                        let answered = answer.ok().map(|by| matches!(by, Allowance::By(_)));
                        prop_assert_eq!(answered, expected, "{} {} {} {:#?}", subject, server, name, rules);
                        seen.note(expected);
                    }
                }
            }
        }
        Ok(())
    });
    let least = [("None", 5.0), ("Some(true)", 2.0), ("Some(false)", 0.5)];
    seen.check("whom_a_workload_may_ask_is_what_the_policies_say", began, &least);
}

/// What is in force between two rule sets opens nothing that neither of them opens.
#[test]
fn the_rows_on_the_way_open_no_more_than_those_before_or_after() {
    let (seen, began) = (Seen::default(), crate::clock::now());
    for_every(wanted() / 15, (case(QUESTIONS), case(1)), |(Case { world, questions, .. }, other)| {
        // The same peers, other policies.
        let after = World { policies: other.world.policies, refused: other.world.refused, ..world.clone() };
        let mut ids = PeerIds::default();
        for question in questions.iter().filter(|question| !world.pods[&question.subject].host_network) {
            let old = compile(&world, &question.subject, &mut ids, &[]).expect("it compiles");
            let Ok(new) = compile(&after, &question.subject, &mut ids, &old.groups) else { continue };
            let Question { direction, address, protocol, port, .. } = *question;
            let open = |rules: &RuleSet| rules.evaluate(direction, address, protocol, port, Bits::NONE).passes();
            for (base, far) in [(&old, &new), (&new, &old)] {
                if let Some(between) = transition(base, far) {
                    prop_assert!(!open(&between) || open(base), "{:?}\n{:#?}\n{:#?}", question, base, between);
                    seen.note(open(&between));
                }
            }
        }
        Ok(())
    });
    seen.check("the_rows_on_the_way_open_no_more_than_those_before_or_after", began, &[("true", 1.0), ("false", 1.0)]);
}

#[test]
fn a_bit_keeps_its_meaning_across_reloads() {
    for_every(200, (world(), world()), |(before, after)| {
        let subject = PodRef { namespace: "one".to_owned(), name: "p0".to_owned() };
        let mut ids = PeerIds::default();
        let Ok(old) = compile(&before, &subject, &mut ids, &[]) else { return Ok(()) };
        let Ok(new) = compile(&after, &subject, &mut ids, &old.groups) else { return Ok(()) };
        for group in &new.groups {
            for other in &old.groups {
                prop_assert_eq!(group.key == other.key, group.bit == other.bit);
            }
        }
        let again = compile(&after, &subject, &mut ids, &old.groups);
        prop_assert_eq!(again, Ok(new), "the same input gives the same rule set");
        Ok(())
    });
}

/// A world of one pod whose policy allows `ports` one by one, each to a network of its own.
fn many_groups(ports: u16) -> World {
    let allow = (1..=ports).map(|port| Item {
        at: RuleRef(Arc::new(RuleText {
            place: format!("policy.yaml:{port}:5"),
            path: format!("spec.egress[{}]", port - 1),
            ..RuleText::default()
        })),
        peers: Peers::Networks(vec!["192.0.2.0/24".parse::<ipnet::IpNet>().unwrap().into()]),
        ports: Ports::These(vec![PortRule {
            at: at("ports"),
            ports: [(Protocol::Tcp, Port::Block(PortBlock::one(port)))].into(),
            service: None,
            dns: None,
        }]),
    });
    let egress = Section { default_deny: true, allow: allow.collect(), ..Section::default() };
    let rule = Rule { at: at("r"), subject: Subject::default(), egress, ingress: Section::default() };
    let mut world = World { policies: vec![Policy { at: at("p"), rules: vec![rule] }.into()], ..World::default() };
    world.pods.insert(PodRef { namespace: "one".to_owned(), name: "p".to_owned() }, plain_pod(vec![ip("10.0.0.1")]));
    world
}

#[test]
fn a_group_too_many_is_refused_with_its_place() {
    let subject = PodRef { namespace: "one".to_owned(), name: "p".to_owned() };
    let rules = compile(&many_groups(127), &subject, &mut PeerIds::default(), &[]).unwrap();
    assert_eq!(rules.groups.iter().map(|group| group.bit).collect::<Vec<_>>(), (1..=127).collect::<Vec<_>>());
    let error = compile(&many_groups(128), &subject, &mut PeerIds::default(), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "policy.yaml:128:5: spec.egress[127]: group 128 of the rules that select one/p, 0 more held by live grants; \
         the limit is 127"
    );
}

#[test]
fn a_bit_that_history_holds_is_not_given_to_another_group() {
    let subject = PodRef { namespace: "one".to_owned(), name: "p".to_owned() };
    let gone = |bit, port| Group {
        bit,
        key: GroupKey { direction: Direction::Egress, deny: false, ports: vec![(Protocol::Tcp, PortBlock::one(port))] },
        names: vec!["a.example".to_owned()],
    };
    let history = [gone(1, 4443), gone(3, 2)];
    let rules = compile(&many_groups(3), &subject, &mut PeerIds::default(), &history).unwrap();
    let bits: Vec<(u8, u16)> = rules.groups.iter().map(|group| (group.bit, group.key.ports[0].1.first())).collect();
    assert_eq!(bits, [(2, 1), (3, 2), (4, 3)]);
    let full: Vec<Group> = (1..=127).map(|bit| gone(bit, 10_000 + u16::from(bit))).collect();
    let error = compile(&many_groups(1), &subject, &mut PeerIds::default(), &full).unwrap_err();
    assert!(error.to_string().contains("group 1 of the rules that select one/p, 127 more held"), "{error}");
}

#[test]
fn a_pod_that_is_not_there_has_no_rule_set() {
    let subject = PodRef { namespace: "one".to_owned(), name: "q".to_owned() };
    let error = compile(&many_groups(1), &subject, &mut PeerIds::default(), &[]).unwrap_err();
    assert_eq!(error, CompileError::UnknownPod(subject));
}
