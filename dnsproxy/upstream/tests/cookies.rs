//! DNS cookies (RFC 7873) with servers that do them, don't, or did.

use super::*;

const THEIRS: &[u8] = b"SERVERCK";

/// The cookie in a query: ours and the server's part.
fn cookie_in(query: &[u8]) -> Option<Vec<u8>> {
    let query = with(query.to_vec(), |octets| octets[2] |= 0x80);
    let query = Answer::parse(&query).expect("whole");
    cookie::find(&query).map(|place| cookie::value(&query, &place).to_vec())
}

/// `reply` with an OPT record that holds these options, and this half of the code.
fn with_opt(reply: Vec<u8>, high: u8, options: &[u8]) -> Vec<u8> {
    with(reply, |octets| {
        octets[11] += 1;
        octets.extend([0, 0, 41, 4, 208, high, 0, 0, 0]);
        octets.extend((options.len() as u16).to_be_bytes());
        octets.extend(options);
    })
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// The good answer with our cookie repeated and the server's.
fn with_cookie(asked: &Asked) -> Vec<u8> {
    let mine = cookie_in(&asked.octets).expect("a cookie")[..8].to_vec();
    with_opt(good(asked), 0, &option(10, &[&mine, THEIRS].concat()))
}

async fn asks(upstream: &Upstream, server: &Scripted) -> Reply {
    upstream.resolve(&Route::to(server.address), &query("www.test", false), WITHIN).await.expect("an answer")
}

#[test]
fn a_server_s_cookie_is_sent_back_to_it_and_no_cookie_comes_out() {
    let server = Scripted::start(|asked| vec![Say::Reply(with_cookie(asked))]);
    run(async |upstream| {
        for _ in 0..2 {
            let reply = asks(&upstream, &server).await;
            let answer = Answer::parse(&reply).expect("whole");
            assert!(answer.opt.is_some() && cookie::find(&answer).is_none(), "OPT stays, the cookie does not");
            assert_eq!(answer.addresses().count(), 1);
        }
    });
    let seen: Vec<_> = server.seen().iter().map(|asked| cookie_in(&asked.octets).expect("a cookie")).collect();
    assert_eq!((seen[0].len(), &seen[1][..8], &seen[1][8..]), (8, &seen[0][..], THEIRS));
}

#[test]
fn each_server_gets_a_cookie_of_its_own() {
    let servers = [(); 2].map(|()| Scripted::start(|asked| vec![Say::Reply(with_cookie(asked))]));
    run(async |upstream| {
        for server in &servers {
            asks(&upstream, server).await;
        }
    });
    let [one, other] = servers.map(|server| cookie_in(&server.seen()[0].octets));
    assert_ne!(one, other);
}

#[test]
fn a_reply_with_another_cookie_is_ignored() {
    let server = Scripted::start(|asked| {
        let forged = with_opt(forged(asked), 0, &option(10, b"12345678SERVERCK"));
        vec![Say::Reply(forged), Say::Reply(with_cookie(asked))]
    });
    run(async |upstream| {
        let reply = asks(&upstream, &server).await;
        assert_eq!(addresses(Ok(reply)), Ok(vec!["192.0.2.1".to_owned()]));
    });
    assert_eq!((server.count(false), server.count(true)), (1, 0));
}

#[test]
fn once_a_server_does_cookies_a_reply_without_one_is_checked_over_tcp() {
    let server = Scripted::start(|asked| match (asked.tcp, asked.nth) {
        (false, 0) => vec![Say::Reply(with_cookie(asked))],
        // Whoever it is, it can't know the cookie.
        (false, 1) => vec![Say::Reply(forged(asked))],
        // It has stopped doing cookies: no reason for TCP for ever.
        _ => vec![Say::Reply(good(asked))],
    });
    run(async |upstream| {
        for _ in 0..4 {
            let reply = asks(&upstream, &server).await;
            assert_eq!(addresses(Ok(reply)), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    assert_eq!((server.count(false), server.count(true)), (4, 1));
}

#[test]
fn badcookie_means_again_with_the_cookie_that_came_along_and_then_tcp() {
    let bad = |asked: &Asked| {
        let mine = cookie_in(&asked.octets).expect("a cookie")[..8].to_vec();
        with_opt(with(answer(&asked.octets, &[]), |octets| octets[3] |= 7), 1, &option(10, &[&mine, THEIRS].concat()))
    };
    let once = Scripted::start(move |asked| match cookie_in(&asked.octets).expect("a cookie").len() {
        8 => vec![Say::Reply(bad(asked))],
        _ => vec![Say::Reply(with_cookie(asked))],
    });
    yields(&once, Ok(&["192.0.2.1"]));
    assert_eq!((once.count(false), once.count(true)), (2, 0));
    let always = Scripted::start(move |asked| match asked.tcp {
        false => vec![Say::Reply(bad(asked))],
        true => vec![Say::Reply(good(asked))],
    });
    yields(&always, Ok(&["192.0.2.1"]));
    assert_eq!((always.count(false), always.count(true)), (2, 1));
    assert_eq!(cookie_in(&always.seen()[2].octets), None, "nobody forges on a connection");
}

#[test]
fn a_server_that_calls_a_cookie_malformed_is_asked_without() {
    let server = Scripted::start(|asked| match cookie_in(&asked.octets) {
        Some(_) => vec![Say::Reply(with_opt(with(answer(&asked.octets, &[]), |octets| octets[3] |= 1), 0, &[]))],
        None => vec![Say::Reply(with_opt(good(asked), 0, &[]))],
    });
    run(async |upstream| {
        for _ in 0..3 {
            let reply = asks(&upstream, &server).await;
            assert_eq!(addresses(Ok(reply)), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    assert_eq!(server.count(false), 4, "and remembered");
}
