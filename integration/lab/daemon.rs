//! namegate itself, in the node of a world.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::clock::{now, wait_until};
use super::process::{inside, output, spawn};
use super::world::{PODS, World};

/// How long a start may take until everything is enforced.
const START: Duration = Duration::from_secs(15);

/// A running namegate. Killed when dropped.
pub struct Daemon {
    child: Child,
    namespace: String,
    directory: PathBuf,
    log: Arc<Mutex<Vec<String>>>,
}

/// The program, beside this one in the target directory.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let profile = own.ancestors().skip(1).find(|dir| dir.join("namegate").is_file());
    profile.map(|dir| dir.join("namegate")).expect("namegate is built beside this program; `cargo build` makes it")
}

impl Daemon {
    /// Starts it for both pods and waits until it is ready.
    #[track_caller]
    pub fn start(world: &World, more: &[&str]) -> Daemon {
        let daemon = Daemon::start_unready(world, more);
        daemon.wait_ready();
        daemon
    }

    /// Starts it for both pods, with a line and a flow record for everything.
    #[track_caller]
    pub fn start_unready(world: &World, more: &[&str]) -> Daemon {
        let flows = world.directory.join("flows.json");
        let watched = ["--verbose", "--flows", flows.to_str().expect("a path in UTF-8")];
        Daemon::launch(world, &[], &[&watched, more].concat())
    }

    /// Starts it for both pods without records of what passes, and waits until it is ready: for great numbers of queries.
    #[track_caller]
    pub fn start_quiet(world: &World, more: &[&str]) -> Daemon {
        let daemon = Daemon::launch(world, &[], more);
        daemon.wait_ready();
        daemon
    }

    /// Starts it for both pods without records, and doesn't wait. `through` is what starts it in its place, as
    /// `prlimit --nofile=64`; it must become namegate (exec), so that signals reach it.
    #[track_caller]
    pub fn launch(world: &World, through: &[&str], more: &[&str]) -> Daemon {
        let endpoints: Vec<String> =
            PODS.iter().flat_map(|pod| ["--endpoint".into(), format!("{}=payments/{}", pod.host, pod.name)]).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        Daemon::launch_without_endpoints(world, through, &[&endpoints, more].concat())
    }

    /// The same for nobody: it finds the pods of its node by itself.
    #[track_caller]
    pub fn launch_without_endpoints(world: &World, through: &[&str], more: &[&str]) -> Daemon {
        let namespace = world.namespace("node");
        let program = program();
        let words = [through, &[program.to_str().expect("a path in UTF-8")]].concat();
        let mut command = inside(&namespace, words[0]);
        command.args(&words[1..]).arg("node").args(common(&world.directory));
        command
            .args(["--node-name", "demo-node", "--metrics", "127.0.0.1:9090"])
            .arg("--snapshot")
            .arg(world.directory.join("snapshot"))
            .args(more);
        Daemon::spawned(command, namespace, &world.directory)
    }

    /// Starts it beside the first pod's workload, with a line and a flow record for everything, and doesn't wait.
    #[track_caller]
    pub fn beside(world: &World, through: &[&str], more: &[&str]) -> Daemon {
        let namespace = world.namespace("pay");
        let flows = world.directory.join("flows.json");
        let program = program();
        let words = [through, &[program.to_str().expect("a path in UTF-8")]].concat();
        let mut command = inside(&namespace, words[0]);
        command.args(&words[1..]).arg("sidecar").arg("--verbose");
        let common = common(&world.directory);
        command.args(common.chunks(2).filter(|pair| !more.contains(&pair[0].as_str())).flatten());
        command.args(["--node-name", "demo-node", "--metrics", "127.0.0.1:9090"]);
        for (flag, path) in [("--snapshot", "snapshot"), ("--podinfo", "podinfo")] {
            command.arg(flag).arg(world.directory.join(path));
        }
        command.arg("--flows").arg(flows).args(more);
        Daemon::spawned(command, namespace, &world.directory)
    }

    #[track_caller]
    fn spawned(mut command: Command, namespace: String, directory: &Path) -> Daemon {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn(command).expect("namegate starts");
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (lines, input) = (log.clone(), child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(input).lines().map_while(Result::ok) {
                lines.lock().expect("no panic while locked").push(line);
            }
        });
        Daemon { child, namespace, directory: directory.to_owned(), log }
    }

    /// Waits until `namegate ready` says so; panics with its reasons and the log.
    #[track_caller]
    pub fn wait_ready(&self) {
        let start = now();
        let said = self.run("ready", &["--wait", "--timeout", "15s"]);
        assert!(said.0 && start.elapsed() < START, "namegate is not ready: {}\n{}", said.1, self.log().join("\n"));
    }

    /// Whether it says that it is ready, and its reasons.
    pub fn ready(&self) -> (bool, String) {
        self.run("ready", &[])
    }

    /// Runs another command of namegate against this one.
    pub fn run(&self, command: &str, more: &[&str]) -> (bool, String) {
        run(&self.namespace, &self.directory, command, more)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// SIGKILL, and waits for the end: nothing of it runs any more.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and how it ended.
    #[track_caller]
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        let mut status = None;
        let ended = wait_until(Duration::from_secs(10), || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        assert!(ended, "SIGTERM did not end it within 10 s\n{}", self.log().join("\n"));
        status.expect("it ended")
    }

    /// SIGHUP.
    pub fn reload(&self) {
        self.signal(libc::SIGHUP);
    }

    /// How it ended; none when it still runs after `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        wait_until(limit, || !self.runs());
        self.child.try_wait().ok().flatten()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// namegate itself, where what it was started through made it in a PID namespace.
    #[track_caller]
    pub fn only_child(&self) -> u32 {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
        children.trim().parse().expect("one child")
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic while locked").clone()
    }

    /// Waits for a line of its log that holds `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        let found = wait_until(Duration::from_secs(5), || self.log().iter().any(|line| line.contains(text)));
        assert!(found, "never logged: {text}\n{}", self.log().join("\n"));
    }

    /// The flow records written so far.
    pub fn flows(&self) -> Vec<Value> {
        flows(&self.directory)
    }

    /// A page of its HTTP server.
    #[track_caller]
    pub fn page(&self, path: &str) -> String {
        let mut command = inside(&self.namespace, "curl");
        command.args(["--silent", "--max-time", "3", &format!("http://127.0.0.1:9090{path}")]);
        let output = output(command).expect("curl starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The sum of a metric's samples whose line holds all of `labels`.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.page("/metrics")
            .lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- namegate's log\n{}", self.log().join("\n"));
        }
    }
}

/// `namegate COMMAND` (`status`, `fqdn list`) with a world's directories, in its node: whether it succeeded, and what it said.
pub fn run(namespace: &str, directory: &Path, command: &str, more: &[&str]) -> (bool, String) {
    let mut child: Command = inside(namespace, program().to_str().expect("a path in UTF-8"));
    child.args(command.split(' ')).args(common(directory)).args(more);
    let output = output(child).expect("namegate starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The flow records of a world so far.
pub fn flows(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join("flows.json")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Where one namegate keeps its things, so that several may live on one machine.
fn common(directory: &Path) -> [String; 6] {
    let path = |name: &str| directory.join(name).to_str().expect("a path in UTF-8").to_owned();
    ["--state-dir".into(), path("state"), "--pin-dir".into(), path("bpf/namegate"), "--run-dir".into(), path("run")]
}
