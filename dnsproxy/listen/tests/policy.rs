//! Verdicts, grants and what is taken out: I3 to I7.

use super::*;

#[test]
fn a_reply_leaves_after_the_kernel_holds_its_grants() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1", "@ 60 A 192.0.2.2"]));
    world.kernel.slow.store(true, Ordering::Relaxed);
    for at in 0..5 {
        let client = world.client("127.0.0.1", "127.0.0.1");
        world.kernel.rows.lock().expect("the rows").clear();
        world.served.table().clear();
        client.send(&query(&format!("n{at}.test"), 1, None)).expect("sent");
        client.recv(&mut [0; 512]).expect("a reply");
        assert_eq!(world.kernel.open(1), ["192.0.2.1", "192.0.2.2"], "at the moment of the reply");
    }
    let record = world.seen.last();
    assert_eq!(
        (record.outcome, record.reason, record.granted, record.rcode),
        (Outcome::Forwarded, "allowed", 2, Some(0))
    );
    assert_eq!(record.rule.expect("a rule").to_string(), "payments/wall");
    assert!(record.install.expect("a time") >= Duration::from_millis(30) && record.upstream.is_some());
}

#[test]
fn a_grant_that_is_not_written_means_servfail_and_no_address() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    world.kernel.full.store(true, Ordering::Relaxed);
    world.fails("www.test", 2, 0, "kernel");
    assert!(world.kernel.open(1).is_empty());
    assert_eq!(world.seen.last().reason, "grant_write");
    world.kernel.full.store(false, Ordering::Relaxed);
    world.resolves("www.test", &["192.0.2.1"]);
}

#[test]
fn above_the_cap_of_grants_the_reply_is_servfail() {
    let caps = Caps { grants: 2, ..Caps::default() };
    let world = World::new(Setup { caps, ..Setup::default() }, |asked| {
        let address = format!("@ 60 A 192.0.2.{}", name_in(&asked.octets).trim_end_matches(".test"));
        vec![Say::Reply(answer(&asked.octets, &[&address]))]
    });
    world.resolves("1.test", &["192.0.2.1"]);
    world.resolves("2.test", &["192.0.2.2"]);
    world.fails("3.test", 2, 0, "3 grants for this workload; the limit is 2");
    world.resolves("1.test", &["192.0.2.1"]);
    assert_eq!(world.kernel.open(1), ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn one_workloads_lookups_never_open_anothers_way() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    world.resolves("www.test", &["192.0.2.1"]);
    assert_eq!((world.kernel.open(1).len(), world.kernel.open(2).len()), (1, 0));
    let second = world.client("127.0.0.2", "127.0.0.1");
    second.send(&query("www.test", 1, None)).expect("sent");
    second.recv(&mut [0; 512]).expect("a reply");
    assert_eq!((world.kernel.open(1).len(), world.kernel.open(2).len()), (1, 1));
}

#[test]
fn a_name_that_only_dns_rules_allow_is_answered_as_it_came_and_grants_nothing() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1", "@ 60 A 127.0.0.1"]));
    world.resolves("www.example", &["192.0.2.1", "127.0.0.1"]);
    assert!(world.kernel.open(1).is_empty());
}

#[test]
fn a_denied_name_never_leaves_and_the_reply_names_the_policy() {
    let setup = Setup { rules: rules(&["www.test"], &["www.test"]), ..Setup::default() };
    let world = World::new(setup, always(&["@ 60 A 192.0.2.1"]));
    world.fails("api.test", 5, 15, "payments/wall");
    assert_eq!(world.server.seen().len(), 0);
    let record = world.seen.last();
    assert_eq!((record.outcome, record.reason, record.rcode), (Outcome::Denied, "name", Some(5)));
    assert_eq!((record.qname.as_str(), record.qtype.as_str()), ("api.test.", "A"));
    world.resolves("www.test", &["192.0.2.1"]);
}

#[test]
fn a_near_miss_says_what_would_have_matched_in_reply_and_record() {
    let setup = Setup { rules: rules(&["*.test"], &["*.test"]), ..Setup::default() };
    let world = World::new(setup, always(&["@ 60 A 192.0.2.1"]));
    let hint = "\"*.test\" spans one label; \"**.test\" spans several";
    world.fails("a.b.test", 5, 15, &format!("{hint} (payments/wall: the name is not allowed)"));
    assert_eq!(world.seen.last().hint.as_deref(), Some(hint));
    world.fails("a b.test", 5, 15, "no pattern matches the label \"a b\"");
    world.fails("a.example", 5, 15, "payments/wall: the name is not allowed");
    assert_eq!(world.seen.last().hint, None);
}

