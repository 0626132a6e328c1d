//! From a scenario's text to its steps.

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path};
use std::str::FromStr;
use std::time::Duration;

use super::{Forgery, Script, snapshot};

/// How often `{from..to}` repeats a statement at most.
const REPEATED: u32 = 1_000;

/// A file, read.
#[derive(Debug, Default)]
pub struct Scenario {
    /// Whether it is played against the engine alone, too.
    pub engine: bool,
    /// `key=value`.
    pub settings: Vec<String>,
    /// The snapshot at the start, beside the demo's cluster.
    pub files: Vec<(String, String)>,
    pub steps: Vec<Step>,
}

/// One statement of the story.
#[derive(Debug)]
pub struct Step {
    /// In the file, from 1.
    pub line: usize,
    /// As it was written.
    pub text: String,
    /// Not before this time.
    pub at: Option<Duration>,
    pub act: Act,
    /// What changes besides; nothing else may.
    pub changes: Vec<Change>,
}

/// What is done, and what must be seen of it.
#[derive(Debug)]
pub enum Act {
    Says {
        name: String,
        qtype: String,
        script: Script,
    },
    Asks {
        pod: Pod,
        question: Asked,
        script: Option<Script>,
        reply: Option<Expected>,
    },
    AsksRaw {
        pod: Pod,
        message: String,
        tcp: bool,
        reply: Option<Expected>,
    },
    Reaches {
        who: Pod,
        to: Target,
        /// It is only audited, and would be stopped for this reason.
        noted: Option<String>,
    },
    Stopped {
        who: Pod,
        to: Target,
        why: Option<String>,
    },
    Opens {
        who: Pod,
        connection: String,
        to: Target,
    },
    GoesOn {
        connection: String,
    },
    Ends {
        connection: String,
    },
    Closes {
        connection: String,
    },
    /// `namegate fqdn list` has these names for the address, sorted; `?` for a grant whose name is not known.
    Knows {
        pod: Pod,
        address: IpAddr,
        names: Vec<String>,
    },
    Sends {
        pod: Pod,
        frame: Frame,
        arrives: Result<(), Option<String>>,
    },
    /// `None`: it answers again.
    Fails {
        server: IpAddr,
        script: Option<Script>,
    },
    /// `None`: the file is removed.
    File {
        name: String,
        text: Option<String>,
    },
    Kill,
    Start,
    Hangup,
    Terminate,
    Nothing,
}

/// Who acts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pod {
    Pay,
    Rep,
    Out,
}

/// Where an attempt goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    pub at: SocketAddr,
    pub udp: bool,
}

/// A question and how it is put.
#[derive(Debug)]
pub struct Asked {
    pub name: String,
    pub qtype: String,
    /// Over TLS too.
    pub tcp: bool,
    pub tls: bool,
    /// The size of a datagram that the asker takes; none: no OPT record.
    pub edns: Option<u16>,
    pub server: SocketAddr,
}

/// A reply; its absence is `None` around it.
#[derive(Debug, Default)]
pub struct Expected {
    pub rcode: String,
    /// Sorted.
    pub addresses: Vec<IpAddr>,
    pub ttl: Option<u32>,
    pub ede: Option<u16>,
    pub saying: Option<String>,
    pub with: Vec<String>,
    pub without: Vec<String>,
    pub truncated: bool,
}

/// A frame that a pod sends past its own stack.
#[derive(Debug)]
pub struct Frame {
    pub kind: Kind,
    pub from: Source,
    pub to: Option<SocketAddr>,
}

/// What is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Syn,
    Ack,
    Udp,
    /// A UDP header that ends after the ports.
    Cut,
    Protocol(u8),
}

/// Whose addresses it bears.
#[derive(Debug)]
pub enum Source {
    Address(SocketAddr),
    Connection(String),
}

/// What a step changes.
#[derive(Debug)]
pub enum Change {
    Granted { pod: Pod, address: IpAddr, left: Duration },
    Revoked { pod: Pod, address: IpAddr },
    Refused(String),
    Accepted(String),
    Closed(Pod),
    Opened(Pod),
}

