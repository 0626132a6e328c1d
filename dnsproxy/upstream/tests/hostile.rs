//! Servers that misbehave, and networks that do.

use super::*;

#[test]
fn a_reply_after_the_deadline_is_nobody_s_and_does_no_harm() {
    let server = Scripted::start(|asked| match asked.nth {
        0..3 => vec![Say::Wait(WITHIN / 2), Say::Reply(forged(asked))],
        _ => vec![Say::Reply(good(asked))],
    });
    run(async |upstream| {
        let route = Route::to(server.address);
        let first = upstream.resolve(&route, &query("www.test", false), WITHIN / 4).await;
        assert_eq!(addresses(first), Err(UpstreamError::Timeout));
        let second = upstream.resolve(&route, &query("www.test", false), WITHIN * 4).await;
        assert_eq!(addresses(second), Ok(vec!["192.0.2.1".to_owned()]), "not what came for the first");
        assert_eq!(upstream.outstanding(), 0);
    });
}

#[test]
fn the_second_of_two_replies_is_nobody_s() {
    let server = Scripted::start(|asked| vec![Say::Reply(good(asked)), Say::Reply(forged(asked))]);
    run(async |upstream| {
        for _ in 0..5 {
            let reply = upstream.resolve(&Route::to(server.address), &query("www.test", false), WITHIN).await;
            assert_eq!(addresses(reply), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    assert_eq!(server.count(false), 5);
}

#[test]
fn a_malformed_reply_is_outdone_by_a_good_one_and_goes_on_when_there_is_none() {
    let broken = |asked: &Asked| with(good(asked), |octets| octets[7] = 9);
    let first = Scripted::start(move |asked| match asked.tcp {
        false => vec![Say::Reply(broken(asked)), Say::Reply(good(asked))],
        true => vec![Say::Wait(WITHIN / 4), Say::Reply(forged(asked))],
    });
    yields(&first, Ok(&["192.0.2.1"]));
    let over_tcp = Scripted::start(move |asked| match asked.tcp {
        false => vec![Say::Reply(broken(asked))],
        true => vec![Say::Reply(good(asked))],
    });
    yields(&over_tcp, Ok(&["192.0.2.1"]));
    let always = Scripted::start(move |asked| vec![Say::Reply(broken(asked))]);
    let reply = run(async |upstream| {
        upstream.resolve(&Route::to(always.address), &query("www.test", false), WITHIN).await.expect("what there is")
    });
    assert!(Answer::parse(&reply).is_err(), "the engine says what is wrong with it");
}

#[test]
fn an_answer_that_is_truncated_over_tcp_as_well_is_none() {
    let server = Scripted::start(|asked| vec![Say::Reply(with(forged(asked), |octets| octets[2] |= 2))]);
    yields(&server, Err(UpstreamError::Truncated));
}

/// Says TC over UDP, and this over TCP.
fn only_over_tcp(over_tcp: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |asked| match asked.tcp {
        false => vec![Say::Reply(with(answer(&asked.octets, &[]), |octets| octets[2] |= 2))],
        true => over_tcp(asked),
    })
}

fn framed(reply: &[u8]) -> Vec<u8> {
    [&(reply.len() as u16).to_be_bytes()[..], reply].concat()
}

#[test]
fn a_message_of_64_kib_comes_through_over_tcp() {
    let server = only_over_tcp(|asked| {
        let long = with(good(asked), |octets| {
            // One more record, of an unknown type, fills it up.
            octets[7] += 1;
            let rest = 65_535 - octets.len() - 12;
            octets.extend(b"\xc0\x0c\xff\x01\0\x01\0\0\0\x3c");
            octets.extend((rest as u16).to_be_bytes());
            octets.resize(65_535, 0xaa);
        });
        vec![Say::Reply(long)]
    });
    let reply = run(async |upstream| {
        upstream.resolve(&Route::to(server.address), &query("www.test", false), WITHIN).await.expect("an answer")
    });
    assert_eq!(reply.len(), 65_535);
    assert_eq!(addresses(Ok(reply)), Ok(vec!["192.0.2.1".to_owned()]));
}

#[test]
fn an_answer_that_comes_octet_by_octet_over_tcp_is_put_together() {
    let server = only_over_tcp(|asked| {
        let piece = |octet: u8| [Say::Octets(vec![octet]), Say::Wait(Duration::from_millis(2))];
        framed(&good(asked)).into_iter().flat_map(piece).collect()
    });
    yields(&server, Ok(&["192.0.2.1"]));
}

#[test]
fn an_answer_that_stops_half_way_over_tcp_is_a_timeout() {
    let server = only_over_tcp(|asked| vec![Say::Octets(framed(&good(asked))[..20].to_vec())]);
    yields(&server, Err(UpstreamError::Timeout));
}

#[test]
fn other_messages_on_the_connection_are_passed_over() {
    let server = only_over_tcp(|asked| {
        vec![
            Say::Octets(framed(b"")),
            Say::Octets(framed(&[0xff; 7])),
            Say::Reply(with(forged(asked), |octets| octets[0] ^= 1)),
            Say::Reply(with(forged(asked), |octets| octets[13] = b'x')),
            Say::Reply(with(forged(asked), |octets| octets[23] = 28)),
            Say::Reply(good(asked)),
        ]
    });
    yields(&server, Ok(&["192.0.2.1"]));
}

#[test]
fn a_connection_that_is_closed_without_an_answer_is_an_error() {
    yields(&only_over_tcp(|_| vec![Say::Close]), Err(UpstreamError::Network(io::ErrorKind::UnexpectedEof)));
    yields(&only_over_tcp(|_| vec![Say::Reset]), Err(UpstreamError::Network(io::ErrorKind::ConnectionReset)));
    let half = only_over_tcp(|asked| vec![Say::Octets(framed(&good(asked))[..20].to_vec()), Say::Reset]);
    yields(&half, Err(UpstreamError::Network(io::ErrorKind::ConnectionReset)));
}

#[test]
fn a_connection_is_used_again_and_opened_again_when_the_server_closes_it() {
    let server = only_over_tcp(|asked| match asked.nth {
        // The third query is on its way while the server closes.
        2 => vec![Say::Close],
        _ => vec![Say::Reply(good(asked))],
    });
    run(async |upstream| {
        for _ in 0..4 {
            let reply = upstream.resolve(&Route::to(server.address), &query("www.test", false), WITHIN).await;
            assert_eq!(addresses(reply), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    let connections: Vec<usize> =
        server.seen().iter().filter(|asked| asked.tcp).map(|asked| asked.connection).collect();
    assert_eq!(connections, [1, 1, 1, 2, 2], "the third was asked again");
}

#[test]
fn queries_over_tcp_do_not_wait_for_each_other() {
    let server = only_over_tcp(|asked| vec![Say::Wait(Duration::from_millis(60)), Say::Reply(good(asked))]);
    run(async |upstream| {
        let tasks: Vec<_> = (0..20)
            .map(|at| {
                let (upstream, route) = (upstream.clone(), Route::to(server.address));
                let query = query(&format!("n{at}.test"), false);
                spawn_local(async move { upstream.resolve(&route, &query, WITHIN).await })
            })
            .collect();
        for task in tasks {
            assert_eq!(addresses(task.await.expect("no panic")), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    assert_eq!(server.count(true), 20);
}

#[test]
fn a_server_that_can_t_be_reached_is_a_network_error_at_once() {
    // Nobody may send to a broadcast address unasked: the kernel refuses, as it does where there is no route.
    let started = clock::now();
    let result = run(async |upstream| {
        let nowhere = Route::to(([255, 255, 255, 255], 53).into());
        upstream.resolve(&nowhere, &query("www.test", false), WITHIN).await
    });
    assert!(matches!(result, Err(UpstreamError::Network(_))), "{result:?}");
    assert!(clock::now() - started < WITHIN / 4);
}

#[test]
fn what_is_asked_in_one_turn_leaves_from_one_port_and_the_next_turn_from_another() {
    let server = Scripted::start(|asked| vec![Say::Reply(good(asked))]);
    run(async |upstream| {
        for turn in 0..4 {
            let tasks: Vec<_> = (0..100)
                .map(|at| {
                    let (upstream, route) = (upstream.clone(), Route::to(server.address));
                    let query = query(&format!("n{at}.t{turn}.test"), false);
                    spawn_local(async move { upstream.resolve(&route, &query, WITHIN).await })
                })
                .collect();
            for task in tasks {
                assert!(task.await.expect("no panic").is_ok());
            }
        }
    });
    let seen = server.seen();
    assert_eq!(seen.len(), 400, "none was lost");
    let ports = |some: &[Asked]| some.iter().map(|asked| asked.from.port()).collect::<BTreeSet<u16>>().len();
    let of_a_turn: Vec<usize> = seen.chunks(100).map(ports).collect();
    assert_eq!((of_a_turn, ports(&seen)), (vec![1; 4], 4));
}
