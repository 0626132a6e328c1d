//! A chain for people.

use std::fmt::Write as _;

use crate::engine::explain::answer::{Answer, Connection, Line, QueryAnswer, Selecting};
use crate::observe::text::clean;

/// The whole chain: the verdict first, then what it rests on.
pub fn text(answer: &Answer) -> String {
    let mut text = String::new();
    let word = if answer.allowed { "allowed" } else { "denied" };
    let port = answer.port.as_ref().map_or_else(String::new, |port| format!(" on {port}"));
    let _ = writeln!(text, "{} to {}{port}: {word}", clean(&answer.from), clean(&answer.to));
    if answer.why != word {
        let _ = writeln!(text, "  {}", clean(&answer.why));
    }
    if answer.audit {
        let _ = writeln!(text, "  audit: what is denied passes all the same, and is told");
    }
    for note in &answer.notes {
        let _ = writeln!(text, "  {}", clean(note));
    }
    let _ = writeln!(text);
    if answer.selected_by.is_empty() {
        let _ = writeln!(text, "no policy selects {}", clean(&answer.from));
    } else {
        let _ = writeln!(text, "selected by");
        answer.selected_by.iter().for_each(|rule| selecting(rule, &mut text));
    }
    for query in &answer.queries {
        let _ = writeln!(text);
        self::query(query, &mut text);
    }
    for connection in &answer.connections {
        let _ = writeln!(text);
        self::connection(connection, 0, &mut text);
    }
    text
}

fn selecting(rule: &Selecting, text: &mut String) {
    let shuts = match (rule.egress, rule.ingress) {
        (true, true) => ": egress and ingress are default deny",
        (true, false) => ": egress is default deny",
        (false, true) => ": ingress is default deny",
        (false, false) => "",
    };
    let doubt = if rule.in_doubt { "; it only denies: it was refused, or not all labels are known" } else { "" };
    let _ = writeln!(text, "  {}  {} {}{shuts}{doubt}", clean(&rule.place), clean(&rule.policy), clean(&rule.path));
}

fn query(query: &QueryAnswer, text: &mut String) {
    let to = query.resolver.map_or_else(String::new, |resolver| format!(" to {resolver}"));
    let verdict = match (query.allowed, query.reason.as_str()) {
        (true, "unsteered") => "allowed, past the proxy: nothing is learned from it".to_owned(),
        (true, _) if query.grants => "allowed, and its answer may grant".to_owned(),
        (true, _) => "allowed; its answer grants nothing".to_owned(),
        (false, reason) => format!("refused ({reason})"),
    };
    let _ = writeln!(text, "query for {} {}{to} on {}: {verdict}", clean(&query.name), query.qtype, query.port);
    lines(&query.by, 1, text);
    if let Some(hint) = &query.hint {
        let _ = writeln!(text, "  hint: {}", clean(hint));
    }
}

/// One side of a connection.
pub fn connection(side: &Connection, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let peer = match side.peer {
        Some(address) => format!("{address} ({})", clean(&side.peer_is)),
        None => clean(&side.peer_is),
    };
    let way = if side.direction == "ingress" { "from" } else { "to" };
    let port = side.port.as_ref().map_or_else(String::new, |port| format!(" on {port}"));
    // A Service that is allowed may still have a backend that lets nobody in.
    let verdict = if side.verdict.passes() && !side.allowed { "denied behind it" } else { side.verdict.text() };
    let _ = writeln!(text, "{indent}{} of {} {way} {peer}{port}: {verdict}", side.direction, clean(&side.of));
    if !side.open.is_empty() {
        let _ = writeln!(text, "{indent}  open: {}", clean(&side.open.join(", ")));
    }
    lines(&side.by, depth + 1, text);
    for grant in &side.grants {
        let name = if grant.name.is_empty() { "a name that is not known any more" } else { &grant.name };
        let left = match (grant.seconds_left, grant.connections) {
            (0, true) => "over; its connections live on".to_owned(),
            (0, false) => "over".to_owned(),
            (seconds, _) => format!("{seconds} s left"),
        };
        let _ = writeln!(text, "{indent}  granted for {}: {left}", clean(name));
    }
    for note in &side.notes {
        let _ = writeln!(text, "{indent}  {}", clean(note));
    }
    if !side.nearest.is_empty() {
        let _ = writeln!(text, "{indent}  nearest");
        lines(&side.nearest, depth + 2, text);
    }
    for behind in &side.behind {
        connection(behind, depth + 1, text);
    }
}

fn lines(lines: &[Line], depth: usize, text: &mut String) {
    for line in lines {
        let says = if line.says.is_empty() { String::new() } else { format!(": {}", clean(&line.says)) };
        let indent = "  ".repeat(depth);
        let _ = writeln!(text, "{indent}{}  {} {}{says}", clean(&line.place), clean(&line.policy), clean(&line.path));
    }
}
