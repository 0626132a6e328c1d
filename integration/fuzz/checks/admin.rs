//! Octets on a connection to the pages of an operator, behind one that says who asks: whatever comes, what goes back are
//! whole replies of bounded size, to a plain request the right one; it ends by itself, and nothing stays in memory.

use std::sync::Arc;
use std::time::Duration;

use namegate::operate::explain::PolicyAsked;
use namegate::operate::http::{Asker, Operator, converse};
use namegate::operate::metrics::Metrics;
use namegate::operate::names::{NameStatus, NamesPage};
use namegate::operate::{Readiness, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::cost::{self, Limit};
use super::question::explained;

/// Octets that no reply is longer than.
const REPLY: usize = 256 * 1024;
/// A page of names is asked for in 34 octets, and there is one at a time.
const LIMIT: Limit = Limit { held: (64, 1_000_000), allocations: (50, 4_000) };
/// What only an administrator may see.
const SECRET: &str = "secret-node";
/// What hyper and we say.
const STATUSES: [u16; 9] = [200, 400, 403, 404, 405, 414, 431, 503, 505];

pub fn check(octets: &[u8]) {
    let Some((&who, octets)) = octets.split_first() else { return };
    let asker = [Asker::Admin, Asker::Anyone, Asker::Stranger][usize::from(who % 3)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let operator = operator();
    let said = runtime.block_on(conversation(octets, &operator, asker)); // what is made once is made now
    let before = cost::held();
    let again = cost::within(octets.len(), LIMIT, || runtime.block_on(conversation(octets, &operator, asker)));
    let replies = replies(&again);
    assert_eq!(replies.len(), self::replies(&said).len());
    drop(again);
    let kept = size_of_val(&replies[..]);
    assert!(cost::held() <= before + isize::try_from(kept * 2 + 256).expect("small"), "it stays in memory");

    let asked = octets.iter().filter(|octet| **octet == b'\n').count();
    // What is no HTTP at all is told so.
    assert!(replies.len() <= asked + 1, "{} replies to {asked} lines", replies.len());
    if asker != Asker::Admin {
        let text = String::from_utf8_lossy(&said);
        assert!(!text.contains(SECRET) && !text.contains("\"allowed\""), "{asker:?} is told {text}");
    }
    if let Some((method, target)) = plain(octets) {
        let first = replies.first().unwrap_or_else(|| panic!("{method} {target} has no reply"));
        let path = target.split('?').next().unwrap_or_default();
        let reading = matches!(method, "GET" | "HEAD");
        let wanted: &[u16] = match (asker, path) {
            (Asker::Stranger, _) => &[403],
            _ if !reading => &[405],
            (_, "/livez" | "/metrics") | (Asker::Admin, "/status" | "/policy" | "/selectors" | "/endpoints") => &[200],
            (_, "/readyz") => &[503],
            (Asker::Admin, "/names" | "/explain" | "/diff") => &[200, 400],
            _ => &[404],
        };
        assert!(wanted.contains(&first.status), "{method} {target} for {asker:?}: {first:?}, not {wanted:?}");
        assert_eq!(first.body, method != "HEAD", "{method} {target}: {first:?}");
    }
}

/// What comes back until the other side has nothing more to say.
async fn conversation(octets: &[u8], operator: &Operator, asker: Asker) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let ask = async {
        // The other side may be done before all is said.
        let _ = client.write_all(octets).await;
        let _ = client.shutdown().await;
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.expect("memory can be read");
        said
    };
    let both = async { tokio::join!(ask, converse(server, operator, asker)).0 };
    tokio::time::timeout(Duration::from_secs(3), both).await.expect("it does not end")
}

#[derive(Debug)]
struct Reply {
    status: u16,
    /// Whether what it speaks of is there: not in a reply to HEAD.
    body: bool,
}

/// Reads replies by RFC 9112 as they are written here; what is left over is none.
fn replies(mut octets: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while !octets.is_empty() {
        let whole = octets;
        let bad = || -> ! { panic!("no reply: {}", String::from_utf8_lossy(whole)) };
        let end = octets.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| bad());
        let head = std::str::from_utf8(&octets[..end]).unwrap_or_else(|_| bad());
        octets = &octets[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
        let status = status.filter(|status| STATUSES.contains(status)).unwrap_or_else(|| bad());
        let fields: Vec<(&str, &str)> = lines.map(|line| line.split_once(": ").unwrap_or_else(|| bad())).collect();
        assert!(head.bytes().all(|octet| matches!(octet, b' '..=b'~' | b'\r' | b'\n')), "{head:?}");
        let mut lengths = fields.iter().filter(|(name, _)| *name == "content-length").map(|(_, value)| value.parse());
        let (Some(Ok(length)), None) = (lengths.next(), lengths.next()) else { bad() };
        assert!(end + length <= REPLY, "a reply of {end} and {length} octets");
        let next = |rest: &[u8]| rest.is_empty() || rest.starts_with(b"HTTP/1.");
        let body = octets.get(length..).is_some_and(next);
        if body {
            octets = &octets[length..];
        } else if !next(octets) {
            bad();
        }
        replies.push(Reply { status, body });
    }
    replies
}

/// Method and target of the first request, if it is one that nobody can take for anything else.
fn plain(octets: &[u8]) -> Option<(&str, &str)> {
    let end = octets.windows(4).position(|four| four == b"\r\n\r\n").filter(|end| *end < 4096)?;
    let mut lines = std::str::from_utf8(&octets[..end]).ok()?.split("\r\n");
    let [method, target, "HTTP/1.1"] = lines.next()?.split(' ').collect::<Vec<_>>()[..] else { return None };
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE"].contains(&method);
    let letter = |octet: u8| octet.is_ascii_alphanumeric() || b"/-_.~%=&?".contains(&octet);
    let (mut hosts, mut fields) = (0, 0);
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        let harmless = ["host", "user-agent", "accept", "x"].contains(&name);
        if !harmless || !value.bytes().all(|octet| octet.is_ascii_graphic()) || value.is_empty() {
            return None;
        }
        hosts += usize::from(name == "host");
        fields += 1;
    }
    (known && target.starts_with('/') && target.bytes().all(letter) && hosts == 1 && fields < 32)
        .then_some((method, target))
}

fn operator() -> Operator {
    Operator {
        metrics: Arc::new(Metrics::new()),
        readiness: Readiness::waiting_for("start"),
        status: Box::new(|| Status { node_name: SECRET.to_owned(), ..Status::default() }),
        names: Box::new(|asked| {
            let name = NameStatus { name: SECRET.to_owned(), ..NameStatus::default() };
            Ok(NamesPage { names: vec![name; asked.count], next: asked.after.clone() })
        }),
        policy: Box::new(|asked| match asked {
            PolicyAsked::Explain(asked) => serde_json::to_vec(&explained(asked)?).map_err(|error| error.to_string()),
            PolicyAsked::Diff(dir) => Err(format!("{}: found no directory", dir.display())),
            other => Ok(format!("{{\"{SECRET}\":\"{other:?}\"}}").into_bytes()),
        }),
        refresh: Box::new(|metrics| metrics.grants(1)),
        hand_over: None,
    }
}
