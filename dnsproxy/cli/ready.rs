//! `namegate ready`.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::node::CommonArgs;
use super::{FAILED, complain, print, usage};
use crate::clock;
use crate::config::duration_from_text;
use crate::operate::client;

/// What `namegate ready` takes.
#[derive(Args, Debug)]
pub(super) struct ReadyArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Wait until it is
    #[arg(long)]
    wait: bool,
    /// How long to wait at most, as 250ms, 30s, 2m; with --wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout, requires = "wait")]
    timeout: Duration,
}

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait between two questions.
const PAUSE: Duration = Duration::from_millis(100);

impl ReadyArgs {
    pub(super) fn run(self) -> ExitCode {
        let config = match self.common.source().load() {
            Ok(config) => config,
            Err(errors) => return usage(&errors),
        };
        let timeout = if self.wait { self.timeout } else { Duration::ZERO };
        match wait(&config.admin_socket(), timeout) {
            Ok(()) => print(b"ready\n"),
            Err(reasons) => {
                reasons.iter().for_each(|reason| complain(reason));
                ExitCode::from(FAILED)
            }
        }
    }
}

/// Asks until namegate is ready or `timeout` is over, at least once; then says why it is not.
pub(super) fn wait(socket: &Path, timeout: Duration) -> Result<(), Vec<String>> {
    let start = clock::now();
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        let patience = if timeout.is_zero() { PATIENCE } else { PATIENCE.min(left.max(PAUSE)) };
        let reasons = match client::get(socket, "/readyz", patience) {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => answer.body.lines().map(|line| format!("not ready: {line}")).collect(),
            Err(error) => vec![format!("not ready: {:#}", anyhow::Error::new(error))],
        };
        if start.elapsed() + PAUSE >= timeout {
            return Err(reasons);
        }
        thread::sleep(PAUSE);
    }
}

fn timeout(text: &str) -> Result<Duration, &'static str> {
    duration_from_text(text).ok_or("allowed is a time as 250ms, 30s, 2m, 1h or seconds")
}