impl Pod {
    /// As scenarios and the lab call it.
    pub fn word(self) -> &'static str {
        match self {
            Pod::Pay => "pay",
            Pod::Rep => "rep",
            Pod::Out => "out",
        }
    }

    /// The Pod object's name.
    pub fn name(self) -> &'static str {
        match self {
            Pod::Pay => "payment-processor",
            Pod::Rep => "reports",
            Pod::Out => "",
        }
    }

    /// Its first address; the outside's is what answers pods there.
    pub fn address(self) -> IpAddr {
        let text = match self {
            Pod::Pay => "198.51.100.10",
            Pod::Rep => "198.51.100.11",
            Pod::Out => "203.0.113.10",
        };
        text.parse().expect("an address")
    }

    fn read(word: &str) -> Option<Pod> {
        [Pod::Pay, Pod::Rep, Pod::Out].into_iter().find(|pod| pod.word() == word)
    }
}

/// Reads a scenario; the error says in which line. `kube_dns` is asked where a question names no server.
pub fn parse(text: &str, kube_dns: SocketAddr) -> Result<Scenario, String> {
    let mut scenario = Scenario::default();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, first)) = lines.next() {
        let head = uncommented(first);
        if head.trim().is_empty() {
            continue;
        }
        let fault = |why: String| format!("line {}: {why}: {first}", number + 1);
        if head.starts_with(' ') {
            return Err(fault("indented, but under no statement".into()));
        }
        let block = clauses(head).iter().any(|clause| clause.ends_with(':'));
        let mut whole = head.trim_end().to_owned();
        let mut body = String::new();
        while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("  ") || line.trim().is_empty()) {
            if block {
                body.push_str(line);
                body.push('\n');
            } else if !uncommented(line).trim().is_empty() {
                whole.push_str("  ");
                whole.push_str(uncommented(line).trim());
            }
        }
        for statement in repeated(&whole).map_err(fault)? {
            scenario.take(number + 1, &statement, &body, kube_dns).map_err(fault)?;
        }
    }
    if scenario.steps.is_empty() {
        return Err("no step".into());
    }
    // Most stories let the name server change its mind under a running TTL.
    if !scenario.settings.iter().any(|setting| setting.starts_with("dns.cache=")) {
        scenario.settings.push("dns.cache=off".to_owned());
    }
    Ok(scenario)
}

impl Scenario {
    fn take(&mut self, line: usize, statement: &str, body: &str, kube_dns: SocketAddr) -> Result<(), String> {
        let mut clauses = clauses(statement);
        if statement == "also against the engine" {
            self.engine = true;
            return Ok(());
        }
        if let Some(settings) = clauses[0].strip_prefix("setting ") {
            self.settings.extend(settings.split_whitespace().map(str::to_owned));
            return Ok(());
        }
        let at = match clauses[0].strip_prefix("at ").map(|rest| rest.split_once(' ').unwrap_or((rest, ""))) {
            Some((time, rest)) => {
                let time = duration(time)?;
                if rest.is_empty() {
                    drop(clauses.remove(0))
                } else {
                    clauses[0] = rest.trim().to_owned()
                }
                Some(time)
            }
            None => None,
        };
        if clauses.is_empty() {
            return Err("a time and nothing else".into());
        }
        let act = act(&mut clauses, body, kube_dns)?;
        let changes: Vec<Change> = clauses.iter().map(|clause| change(clause)).collect::<Result<_, _>>()?;
        match act {
            Act::File { name, text: Some(text) } if self.steps.is_empty() && at.is_none() && changes.is_empty() => {
                self.files.push((name, text));
            }
            act => self.steps.push(Step { line, text: statement.to_owned(), at, act, changes }),
        }
        Ok(())
    }
}

