//! Scenario files: what happens when, a line each, against the whole daemon in a world of its own.
//!
//! ```text
//! # comment
//! world routed ipv4                 routed | proxy_arp | bridged, ipv4 | ipv6; this is what it is unless said
//! set dns.min_ttl=1s                a setting, as for --set; before the first `at`
//! policy payment-processor          the egress rules of pod-a (reports: of pod-b) beside "may ask kube-dns anything",
//!   - toFQDNs: …                    indented; later: a new version of it, reloaded
//! server 203.0.113.10:443           something answers there (TCP and UDP)
//!
//! at 0s  pod-a asks api.example.net A  upstream says 203.0.113.10 ttl 1  reply NOERROR 203.0.113.10
//! at 0s  pod-a reaches 203.0.113.10:443
//! at 4s  pod-a is stopped at 203.0.113.10:443: expired
//! ```
//!
//! Two or more blanks part the clauses of a line. Times count from the moment that namegate is ready; a line that begins
//! with blanks and no `at` follows the one before at once.
//!
//! | clause | meaning |
//! | --- | --- |
//! | `POD asks NAME TYPE [over tcp] [without edns]` | of kube-dns; the clauses after it say how it is answered |
//! | `POD sends the message HEX` | these octets, over UDP to kube-dns |
//! | `upstream says R, R… [ttl N]` | R is an address or `owner TYPE data`, or one rcode; without it the name server says what it said before |
//! | `upstream is silent` | |
//! | `upstream forges WHAT ADDRESS` | before it answers: number, question, case, port, address, header |
//! | `reply RCODE [ADDRESS…] [error N]` | exactly these addresses; `error N`: extended DNS error N is in it |
//! | `no reply` | within 1.5 s |
//! | `POD asks COUNT names below NAME TYPE` | n1, n2, …: each gets its own address 198.19.0.N; `reply` holds for all |
//! | `POD reaches ADDRESS:PORT` | a TCP connection |
//! | `POD is stopped at ADDRESS:PORT[: reason]` | refused at once; with a reason: a flow record says so |
//! | `POD opens ADDRESS:PORT as NAME`, `NAME goes on`, `NAME ends` | a kept connection, an octet there and back |
//! | `outside reaches POD:PORT`, `outside is stopped at POD:PORT` | inbound |
//! | `POD pretends to be POD towards ADDRESS:PORT` | a SYN with the other's source address is not seen outside |
//! | `namegate is killed`, `namegate ends`, `namegate starts` | kill -9, SIGTERM |

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::agent::client::Agent;
use crate::lab::agent::{Answered, Forgery, Question, Reach, Reply, Request, Script};
use crate::lab::world::{Family, NODE_MAC, Options, PODS};
use crate::lab::{Daemon, Topology, World, clock, frame, snapshot};

/// A test for each file below `integration/scenarios`.
pub fn trials() -> Vec<Trial> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/scenarios");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(&root).expect("it is below").with_extension("");
            let name = format!("scenario::{}", name.display().to_string().replace('/', "::"));
            Trial::test(name, move || play(&file).map_err(Into::into))
        })
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "scn") {
            files.push(path);
        }
    }
    files.sort();
}

/// Plays a file; an error names its line.
fn play(file: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let lines = lines_of(&text);
    let start = lines.iter().position(|line| line.text.starts_with("at ")).unwrap_or(lines.len());
    let mut stage = Stage::build(&lines[..start])?;
    let started = clock::now();
    for line in &lines[start..] {
        let place = |error: String| format!("{}:{}: {}\n    {error}", file.display(), line.number, line.text.trim());
        let mut clauses = line.text.trim().split("  ").map(str::trim).filter(|clause| !clause.is_empty()).peekable();
        if let Some(time) = clauses.next_if(|clause| clause.starts_with("at ")) {
            let at = seconds(&time[3..]).map_err(place)?;
            std::thread::sleep(at.saturating_sub(started.elapsed()));
        }
        let clauses: Vec<&str> = clauses.collect();
        stage.perform(&clauses, &line.block).map_err(place)?;
    }
    Ok(())
}

/// A line with the more indented ones below a `policy` line.
struct Line {
    number: usize,
    text: String,
    block: String,
}

fn lines_of(text: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let text = text.split(" # ").next().unwrap_or_default().trim_end();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match lines.last_mut() {
            Some(last) if text.starts_with("  ") && last.text.contains("policy ") => {
                last.block.push_str(text);
                last.block.push('\n');
            }
            _ => lines.push(Line { number: index + 1, text: text.to_owned(), block: String::new() }),
        }
    }
    lines
}

struct Stage {
    world: World,
    family: Family,
    daemon: Option<Daemon>,
    settings: Vec<String>,
    policies: HashMap<String, String>,
    kept: HashMap<String, u32>,
    /// How many flow records had been seen before the current line.
    flows_before: usize,
}

