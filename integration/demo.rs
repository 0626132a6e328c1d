//! `make demo`: two pods behind the wall, by name, in a real kernel. Plays [`story`] against namegate in a small world of
//! network namespaces and prints what was tried, what was expected and what was seen. Exits non-zero if a line differs.

#[path = "lab/mod.rs"]
mod lab;
mod story;

use std::io::IsTerminal;
use std::process::ExitCode;

use lab::Topology;
use lab::process::guard;
use lab::world::Family;
use story::{ATTEMPTS, Stage};

fn main() -> ExitCode {
    lab::agent::serve_if_asked();
    // SAFETY: reads a number.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!(
            "error: the demo makes network namespaces and loads kernel programs; run it as root (make demo does)"
        );
        return ExitCode::FAILURE;
    }
    guard::install();
    let start = lab::clock::now();
    let differing = tell(&Paint(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()));
    guard::cleanup();
    println!(
        "\n{} attempts, {differing} differ from what is expected, {:.1} s",
        ATTEMPTS.len(),
        start.elapsed().as_secs_f32()
    );
    if differing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays the story; how many lines differ.
fn tell(paint: &Paint) -> usize {
    let mut stage = Stage::new(Topology::Routed, Family::V4, &[]);
    let mut differing = 0;
    let mut told = stage.flow_lines().len();
    println!("{}", paint.bold(&format!("{:<76} {:<42} {:<42} ok", "attempt", "expected", "seen")));
    for attempt in &ATTEMPTS {
        let seen = (attempt.seen)(&mut stage);
        let fine = seen == attempt.expected;
        differing += usize::from(!fine);
        let mark = if fine { paint.green("yes") } else { paint.red("NO") };
        println!("{:<76} {:<42} {:<42} {mark}", attempt.title, attempt.expected, seen);
        // Flow lines come through the kernel's ring and a writer; they are not the reply's business, so give them time.
        std::thread::sleep(std::time::Duration::from_millis(400));
        let lines = stage.flow_lines();
        for line in explain(&lines[told.min(lines.len())..]) {
            println!("    {}", paint.verdict(&line));
        }
        told = lines.len();
    }
    if differing > 0
        && let Some(daemon) = &stage.daemon
    {
        eprintln!("--- namegate's log\n{}", daemon.log().join("\n"));
    }
    differing
}

/// What explains an attempt: refusals and queries first-hand, each line once, at most six.
fn explain(lines: &[String]) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for line in lines {
        if !told.contains(line) {
            told.push(line.clone());
        }
    }
    let more = told.len().saturating_sub(6);
    told.truncate(6);
    if more > 0 {
        told.push(format!("… and {more} more"));
    }
    told
}

/// Colours, on a terminal.
struct Paint(bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn green(&self, text: &str) -> String {
        self.with("32", text)
    }

    fn red(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn verdict(&self, line: &str) -> String {
        match line.split_whitespace().next() {
            Some("DROPPED") => self.with("31", line),
            Some("FORWARDED") => self.with("32", line),
            _ => self.with("2", line),
        }
    }
}
