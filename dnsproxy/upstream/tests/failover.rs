//! Several servers.

use super::*;

/// What is asked of `servers`, in this order.
fn among(servers: &[&Scripted]) -> Route {
    let addresses: Vec<ServerAddress> = servers.iter().map(|server| ServerAddress::plain(server.address)).collect();
    Route::among(&addresses).expect("servers")
}

fn silent() -> Scripted {
    Scripted::start(|_| Vec::new())
}

fn answering() -> Scripted {
    Scripted::start(|asked| vec![Say::Reply(good(asked))])
}

fn saying(rcode: u8) -> Scripted {
    Scripted::start(move |asked| vec![Say::Reply(with(answer(&asked.octets, &[]), |octets| octets[3] |= rcode))])
}

fn health(registry: &Registry, server: &Scripted) -> ServerHealth {
    let shown = server.address.to_string();
    registry.snapshot().into_iter().find(|health| health.server == shown).expect("a server that was asked")
}

/// Asks `count` different names, one after the other; how long each took and what came.
async fn ask(upstream: &Upstream, route: &Route, count: usize) -> Vec<(Duration, Result<Reply, UpstreamError>)> {
    let mut results = Vec::new();
    for at in 0..count {
        let started = clock::now();
        let result = upstream.resolve(route, &query(&format!("n{at}.test"), false), WITHIN * 2).await;
        results.push((clock::now() - started, result));
    }
    results
}

#[track_caller]
fn all_good(results: &[(Duration, Result<Reply, UpstreamError>)], within: Duration) {
    for (took, result) in results {
        assert_eq!(addresses(result.clone()), Ok(vec!["192.0.2.1".to_owned()]));
        assert!(*took < within, "{took:?}");
    }
}

#[test]
fn a_dead_server_costs_a_few_queries_a_wait_and_then_nothing() {
    let (dead, alive) = (silent(), answering());
    let route = among(&[&dead, &alive]);
    let registry = Arc::<Registry>::default();
    run_with(registry.clone(), async |upstream| {
        // The first waits for the dead one; the server that has answered is preferred from then on.
        all_good(&ask(&upstream, &route, 1).await, WITHIN);
        all_good(&ask(&upstream, &route, 50).await, WITHIN / 8);
    });
    assert!(dead.count(false) <= 2, "{}", dead.count(false));
    let (dead, alive) = (health(&registry, &dead), health(&registry, &alive));
    assert_eq!((dead.answers, dead.srtt_us, dead.transport.as_str()), (0, None, "plain"));
    assert!(dead.timeouts >= 1 && dead.unanswered == dead.timeouts as u32, "{dead:?}");
    assert_eq!((alive.queries, alive.answers, alive.timeouts, alive.held_ms), (51, 51, 0, None));
    assert!(alive.srtt_us.is_some());
}

