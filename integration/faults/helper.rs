//! A child that is asked in words, one line each, and answers with one line of JSON each.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde::de::DeserializeOwned;

use crate::lab::process::{inside, spawn};

/// This program again, in a namespace. Ends when dropped.
pub struct Helper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts it; `role` is its first argument.
    #[track_caller]
    pub fn start(namespace: &str, role: &str) -> Helper {
        // By this link rather than by its path: a build that replaces the file must not end a run.
        let mut command = inside(namespace, &format!("/proc/{}/exe", std::process::id()));
        command.arg(role).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(command).expect("the helper starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Helper { child, input, output }
    }

    /// Asks and waits for the answer.
    #[track_caller]
    pub fn ask<T: DeserializeOwned>(&mut self, line: &str) -> T {
        writeln!(self.input, "{line}").expect("the helper lives");
        let mut said = String::new();
        self.output.read_line(&mut said).expect("the helper answers");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("asked {line:?}, the helper said {said:?}: {error}"))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The helper's side: answers lines until its input ends.
pub fn serve(mut answer: impl FnMut(&str) -> String) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        println!("{}", answer(&line));
    }
}
