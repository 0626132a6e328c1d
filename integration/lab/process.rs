//! Children of the lab: how they start, and that none outlives it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

/// `ng-<pid>-<counter>`: no two worlds share it, and whose process is gone may be swept.
pub fn fresh_prefix() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("ng-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A command that runs in the network namespace `namespace`, in this process' mount namespace.
///
/// Not `ip netns exec`: that mounts a fresh sysfs, which hides bpffs.
pub fn inside(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
    command
}

/// Starts a child that the kernel kills when this process ends, however it ends.
///
/// The parent-death signal belongs to the *thread* that forked, and a test's thread ends before its world may: so one
/// thread, which lives as long as the process, starts them all.
pub fn spawn(mut command: Command) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;
    type Job = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, reply) in jobs {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("a thread can be started");
        Mutex::new(sender)
    });
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            guard::unblock_signals();
            Ok(())
        });
    }
    let (reply, answer) = channel();
    spawner.lock().expect("no panic while locked").send((command, reply)).expect("the spawner lives");
    answer.recv().expect("the spawner answers")
}

/// Runs a command to its end and returns what it wrote.
pub fn output(mut command: Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(command)?.wait_with_output()
}

/// Runs a command line (split at blanks); panics with its own words when it fails.
#[track_caller]
pub fn must(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    finish(line, command)
}

/// The same inside a namespace.
#[track_caller]
pub fn must_inside(namespace: &str, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = inside(namespace, words.next().expect("a program"));
    command.args(words);
    finish(line, command)
}

/// Many `ip` commands at once, one process: one line each, without the word `ip`.
#[track_caller]
pub fn ip_batch(namespace: &str, lines: &str) {
    feed(namespace, "ip", &["-batch", "-"], lines);
}

/// An `ip -batch` that stays: a line is carried out at once, without a process of its own.
pub struct IpBatch {
    namespace: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl IpBatch {
    #[track_caller]
    pub fn start(namespace: &str) -> IpBatch {
        let mut command = inside(namespace, "ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(command).expect("ip can be started");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        IpBatch { namespace: namespace.to_owned(), child, input, output: BufReader::new(output) }
    }

    /// One line each, without the word `ip`; returns when all of them are done.
    #[track_caller]
    pub fn run(&mut self, lines: &str) {
        let mut words = String::new();
        self.input.write_all(format!("{lines}link show lo\n").as_bytes()).expect("it reads");
        while !words.contains("link/loopback") {
            let read = self.output.read_line(&mut words).expect("it writes");
            assert!(read > 0, "ip in {} ended: {words}\n{lines}", self.namespace);
        }
    }
}

impl Drop for IpBatch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Many rules at once, one `nft` transaction.
#[track_caller]
pub fn nft(namespace: &str, rules: &str) {
    feed(namespace, "nft", &["-f", "-"], rules);
}

/// Whether a program is on the path.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).is_file()))
}

#[track_caller]
fn feed(namespace: &str, program: &str, arguments: &[&str], text: &str) {
    let mut command = inside(namespace, program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{program} in {namespace}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn finish(line: &str, command: Command) -> String {
    let output = output(command).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub mod guard {
    //! What removes a world when its owner can't.

    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Call once at the start of a program: sweeps what killed runs left, and cleans up on Ctrl-C and SIGTERM.
    pub fn install() {
        sweep(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        // SAFETY: the set is initialised by sigemptyset before use; blocking happens before other threads start.
        let set = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            set
        };
        std::thread::spawn(move || {
            let mut signal = 0;
            // SAFETY: both pointers are valid for the call.
            unsafe { libc::sigwait(&set, &mut signal) };
            eprintln!("interrupted: removing the lab");
            cleanup();
            std::process::exit(128 + signal);
        });
    }

    /// Removes all that this process made. For the end of a program, and for a signal.
    pub fn cleanup() {
        let own = std::process::id();
        kill_children();
        sweep(|pid| pid == own);
    }

    /// Undoes the signal mask that children would inherit; for `pre_exec`, hence no allocation.
    pub fn unblock_signals() {
        // SAFETY: as in `install`; async-signal-safe.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
    }

    /// Where a world's files are.
    pub fn directory(prefix: &str) -> PathBuf {
        std::env::temp_dir().join(prefix)
    }

    /// Removes what is left of one world: namespaces, mounts, files. Its processes are gone by now.
    pub fn remove(prefix: &str) {
        for namespace in names_in("/run/netns", prefix) {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
        let directory = directory(prefix);
        // A state directory may be a file system of its own (faults of disks), even one on top of another.
        for mounted in ["bpf", "state", "state"] {
            unmount(&directory.join(mounted));
        }
        let _ = fs::remove_dir_all(&directory);
        let _ = fs::remove_dir(memory_group(prefix));
    }

    /// A world's group of the memory controller, where the machine has it (cgroup v1).
    pub fn memory_group(prefix: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup/memory").join(prefix)
    }

    fn sweep(dead: impl Fn(u32) -> bool) {
        let mut prefixes: Vec<String> = ["/run/netns".as_ref(), std::env::temp_dir().as_path()]
            .into_iter()
            .flat_map(|dir: &Path| names_in(dir, "ng-"))
            .filter_map(|name| {
                let mut parts = name.splitn(4, '-').skip(1);
                let pid: u32 = parts.next()?.parse().ok()?;
                let counter: u32 = parts.next()?.parse().ok()?;
                dead(pid).then(|| format!("ng-{pid}-{counter}"))
            })
            .collect();
        prefixes.sort();
        prefixes.dedup();
        prefixes.iter().for_each(|prefix| remove(prefix));
    }

    /// Names in a directory that are `prefix` or begin with `prefix-`; a prefix that ends in `-` is taken as it is.
    fn names_in(directory: impl AsRef<Path>, prefix: &str) -> Vec<String> {
        let whole = format!("{}-", prefix.trim_end_matches('-'));
        fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name == prefix || name.starts_with(&whole))
            .collect()
    }

    /// Takes away what is mounted there, if anything is.
    pub fn unmount(path: &Path) {
        if let Ok(path) = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()) {
            // SAFETY: a valid C string. An error means that nothing was mounted.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }

    fn kill_children() {
        let own = std::process::id();
        let Ok(tasks) = fs::read_dir(format!("/proc/{own}/task")) else { return };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                // SAFETY: only signals a child of this process, which has not been waited for.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}
