//! The test's end of an agent.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use std::collections::HashMap;

use super::sibling::Attempt;
use super::{Answered, Frame, Many, Numbered, Question, Reach, Reply, Request, Rush, Rushed, Script, hex};
use crate::lab::process::{inside, spawn};

/// How long an attempt waits before it is called silent. A rejected one hears within a millisecond.
pub const PATIENCE: Duration = Duration::from_millis(1000);

/// An agent in a namespace. Ends when dropped.
pub struct Agent {
    child: Child,
    input: Mutex<ChildStdin>,
    next: AtomicU64,
    waiting: Arc<Mutex<HashMap<u64, Sender<Reply>>>>,
}

/// A request that is under way.
pub struct Pending(Receiver<Reply>);

impl Agent {
    /// Starts one in the namespace.
    #[track_caller]
    pub fn start(namespace: &str) -> Agent {
        // By this link rather than by its path: a build that replaces the file must not end a run.
        Agent::launch(inside(namespace, &format!("/proc/{}/exe", std::process::id())))
    }

    /// Starts one as another container of a pod would run: with this uid and these capabilities, by their bits.
    #[track_caller]
    pub fn sibling(namespace: &str, uid: u32, capabilities: u64) -> Agent {
        let mut command = inside(namespace, &format!("/proc/{}/exe", std::process::id()));
        command.args(["agent", &uid.to_string(), &capabilities.to_string()]);
        Agent::launched(command)
    }

    /// The same, in a PID namespace with the process `beside`, which it shares a /proc with.
    #[track_caller]
    pub fn sibling_of(beside: u32, uid: u32, capabilities: u64) -> Agent {
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new("nsenter");
        command.args(["net", "pid", "mnt"].map(|kind| {
            let flag = if kind == "mnt" { "mount" } else { kind };
            format!("--{flag}=/proc/{beside}/ns/{kind}")
        }));
        command.arg(program).args(["agent", &uid.to_string(), &capabilities.to_string()]);
        Agent::launched(command)
    }

    fn launch(mut command: Command) -> Agent {
        command.arg("agent");
        Agent::launched(command)
    }

