//! What a scenario must not overlook: each of these stories is wrong in one place, and has to fail there.

use libtest_mimic::{Failed, Trial};

use super::{daemon, engine, parse, run};

const POLICY: &str = "\
policy pay:
  - toFQDNs: [{matchName: a.test}]
    toPorts: [{ports: [{port: '443', protocol: TCP}]}]
";
const GRANTED: &str = "\
pay asks a.test A  upstream says 203.0.113.10  reply NOERROR 203.0.113.10  + grant pay 203.0.113.10 115s
";

/// Name, whether the grant was listed before, what follows, and what the failure says.
const STORIES: [(&str, bool, &str, &str); 10] = [
    (
        "a_grant_that_is_not_listed",
        false,
        "pay asks a.test A  upstream says 203.0.113.10  reply NOERROR 203.0.113.10",
        "unlisted: + grant pay 203.0.113.10",
    ),
    (
        "a_grant_that_does_not_come",
        false,
        "pay asks b.test A  upstream says 203.0.113.10  reply NOERROR 203.0.113.10  + grant pay 203.0.113.10 115s",
        "no grant pay 203.0.113.10",
    ),
    (
        "a_grant_with_another_deadline",
        false,
        "pay asks a.test A  upstream says 203.0.113.10  reply NOERROR 203.0.113.10  + grant pay 203.0.113.10 60s",
        "has 115.00s left",
    ),
    (
        "a_deadline_that_moves_unlisted",
        true,
        "at 5s  pay asks a.test A  reply NOERROR 203.0.113.10",
        "unlisted: the deadline of pay 203.0.113.10",
    ),
    ("a_grant_that_goes_unlisted", true, "policy pay:\n  - toFQDNs: [{matchName: b.test}]", "unlisted: - grant pay"),
    ("a_grant_that_stays_though_listed_as_gone", true, "nothing  - grant pay 203.0.113.10", "unlisted: + grant pay"),
    ("a_refusal_that_is_not_listed", true, "file x.yaml:\n  kind: [", "unlisted: + refused file x.yaml"),
    ("a_reply_with_another_address", true, "pay asks a.test A  reply NOERROR 203.0.113.11", "[203.0.113.10]"),
    ("a_stopped_step_that_is_reached", true, "pay is stopped at 203.0.113.10:443", "seen: Allowed"),
    ("a_step_stopped_for_another_reason", true, "pay is stopped at 203.0.113.9:443: expired", "stopped: no_grant"),
];

/// What is no scenario, and where that is said.
const NO_SCENARIOS: [(&str, &str); 12] = [
    ("pay asks a.test A", "line 1: a question without `reply …`"),
    ("pay asks a.test A reply NOERROR", "line 1: found reply after a question"),
    ("pay dances", "line 1: not a step"),
    ("nothing\nnothing  + wish pay", "line 2: found `+ wish pay`"),
    ("nothing\n\nat 3 nothing", "line 3: found 3; a time as 100ms or 3s is wanted"),
    ("at -1s nothing", "line 1: found -1s; a time"),
    ("at infs nothing", "line 1: found infs; a time"),
    ("nothing\npay reaches 203.0.113.{0..4294967295}:443", "line 2: found {0..4294967295}; 1 to 1000 repetitions"),
    ("pay reaches 203.0.113.{9..8}:443", "line 1: found {9..8}; 1 to 1000 repetitions"),
    ("pay asks a.test A taking 65537  reply none", "line 1: found 65537; a number that fits"),
    ("file a.yaml from /dev/zero", "line 1: found /dev/zero; a file of ours"),
    ("setting a=b", "no step"),
];

/// All against the engine; the control against a world.
pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = STORIES
        .iter()
        .map(|&(name, granted, steps, wanted)| {
            trial(name, wanted, move || {
                let scenario = parse(&[POLICY, if granted { GRANTED } else { "" }, steps, "\n"].concat())?;
                run::run(&scenario, engine::Model::new(&scenario)?)
            })
        })
        .collect();
    trials.extend(NO_SCENARIOS.iter().enumerate().map(|(number, &(text, wanted))| {
        trial(&format!("no_scenario_{}", number + 1), wanted, move || parse(text).map(drop))
    }));
    trials.push(trial("what_is_stopped_though_nobody_guards_makes_it_invalid", "nobody guards", || {
        daemon::control(&parse("pay is stopped at 192.0.2.1:443\n")?)
    }));
    trials
}

fn trial(name: &str, wanted: &'static str, play: impl FnOnce() -> Result<(), String> + Send + 'static) -> Trial {
    Trial::test(format!("scenario::fault::{name}"), move || match play() {
        Err(said) if said.contains(wanted) => Ok(()),
        Err(said) => Err(Failed::from(format!("it fails, but says: {said}"))),
        Ok(()) => Err(Failed::from(format!("it passes; it must fail with: {wanted}"))),
    })
}