#[test]
fn a_server_that_dies_is_held_down_and_comes_back_when_a_probe_is_answered() {
    let works = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = works.clone();
    let server = Scripted::start(move |asked| match flag.load(std::sync::atomic::Ordering::Relaxed) {
        true => vec![Say::Reply(good(asked))],
        false => Vec::new(),
    });
    // The other one is so slow that the first is asked again until it is held down.
    let other = Scripted::start(|asked| vec![Say::Wait(Duration::from_millis(60)), Say::Reply(good(asked))]);
    let route = among(&[&server, &other]);
    let registry = Arc::<Registry>::default();
    run_with(registry.clone(), async |upstream| {
        all_good(&ask(&upstream, &route, 5).await, WITHIN / 2);
        works.store(false, std::sync::atomic::Ordering::Relaxed);
        all_good(&ask(&upstream, &route, 6).await, WITHIN);
        let held = health(&registry, &server);
        assert!(held.held_ms.is_some_and(|ms| ms <= 1_000), "{held:?}");
        let before = server.count(false);
        all_good(&ask(&upstream, &route, 4).await, WITHIN / 4);
        assert_eq!(server.count(false), before, "it is left alone");

        tokio::time::sleep(Duration::from_millis(1_050)).await;
        all_good(&ask(&upstream, &route, 4).await, WITHIN / 4);
        assert_eq!(server.count(false), before + 1, "one probe, beside the good server, and nobody waits for it");
        // Still dead: its time is doubled.
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        all_good(&ask(&upstream, &route, 2).await, WITHIN / 4);
        assert_eq!(server.count(false), before + 1);

        works.store(true, std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        all_good(&ask(&upstream, &route, 1).await, WITHIN / 4);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(health(&registry, &server).held_ms, None, "the probe was answered");
    });
}

#[test]
fn servers_that_are_all_held_down_are_asked_all_the_same() {
    let works = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let server = |works: Arc<std::sync::atomic::AtomicBool>| {
        Scripted::start(move |asked| match works.load(std::sync::atomic::Ordering::Relaxed) {
            true => vec![Say::Reply(good(asked))],
            false => Vec::new(),
        })
    };
    let (one, other) = (server(works.clone()), server(works.clone()));
    let route = among(&[&one, &other]);
    let registry = Arc::<Registry>::default();
    run_with(registry.clone(), async |upstream| {
        for (_, result) in ask(&upstream, &route, 3).await {
            assert_eq!(addresses(result), Err(UpstreamError::Timeout));
        }
        assert!([&one, &other].iter().all(|server| health(&registry, server).held_ms.is_some()));
        works.store(true, std::sync::atomic::Ordering::Relaxed);
        all_good(&ask(&upstream, &route, 5).await, WITHIN / 8);
    });
}

#[test]
fn a_slow_server_is_overtaken_and_its_late_answer_tells_how_slow_it_is() {
    let slow = Scripted::start(|asked| vec![Say::Wait(WITHIN * 3 / 4), Say::Reply(forged(asked))]);
    let fast = answering();
    let registry = Arc::<Registry>::default();
    run_with(registry.clone(), async |upstream| {
        all_good(&ask(&upstream, &among(&[&slow, &fast]), 1).await, WITHIN * 3 / 4);
        tokio::time::sleep(WITHIN).await;
    });
    let slow = health(&registry, &slow);
    assert!(slow.srtt_us.is_some_and(|srtt| srtt >= 600_000), "{slow:?}");
    assert_eq!((slow.answers, slow.unanswered), (1, 0), "it lives");
}

#[test]
fn a_lying_server_is_not_believed_and_the_other_one_is_asked() {
    let liar = Scripted::start(|asked| {
        vec![
            Say::Reply(with(forged(asked), |octets| octets[1] ^= 1)),
            Say::Reply(with(forged(asked), |octets| octets[13] = b'x')),
            Say::Forge(forged(asked)),
        ]
    });
    let honest = answering();
    run(async |upstream| all_good(&ask(&upstream, &among(&[&liar, &honest]), 5).await, WITHIN));
    assert!(liar.count(false) >= 1);
}

#[test]
fn an_answer_of_servfail_refused_or_notimp_is_bettered_by_another_server_at_once() {
    for rcode in [2, 4, 5] {
        let (bad, honest) = (saying(rcode), answering());
        run(async |upstream| all_good(&ask(&upstream, &among(&[&bad, &honest]), 5).await, WITHIN / 8));
        assert!(bad.count(false) >= 1, "it was asked first");
    }
}

#[test]
fn when_nobody_has_a_better_answer_servfail_goes_back_before_refused() {
    let gives = |servers: &[&Scripted], rcode: u16, within: Duration| {
        let route = among(servers);
        run(async |upstream| {
            let (took, result) = ask(&upstream, &route, 1).await.remove(0);
            let reply = result.expect("an answer");
            assert_eq!(Answer::parse(&reply).expect("whole").rcode(), rcode);
            assert!(took < within, "{took:?}");
        });
    };
    let (refusing, failing) = (saying(5), saying(2));
    gives(&[&refusing, &failing], 2, WITHIN / 8);
    gives(&[&failing, &refusing], 2, WITHIN / 8);
    gives(&[&refusing], 5, WITHIN / 8);
    // A silent one beside it gets its time, and not more.
    gives(&[&failing, &silent()], 2, WITHIN * 2);
    // NXDOMAIN is an answer.
    let nxdomain = saying(3);
    gives(&[&nxdomain, &answering()], 3, WITHIN / 8);
}

#[test]
fn each_further_copy_goes_to_another_server() {
    let dead = [silent(), silent(), silent()];
    let servers: Vec<&Scripted> = dead.iter().collect();
    run(async |upstream| {
        let (_, result) = ask(&upstream, &among(&servers), 1).await.remove(0);
        assert_eq!(addresses(result), Err(UpstreamError::Timeout));
    });
    let counts: Vec<usize> = dead.iter().map(|server| server.count(false)).collect();
    assert!(counts.iter().all(|count| (1..=2).contains(count)), "{counts:?}");
    assert!(counts.iter().sum::<usize>() >= 4, "{counts:?}");
}

#[test]
fn a_server_that_can_t_be_reached_is_skipped_at_once_and_all_unreachable_is_a_network_error() {
    let nowhere = |host| ServerAddress::plain(([255, 255, 255, 255], host).into());
    let alive = answering();
    let route = Route::among(&[nowhere(53), ServerAddress::plain(alive.address)]).expect("servers");
    run(async |upstream| all_good(&ask(&upstream, &route, 3).await, WITHIN / 8));
    let route = Route::among(&[nowhere(53), nowhere(54)]).expect("servers");
    run(async |upstream| {
        let (took, result) = ask(&upstream, &route, 1).await.remove(0);
        assert!(matches!(result, Err(UpstreamError::Network(_))), "{result:?}");
        assert!(took < WITHIN / 8, "{took:?}");
    });
}

#[test]
fn a_server_that_knows_no_edns_is_no_reason_to_ask_the_other_one_without() {
    let old = Scripted::start(|asked| match asked.octets[11] {
        1 => vec![Say::Reply(with(answer(&asked.octets, &[]), |octets| octets[3] |= 1))],
        _ => vec![Say::Reply(with(answer(&asked.octets, &[]), |octets| octets[3] |= 2))],
    });
    let new = answering();
    run(async |upstream| all_good(&ask(&upstream, &among(&[&old, &new]), 1).await, WITHIN / 8));
    assert_eq!(new.seen()[0].octets[11], 1);
}

#[test]
fn the_quicker_server_gets_the_queries_and_the_other_one_is_tried() {
    let slow = Scripted::start(|asked| vec![Say::Wait(Duration::from_millis(15)), Say::Reply(good(asked))]);
    let fast = answering();
    run(async |upstream| all_good(&ask(&upstream, &among(&[&slow, &fast]), 100).await, WITHIN / 4));
    assert!((1..20).contains(&slow.count(false)), "{}", slow.count(false));
    assert!(fast.count(false) > 80);
}
