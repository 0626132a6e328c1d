//! What a scenario must not overlook: each of these stories is wrong in one place, and has to fail there.

use libtest_mimic::{Failed, Trial};

use super::{daemon, engine, language, run};

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
const NO_SCENARIOS: [(&str, &str); 6] = [
    ("pay asks a.test A", "line 1: a question without `reply …`"),
    ("pay asks a.test A reply NOERROR", "line 1: found reply after a question"),
    ("pay dances", "line 1: not a step"),
    ("nothing\nnothing  + wish pay", "line 2: found `+ wish pay`"),
    ("nothing\n\nat 3 nothing", "line 3: found 3; a time as 100ms or 3s is wanted"),
    ("setting a=b", "no step"),
];

/// All against the engine; the control against a world.
pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = STORIES
        .iter()
        .map(|&(name, granted, steps, wanted)| {
            trial(name, wanted, move || {
                let scenario = language::parse(&[POLICY, if granted { GRANTED } else { "" }, steps, "\n"].concat())?;
                run::run(&scenario, engine::Model::new(&scenario)?)
            })
        })
        .collect();
    trials.extend(NO_SCENARIOS.iter().enumerate().map(|(number, &(text, wanted))| {
        trial(&format!("no_scenario_{}", number + 1), wanted, move || language::parse(text).map(drop))
    }));
    trials.push(trial("what_is_stopped_though_nobody_guards_makes_it_invalid", "nobody guards", || {
        daemon::control(&language::parse("pay is stopped at 192.0.2.1:443\n")?)
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
