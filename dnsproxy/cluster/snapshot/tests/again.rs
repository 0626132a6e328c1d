//! A directory that is read again and again says what it would say to who reads it for the first time.

use std::path::Path;

use proptest::prelude::*;

use super::super::*;
use super::{CLUSTER, allow, policy_of};

/// What a file may come to hold; several stand for the same objects, some are wrong.
fn contents() -> Vec<(&'static str, String)> {
    let pod = |name: &str, label: &str, address: &str| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"{name}\", \"namespace\": \"shop\", \"labels\": \
             {{\"app\": {label}}}}}, \"status\": {{\"podIPs\": [{{\"ip\": \"{address}\"}}]}}}}\n"
        )
    };
    let cidr = |cidr: &str| format!("endpointSelector: {{}}\negress:\n- toCIDR: [{cidr}]\n");
    vec![
        ("yaml", CLUSTER.to_owned()),
        (
            "yaml",
            CLUSTER.replace("app: db}}\n  status: {podIP: 10.0.0.2}", "app: cache}}\n  status: {podIP: 10.0.0.7}"),
        ),
        ("json", pod("a", "\"web\"", "10.0.1.1") + &pod("b", "\"web\"", "10.0.1.2")),
        ("json", pod("a", "\"db\"", "10.0.1.1") + &pod("b", "\"web\"", "10.0.1.2")),
        ("json", "\n\n".to_owned() + &pod("b", "\"web\"", "10.0.1.2") + &pod("c", "\"web\"", "10.0.1.3")),
        ("json", pod("a", "1", "10.0.1.1")),
        ("json", pod("a", "\"web\"", "10.0.1")),
        ("json", pod("a", "\"web\"", "10.0.1.1") + &pod("a", "\"db\"", "10.0.1.1")),
        ("json", "{".to_owned()),
        ("json", "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"x\"}}".to_owned()),
        ("json", "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"shop\"}}".to_owned()),
        ("yaml", allow("192.0.2.0/24")),
        ("yaml", allow("203.0.113.0/24")),
        ("yaml", allow("203.0.113.0/33")),
        ("yaml", format!("\n{}", allow("192.0.2.0/24"))),
        ("yaml", policy_of("more", &cidr("198.51.100.0/24"))),
        ("yaml", format!("{}---\n{}", allow("192.0.2.0/24"), policy_of("more", &cidr("198.51.100.0/24")))),
        ("yaml", policy_of("more", "endpointSelector: {}\negres: []")),
        ("yaml", "- [\n".to_owned()),
    ]
}

/// What happens to the directory between two reads: each file gets one of the contents, or goes.
fn steps() -> impl Strategy<Value = Vec<Vec<(usize, Option<usize>)>>> {
    let change = (0..6usize, prop::option::weighted(0.8, 0..contents().len()));
    prop::collection::vec(prop::collection::vec(change, 1..4), 1..12)
}

fn put(directory: &Path, file: usize, content: Option<&(&str, String)>) {
    for ending in ["yaml", "json"] {
        let _ = std::fs::remove_file(directory.join(format!("f{file}.{ending}")));
    }
    if let Some((ending, text)) = content {
        std::fs::write(directory.join(format!("f{file}.{ending}")), text).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn what_is_read_again_is_what_a_first_read_would_say(steps in steps(), ignore in any::<bool>()) {
        let on_invalid = if ignore { OnInvalid::Ignore } else { OnInvalid::Refuse };
        let contents = contents();
        let folder = tempfile::tempdir().unwrap();
        let mut source = Source::new(folder.path());
        let mut last_good = LastGood::default();
        for step in steps {
            for (file, content) in step {
                put(folder.path(), file, content.map(|content| &contents[content]));
            }
            let anew = read(folder.path(), &last_good, on_invalid);
            let again = source.read(&last_good, on_invalid);
            prop_assert_eq!(&again.world, &anew.world);
            prop_assert_eq!(&again.refusals, &anew.refusals);
            prop_assert_eq!(&again.last_good, &anew.last_good);
            prop_assert_eq!((again.skipped, again.generation_hash), (anew.skipped, anew.generation_hash));
            // Written down step by step it is the same.
            let mut stepped = last_good.clone();
            again.last_good.changes(&last_good).into_iter().for_each(|change| stepped.apply(change));
            prop_assert_eq!(&stepped, &again.last_good);
            last_good = again.last_good;
        }
    }
}

#[test]
fn what_has_not_changed_is_the_same_object_in_the_next_world() {
    let folder = tempfile::tempdir().unwrap();
    let contents = contents();
    put(folder.path(), 0, Some(&contents[0]));
    put(folder.path(), 1, Some(&contents[11]));
    put(folder.path(), 2, Some(&contents[13]));
    let mut source = Source::new(folder.path());
    let first = source.read(&LastGood::default(), OnInvalid::Refuse);
    put(folder.path(), 3, Some(&contents[2]));
    let second = source.read(&first.last_good, OnInvalid::Refuse);
    let web = crate::engine::endpoint::PodRef { namespace: "shop".to_owned(), name: "web".to_owned() };
    assert!(std::ptr::eq(&first.world.pods[&web], &second.world.pods[&web]));
    assert_eq!(second.world.pods.len(), first.world.pods.len() + 2);
    assert_eq!(second.refusals, first.refusals);
}
