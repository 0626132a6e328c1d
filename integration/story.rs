//! The demo's story: eleven attempts, each with what must be seen. `make demo` tells it in order, in one world; each
//! attempt is also a test, in worlds of every shape and both families. So each brings about by itself what it stands on.

#![expect(dead_code, reason = "told by the demo, tried by the tests; each uses its part")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::{Reach, Reply, Request, Script};
use crate::lab::world::{Family, Options, PODS};
use crate::lab::{Daemon, Topology, World, clock, snapshot};

const STRIPE: &str = "api.stripe.com";
const GITHUB: &str = "api.github.com";
const RDS: &str = "prod-db.cxyz.us-east-1.rds.amazonaws.com";
const METADATA: &str = "metadata.cxyz.us-east-1.rds.amazonaws.com";
/// The last number of the addresses behind the names.
const STRIPE_AT: u8 = 10;
const GITHUB_AT: u8 = 20;
const RDS_AT: [u8; 2] = [30, 31];

/// The world with namegate in it.
pub struct Stage {
    pub world: World,
    /// None while it is dead.
    pub daemon: Option<Daemon>,
    pub family: Family,
    more: Vec<String>,
}

/// One line of the story.
pub struct Attempt {
    /// For the demo's table.
    pub title: &'static str,
    /// For the test's name.
    pub name: &'static str,
    pub expected: &'static str,
    /// What is seen; equal to `expected` if all is well.
    pub seen: fn(&mut Stage) -> String,
}