/// The act; takes the clauses that say it and leaves those that say what changes.
fn act(clauses: &mut Vec<String>, body: &str, kube_dns: SocketAddr) -> Result<Act, String> {
    let first = clauses.remove(0);
    let mut take = |prefix: &str| {
        let index = clauses.iter().position(|clause| clause.starts_with(prefix))?;
        Some(clauses.remove(index)[prefix.len()..].trim().to_owned())
    };
    let words: Vec<&str> = first.split_whitespace().collect();
    Ok(match words[..] {
        ["kill", "-9"] => Act::Kill,
        ["start"] => Act::Start,
        ["SIGHUP"] => Act::Hangup,
        ["SIGTERM"] => Act::Terminate,
        ["nothing"] => Act::Nothing,
        ["file", name, "from", path] => {
            if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(format!("found {path}; a file of ours is wanted"));
            }
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Act::File { name: name.into(), text: Some(text) }
        }
        ["file", name, "is", "removed"] => Act::File { name: name.into(), text: None },
        ["file", name] if name.ends_with(':') => {
            let text: String = body.lines().map(|line| line.get(2..).unwrap_or("").to_owned() + "\n").collect();
            Act::File { name: name.trim_end_matches(':').into(), text: Some(text) }
        }
        ["policy", pod] if pod.ends_with(':') => {
            let pod = who(pod.trim_end_matches(':'))?;
            let text = snapshot::policy(pod.name(), body);
            Act::File { name: format!("{}.yaml", pod.word()), text: Some(text) }
        }
        [pod, "asks", name, qtype, ref how @ ..] => {
            let mut question = Asked {
                name: name.into(),
                qtype: qtype.into(),
                tcp: false,
                tls: false,
                edns: Some(1232),
                server: kube_dns,
            };
            let mut how = how.iter();
            while let Some(word) = how.next() {
                match (*word, how.next().copied()) {
                    ("over", Some("tcp")) => question.tcp = true,
                    ("of", Some(server)) => question.server = SocketAddr::new(address(server)?, 53),
                    ("over", Some("tls")) => (question.tcp, question.tls) = (true, true),
                    ("without", Some("edns")) => question.edns = None,
                    ("taking", Some(octets)) => question.edns = Some(number(octets)?),
                    _ => {
                        return Err(format!(
                            "found {word} after a question; over tcp, over tls, of ADDRESS, taking OCTETS or without \
                             edns can be there"
                        ));
                    }
                }
            }
            let script = take("upstream says ").map(|what| script(&what)).transpose()?;
            let reply = take("reply ").ok_or("a question without `reply …`")?;
            Act::Asks { pod: who(pod)?, question, script, reply: reply_of(&reply)? }
        }
        [pod, "sends", "raw", message, ref how @ ..] => {
            let reply = take("reply ").ok_or("a question without `reply …`")?;
            Act::AsksRaw {
                pod: who(pod)?,
                message: message.into(),
                tcp: how == ["over", "tcp"],
                reply: reply_of(&reply)?,
            }
        }
        [pod, "sends", ref frame @ ..] => {
            let frame = frame_of(frame)?;
            let stopped = clauses.iter().position(|clause| clause.starts_with("is stopped"));
            let arrives = match stopped.map(|index| clauses.remove(index)) {
                Some(clause) => Err(clause.strip_prefix("is stopped:").map(|why| why.trim().to_owned())),
                None => {
                    let index = clauses.iter().position(|clause| clause == "arrives");
                    clauses.remove(index.ok_or("a frame without `arrives` or `is stopped`")?);
                    Ok(())
                }
            };
            Act::Sends { pod: who(pod)?, frame, arrives }
        }
        [pod, "reaches", to] => Act::Reaches { who: who(pod)?, to: target(to)?, noted: None },
        [pod, "reaches", to, "though", why] => {
            Act::Reaches { who: who(pod)?, to: target(to)?, noted: Some(why.into()) }
        }
        [pod, "is", "stopped", "at", to] => Act::Stopped { who: who(pod)?, to: target(to)?, why: None },
        [pod, "is", "stopped", "at", to, why] if to.ends_with(':') => {
            Act::Stopped { who: who(pod)?, to: target(to.trim_end_matches(':'))?, why: Some(why.into()) }
        }
        [pod, "opens", name, "to", to] => Act::Opens { who: who(pod)?, connection: name.into(), to: target(to)? },
        [name, "goes", "on"] => Act::GoesOn { connection: name.into() },
        [name, "closes"] => Act::Closes { connection: name.into() },
        [pod, "knows", at, "as", "nothing"] => Act::Knows { pod: who(pod)?, address: address(at)?, names: Vec::new() },
        [pod, "knows", at, "as", ref names @ ..] => {
            let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            names.sort();
            Act::Knows { pod: who(pod)?, address: address(at)?, names }
        }
        [name, "ends"] => Act::Ends { connection: name.into() },
        ["server", server, "answers"] => Act::Fails { server: address(server)?, script: None },
        ["server", server, "says", ..] => {
            let what = first.split_once(" says ").ok_or("nothing is said")?.1;
            Act::Fails { server: address(server)?, script: Some(script(what)?) }
        }
        [name, qtype, "says", ..] => {
            let what = first.split_once(" says ").ok_or("nothing is said")?.1;
            Act::Says { name: name.into(), qtype: qtype.into(), script: script(what)? }
        }
        _ => return Err("not a step; scenario.rs lists what there is".into()),
    })
}