impl Stage {
    /// Reads the lines before the first `at`, builds the world and starts namegate in it.
    fn build(lines: &[Line]) -> Result<Stage, String> {
        let (mut topology, mut family) = (Topology::Routed, Family::V4);
        let (mut settings, mut policies, mut servers) = (Vec::new(), HashMap::new(), Vec::new());
        for line in lines {
            let words: Vec<&str> = line.text.split_whitespace().collect();
            match words.as_slice() {
                ["world", choices @ ..] => {
                    for choice in choices {
                        match *choice {
                            "routed" => topology = Topology::Routed,
                            "proxy_arp" => topology = Topology::ProxyArp,
                            "bridged" => topology = Topology::Bridged,
                            "ipv4" => family = Family::V4,
                            "ipv6" => family = Family::V6,
                            other => return Err(format!("line {}: no such world: {other}", line.number)),
                        }
                    }
                }
                ["set", setting] => settings.extend(["--set".to_owned(), (*setting).to_owned()]),
                ["policy", app] => drop(policies.insert((*app).to_owned(), line.block.clone())),
                ["server", at] => servers.push(at.parse().map_err(|_| format!("line {}: not an address: {at}", line.number))?),
                _ => return Err(format!("line {}: not understood: {}", line.number, line.text)),
            }
        }
        let world = World::new(Options { topology });
        snapshot::with_policy(&world.directory.join("snapshot"), "");
        for at in servers {
            world.outside.done(Request::ServeTcp { at });
            world.outside.done(Request::ServeUdp { at });
        }
        for (pod, family) in [(&world.pay, Family::V4), (&world.rep, Family::V4), (&world.pay, Family::V6), (&world.rep, Family::V6)] {
            pod.done(Request::ServeTcp { at: SocketAddr::new(family.pick("0.0.0.0", "::").parse().expect("an address"), 8080) });
        }
        let mut stage = Stage { world, family, daemon: None, settings, policies, kept: HashMap::new(), flows_before: 0 };
        stage.write_policies();
        stage.start();
        Ok(stage)
    }