/// The story.
pub const ATTEMPTS: [Attempt; 11] = [
    Attempt {
        title: "payment-processor, before any query: stripe's and github's addresses on 443",
        name: "before_any_query_nothing_is_reached",
        expected: "rejected, rejected",
        seen: |stage| {
            let (stripe, github) = (stage.at(STRIPE_AT, 443), stage.at(GITHUB_AT, 443));
            format!("{}, {}", word(stage.world.pay.connect(stripe)), word(stage.world.pay.connect(github)))
        },
    },
    Attempt {
        title: "payment-processor: curl https://api.stripe.com",
        name: "the_first_syn_to_an_allowed_name_passes",
        expected: "works, the first SYN passes",
        seen: |stage| {
            let wire = stage.world.outside.capture("eth0");
            let page = stage.curl("pay", STRIPE);
            if page != "works" {
                return page;
            }
            let to = stage.at(STRIPE_AT, 443);
            match wire
                .wait_for("a SYN to stripe", |frame| is_syn_to(frame, to))
                .iter()
                .filter(|frame| is_syn_to(&frame.octets(), to))
                .count()
            {
                1 => "works, the first SYN passes".into(),
                count => format!("works, {count} SYNs"),
            }
        },
    },
    Attempt {
        title: "payment-processor: stripe's address on port 80",
        name: "another_port_of_a_granted_address_is_refused",
        expected: "rejected",
        seen: |stage| {
            stage.ask_for("pay", STRIPE);
            let to = stage.at(STRIPE_AT, 80);
            word(stage.world.pay.connect(to)).into()
        },
    },
    Attempt {
        title: "payment-processor: connect to the RDS name, port 5432",
        name: "a_name_behind_a_cname_is_reached",
        expected: "works",
        seen: |stage| match stage.ask_for("pay", RDS) {
            Some(address) => word(stage.world.pay.connect(SocketAddr::new(address, 5432))).into(),
            None => "no address".into(),
        },
    },
    Attempt {
        title: "payment-processor: curl https://api.github.com",
        name: "a_name_that_may_be_asked_but_not_reached_is_refused",
        expected: "resolves, connection rejected",
        seen: |stage| {
            let resolved = if stage.ask_for("pay", GITHUB).is_some() { "resolves" } else { "doesn't resolve" };
            format!("{resolved}, connection {}", stage.curl("pay", GITHUB))
        },
    },
    Attempt {
        title: "payment-processor: the name that answers 169.254.169.254",
        name: "a_name_that_answers_a_metadata_address_grants_nothing",
        expected: "no address in the reply, nothing granted",
        seen: |stage| {
            let reply = stage.world.pay.ask(stage.family.kube_dns(), METADATA, stage.family.qtype());
            let address = if reply.rcode == "NOERROR" && reply.addresses.is_empty() {
                "no address in the reply"
            } else {
                "an address"
            };
            let to = stage.family.pick("169.254.169.254", "fd00:ec2::254").parse().expect("an address");
            match stage.world.pay.connect(SocketAddr::new(to, 443)) {
                Reach::Reached => format!("{address}, reached"),
                _ => format!("{address}, nothing granted"),
            }
        },
    },
    Attempt {
        title: "reports: stripe's address, just granted to its neighbour",
        name: "a_grant_is_the_endpoints_own",
        expected: "rejected",
        seen: |stage| {
            stage.ask_for("pay", STRIPE);
            let to = stage.at(STRIPE_AT, 443);
            match stage.world.pay.connect(to) {
                Reach::Reached => word(stage.world.rep.connect(to)).into(),
                other => format!("the neighbour itself: {}", word(other)),
            }
        },
    },
    Attempt {
        title: "reports: asks api.stripe.com",
        name: "a_refused_query_names_the_policy",
        expected: "REFUSED, dig shows payments/reports",
        seen: |stage| {
            let server = stage.family.kube_dns().ip().to_string();
            let (_, said) = stage.world.run_in_pod(
                "rep",
                &["dig", &format!("@{server}"), "+tries=1", "+time=3", STRIPE, stage.family.qtype()],
            );
            let rcode = said.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("no reply");
            let policy = if said.lines().any(|line| line.contains("EDE") && line.contains("payments/reports")) {
                "dig shows payments/reports"
            } else {
                "dig shows no policy"
            };
            format!("{rcode}, {policy}")
        },
    },
    Attempt {
        title: "the RDS name changes its address; the client connects again",
        name: "a_name_that_moves_is_followed",
        expected: "works at both addresses",
        seen: |stage| {
            let mut reached = Vec::new();
            for last in RDS_AT {
                stage.say_rds(last);
                let address = stage.ask_for("pay", RDS);
                if address != Some(stage.family.outside(last)) {
                    return format!("resolves to {address:?}");
                }
                let to = stage.at(last, 5432);
                reached.push(word(stage.world.pay.connect(to)));
            }
            stage.say_rds(RDS_AT[0]);
            if reached == ["works", "works"] { "works at both addresses".into() } else { reached.join(", ") }
        },
    },
    Attempt {
        title: "kill -9 of namegate: open connection, denied connection; restart",
        name: "kill_9_loses_no_connection_and_passes_no_denied_one",
        expected: "goes on, still rejected; DNS back",
        seen: |stage| {
            stage.ask_for("pay", RDS);
            let (open, denied) = (stage.at(RDS_AT[0], 5432), stage.at(GITHUB_AT, 443));
            let connection = match stage.world.pay.open(open) {
                Ok(connection) => connection,
                Err(reach) => return format!("the connection: {}", word(reach)),
            };
            stage.kill();
            let goes_on = |stage: &Stage| {
                if stage.world.pay.exchange(connection) == Reach::Reached { "goes on" } else { "ended" }
            };
            let (alive, refused) = (goes_on(stage), word(stage.world.pay.connect(denied)));
            stage.restart();
            let (still_alive, still_refused) = (goes_on(stage), word(stage.world.pay.connect(denied)));
            if (alive, refused) != (still_alive, still_refused) {
                return format!("{alive}, {refused}; after the restart {still_alive}, {still_refused}");
            }
            let dns = if stage.ask_for("pay", STRIPE).is_some() { "DNS back" } else { "no DNS" };
            format!("{alive}, still {refused}; {dns}")
        },
    },
    Attempt {
        title: "SIGHUP with stripe taken out of the policy",
        name: "a_revoked_connection_ends_within_100_ms",
        expected: "the open connection ends within 100 ms",
        seen: revoke,
    },
];

impl Stage {
    /// A world with the demo's snapshot and namegate ready in it.
    #[track_caller]
    pub fn new(topology: Topology, family: Family, more: &[&str]) -> Stage {
        let world = World::new(Options { topology });
        snapshot::copy_demo(&world.directory.join("snapshot"));
        furnish(&world);
        let daemon = Some(Daemon::start(&world, more));
        Stage { world, daemon, family, more: more.iter().map(|&word| word.to_owned()).collect() }
    }

