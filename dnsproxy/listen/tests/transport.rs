//! UDP and TCP: who is answered, from where, in which order, within which limits.

use super::*;

fn connect(world: &World) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", world.listeners.port())).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("the option");
    stream
}

pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

pub(super) fn receive(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a length");
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).expect("a message");
    message
}

#[track_caller]
pub(super) fn is_closed(stream: &mut TcpStream) {
    match stream.read(&mut [0; 1]) {
        Ok(0) => {}
        Ok(_) => panic!("octets came"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn strangers_get_no_reply_and_whoever_asks_an_unknown_server_is_refused_and_both_are_counted() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    world.is_ignored(&query("www.test", 1, None), "127.0.0.3", "127.0.0.1");
    assert_eq!((world.seen.last().reason, world.seen.last().endpoint.is_none()), ("no_endpoint", true));
    world.is_ignored(&[0; 40], "127.0.0.3", "127.0.0.1");
    let client = world.client("127.0.0.1", "127.0.0.9");
    client.send(&query("www.test", 1, Some(1232))).expect("sent");
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply");
    let (rcode, addresses, error) = understood(&buffer[..length]);
    assert_eq!((rcode, addresses.len(), error.expect("an extended error").0), (5, 0, 18));
    assert_eq!(world.seen.last().reason, "unknown_resolver");
    assert_eq!((world.seen.count("no_endpoint"), world.server.seen().len()), (2, 0));
}

#[test]
fn both_families_are_served() {
    let world = World::new(Setup::default(), always(&["@ 60 AAAA 2001:db8::1"]));
    let client = world.client("::1", "::1");
    client.send(&query("www.test", 28, None)).expect("sent");
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply from the address that was asked");
    assert_eq!(understood(&buffer[..length]).1, ["2001:db8::1"]);
    assert_eq!(world.kernel.open(1), ["2001:db8::1"]);
}

#[test]
fn many_queries_at_once_are_all_answered() {
    let setup = Setup { workers: 2, ..Setup::default() };
    let world = World::new(setup, |asked| {
        let number: u32 =
            name_in(&asked.octets).trim_start_matches('n').trim_end_matches(".test").parse().expect("a number");
        let address = format!("@ 60 A {}", Ipv4Addr::from(0xc633_6400 + number));
        vec![Say::Reply(answer(&asked.octets, &[&address]))]
    });
    let clients: Vec<UdpSocket> = (0..4).map(|_| world.client("127.0.0.1", "127.0.0.1")).collect();
    for at in 0..400 {
        clients[at % 4].send(&query(&format!("n{at}.test"), 1, None)).expect("sent");
    }
    let mut buffer = [0; 512];
    let mut found = std::collections::BTreeSet::new();
    for at in 0..400 {
        let length = clients[at % 4].recv(&mut buffer).expect("a reply");
        found.extend(understood(&buffer[..length]).1);
    }
    assert_eq!((found.len(), world.kernel.open(1).len()), (400, 400));
}

#[test]
fn flags_of_the_asker_go_up_and_those_of_the_server_come_back() {
    const AD: u8 = 0x20;
    const CD: u8 = 0x10;
    let world = World::new(Setup::default(), |asked| {
        let with_do = asked.octets.windows(2).any(|part| part == [0x80, 0]);
        let reply =
            with(answer(&asked.octets, &["@ 60 A 192.0.2.1"]), |octets| octets[3] |= if with_do { AD } else { 0 });
        vec![Say::Reply(reply)]
    });
    let asks = |name: &str, flags: u8, dnssec_ok: u8| {
        let asked = with(query(name, 1, Some(1232)), |octets| {
            octets[3] |= flags;
            let at = octets.len() - 4;
            octets[at] = dnssec_ok;
        });
        let reply = world.exchange(&asked);
        let up = world.server.seen().last().expect("asked").octets.clone();
        let went = Query::parse(&up).expect("a query");
        assert_eq!((went.flags & 0x30, went.dnssec_ok()), (u16::from(flags), dnssec_ok > 0), "{name}");
        let opt = Answer::parse(&reply).expect("a reply").opt.expect("an OPT record").0;
        (reply[3] & (AD | CD), reply[opt + 7] & 0x80)
    };
    assert_eq!(asks("plain.test", 0, 0), (0, 0));
    assert_eq!(asks("checked.test", AD, 0x80), (AD, 0x80));
    assert_eq!(asks("unchecked.test", CD, 0x80), (AD | CD, 0x80));
    assert_eq!(asks("unchecked.example", CD, 0), (CD, 0));
}

#[test]
fn a_cookie_of_the_asker_is_taken_and_goes_nowhere() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    let asked = with(query("www.test", 1, Some(1232)), |octets| {
        let at = octets.len() - 1;
        octets[at] = 12;
        octets.extend(b"\0\x0a\0\x08monsters");
    });
    let reply = world.exchange(&asked);
    assert_eq!(understood(&reply).1, ["192.0.2.1"]);
    let holds = |octets: &[u8]| octets.windows(8).any(|part| part == b"monsters");
    // Without a secret of ours there is nothing to answer, and RFC 7873 section 5.4 lets us leave it (5.2.1 for the asker).
    assert!(!holds(&reply) && !world.server.seen().iter().any(|asked| holds(&asked.octets)));
}

#[test]
fn each_of_two_resolvers_answers_from_its_own_address() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    let second = Scripted::start(always(&["@ 60 A 192.0.2.2"]));
    let first = Resolver::new(world.server.address, true);
    let guard = Guard::new(Vec::new(), Name::parse("cluster.local").expect("a name"));
    let resolvers = [("127.0.0.1", first), ("127.0.0.9", Resolver::new(second.address, true))]
        .map(|(local, resolver)| (local.parse().expect("an address"), resolver));
    world.directory.store(Arc::new(Directory::new(Settings::default(), guard, [world.served.clone()], resolvers)));
    // As `options rotate` does; a connected socket hears only whom it asked.
    for at in 0..6 {
        let (local, address) = [("127.0.0.1", "192.0.2.1"), ("127.0.0.9", "192.0.2.2")][at % 2];
        let client = world.client("127.0.0.1", local);
        client.send(&query("www.test", 1, None)).expect("sent");
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).expect("a reply from whom was asked");
        assert_eq!(understood(&buffer[..length]).1, [address]);
        let mut stream = TcpStream::connect((local, world.listeners.port())).expect("connected");
        stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
        assert_eq!(understood(&receive(&mut stream)).1, [address]);
    }
    assert_eq!(world.kernel.open(1), ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn the_askers_letters_come_back() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    let asked = with(query("www.test", 1, None), |octets| octets[13] = b'W');
    assert_eq!(
        world.exchange(&asked)[12..],
        [&asked[12..], b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01"].concat()
    );
}

#[test]
fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let world = World::new(Setup::default(), |asked| {
        let records: Vec<String> = (1..=60).map(|last| format!("@ 60 A 192.0.2.{last}")).collect();
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        vec![Say::Reply(answer(&asked.octets, &records))]
    });
    for (edns, cut) in [(None, true), (Some(512), true), (Some(900), true), (Some(1232), false)] {
        let reply = world.exchange(&query("www.test", 1, edns));
        assert_eq!(reply[2] & 2 != 0, cut, "{edns:?}");
        assert_eq!(understood(&reply).1.len(), if cut { 0 } else { 60 });
        if cut {
            assert!(world.kernel.open(1).is_empty(), "what was not handed on grants nothing");
        }
    }
    let mut stream = connect(&world);
    stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
    assert_eq!(understood(&receive(&mut stream)).1.len(), 60);
}