    fn start(&mut self) {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::start(&self.world, &settings));
    }

    fn write_policies(&self) {
        let mut apps: Vec<_> = self.policies.iter().collect();
        apps.sort();
        let text: String = apps.into_iter().map(|(app, rules)| snapshot::policy(app, rules)).collect();
        snapshot::replace(&self.world.directory.join("snapshot/policy.yaml"), &text);
    }

    /// All clauses of one line.
    fn perform(&mut self, clauses: &[&str], block: &str) -> Result<(), String> {
        self.flows_before = self.daemon.as_ref().map_or(0, |daemon| daemon.flows().len());
        let mut rest = clauses;
        while let [first, others @ ..] = rest {
            let belongs = others.iter().take_while(|clause| is_part_of_question(clause)).count();
            if is_question(first) {
                self.question(first, &others[..belongs])?;
                rest = &others[belongs..];
            } else {
                self.act(first, block)?;
                rest = others;
            }
        }
        Ok(())
    }

    fn act(&mut self, clause: &str, block: &str) -> Result<(), String> {
        let words: Vec<&str> = clause.split_whitespace().collect();
        match words.as_slice() {
            ["policy", app] => {
                self.policies.insert((*app).to_owned(), block.to_owned());
                self.write_policies();
                if let Some(daemon) = &self.daemon {
                    daemon.reload();
                    std::thread::sleep(Duration::from_millis(100)); // what a reload may take
                }
                Ok(())
            }
            ["namegate", "is", "killed"] => self.daemon.take().map(Daemon::kill).ok_or_else(|| "it does not run".into()),
            ["namegate", "ends"] => match self.daemon.take().map(Daemon::terminate) {
                Some(status) if status.success() => Ok(()),
                other => Err(format!("{other:?}")),
            },
            ["namegate", "starts"] => {
                self.start();
                Ok(())
            }
            ["outside", "reaches", to] => expect(Reach::Reached, self.world.outside.connect(self.inbound(to)?)),
            ["outside", "is", "stopped", "at", to] => {
                refuse(self.world.outside.connect(self.inbound(to)?))
            }
            [pod, "reaches", to] => expect(Reach::Reached, self.agent(pod)?.connect(address(to)?)),
            [pod, "is", "stopped", "at", to] => refuse(self.agent(pod)?.connect(address(to)?)),
            [pod, "is", "stopped", "at", to, reason] => {
                refuse(self.agent(pod)?.connect(address(to.trim_end_matches(':'))?))?;
                self.explained(reason)
            }
            [pod, "opens", to, "as", name] => match self.agent(pod)?.open(address(to)?) {
                Ok(connection) => {
                    self.kept.insert((*name).to_owned(), connection);
                    Ok(())
                }
                Err(reach) => Err(format!("seen: {reach:?}")),
            },
            [name, "goes", "on"] => expect(Reach::Reached, self.world.pay.exchange(self.kept(name)?)),
            [name, "ends"] => expect(Reach::Ended, self.world.pay.exchange(self.kept(name)?)),
            [pod, "pretends", "to", "be", other, "towards", to] => self.pretend(pod, other, address(to)?),
            _ => Err(format!("not understood: {clause}")),
        }
    }

    /// A question with what the upstream says before it and what the reply must be.
    fn question(&mut self, first: &str, parts: &[&str]) -> Result<(), String> {
        let words: Vec<&str> = first.split_whitespace().collect();
        let server = self.family.kube_dns();
        if let [pod, "asks", count, "names", "below", name, qtype] = words.as_slice() {
            let script = Script {
                records: vec![(String::new(), (*qtype).into(), self.family.pick("198.19.0.0+", "2001:db8:19::+").into())],
                ttl: 300,
                ..Script::default()
            };
            self.world.outside.say(&format!("*.{name}"), qtype, script);
            let count: u32 = count.parse().map_err(|_| format!("not a number: {count}"))?;
            for number in 1..=count {
                let answered = self.agent(pod)?.ask(server, &format!("n{number}.{name}."), qtype);
                for part in parts {
                    check_reply(part, &answered, true).map_err(|error| format!("n{number}: {error}"))?;
                }
            }
            return Ok(());
        }
        if let [pod, "sends", "the", "message", message] = words.as_slice() {
            let request = Request::AskRaw { server, tcp: false, message: (*message).into(), within_ms: 1500 };
            let Reply::Bytes(reply) = self.agent(pod)?.call(request) else { return Err("no bytes".into()) };
            return parts.iter().try_for_each(|part| check_raw(part, reply.as_deref()));
        }
        let [pod, "asks", name, qtype, how @ ..] = words.as_slice() else {
            return Err(format!("not understood: {first}"));
        };
        let mut script: Option<Script> = None;
        for part in parts {
            if let Some(said) = part.strip_prefix("upstream ") {
                said_by_upstream(said, qtype, script.get_or_insert_default())?;
            }
        }
        if let Some(script) = script {
            self.world.outside.say(name, qtype, script);
        }
        let how = how.join(" ");
        let answered = self.agent(pod)?.ask_as(Question {
            server,
            name: format!("{}.", name.trim_end_matches('.')),
            qtype: (*qtype).to_owned(),
            tcp: how.contains("over tcp"),
            edns: (!how.contains("without edns")).then_some(1232),
            within_ms: if parts.contains(&"no reply") { 1500 } else { 6000 },
        });
        parts.iter().filter(|part| !part.starts_with("upstream ")).try_for_each(|part| check_reply(part, &answered, false))
    }

    /// A SYN with another pod's source address, and then a look at what came out.
    fn pretend(&self, pod: &str, other: &str, to: SocketAddr) -> Result<(), String> {
        let wire = self.world.outside.capture("eth0");
        let (own, other) = (&PODS[index_of(pod)?], &PODS[index_of(other)?]);
        let from = self.family.of(other);
        let segment = frame::tcp((from, 4444), (to.ip(), to.port()), 1, 0, 2);
        let packet = frame::ip(from, to.ip(), 6, &segment);
        let spoofed = frame::ethernet(NODE_MAC, own.mac, frame::ethertype(from), &packet);
        self.agent(pod)?.inject("eth0", &[spoofed]);
        std::thread::sleep(Duration::from_millis(300));
        let port = 4444u16.to_be_bytes();
        let seen = wire.frames().iter().filter(|frame| frame.octets().windows(2).any(|window| window == port)).count();
        if seen == 0 { Ok(()) } else { Err(format!("seen outside {seen} times")) }
    }

    /// Whether a flow record written since the line began gives this reason.
    fn explained(&self, reason: &str) -> Result<(), String> {
        let Some(daemon) = &self.daemon else { return Err("no daemon that writes flows".into()) };
        let mut seen = Vec::new();
        let found = clock::wait_until(Duration::from_secs(2), || {
            seen = daemon.flows().split_off(self.flows_before.min(daemon.flows().len()));
            seen.iter().any(|record| {
                let summary = record.pointer("/flow/Summary").and_then(|text| text.as_str()).unwrap_or_default();
                summary.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == reason)
            })
        });
        if found { Ok(()) } else { Err(format!("no flow record says {reason}: {seen:?}")) }
    }

    fn agent(&self, pod: &str) -> Result<&Agent, String> {
        Ok([&self.world.pay, &self.world.rep][index_of(pod)?])
    }

    fn kept(&self, name: &str) -> Result<u32, String> {
        self.kept.get(name).copied().ok_or_else(|| format!("no connection is called {name}"))
    }

    fn inbound(&self, to: &str) -> Result<SocketAddr, String> {
        let (pod, port) = to.rsplit_once(':').ok_or_else(|| format!("not POD:PORT: {to}"))?;
        let port = port.parse().map_err(|_| format!("not a port: {port}"))?;
        Ok(SocketAddr::new(self.family.of(&PODS[index_of(pod)?]), port))
    }
}