fn change(clause: &str) -> Result<Change, String> {
    let words: Vec<&str> = clause.split_whitespace().collect();
    Ok(match words[..] {
        ["+", "grant", pod, at, left] => {
            Change::Granted { pod: who(pod)?, address: address(at)?, left: duration(left)? }
        }
        ["-", "grant", pod, at] => Change::Revoked { pod: who(pod)?, address: address(at)? },
        ["+", "refused", text] => Change::Refused(text.into()),
        ["-", "refused", text] => Change::Accepted(text.into()),
        ["+", "closed", pod] => Change::Closed(who(pod)?),
        ["-", "closed", pod] => Change::Opened(who(pod)?),
        _ => return Err(format!("found `{clause}`; a change is + or - and grant, refused or closed")),
    })
}

/// What the name server says.
fn script(text: &str) -> Result<Script, String> {
    let mut script = Script { ttl: 60, ..Script::default() };
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(record) = rest.strip_prefix('[') {
            let (record, after) = record.split_once(']').ok_or("a record without its `]`")?;
            script.records.push(record_of(record)?);
            rest = after.trim();
            continue;
        }
        let mut word = || {
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = after.trim();
            word
        };
        match word() {
            "ttl" => script.ttl = number(word())?,
            "soa" => script.soa = number(word())?,
            "rcode" => script.rcode = word().into(),
            "tc" => script.truncate = true,
            "by" => script.by = Some(address(word())?),
            "folded" => script.folds = true,
            "lost" => script.loses = number(word())?,
            "silent" => script.silent = true,
            "late" => {
                script.delay_ms = u64::try_from(duration(word())?.as_millis()).map_err(|error| error.to_string())?
            }
            "forged" => {
                let forgery = match word() {
                    "header" => Forgery::Header,
                    "number" => Forgery::Number(address(word())?),
                    "question" => Forgery::Question(address(word())?),
                    "case" => Forgery::Case(address(word())?),
                    "port" => Forgery::Port(address(word())?),
                    "address" => Forgery::Address(address(word())?),
                    other => return Err(format!("nothing of an answer is called {other}")),
                };
                script.forged.push(forgery);
            }
            "nothing" => {}
            plain => {
                let at = address(plain)?;
                let qtype = if at.is_ipv4() { "A" } else { "AAAA" };
                script.records.push((String::new(), qtype.into(), plain.into()));
            }
        }
    }
    Ok(script)
}

/// `[OWNER] TYPE DATA`.
fn record_of(text: &str) -> Result<(String, String, String), String> {
    const TYPES: [&str; 9] = ["A", "AAAA", "CNAME", "HTTPS", "TXT", "SVCB", "PTR", "SRV", "MX"];
    let mut words = text.split_whitespace();
    let first = words.next().ok_or("an empty record")?;
    let (owner, qtype) =
        if TYPES.contains(&first) { ("", first) } else { (first, words.next().ok_or("a record without type")?) };
    Ok((owner.into(), qtype.into(), words.collect::<Vec<_>>().join(" ")))
}