#[test]
fn queries_on_one_connection_are_answered_as_their_answers_come() {
    let world = World::new(Setup::default(), |asked| {
        let reply = answer(&asked.octets, &["@ 60 A 192.0.2.1"]);
        match name_in(&asked.octets).as_str() {
            "slow.test" if asked.nth == 0 => Vec::new(), // the second copy is answered
            _ => vec![Say::Reply(reply)],
        }
    });
    let mut stream = connect(&world);
    let numbered = |name, id: u8| framed(&with(query(name, 1, None), |octets| octets[0] = id));
    let mut all = numbered("slow.test", 1);
    all.extend(numbered("fast.test", 2));
    all.extend(numbered("denied.test", 3));
    // In pieces, as a hostile network might.
    for piece in all.chunks(7) {
        stream.write_all(piece).expect("sent");
        stream.flush().expect("sent");
        thread::sleep(Duration::from_millis(2));
    }
    let order: Vec<u8> = (0..3).map(|_| receive(&mut stream)[0]).collect();
    assert_eq!((order[2], order.len()), (1, 3), "{order:?}");
    assert!(world.seen.last().tcp);
}

#[test]
fn connections_end_when_nothing_comes_or_nonsense_does() {
    let settings = Settings { tcp_idle: Duration::from_millis(200), ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() }, always(&[]));
    let started = clock::now();
    is_closed(&mut connect(&world));
    let mut half = connect(&world);
    half.write_all(&[0, 40, 1, 2, 3]).expect("sent");
    is_closed(&mut half);
    assert!(clock::now() - started < Duration::from_secs(2));
    for nonsense in
        [&[0, 3, 1, 2, 3][..], &[0xff, 0xff, 0, 0], &framed(&with(query("www.test", 1, None), |o| o[2] |= 0x80))]
    {
        let mut stream = connect(&world);
        stream.write_all(nonsense).expect("sent");
        is_closed(&mut stream);
    }
}