    fn launched(mut command: Command) -> Agent {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(command).expect("the agent starts");
        let input = Mutex::new(child.stdin.take().expect("piped"));
        let output = child.stdout.take().expect("piped");
        let waiting: Arc<Mutex<HashMap<u64, Sender<Reply>>>> = Arc::default();
        let table = waiting.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Numbered { number, body } =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("agent said {line}: {error}"));
                if let Some(reply) = table.lock().expect("no panic while locked").remove(&number) {
                    let _ = reply.send(body);
                }
            }
            table.lock().expect("no panic while locked").clear();
        });
        Agent { child, input, next: AtomicU64::new(0), waiting }
    }

    /// Asks and doesn't wait.
    #[track_caller]
    pub fn begin(&self, request: Request) -> Pending {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = channel();
        self.waiting.lock().expect("no panic while locked").insert(number, sender);
        let mut line = serde_json::to_string(&Numbered { number, body: request }).expect("plain data");
        line.push('\n');
        self.input.lock().expect("no panic while locked").write_all(line.as_bytes()).expect("the agent lives");
        Pending(reply)
    }

    /// Asks and waits.
    #[track_caller]
    pub fn call(&self, request: Request) -> Reply {
        self.begin(request).wait()
    }

    /// One TCP connection attempt.
    #[track_caller]
    pub fn connect(&self, to: SocketAddr) -> Reach {
        self.call(Request::Connect { to, within_ms: ms(PATIENCE) }).reach()
    }

    /// Opens a connection and keeps it.
    #[track_caller]
    pub fn open(&self, to: SocketAddr) -> Result<u32, Reach> {
        match self.call(Request::Open { to, within_ms: ms(PATIENCE) }) {
            Reply::Opened { connection } => Ok(connection),
            other => Err(other.reach()),
        }
    }

    /// Makes a UDP socket with one peer, sends a datagram there and back, and keeps it.
    #[track_caller]
    pub fn open_udp(&self, to: SocketAddr) -> Result<u32, Reach> {
        match self.call(Request::OpenUdp { to, within_ms: ms(PATIENCE) }) {
            Reply::Opened { connection } => Ok(connection),
            other => Err(other.reach()),
        }
    }

    /// One octet there and back on a kept connection.
    #[track_caller]
    pub fn exchange(&self, connection: u32) -> Reach {
        self.call(Request::Exchange { connection, within_ms: ms(PATIENCE) }).reach()
    }

    /// One datagram there and back.
    #[track_caller]
    pub fn datagram(&self, to: SocketAddr) -> Reach {
        self.call(Request::Datagram { to, octets: 32, within_ms: ms(PATIENCE) }).reach()
    }

    /// Asks `server` for `name` with EDNS over UDP.
    #[track_caller]
    pub fn ask(&self, server: SocketAddr, name: &str, qtype: &str) -> Answered {
        self.ask_as(Question {
            server,
            name: name.into(),
            qtype: qtype.into(),
            tcp: false,
            tls: None,
            edns: Some(1232),
            within_ms: 6000,
        })
    }

    /// Asks a question with every choice made.
    #[track_caller]
    pub fn ask_as(&self, question: Question) -> Answered {
        match self.call(Request::Ask(question)) {
            Reply::Answered(answered) => answered,
            other => panic!("{other:?}"),
        }
    }

    /// Sends frames past the network stack.
    #[track_caller]
    pub fn inject(&self, interface: &str, frames: &[Vec<u8>]) {
        let frames = frames.iter().map(|frame| hex(frame)).collect();
        self.done(Request::Inject { interface: interface.into(), frames });
    }

    /// Begins to record an interface.
    #[track_caller]
    pub fn capture(&self, interface: &str) -> Capture<'_> {
        match self.call(Request::Capture { interface: interface.into() }) {
            Reply::Capturing { capture } => Capture { agent: self, capture },
            other => panic!("{other:?}"),
        }
    }

    /// Tells the name server what to say.
    #[track_caller]
    pub fn say(&self, name: &str, qtype: &str, script: Script) {
        self.done(Request::Say { name: name.into(), qtype: qtype.into(), script });
    }

    /// The name has these addresses, and none of the other family.
    #[track_caller]
    pub fn say_addresses(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        for (qtype, wanted) in [("A", true), ("AAAA", false)] {
            let records = addresses
                .iter()
                .filter(|address| address.is_ipv4() == wanted)
                .map(|address| (String::new(), qtype.to_owned(), address.to_string()))
                .collect();
            self.say(name, qtype, Script { records, ttl, ..Script::default() });
        }
    }

    /// What the name server has been asked since the last time.
    #[track_caller]
    pub fn asked(&self) -> Vec<String> {
        match self.call(Request::Asked) {
            Reply::Names(names) => names,
            other => panic!("{other:?}"),
        }
    }

    /// Many names and connections at once.
    #[track_caller]
    pub fn rush(&self, rush: Rush) -> Rushed {
        match self.call(Request::Rush(rush)) {
            Reply::Rushed(rushed) => rushed,
            other => panic!("{other:?}"),
        }
    }

    /// Many questions at once; the replies in their order.
    #[track_caller]
    pub fn ask_many(&self, many: Many) -> Vec<Option<Vec<u8>>> {
        match self.call(Request::AskMany(many)) {
            Reply::Many(replies) => replies.into_iter().map(|reply| reply.map(|text| super::unhex(&text))).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Tries something: 0, or the error's number.
    #[track_caller]
    pub fn tries(&self, attempt: Attempt) -> i32 {
        match self.call(Request::Try(attempt)) {
            Reply::Tried(number) => number,
            other => panic!("{other:?}"),
        }
    }

    /// A request whose answer is only that it is done.
    #[track_caller]
    pub fn done(&self, request: Request) {
        match self.call(request) {
            Reply::Done => {}
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pending {
    /// Waits for the answer.
    #[track_caller]
    pub fn wait(self) -> Reply {
        match self.0.recv() {
            Ok(Reply::Failed(why)) => panic!("agent: {why}"),
            Ok(reply) => reply,
            Err(_) => panic!("the agent ended"),
        }
    }
}

impl Reply {
    /// How an attempt ended.
    #[track_caller]
    pub fn reach(self) -> Reach {
        match self {
            Reply::Reached { reach, .. } => reach,
            other => panic!("{other:?}"),
        }
    }
}

/// A recording that is under way.
pub struct Capture<'a> {
    agent: &'a Agent,
    capture: u32,
}

impl Capture<'_> {
    /// What it has seen so far.
    #[track_caller]
    pub fn frames(&self) -> Vec<Frame> {
        self.take(false)
    }

    /// What it has seen since the last time; it is forgotten.
    #[track_caller]
    pub fn drained(&self) -> Vec<Frame> {
        match self.agent.call(Request::Drain { capture: self.capture }) {
            Reply::Frames(frames) => frames,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a frame is seen for which `wanted` holds; the frames until then.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<Frame> {
        let mut seen = Vec::new();
        let found = crate::lab::clock::wait_until(Duration::from_secs(3), || {
            seen = self.frames();
            seen.iter().any(|frame| wanted(&frame.octets()))
        });
        assert!(found, "never captured: {what}; {} frames seen", seen.len());
        seen
    }

    #[track_caller]
    fn take(&self, end: bool) -> Vec<Frame> {
        match self.agent.call(Request::Captured { capture: self.capture, end }) {
            Reply::Frames(frames) => frames,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.take(true);
        }
    }
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
