//! The collector, as a process, and what it wrote.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use namegate::cluster::snapshot::{LastGood, OnInvalid, read};
use serde_json::Value;

use super::cluster::{Cluster, PATIENCE, dies_with_us};

/// Ends with the test.
pub struct Collector {
    child: Child,
    address: String,
    root: PathBuf,
}

/// Waits for something.
#[track_caller]
pub fn eventually(what: &str, mut wanted: impl FnMut() -> bool) {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Collector {
    /// Starts one with a directory of its own.
    pub fn start(cluster: &Cluster, user: &str, arguments: &[&str]) -> Collector {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let root = cluster.folder(&format!("snapshot-{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
        Collector::start_at(&cluster.kubeconfig(user), &root, arguments)
    }

    /// Starts one for this directory.
    pub fn start_at(kubeconfig: &Path, root: &Path, arguments: &[&str]) -> Collector {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let address = format!("127.0.0.1:{port}");
        let mut child = dies_with_us(&mut Command::new(env!("CARGO_BIN_EXE_namegate")))
            .args(["collect", "--metrics", &address, "--output"])
            .arg(root)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| eprintln!("collect: {line}")));
        Collector { child, address, root: root.to_owned() }
    }

    /// Waits until it is ready.
    #[track_caller]
    pub fn is_ready(&self) {
        eventually("readiness", || self.page("/readyz") == "ok\n");
    }

    /// A page; empty if nobody answers.
    pub fn page(&self, path: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
        };
        ask().unwrap_or_default()
    }

    /// The sum of a metric over the labels that hold `part`.
    pub fn metric(&self, name: &str, part: &str) -> f64 {
        let text = self.page("/metrics");
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(part));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Stops it from running, or lets it go on.
    pub fn pause(&self, on: bool) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process");
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(pid, if on { libc::SIGSTOP } else { libc::SIGCONT }) };
    }

    /// What `..data` points to.
    pub fn generation(&self) -> PathBuf {
        std::fs::read_link(self.root.join("..data")).expect("it was written")
    }

    /// Whether there is a snapshot.
    pub fn is_written(&self) -> bool {
        self.root.join("..data").exists()
    }

    /// Whether an object is in the snapshot: `Kind namespace/name`.
    pub fn has(&self, key: &str) -> bool {
        self.objects().contains_key(key)
    }

    /// An object of the snapshot; empty if it isn't there.
    pub fn text(&self, key: &str) -> String {
        self.objects().remove(key).map(|object| object.to_string()).unwrap_or_default()
    }

    fn objects(&self) -> BTreeMap<String, Value> {
        let mut objects = BTreeMap::new();
        for file in namegate::cluster::files::read(&self.root).unwrap_or_default() {
            let octets = file.content.expect("what is in force can be read");
            for object in serde_json::Deserializer::from_slice(&octets).into_iter::<Value>() {
                let object = object.expect("JSON");
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let metadata = &object["metadata"];
                let namespace = metadata["namespace"].as_str().map(|name| format!("{name}/")).unwrap_or_default();
                objects.insert(format!("{} {namespace}{}", text(&object["kind"]), text(&metadata["name"])), object);
            }
        }
        objects
    }

    /// Whether the agent has nothing to say against the snapshot.
    pub fn agent_accepts(&self) -> bool {
        let snapshot = read(&self.root, &LastGood::default(), OnInvalid::Refuse);
        assert_eq!((snapshot.refusals, snapshot.skipped), (Vec::new(), 0));
        true
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
