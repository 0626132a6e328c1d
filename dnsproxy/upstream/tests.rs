use std::collections::BTreeSet;

use tokio::task::LocalSet;

use super::address::ServerAddress;
use super::health::ServerHealth;
use super::scripted::{Asked, Say, Scripted, answer, with};
use super::*;
use crate::engine::answer::Answer;
use crate::engine::name::Name;

mod cookies;
mod encrypted;
mod failover;
mod hostile;

const WITHIN: Duration = Duration::from_millis(800);

/// A query for `name` as a client sends it, with RD, and with an OPT record that says DO if `dnssec_ok`.
fn query(name: &str, dnssec_ok: bool) -> Query<'static> {
    let mut octets = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    octets.extend(Name::parse(name).expect("a name").as_wire());
    octets.extend(b"\0\x01\0\x01");
    if dnssec_ok {
        octets[11] = 1;
        octets.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\0");
    }
    Query::parse(&octets).expect("a query").into_owned()
}

fn run<T>(test: impl AsyncFnOnce(Upstream) -> T) -> T {
    run_with(Arc::default(), test)
}

fn run_with<T>(registry: Arc<Registry>, test: impl AsyncFnOnce(Upstream) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async { test(Upstream::start(registry)).await })
}

fn addresses(result: Result<Reply, UpstreamError>) -> Result<Vec<String>, UpstreamError> {
    let reply = result?;
    Ok(Answer::parse(&reply).expect("an answer").addresses().map(|address| address.to_string()).collect())
}

/// Asks for `www.test` once and expects these addresses.
#[track_caller]
fn yields(server: &Scripted, expected: Result<&[&str], UpstreamError>) {
    let result = run(async |upstream| {
        let result = upstream.resolve(&Route::to(server.address), &query("www.test", false), WITHIN).await;
        assert_eq!(upstream.outstanding(), 0, "nothing is left behind");
        result
    });
    assert_eq!(addresses(result), expected.map(|list| list.iter().map(ToString::to_string).collect()));
}

fn good(asked: &Asked) -> Vec<u8> {
    answer(&asked.octets, &["@ 60 A 192.0.2.1"])
}

fn forged(asked: &Asked) -> Vec<u8> {
    answer(&asked.octets, &["@ 60 A 192.0.2.66"])
}

#[test]
fn an_answer_comes_back() {
    let server = Scripted::start(|asked| vec![Say::Reply(good(asked))]);
    yields(&server, Ok(&["192.0.2.1"]));
    assert_eq!((server.count(false), server.count(true)), (1, 0));
}