#[test]
fn a_workload_has_so_many_connections_and_no_more() {
    let settings = Settings { tcp_connections: 3, tcp_idle: Duration::from_millis(400), ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() }, always(&["@ 60 A 192.0.2.1"]));
    let mut asked: Vec<TcpStream> = (0..3).map(|_| connect(&world)).collect();
    for stream in &mut asked {
        stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
        assert_eq!(understood(&receive(stream)).1, ["192.0.2.1"]);
    }
    is_closed(&mut connect(&world));
    assert_eq!(world.seen.count("tcp_connections"), 1);
    drop(asked);
    thread::sleep(Duration::from_millis(100));
    let mut stream = connect(&world);
    stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
    receive(&mut stream);
}

#[test]
fn a_stranger_has_no_connection() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 3], 0)).into()).expect("bound");
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], world.listeners.port())).into()).expect("connected");
    is_closed(&mut socket.into());
    assert_eq!(world.seen.count("no_endpoint"), 1);
}

#[test]
fn queries_of_one_workload_under_way_are_limited() {
    let settings =
        Settings { queries_in_flight: 2, upstream_timeout: Duration::from_millis(400), ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() }, |_| Vec::new());
    let client = world.client("127.0.0.1", "127.0.0.1");
    for at in 0..3 {
        client.send(&query(&format!("n{at}.test"), 1, Some(1232))).expect("sent");
    }
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply");
    let (rcode, _, error) = understood(&buffer[..length]);
    assert_eq!((rcode, world.seen.count("queries_in_flight")), (2, 1), "{error:?}");
    for _ in 0..2 {
        client.recv(&mut buffer).expect("a reply");
    }
    client.send(&query("n4.test", 1, None)).expect("sent");
    client.recv(&mut buffer).expect("a reply");
    assert_eq!((world.seen.count("queries_in_flight"), world.seen.count("timeout")), (1, 3));
}

#[test]
fn a_workload_that_asks_too_often_is_refused_and_its_neighbour_is_not() {
    let settings = Settings { queries_per_second: 5, ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() }, always(&["@ 60 A 192.0.2.1"]));
    for _ in 0..5 {
        world.resolves("www.test", &["192.0.2.1"]);
    }
    world.fails("www.test", 5, 0, "too many queries of this workload in this second");
    // What can't be read counts too, and is not worth a reply then.
    world.is_ignored(&with(query("www.test", 1, None), |octets| octets[5] = 2), "127.0.0.1", "127.0.0.1");
    let record = world.seen.last();
    assert_eq!((record.outcome, record.reason, world.seen.count("rate")), (Outcome::Malformed, "rate", 2));
    let neighbour = world.client("127.0.0.2", "127.0.0.1");
    neighbour.send(&query("www.test", 1, None)).expect("sent");
    let mut buffer = [0; 512];
    let length = neighbour.recv(&mut buffer).expect("a reply");
    assert_eq!(understood(&buffer[..length]).1, ["192.0.2.1"]);
    thread::sleep(Duration::from_millis(450));
    world.resolves("www.test", &["192.0.2.1"]);
}

#[test]
fn settings_and_endpoints_are_replaced_while_serving() {
    let world = World::new(Setup::default(), always(&["@ 60 A 192.0.2.1"]));
    world.resolves("www.test", &["192.0.2.1"]);
    let guard = Guard::new(Vec::new(), Name::parse("cluster.local").expect("a name"));
    world.directory.store(Arc::new(Directory::new(Settings::default(), guard, [], [])));
    world.is_ignored(&query("www.test", 1, None), "127.0.0.1", "127.0.0.1");
}

#[test]
fn a_stop_answers_what_is_under_way() {
    let world = World::new(Setup::default(), |asked| {
        vec![Say::Wait(Duration::from_millis(300)), Say::Reply(answer(&asked.octets, &["@ 60 A 192.0.2.1"]))]
    });
    let client = world.client("127.0.0.1", "127.0.0.1");
    client.send(&query("www.test", 1, None)).expect("sent");
    thread::sleep(Duration::from_millis(100));
    let World { listeners, server, .. } = world;
    listeners.stop(DRAIN);
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply");
    assert_eq!(understood(&buffer[..length]).1, ["192.0.2.1"]);
    drop(server);
}

#[test]
fn a_second_namegate_does_not_share_the_port() {
    let world = World::new(Setup::default(), always(&[]));
    let options = Options { port: world.listeners.port(), workers: 1, ..Options::default() };
    let error = start(&options, world.proxy.clone()).err().expect("in use");
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
}