fn reply_of(text: &str) -> Result<Option<Expected>, String> {
    let mut words = text.split_whitespace();
    let mut expected = Expected { rcode: words.next().unwrap_or_default().into(), ..Expected::default() };
    if expected.rcode == "none" {
        return Ok(None);
    }
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("nothing after {word}"));
        match word {
            "ttl" => expected.ttl = Some(number(next()?)?),
            "ede" => expected.ede = Some(number(next()?)?),
            "saying" => expected.saying = Some(next()?.into()),
            "with" => expected.with.push(next()?.into()),
            "without" => expected.without.push(next()?.into()),
            "truncated" => expected.truncated = true,
            plain => expected.addresses.push(address(plain)?),
        }
    }
    expected.addresses.sort();
    Ok(Some(expected))
}

fn frame_of(words: &[&str]) -> Result<Frame, String> {
    let (kind, rest) = match words {
        ["syn", rest @ ..] => (Kind::Syn, rest),
        ["ack", rest @ ..] => (Kind::Ack, rest),
        ["udp", rest @ ..] => (Kind::Udp, rest),
        ["cut", rest @ ..] => (Kind::Cut, rest),
        ["protocol", value, rest @ ..] => (Kind::Protocol(number(value)?), rest),
        _ => return Err("a frame is syn, ack, udp, cut or protocol N".into()),
    };
    let (from, to) = match *rest {
        ["from", from, "to", to] => (Source::Address(socket(from)?), Some(socket(to)?)),
        ["from", connection] => (Source::Connection(connection.into()), None),
        _ => return Err("a frame goes `from ADDRESS:PORT to ADDRESS:PORT` or `from CONNECTION`".into()),
    };
    Ok(Frame { kind, from, to })
}

/// `rep:80`, `203.0.113.10:443`, `[2001:db8::1]:53/udp`.
fn target(text: &str) -> Result<Target, String> {
    let (at, udp) = text.strip_suffix("/udp").map_or((text, false), |at| (at, true));
    Ok(Target { at: socket(at)?, udp })
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    if let Some((pod, port)) = text.split_once(':').and_then(|(pod, port)| Some((Pod::read(pod)?, port))) {
        return Ok(SocketAddr::new(pod.address(), number(port)?));
    }
    text.parse().map_err(|_| format!("found {text}; ADDRESS:PORT or POD:PORT is wanted"))
}

fn who(word: &str) -> Result<Pod, String> {
    Pod::read(word).ok_or_else(|| format!("found {word}; pay, rep or out is wanted"))
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("found {text}; an address is wanted"))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("found {text}; a number that fits there is wanted"))
}

/// `100ms` or `1.5s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wanted = || format!("found {text}; a time as 100ms or 3s is wanted");
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 0.001),
        None => (text.strip_suffix('s').ok_or_else(wanted)?, 1.0),
    };
    let count: f64 = digits.parse().map_err(|_| wanted())?;
    Duration::try_from_secs_f64(count * unit).map_err(|_| wanted())
}

fn uncommented(line: &str) -> &str {
    if line.starts_with('#') {
        return "";
    }
    line.split_once(" #").map_or(line, |(before, _)| before)
}

/// Two blanks or more separate clauses.
fn clauses(statement: &str) -> Vec<String> {
    statement.split("  ").map(|clause| clause.trim().to_owned()).filter(|clause| !clause.is_empty()).collect()
}

/// The statement once for each number of its `{from..to}`.
fn repeated(statement: &str) -> Result<Vec<String>, String> {
    let Some((_, rest)) = statement.split_once('{').filter(|(_, rest)| rest.contains("..")) else {
        return Ok(vec![statement.to_owned()]);
    };
    let range = rest.split_once('}').ok_or("a range without its `}`")?.0;
    let (from, to) = range.split_once("..").ok_or("a range is {from..to}")?;
    let (from, to): (u32, u32) = (number(from)?, number(to)?);
    if to.checked_sub(from).is_none_or(|more| more >= REPEATED) {
        return Err(format!("found {{{range}}}; 1 to {REPEATED} repetitions are wanted"));
    }
    let pattern = format!("{{{range}}}");
    Ok((from..=to).map(|value| statement.replace(&pattern, &value.to_string())).collect())
}