    /// The same without namegate: what a denied attempt looks like when nobody denies it.
    #[track_caller]
    pub fn unguarded(topology: Topology, family: Family) -> Stage {
        let world = World::new(Options { topology });
        furnish(&world);
        Stage { world, daemon: None, family, more: Vec::new() }
    }

    fn at(&self, last: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.family.outside(last), port)
    }

    /// Resolves a name as a stub would; the first address.
    fn ask_for(&self, pod: &str, name: &str) -> Option<IpAddr> {
        let agent = if pod == "pay" { &self.world.pay } else { &self.world.rep };
        agent.ask(self.family.kube_dns(), name, self.family.qtype()).addresses.first().copied()
    }

    /// Fetches a page by name, through the pod's own resolv.conf.
    fn curl(&self, pod: &str, name: &str) -> String {
        let authority = authority(&self.world, name, self.family == Family::V4);
        let line = [
            "curl",
            self.family.pick("-4", "-6"),
            "--silent",
            "--show-error",
            "--max-time",
            "5",
            "--cacert",
            &authority,
            &format!("https://{name}/"),
        ];
        let (fine, said) = self.world.run_in_pod(pod, &line);
        match (fine, said) {
            (true, page) if page.starts_with("hello from") => "works".into(),
            (false, said) if said.contains("curl: (7)") => "rejected".into(), // could not connect; (28) would be silence
            (_, said) => said.trim().to_owned(),
        }
    }

    fn say_rds(&self, last: u8) {
        for family in [Family::V4, Family::V6] {
            let canonical = "ec2-prod-db.us-east-1.compute.amazonaws.com.";
            let records = vec![
                (String::new(), "CNAME".into(), canonical.to_owned()),
                (canonical.into(), family.qtype().to_owned(), family.outside(last).to_string()),
            ];
            // 0: not kept, so that nobody has to wait until the name moves.
            self.world.outside.say(RDS, family.qtype(), Script { records, ttl: 0, ..Script::default() });
        }
    }

    fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    #[track_caller]
    fn restart(&mut self) {
        let more: Vec<&str> = self.more.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::start(&self.world, &more));
    }

    /// The flow records so far, in one line each for people.
    pub fn flow_lines(&self) -> Vec<String> {
        crate::lab::daemon::flows(&self.world.directory).iter().filter_map(flow_line).collect()
    }
}

/// Names, and what stands behind them.
pub fn furnish(world: &World) {
    let outside = &world.outside;
    let both = |last: u8| [Family::V4.outside(last), Family::V6.outside(last)];
    for (name, last) in [(STRIPE, STRIPE_AT), (GITHUB, GITHUB_AT)] {
        outside.say_addresses(name, &both(last), 300);
        for address in both(last) {
            let authority = authority(world, name, address.is_ipv4());
            outside.done(Request::ServeTls { at: SocketAddr::new(address, 443), names: vec![name.into()], authority });
        }
    }
    let metadata = ["169.254.169.254", "fd00:ec2::254"].map(|address| address.parse().expect("an address"));
    outside.say_addresses(METADATA, &metadata, 60);
    for last in RDS_AT {
        for address in both(last) {
            outside.done(Request::ServeTcp { at: SocketAddr::new(address, 5432) });
        }
    }
    for address in both(STRIPE_AT) {
        for port in [80, 5432] {
            outside.done(Request::ServeTcp { at: SocketAddr::new(address, port) });
        }
    }
    for family in [Family::V4, Family::V6] {
        let records = vec![
            (String::new(), "CNAME".into(), "ec2-prod-db.us-east-1.compute.amazonaws.com.".to_owned()),
            (
                "ec2-prod-db.us-east-1.compute.amazonaws.com.".into(),
                family.qtype().to_owned(),
                family.outside(RDS_AT[0]).to_string(),
            ),
        ];
        outside.say(RDS, family.qtype(), Script { records, ttl: 0, ..Script::default() });
    }
}

/// The file of the authority that signed a server's certificate.
fn authority(world: &World, name: &str, v4: bool) -> String {
    let file = world.directory.join(format!("{name}-{}.pem", if v4 { 4 } else { 6 }));
    file.to_str().expect("a path in UTF-8").to_owned()
}

