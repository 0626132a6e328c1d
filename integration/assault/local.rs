//! On the machine itself: another user, and what a workload can write into the logs by asking. The control is beside each
//! attempt: root may, and the name was logged.

use std::path::Path;
use std::time::Duration;

use crate::bench::{Case, Shown};
use crate::lab::agent::{Request, hex};
use crate::lab::{clock, process};
use crate::message::{A, IN, query, wire};
use crate::model::RESOLVER;

const CLASS: &str = "local";
/// Nobody.
const USER: &str = "65534";
/// What a forged line of a log would begin with.
const FORGED: &str = "forged-line";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, tries, part, script) in [
        (
            "the admin socket from the node",
            "another user asks for the status",
            "node",
            "curl -sf -m 3 -o /dev/null --unix-socket run/admin.sock http://namegate/status",
        ),
        (
            "the admin socket from the workload's namespace",
            "a workload that shares the file system asks for the status",
            "pay",
            "curl -sf -m 3 -o /dev/null --unix-socket run/admin.sock http://namegate/status",
        ),
        (
            "the pinned maps",
            "another user may open one, as its mode says",
            "node",
            "find bpf/namegate -type f | grep -q . && find bpf/namegate -type f -readable | grep -q .",
        ),
        (
            "the directory of the maps",
            "another user removes a pin",
            "node",
            "test -w \"$(ls -d bpf/namegate/*/maps)\" && test -x \"$(ls -d bpf/namegate/*/maps)\"",
        ),
        (
            "the state",
            "another user reads what is kept across restarts",
            "node",
            "for f in $(find state -type f); do cat $f >/dev/null || exit 1; done; test -n \"$(find state -type f)\"",
        ),
        ("the state's directory", "another user puts a file there", "node", "test -w state && test -x state"),
        ("the run directory", "another user puts a socket there", "node", "test -w run && test -x run"),
        ("the process", "another user ends it", "node", "kill -0 $(cat daemon.pid)"),
        (
            "the environment of the process",
            "another user reads it",
            "node",
            "cat /proc/$(cat daemon.pid)/environ >/dev/null",
        ),
    ] {
        cases.push(Case::new(CLASS, name, tries, move |side, _| {
            let daemon = side.daemon.as_ref().expect("only where it is guarded");
            std::fs::write(side.world.directory.join("daemon.pid"), daemon.pid().to_string())
                .expect("a file can be written");
            let works = |user: &str| runs(&side.world.namespace(part), &side.world.directory, user, script);
            Shown::Both { control: works("0"), arrived: works(USER) }
        }));
    }
    let labels: [(&str, &str, &[u8]); 9] = [
        ("a line break", "a name of two lines forges a line of the log", b"\nforged-line"),
        ("a carriage return", "a name overwrites the line that it stands in", b"\rforged-line"),
        ("an escape", "a name commands the reader's terminal", b"\x1b[2J\x1b]0;x\x07"),
        ("a one-octet escape", "a C1 control sequence", b"\x9b2J"),
        ("a nul", "a name ends the line early", b"\0x"),
        ("a backspace", "a name takes back what stands before it", b"\x08\x08\x08\x08"),
        ("a quotation mark", "a name ends the string that it stands in", b"\",\"verdict\":\"FORWARDED\",\"x\":\""),
        ("a backslash", "a name escapes what follows it", b"\\u000a\\"),
        ("a right-to-left mark", "a name is read backwards", "\u{202e}moc.elgoog".as_bytes()),
    ];
    for (name, tries, label) in labels {
        cases.push(Case::new(CLASS, format!("{name} in a name"), tries, move |side, mark| {
            // Not the mark itself: where it is logged it must not count as sent.
            let text = mark.replace("ngx", "log");
            let message = query(0x4e47, &wire(&[&[text.as_bytes(), label].concat(), b"evil", b"example"]), A, IN);
            let server = RESOLVER.parse().expect("an address");
            side.world.pay.call(Request::AskRaw { server, tcp: false, message: hex(&message), within_ms: 300 });
            let daemon = side.daemon.as_ref().expect("only where it is guarded");
            let flows = side.world.directory.join("flows.json");
            let mut said = (Vec::new(), String::new());
            let logged = clock::wait_until(Duration::from_secs(3), || {
                let file = std::fs::read(&flows).unwrap_or_default();
                said = (daemon.log(), String::from_utf8_lossy(&file).into_owned());
                said.0.iter().any(|line| line.contains(&text)) || said.1.contains(&text)
            });
            let (lines, file) = said;
            let control = |text: &str| text.chars().any(|c| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}'));
            let bad = lines.iter().any(|line| control(line) || line.starts_with(FORGED))
                || file.lines().any(|line| control(line) || line.starts_with(FORGED) || !is_json(line));
            Shown::Both { control: logged, arrived: bad }
        }));
    }
    cases
}

/// Whether a line of shell succeeds for a user in a world's directory.
fn runs(namespace: &str, directory: &Path, user: &str, script: &str) -> bool {
    let mut command = process::inside(namespace, "setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    if user != "0" {
        command.args(["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]);
    }
    command.args(["sh", "-c", script]).current_dir(directory);
    process::output(command).is_ok_and(|output| output.status.success())
}

/// The last line may still be under way.
fn is_json(line: &str) -> bool {
    !line.ends_with('}') || serde_json::from_str::<serde_json::Value>(line).is_ok()
}