#[test]
fn the_last_query_of_a_port_gets_its_answer_too() {
    let server = Scripted::start(|asked| vec![Say::Reply(good(asked))]);
    // Enough that every port is used up at least once, one query at a time.
    let queries = 5 * super::server::QUERIES as usize;
    run(async |upstream| {
        for _ in 0..queries {
            let reply = upstream.resolve(&Route::to(server.address), &query("www.test", false), WITHIN).await;
            assert_eq!(addresses(reply), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    assert_eq!(server.count(false), queries, "none was sent twice");
}

#[test]
fn a_reply_that_differs_in_id_port_or_question_is_ignored() {
    let server = Scripted::start(|asked| {
        vec![
            Say::Reply(with(forged(asked), |octets| octets[1] ^= 1)),
            Say::Reply(with(forged(asked), |octets| octets[0] ^= 0x80)),
            Say::Forge(forged(asked)),
            Say::Reply(with(forged(asked), |octets| octets[13] = b'x')),
            Say::Reply(with(forged(asked), |octets| octets[23] = 28)),
            Say::Reply(with(forged(asked), |octets| octets[25] = 3)),
            Say::Reply(with(forged(asked), |octets| octets[5] = 0)),
            Say::Reply(with(forged(asked), |octets| octets[5] = 2)),
            Say::Reply(with(forged(asked), |octets| octets[2] &= 0x7f)),
            Say::Reply(with(forged(asked), |octets| octets[2] |= 0x10)),
            Say::Reply(Vec::new()),
            Say::Reply(vec![0xff; 9]),
            Say::Reply(forged(asked)[..20].to_vec()),
            Say::Reply(good(asked)),
        ]
    });
    yields(&server, Ok(&["192.0.2.1"]));
    assert_eq!(server.count(false), 1, "none of it made us ask again");
}

#[test]
fn the_case_of_letters_must_come_back() {
    let server = Scripted::start(|asked| match asked.nth {
        0 => vec![Say::Reply(with(forged(asked), |octets| octets[13] ^= 0x20))],
        _ => vec![Say::Reply(good(asked))],
    });
    yields(&server, Ok(&["192.0.2.1"]));
    assert_eq!((server.count(false), server.count(true)), (2, 0), "asked again at once");
}

#[test]
fn a_server_that_does_not_keep_letters_is_asked_over_tcp_from_then_on() {
    let lower = |asked: &Asked| with(good(asked), |octets| octets[12..21].make_ascii_lowercase());
    let upper = move |asked: &Asked| with(lower(asked), |octets| octets[13..16].make_ascii_uppercase());
    let server = Scripted::start(move |asked| match asked.tcp {
        // Never what was sent: the letters are random, so both forms can't be.
        false => vec![Say::Reply(if asked.octets[13..16] == *b"www" { upper(asked) } else { lower(asked) })],
        true => vec![Say::Reply(lower(asked))],
    });
    run(async |upstream| {
        for _ in 0..3 {
            let result = upstream.resolve(&Route::to(server.address), &query("www.test", false), WITHIN).await;
            assert_eq!(addresses(result), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    assert_eq!((server.count(false), server.count(true)), (2, 3));
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    let server = Scripted::start(|asked| match asked.tcp {
        false => vec![Say::Reply(with(forged(asked), |octets| octets[2] |= 2))],
        true => vec![Say::Reply(with(forged(asked), |octets| octets[1] ^= 1)), Say::Reply(good(asked))],
    });
    yields(&server, Ok(&["192.0.2.1"]));
}

#[test]
fn a_lost_datagram_is_sent_again_from_another_port_and_a_late_answer_still_counts() {
    let server = Scripted::start(|asked| match asked.nth {
        0 => Vec::new(),
        _ => vec![Say::Reply(good(asked))],
    });
    yields(&server, Ok(&["192.0.2.1"]));
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_ne!(seen[0].from, seen[1].from);
    assert_eq!(seen[0].octets[2..], seen[1].octets[2..], "the same letters, so that either answer counts");

    let late = Scripted::start(|asked| match asked.nth {
        0 => vec![Say::Wait(WITHIN / 3), Say::Reply(good(asked)), Say::Wait(WITHIN)],
        _ => Vec::new(),
    });
    yields(&late, Ok(&["192.0.2.1"]));
}

#[test]
fn silence_is_a_timeout_after_three_copies() {
    let server = Scripted::start(|_| Vec::new());
    let started = clock::now();
    yields(&server, Err(UpstreamError::Timeout));
    let took = clock::now() - started;
    assert!(took >= WITHIN && took < WITHIN * 2, "{took:?}");
    assert_eq!(server.count(false), 3);
}

#[test]
fn a_closed_port_is_a_timeout_and_not_a_word_to_be_trusted() {
    let server = Scripted::start(|_| Vec::new());
    let free = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket").local_addr().expect("an address");
    let result = run(async |upstream| upstream.resolve(&Route::to(free), &query("www.test", false), WITHIN).await);
    assert_eq!(addresses(result), Err(UpstreamError::Timeout));
    drop(server);
}

#[test]
fn a_server_that_knows_no_edns_is_asked_without() {
    let server = Scripted::start(|asked| match asked.octets[11] {
        1 => vec![Say::Reply(with(answer(&asked.octets, &[]), |octets| octets[3] |= 1))],
        _ => vec![Say::Reply(good(asked))],
    });
    yields(&server, Ok(&["192.0.2.1"]));
    assert_eq!(server.count(false), 2);
}

#[test]
fn the_same_question_goes_up_once_and_all_who_asked_get_the_answer() {
    let server = Scripted::start(|asked| vec![Say::Wait(Duration::from_millis(50)), Say::Reply(good(asked))]);
    run(async |upstream| {
        let tasks: Vec<_> = (0..20)
            .map(|at| {
                let (upstream, address) = (upstream.clone(), server.address);
                spawn_local(
                    async move { upstream.resolve(&Route::to(address), &query("www.test", at >= 10), WITHIN).await },
                )
            })
            .collect();
        for task in tasks {
            assert_eq!(addresses(task.await.expect("no panic")), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    assert_eq!(server.count(false), 2, "one with DO and one without");
}

#[test]
fn who_stops_waiting_takes_the_answer_from_nobody() {
    let server = Scripted::start(|asked| vec![Say::Wait(Duration::from_millis(50)), Say::Reply(good(asked))]);
    run(async |upstream| {
        let address = server.address;
        let first = {
            let upstream = upstream.clone();
            spawn_local(async move { upstream.resolve(&Route::to(address), &query("www.test", false), WITHIN).await })
        };
        tokio::task::yield_now().await;
        let second = {
            let upstream = upstream.clone();
            spawn_local(async move { upstream.resolve(&Route::to(address), &query("www.test", false), WITHIN).await })
        };
        tokio::task::yield_now().await;
        first.abort();
        assert_eq!(addresses(second.await.expect("no panic")), Ok(vec!["192.0.2.1".to_owned()]));
    });
    assert_eq!(server.count(false), 1);
}

#[test]
fn ids_and_ports_are_not_to_be_guessed() {
    let server = Scripted::start(|asked| vec![Say::Reply(good(asked))]);
    run(async |upstream| {
        for at in 0..4_400 {
            let result =
                upstream.resolve(&Route::to(server.address), &query(&format!("n{at}.test"), false), WITHIN).await;
            assert!(result.is_ok());
        }
    });
    let seen = server.seen();
    let ports: BTreeSet<u16> = seen.iter().map(|asked| asked.from.port()).collect();
    assert!(ports.len() >= 7, "sockets are changed after their share: {ports:?}");
    let ids: BTreeSet<&[u8]> = seen.iter().map(|asked| &asked.octets[..2]).collect();
    assert!(ids.len() > 4_100, "{} of 4 400 differ", ids.len());
    let following = seen.windows(2).filter(|pair| {
        let id = |asked: &Asked| u16::from_be_bytes([asked.octets[0], asked.octets[1]]);
        id(&pair[0]).wrapping_add(1) == id(&pair[1])
    });
    assert!(following.count() < 5);
}