/// An open connection to stripe's echo port, octets all the time; then stripe goes out of the policy.
fn revoke(stage: &mut Stage) -> String {
    stage.ask_for("pay", STRIPE);
    let to = stage.at(STRIPE_AT, 5432);
    let connection = match stage.world.pay.open(to) {
        Ok(connection) => connection,
        Err(reach) => return format!("the connection: {}", word(reach)),
    };
    let wire = stage.world.outside.capture("eth0");
    let inside = stage.world.pay.capture("eth0");
    let chatter = stage.world.pay.begin(Request::Chatter { connection, every_ms: 2, for_ms: 1500 });
    std::thread::sleep(Duration::from_millis(200));
    let file = stage.world.directory.join("snapshot/payment-processor.yaml");
    let text = std::fs::read_to_string(&file).expect("the snapshot's policy");
    std::fs::write(&file, text.replace("    - matchName: api.stripe.com\n", "")).expect("it can be written");
    let signalled = clock::wall_ns();
    if let Some(daemon) = &stage.daemon {
        daemon.reload();
    }
    let end = match chatter.wait() {
        Reply::Reached { reach: Reach::Reached, .. } => return "the connection goes on".into(),
        Reply::Reached { reach, .. } => reach,
        other => return format!("{other:?}"),
    };
    let pod = stage.family.of(&PODS[0]);
    // Each direction behind the wall: what the pod sent, as the outside sees it; what the outside sent, as the pod does.
    let out = wire.frames();
    let back = inside.frames();
    let out = out.iter().filter(|frame| is_segment(&frame.octets(), pod, to.ip()));
    let back = back.iter().filter(|frame| !frame.outgoing && is_segment(&frame.octets(), to.ip(), pod));
    let times: Vec<u64> = out.chain(back).map(|frame| frame.wall_ns).collect();
    let last = times.iter().copied().max().unwrap_or(0);
    let before = times.iter().any(|&time| time < signalled);
    std::fs::write(&file, text).expect("it can be written");
    match last.saturating_sub(signalled) / 1_000_000 {
        _ if !before => "no frame was captured before the signal".into(),
        late @ 101.. => format!("{end:?}: the last frame came {late} ms after the signal"),
        _ => "the open connection ends within 100 ms".into(),
    }
}

/// How an attempt reads in the table.
fn word(reach: Reach) -> &'static str {
    match reach {
        Reach::Reached => "works",
        Reach::Refused => "rejected",
        Reach::Unreachable => "unreachable",
        Reach::Silent => "silent",
        Reach::Ended => "ended",
    }
}

/// Source, destination, protocol and transport header of an IP frame.
fn parse(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    let address4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?));
    let address6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
    match frame.get(12..14)? {
        [8, 0] => Some((address4(26)?, address4(30)?, frame[23], frame.get(14 + usize::from(frame[14] & 15) * 4..)?)),
        [0x86, 0xdd] => Some((address6(22)?, address6(38)?, frame[20], frame.get(54..)?)),
        _ => None,
    }
}

fn is_syn_to(frame: &[u8], to: SocketAddr) -> bool {
    parse(frame).is_some_and(|(_, destination, protocol, segment)| {
        protocol == 6
            && destination == to.ip()
            && segment.get(2..4) == Some(&to.port().to_be_bytes()[..])
            && segment.get(13).is_some_and(|flags| flags & 0x12 == 2)
    })
}

/// A TCP segment from one address to another on the database's port, resets excepted: those end the connection.
fn is_segment(frame: &[u8], from: IpAddr, to: IpAddr) -> bool {
    let port = 5432u16.to_be_bytes();
    parse(frame).is_some_and(|(source, destination, protocol, segment)| {
        (source, destination, protocol) == (from, to, 6)
            && segment.len() > 13
            && segment[13] & 4 == 0
            && (segment[..2] == port || segment[2..4] == port)
    })
}

/// A flow record for people: who, what, how it ended.
fn flow_line(record: &Value) -> Option<String> {
    let flow = record.get("flow")?;
    let text = |path: &str| flow.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let end = |side: &str| {
        let pod = text(&format!("/{side}/pod_name"));
        if !pod.is_empty() {
            return pod;
        }
        let names = flow.pointer(&format!("/{side}_names/0")).and_then(Value::as_str).map(str::to_owned);
        names.unwrap_or_else(|| text(&format!("/IP/{side}")))
    };
    Some(format!("{:9} {} → {}: {}", text("/verdict"), end("source"), end("destination"), text("/Summary")))
}
