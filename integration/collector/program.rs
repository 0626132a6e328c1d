//! The program itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::{Fault, path};
use super::world::{Objects, World, pod};

/// Ends with the test.
struct Program {
    child: Child,
    address: String,
}

fn command(world: &World) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_namegate"));
    command.arg("collect").arg("--output").arg(&world.root).arg("--kubeconfig").arg(&world.kubeconfig);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Program {
    /// The address is one that nobody has now.
    fn start(world: &World, arguments: &[&str]) -> Program {
        let address =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").to_string();
        let mut child = command(world).args(["--metrics", &address]).args(arguments).spawn().expect("it starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| eprintln!("collect: {line}")));
        Program { child, address }
    }

    /// Status and body of a page; nothing if nobody answers.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let code = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((code, text.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// The value of a metric; nothing if it isn't there.
    fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// KiB of memory in use.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("KiB")
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process");
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(pid, signal) };
    }

    fn ends(&mut self) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_how_it_is_and_ends_at_a_signal_and_leaves_the_snapshot() {
    let world = World::inhabited();
    world.server.always(path("pods"), Some(Fault::Status(403, "Forbidden")));
    let mut program = Program::start(&world, &["--log", "info,namegate=debug"]);
    let get = |page: &str| program.get(page).unwrap_or_default();
    world.wait("a page", || get("/livez").0 == 200).await;
    world.wait("a reason", || get("/readyz").1.contains("pods: 403 Forbidden")).await;
    assert_eq!(get("/readyz").0, 503);
    assert!(get("/metrics").1.contains(r#"namegate_collect_errors_total{kind="pods",reason="forbidden"}"#));
    assert_eq!((get("/status").0, get("/livez")), (404, (200, "ok\n".to_owned())));
    world.server.always(path("pods"), None);
    world.wait("readiness", || get("/readyz") == (200, "ok\n".to_owned())).await;
    assert_eq!(world.objects().expect("a snapshot").len(), 11);
    // There is one a directory.
    let second = command(&world).output().expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another namegate writes to"), "{said}");
    let inode = || std::fs::metadata(world.root.join("..data")).map(|found| found.ino()).expect("there");
    let before = inode();
    program.signal(libc::SIGTERM);
    assert_eq!(program.ends(), Some(0));
    assert_eq!((world.objects().expect("it stays").len(), inode()), (11, before));
    // Killed and started again: what was there is what is there, and a change comes through.
    let mut program = Program::start(&world, &[]);
    world.wait("readiness", || program.get("/readyz").is_some_and(|(code, _)| code == 200)).await;
    assert_eq!(inode(), before, "the same generation");
    program.signal(libc::SIGKILL);
    assert_eq!(program.ends(), None);
    world.server.put("pods", &pod("web-1", json!({"app": "web"})));
    let program = Program::start(&world, &[]);
    world.until("the pod", |objects| objects.contains_key("Pod shop/web-1")).await;
    drop(program);
}

#[test]
fn a_start_that_can_not_succeed_says_why() {
    let world = World::new();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_namegate"));
        let output =
            command.arg("collect").args(arguments).env_remove("KUBERNETES_SERVICE_HOST").output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let root = world.root.to_str().expect("text");
    for (arguments, code, why) in [
        (vec![], 2, "--output"),
        (vec!["--output", root, "--node", "N_1"], 2, "a node's name"),
        (vec!["--output", root, "--log", "namegate=loud"], 2, "as info or namegate=debug,warn"),
        (vec!["--output", root, "--kubeconfig", "/nonexistent"], 1, "reading the kubeconfig /nonexistent"),
        (vec!["--output", root], 1, "outside of a pod --kubeconfig is needed"),
        (vec!["--output", "/dev/null/x", "--kubeconfig", "/nonexistent"], 1, "using the snapshot directory"),
    ] {
        let (found, said) = run(&arguments);
        assert!(found == Some(code) && said.contains(why), "{arguments:?}: {found:?} {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_updates_need_no_more_memory_than_the_objects() {
    let world = World::inhabited();
    world.server.bookmarks(false);
    let program = Program::start(&world, &[]);
    world.wait("readiness", || program.get("/readyz").is_some_and(|(code, _)| code == 200)).await;
    let round = async |round: u32| {
        let text = format!("{round:03}");
        let labels = json!({"app": "web", "round": text});
        let pods: Vec<Value> = (0..200).map(|number| pod(&format!("web-{number}"), labels.clone())).collect();
        world.server.put_all("pods", &pods);
        let there = |objects: &Objects| {
            let seen = |number: u32| objects.get(&format!("Pod shop/web-{number}"));
            (0..200).all(|number| seen(number).is_some_and(|pod| pod["metadata"]["labels"]["round"] == *text))
        };
        world.until("the round", there).await;
        world.server.forget();
    };
    for number in 0..10 {
        round(number).await;
    }
    let octets = r#"namegate_collect_octets{kind="pods"}"#;
    let before = (program.metric(octets).expect("a metric"), program.resident());
    for number in 10..60 {
        round(number).await;
    }
    assert_eq!(program.metric(r#"namegate_collect_objects{kind="pods"}"#), Some(201.0), "and db-0");
    assert_eq!(program.metric(octets), Some(before.0));
    let more = program.resident().saturating_sub(before.1);
    assert!(more < 4 << 10, "{more} KiB more after 10 000 updates; {} KiB before", before.1);
    eprintln!("10 000 updates: {more} KiB more than {} KiB", before.1);
    let files = || std::fs::read_dir(world.root.join("..files")).expect("a directory").count();
    world.wait("the end of files that nobody needs", || files() < 280).await;
}