#[test]
fn a_denied_name_can_be_said_not_to_exist() {
    let settings = Settings { reject: RejectCode::NameError, ..Settings::default() };
    let setup = Setup { settings, rules: rules(&["www.test"], &["www.test"]), ..Setup::default() };
    World::new(setup, always(&[])).fails("api.test", 3, 15, "payments/wall");
}

#[test]
fn a_denied_name_under_a_search_suffix_does_not_exist_so_that_the_search_goes_on() {
    let search = vec![Name::parse("payments.svc.cluster.local").expect("a name")];
    let setup = Setup { search, rules: rules(&["www.test"], &["www.test"]), ..Setup::default() };
    let world = World::new(setup, always(&["@ 60 A 192.0.2.1"]));
    world.fails("www.test.payments.svc.cluster.local", 3, 15, "payments/wall");
    world.fails("payments.svc.cluster.local", 5, 15, "payments/wall");
    world.resolves("www.test", &["192.0.2.1"]);
}

#[test]
fn any_transfers_and_other_classes_are_refused() {
    let world = World::new(Setup::default(), always(&[]));
    for qtype in [0, 41, 249, 251, 252, 255] {
        assert_eq!(world.asks("www.test", qtype).0, 5, "type {qtype}");
    }
    let chaos = with(query("www.test", 16, None), |octets| *octets.last_mut().expect("octets") = 3);
    assert_eq!(understood(&world.exchange(&chaos)).0, 5);
    assert_eq!((world.seen.count("type"), world.seen.count("class"), world.server.seen().len()), (6, 1, 0));
}

#[test]
fn guarded_addresses_are_taken_out_and_nothing_is_granted() {
    let world = World::new(Setup::default(), |asked| {
        let records: &[&str] = match name_in(&asked.octets).as_str() {
            "metadata.test" => &["@ 60 A 169.254.169.254"],
            "own.test" => &["@ 60 A 203.0.113.1"],
            "private.test" => &["@ 60 A 10.0.0.1"],
            _ => &["@ 60 A 10.0.0.1", "@ 60 A 192.0.2.1", "@ 60 A 127.0.0.1"],
        };
        vec![Say::Reply(answer(&asked.octets, records))]
    });
    world.fails("metadata.test", 0, 17, "metadata");
    assert_eq!(world.seen.last().reason, "guard");
    world.fails("own.test", 0, 17, "own node");
    world.fails("private.test", 0, 17, "private");
    assert!(world.kernel.open(1).is_empty());
    world.resolves("mixed.test", &["192.0.2.1"]);
    assert_eq!(world.kernel.open(1), ["192.0.2.1"]);
}

#[test]
fn names_of_the_cluster_are_outside_the_guard_and_never_grant() {
    let setup = Setup { rules: rules(&["**.cluster.local", "*"], &["*"]), ..Setup::default() };
    let world = World::new(setup, always(&["@ 60 A 10.0.0.1"]));
    world.resolves("db.payments.svc.cluster.local", &["10.0.0.1"]);
    assert!(world.kernel.open(1).is_empty());
}

#[test]
fn an_untrusted_resolver_teaches_nothing_about_selected_names() {
    let world = World::new(Setup { trusted: false, ..Setup::default() }, always(&["@ 60 A 192.0.2.1"]));
    world.fails("www.test", 0, 17, "no policy names the resolver 127.0.0.1");
    assert_eq!(world.seen.last().reason, "untrusted_resolver");
    world.resolves("www.example", &["192.0.2.1"]);
    assert!(world.kernel.open(1).is_empty());
}

#[test]
fn a_resolver_that_a_policy_names_is_trusted() {
    let mut named = rules(&["**.test"], &["*"]);
    named.dns[0].servers = Servers::Networks(vec!["127.0.0.1/32".parse().expect("a network")]);
    let world = World::new(Setup { trusted: false, rules: named, ..Setup::default() }, always(&["@ 60 A 192.0.2.1"]));
    world.resolves("www.test", &["192.0.2.1"]);
}

