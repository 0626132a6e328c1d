//! A file of a snapshot: reading it never panics, what is refused allows nothing, and the last good version of what is good
//! says the same.

use namegate::cluster::fields::FaultKind;
use namegate::cluster::files::File;
use namegate::cluster::snapshot::{LastGood, OnInvalid, Snapshot, assemble};
use namegate::engine::compile::Compiler;
use namegate::engine::policy::Section;
use namegate::engine::world::PeerIds;

use super::cost::{self, Limit};

/// A tree of what was read, objects of it and what is kept of them as text; a refusal is some 200 octets for any one.
const LIMIT: Limit = Limit { held: (500, 40_000), allocations: (20, 2_000) };
/// Aliases stand for 20 000 values and 256 KiB at most.
const ALIASED: Limit = Limit { held: (500, 2_500_000), allocations: (20, 100_000) };

pub fn check(octets: &[u8]) {
    for name in ["file.yaml", "file.json"] {
        let first = read(name, octets, &LastGood::default());
        holds(&first);
        // Whatever becomes of the file: what was good in it stays in force, and is as good as before.
        let kept = read(name, b"{", &first.last_good);
        if first.refusals.iter().all(|refusal| refusal.kind == FaultKind::Unenforced) {
            assert_eq!(without_places(&kept, name), without_places(&first, name));
            assert_eq!(kept.last_good, first.last_good);
        }
        let again = read(name, octets, &first.last_good);
        assert_eq!(again.world.policies, first.world.policies);
        let mut ids = PeerIds::default();
        let compiler = Compiler::new(&first.world, &mut ids);
        for pod in first.world.pods.keys().take(2) {
            let _ = compiler.compile(pod, &[]);
        }
    }
}

fn read(name: &str, octets: &[u8], last_good: &LastGood) -> Snapshot {
    let file = File { name: name.to_owned(), content: Ok(octets.to_vec()) };
    let limit = if octets.contains(&b'*') { ALIASED } else { LIMIT };
    cost::within(octets.len(), limit, || assemble(&[file], last_good, OnInvalid::Refuse))
}

fn holds(snapshot: &Snapshot) {
    for rule in snapshot.world.refused.iter().flat_map(|policy| &policy.rules) {
        let opens = |section: &Section| !section.allow.is_empty() || !section.unenforced.is_empty();
        assert!(!opens(&rule.egress) && !opens(&rule.ingress), "refused, and allows: {rule:#?}");
        assert!(rule.egress.default_deny || rule.ingress.default_deny, "refused, and shuts nothing: {rule:#?}");
    }
    for refusal in &snapshot.refusals {
        assert!(!refusal.text.chars().any(char::is_control), "{:?} is not safe on a terminal", refusal.text);
        assert!(refusal.kind != FaultKind::NodeLabels && refusal.place.starts_with("file."), "{refusal:?}");
    }
    let wrong = snapshot.refusals.iter().any(|refusal| refusal.policy && refusal.kind == FaultKind::Wrong);
    assert!(wrong || snapshot.world.refused.is_empty());
}

/// Its world as text. A copy knows the place of its object, and none within it.
fn without_places(snapshot: &Snapshot, name: &str) -> String {
    let mut world = snapshot.world.clone();
    world.refused.clear();
    let text = format!("{world:?}");
    let place = format!("{name}:");
    let mut parts = text.split(&place);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.trim_start_matches(|found: char| found.is_ascii_digit() || found == ':'));
    }
    kept
}