fn index_of(pod: &str) -> Result<usize, String> {
    match pod {
        "pod-a" => Ok(0),
        "pod-b" => Ok(1),
        other => Err(format!("no such pod: {other}")),
    }
}

fn is_question(clause: &str) -> bool {
    clause.contains(" asks ") || clause.contains(" sends the message ")
}

fn is_part_of_question(clause: &str) -> bool {
    ["upstream ", "reply ", "no reply"].iter().any(|start| clause.starts_with(start))
}

/// What follows the word `upstream`.
fn said_by_upstream(said: &str, qtype: &str, script: &mut Script) -> Result<(), String> {
    if said == "is silent" {
        script.silent = true;
        return Ok(());
    }
    if let Some(forged) = said.strip_prefix("forges ") {
        let (what, at) = forged.split_once(' ').unwrap_or((forged, "0.0.0.0"));
        let at: IpAddr = at.parse().map_err(|_| format!("not an address: {at}"))?;
        script.forged.push(match what {
            "number" => Forgery::Number(at),
            "question" => Forgery::Question(at),
            "case" => Forgery::Case(at),
            "port" => Forgery::Port(at),
            "address" => Forgery::Address(at),
            "header" => Forgery::Header,
            other => return Err(format!("not a forgery: {other}")),
        });
        return Ok(());
    }
    let said = said.strip_prefix("says ").ok_or_else(|| format!("not understood: upstream {said}"))?;
    let (records, ttl) = said.split_once(" ttl ").unwrap_or((said, "300"));
    script.ttl = ttl.trim().parse().map_err(|_| format!("not a TTL: {ttl}"))?;
    for record in records.split(", ") {
        let words: Vec<&str> = record.split_whitespace().collect();
        match words.as_slice() {
            [address] if address.parse::<IpAddr>().is_ok() => {
                script.records.push((String::new(), qtype.to_owned(), (*address).to_owned()));
            }
            [rcode] => script.rcode = (*rcode).to_owned(),
            [owner, rtype, data @ ..] => {
                script.records.push((format!("{}.", owner.trim_end_matches('.')), (*rtype).to_owned(), data.join(" ")));
            }
            [] => {}
        }
    }
    Ok(())
}

fn check_reply(part: &str, answered: &Answered, any_addresses: bool) -> Result<(), String> {
    let seen = format!("seen: {answered:?}");
    if part == "no reply" {
        return if answered.rcode.is_empty() { Ok(()) } else { Err(seen) };
    }
    let wanted = part.strip_prefix("reply ").ok_or_else(|| format!("not understood: {part}"))?;
    let mut words = wanted.split_whitespace();
    if words.next() != Some(answered.rcode.as_str()) {
        return Err(seen);
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    while let Some(word) = words.next() {
        if word == "error" {
            let code = words.next().and_then(|code| code.parse::<u16>().ok());
            if !answered.errors.iter().any(|(found, _)| Some(*found) == code) {
                return Err(seen);
            }
        } else {
            addresses.push(word.parse().map_err(|_| format!("not an address: {word}"))?);
        }
    }
    let mut found = answered.addresses.clone();
    found.sort();
    addresses.sort();
    if any_addresses || found == addresses { Ok(()) } else { Err(seen) }
}

/// The reply to octets: only its RCODE can be told.
fn check_raw(part: &str, reply: Option<&str>) -> Result<(), String> {
    let rcode = reply.and_then(|reply| crate::lab::agent::unhex(reply).get(3).map(|octet| octet & 15));
    let wanted = match part {
        "no reply" => None,
        "reply FORMERR" => Some(1),
        "reply SERVFAIL" => Some(2),
        "reply NOTIMP" => Some(4),
        "reply REFUSED" => Some(5),
        other => return Err(format!("not understood: {other}")),
    };
    if rcode == wanted { Ok(()) } else { Err(format!("seen: {reply:?}")) }
}

fn expect(wanted: Reach, seen: Reach) -> Result<(), String> {
    if wanted == seen { Ok(()) } else { Err(format!("seen: {seen:?}")) }
}

/// Inbound refusals and dead daemons may be silent; what counts is that nothing got through.
fn refuse(seen: Reach) -> Result<(), String> {
    if seen == Reach::Reached { Err("it was reached".into()) } else { Ok(()) }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("not ADDRESS:PORT: {text}"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.trim().trim_end_matches('s');
    number.parse().map(Duration::from_secs_f64).map_err(|_| format!("not a time: {text}"))
}