#[test]
fn addresses_off_the_chain_are_taken_out() {
    let world = World::new(
        Setup::default(),
        always(&["evil.test 60 A 192.0.2.66", "b.cdn 60 A 192.0.2.1", "@ 5 CNAME b.cdn", "@ 60 AAAA 2001:db8::66"]),
    );
    world.resolves("www.test", &["192.0.2.1"]);
    assert_eq!(world.kernel.open(1), ["192.0.2.1"]);
    let record = world.seen.last();
    assert_eq!((record.reason, record.cnames, record.ttl), ("off_chain", vec!["b.cdn.".to_owned()], 5));
}

#[test]
fn glue_stays_behind_where_addresses_count() {
    let world = World::new(Setup::default(), |asked| {
        let glue = b"\x02ns\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc6\x33\x64\x09";
        vec![Say::Reply(with(answer(&asked.octets, &["@ 60 A 192.0.2.1"]), |octets| {
            (octets[11] = 1, octets.extend(glue)).1
        }))]
    });
    let has_glue = |name| world.exchange(&query(name, 1, None)).ends_with(&[198, 51, 100, 9]);
    assert!(!has_glue("www.test"));
    assert!(has_glue("www.example"));
    assert_eq!(world.kernel.open(1), ["192.0.2.1"]);
}

#[test]
fn an_answer_of_another_type_teaches_nothing() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    assert_eq!(world.asks("www.test", 28).1.len(), 0);
    assert_eq!(world.asks("www.test", 16).1.len(), 0);
    assert!(world.kernel.open(1).is_empty());
}

/// `1 . ipv4hint=192.0.2.1`, for `www`; with 10.0.0.1 beside it for `mixed`, alone for `guarded`.
fn hinting(asked: &Asked) -> Vec<Say> {
    let record = match name_in(&asked.octets).split('.').next().expect("a label") {
        "mixed" => "@ 60 HEX65 00010000040008c00002010a000001",
        "guarded" => "@ 60 HEX65 000100000400040a000001",
        "broken" => "@ 60 HEX65 00010000040003c00002",
        _ => "@ 60 HEX65 00010000040004c0000201",
    };
    vec![Say::Reply(answer(&asked.octets, &[record]))]
}

/// Asks for HTTPS; which of the two addresses the reply holds, and the extended error's code.
#[track_caller]
fn hinted(world: &World, name: &str) -> (bool, bool, Option<u16>) {
    let reply = world.exchange(&query(name, 65, Some(1232)));
    let (rcode, _, error) = understood(&reply);
    assert_eq!(rcode, 0);
    let holds = |hint: [u8; 4]| reply.windows(4).any(|part| part == hint);
    (holds([192, 0, 2, 1]), holds([10, 0, 0, 1]), error.map(|error| error.0))
}

#[test]
fn hints_are_granted_before_the_reply_leaves_and_taken_out_where_they_are_guarded() {
    let world = World::new(Setup::default(), hinting);
    assert_eq!(hinted(&world, "guarded.test"), (false, false, Some(17)));
    assert_eq!(world.seen.last().reason, "guard");
    assert!(world.kernel.open(1).is_empty());
    assert_eq!(hinted(&world, "mixed.test"), (true, false, None));
    assert_eq!(world.kernel.open(1), ["192.0.2.1"]);
    assert_eq!(hinted(&world, "www.test"), (true, false, None));
    assert_eq!((world.seen.last().reason, world.kernel.open(1).len()), ("allowed", 1));
}

#[test]
fn hints_of_a_name_that_only_dns_rules_allow_go_back_and_grant_nothing() {
    let world = World::new(Setup::default(), hinting);
    assert_eq!(hinted(&world, "mixed.example"), (true, true, None));
    assert!(world.kernel.open(1).is_empty());
}

#[test]
fn hints_from_an_untrusted_resolver_or_without_room_are_taken_out_and_the_rest_goes_back() {
    let world = World::new(Setup { trusted: false, ..Setup::default() }, hinting);
    assert_eq!(hinted(&world, "www.test"), (false, false, Some(17)));
    assert_eq!(world.seen.last().reason, "untrusted_resolver");
    let caps = Caps { grants: 0, ..Caps::default() };
    let world = World::new(Setup { caps, ..Setup::default() }, hinting);
    assert_eq!(hinted(&world, "www.test"), (false, false, Some(17)));
    assert_eq!((world.seen.last().reason, world.kernel.open(1).len()), ("grants_full", 0));
}

