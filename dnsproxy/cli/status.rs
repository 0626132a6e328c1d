//! `namegate status`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::node::CommonArgs;
use super::table::Table;
use super::{FAILED, Output, complain, print, usage};
use crate::host::floor::FloorStatus;
use crate::observe::text::clean;
use crate::operate::{Status, client};
use crate::upstream::health::ServerHealth;

/// What `namegate status` takes.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl StatusArgs {
    pub(super) fn run(self) -> ExitCode {
        let config = match self.common.source().load() {
            Ok(config) => config,
            Err(errors) => return usage(&errors),
        };
        let failed = |text: String| {
            complain(&text);
            ExitCode::from(FAILED)
        };
        let answer = match client::get(&config.admin_socket(), "/status", Duration::from_secs(10)) {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => return failed(format!("namegate answered with HTTP status {}", answer.status)),
            Err(error) => return failed(format!("{:#}", anyhow::Error::new(error))),
        };
        match serde_json::from_str::<Status>(&answer.body) {
            Ok(status) if self.output == Output::Table => print(text(&status).as_bytes()),
            Ok(_) => print((answer.body + "\n").as_bytes()), // as it came: a newer namegate may say more than we know
            Err(error) => failed(format!("reading namegate's status: {error}")),
        }
    }
}

/// The status for people.
pub(super) fn text(status: &Status) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "namegate {} on {}, process {}, since {}",
        clean(&status.version),
        clean(&status.node_name),
        status.pid,
        clean(&status.started)
    );
    if status.ready {
        let _ = writeln!(text, "ready");
    }
    for reason in &status.reasons {
        let _ = writeln!(text, "not ready: {}", clean(reason));
    }
    for advisory in &status.advisory {
        let _ = writeln!(text, "advisory: {}: {}", advisory.reason.text(), clean(&advisory.text));
    }
    if status.adopting_seconds > 0 {
        let left = status.adopting_seconds;
        let _ = writeln!(
            text,
            "adopting: for {left} s connections from before the first start go on unless a rule denies them"
        );
    }
    let policy = &status.policy;
    let _ = writeln!(
        text,
        "policy: generation {}, in force since {}, {} objects of no use",
        policy.generation,
        clean(&policy.loaded),
        policy.skipped
    );
    for refused in &policy.refusals {
        let stands = refused.stands;
        let _ = writeln!(
            text,
            "refused: {}: {}: {} ({stands})",
            clean(&refused.place),
            clean(&refused.object),
            clean(&refused.text)
        );
    }
    for unknown in &status.unknown {
        let _ = writeln!(text, "unknown: {}: {}; nothing passes", clean(&unknown.interface), clean(&unknown.why));
    }
    for pod in &status.unprotected {
        let pod = clean(pod);
        let _ = writeln!(text, "unprotected: {pod}: a policy selects it, and it is on the node's own network");
    }
    for refused in &status.cni_refusals {
        let _ = writeln!(text, "left out: {} of the CNI's cache: {}", clean(&refused.file), clean(&refused.text));
    }
    let _ = writeln!(text, "{}", floor(&status.floor));
    let mut endpoints =
        Table::new(&["INTERFACE", "POD", "ID", "STATE", "ATTACHED", "STEERED", "GRANTS", "FLOWS", "PROBLEM"]);
    for endpoint in &status.endpoints {
        endpoints.row([
            endpoint.interface.clone(),
            endpoint.pod.clone(),
            endpoint.id.to_string(),
            endpoint.state.text().to_owned(),
            endpoint.attached.text().to_owned(),
            if endpoint.steered { "yes" } else { "no" }.to_owned(),
            endpoint.grants.to_string(),
            endpoint.flows.to_string(),
            endpoint.problem.clone(),
        ]);
    }
    let mut maps = Table::new(&["MAP", "ROWS", "MAX"]);
    for map in &status.maps {
        maps.row([map.name.clone(), map.rows.to_string(), map.max.to_string()]);
    }
    for table in [endpoints, maps] {
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table.text());
        }
    }
    if !status.upstreams.is_empty() {
        let _ = write!(text, "\n{}", upstreams(&status.upstreams).text());
    }
    if let Some(cache) = &status.cache {
        let mebibytes = |octets: u64| octets as f64 / f64::from(1 << 20);
        let used = match cache.hit_percent() {
            Some(percent) => format!("{percent:.1} % of answers came from it"),
            None => "not asked yet".to_owned(),
        };
        let _ = writeln!(
            text,
            "\ncache: {} answers, {:.1} of {:.1} MiB; {used} ({} hits, {} hot, {} stale, {} misses)",
            cache.entries,
            mebibytes(cache.bytes),
            mebibytes(cache.max_bytes),
            cache.hits,
            cache.hot_hits,
            cache.stale,
            cache.misses
        );
    }
    if status.events_lost > 0 {
        let _ = writeln!(text, "\n{} flow events were lost; no verdict depends on them", status.events_lost);
    }
    text
}

fn floor(floor: &FloorStatus) -> String {
    let problem = if floor.problem.is_empty() { String::new() } else { format!("; {}", clean(&floor.problem)) };
    if floor.tables.is_empty() {
        let why = if floor.wanted { problem.as_str() } else { "; enforcement.floor is false" };
        return format!("no floor: a new interface may send before it is guarded{why}");
    }
    format!(
        "floor: {} of {} interfaces guarded, the rest shut; {} packets dropped{problem}",
        floor.guarded,
        floor.names.len(),
        floor.dropped
    )
}

fn upstreams(servers: &[ServerHealth]) -> Table {
    let mut table = Table::new(&["SERVER", "ROUND TRIP", "QUERIES", "ANSWERS", "TIMEOUTS", "STATE"]);
    for server in servers {
        table.row([
            server.server.clone(),
            server.srtt_us.map_or_else(String::new, |us| format!("{:.1} ms", us as f64 / 1_000.0)),
            server.queries.to_string(),
            server.answers.to_string(),
            server.timeouts.to_string(),
            match server.held_ms {
                Some(ms) => format!("held down, asked again in {:.1} s", ms as f64 / 1_000.0),
                None => "in use".to_owned(),
            },
        ]);
    }
    table
}