#[test]
fn a_malformed_service_binding_is_taken_out_of_selected_names_only() {
    let world = World::new(Setup::default(), hinting);
    let records = |name| Answer::parse(&world.exchange(&query(name, 65, None))).expect("a reply").counts[0];
    assert_eq!((records("broken.test"), records("broken.example"), records("www.test")), (0, 1, 1));
}

#[test]
fn an_address_that_a_rule_opens_without_a_name_stays() {
    use crate::engine::ruleset::{Direction, PortRow};
    let mut open = rules(&["**.test"], &["*"]);
    open.cidrs = vec![("10.0.0.0/8".parse().expect("a network"), Bits::of(5))];
    open.ports = vec![PortRow {
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        ports: PortBlock::one(443),
        allow: Bits::of(5),
        deny: Bits::NONE,
    }];
    let world =
        World::new(Setup { rules: open, ..Setup::default() }, always(&["@ 60 A 10.0.0.1", "@ 60 A 172.16.0.1"]));
    world.resolves("www.test", &["10.0.0.1"]);
    assert!(world.kernel.open(1).is_empty(), "the guard keeps it from being learned");
}

#[test]
fn a_policy_that_changes_while_the_resolver_thinks_decides() {
    let setup = Setup { rules: rules(&["**.test"], &["*"]), ..Setup::default() };
    let world = World::new(setup, |asked| {
        vec![Say::Wait(Duration::from_millis(200)), Say::Reply(answer(&asked.octets, &["@ 60 A 192.0.2.1"]))]
    });
    let client = world.client("127.0.0.1", "127.0.0.1");
    client.send(&query("www.test", 1, Some(1232))).expect("sent");
    thread::sleep(Duration::from_millis(80));
    world.served.rules.store(Arc::new(rules(&["api.test"], &["api.test"])));
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply");
    assert_eq!(understood(&buffer[..length]).0, 5);
    assert!(world.kernel.open(1).is_empty());
}

#[test]
fn a_resolver_that_is_silent_or_talks_nonsense_means_servfail_with_its_reason() {
    let world = World::new(Setup::default(), |asked| match name_in(&asked.octets).as_str() {
        "silent.test" => Vec::new(),
        _ => vec![Say::Reply(with(answer(&asked.octets, &[]), |octets| octets[7] = 9))],
    });
    world.fails("silent.test", 2, 22, "no answer in time");
    world.fails("nonsense.test", 2, 24, "more records announced than fit");
    assert_eq!((world.seen.count("timeout"), world.seen.count("answer")), (1, 1));
}

#[test]
fn what_the_resolver_says_otherwise_goes_back() {
    let world = World::new(Setup::default(), |asked| {
        let rcode = if name_in(&asked.octets) == "gone.test" { 3 } else { 2 };
        vec![Say::Reply(with(answer(&asked.octets, &["evil.test 60 A 192.0.2.66"]), |octets| octets[3] |= rcode))]
    });
    assert_eq!((world.asks("gone.test", 1).0, world.asks("gone.test", 1).1.len()), (3, 0));
    assert_eq!(world.asks("broken.test", 1).0, 2);
    assert!(world.kernel.open(1).is_empty());
}

#[test]
fn without_compression_every_reply_is_written_out() {
    let settings = Settings { compression: false, ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() }, always(&["@ 60 A 192.0.2.1"]));
    for name in ["www.test", "www.example"] {
        let reply = world.exchange(&query(name, 1, None));
        assert_eq!(reply.len(), 12 + 2 * (name.len() + 2) + 4 + 14);
        assert_eq!(understood(&reply).1, ["192.0.2.1"]);
    }
}

#[test]
fn a_binding_whose_hints_are_all_granted_goes_back_to_the_octet() {
    // Its owner is written out: an answer written anew would point at the question.
    const BINDING: &str = "www.test 60 HEX65 00010000040004cb00710a";
    let world = World::new(Setup::default(), |asked: &Asked| vec![Say::Reply(answer(&asked.octets, &[BINDING]))]);
    let asked = query("www.test", 65, None);
    let sent = answer(&asked, &[BINDING]);
    assert_eq!(world.exchange(&asked)[12..], sent[12..]);
    assert_eq!(world.kernel.open(1), ["203.0.113.10"]);
}
