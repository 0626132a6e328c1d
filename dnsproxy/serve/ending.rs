//! How queries end: the replies that are made here, and what the record says of them.

use crate::engine::fqdn::Full;
use crate::engine::query::Query;
use crate::engine::reply::{self, Ede, EdeCode, Rcode};
use crate::engine::verdict::Denied;
use crate::observe::Outcome;
use crate::upstream::UpstreamError;

use super::directory::{RejectCode, Served, Settings};
use super::hot::Promise;

/// How a query ends: for the record, and what goes back.
pub(super) struct Ending {
    pub(super) outcome: Outcome,
    pub(super) reason: &'static str,
    pub(super) reply: Vec<u8>,
    pub(super) promise: Promise,
}

impl Ending {
    /// An ending that is found anew each time.
    pub(super) fn new(outcome: Outcome, reason: &'static str, reply: Vec<u8>) -> Ending {
        Ending { outcome, reason, reply, promise: Promise::Once }
    }

    pub(super) fn failed(reason: &'static str, query: &Query<'_>, ede: &Ede) -> Ending {
        Ending::new(Outcome::Failed, reason, reply::failed(query, Rcode::ServFail, Some(ede)))
    }
}

/// The code as the client reads it.
pub(super) fn rcode_of(ending: &Ending) -> Option<u16> {
    match ending.reason {
        "edns_version" => Some(Rcode::BadVers as u16),
        _ => ending.reply.get(3).map(|flags| u16::from(flags & 0xf)),
    }
}

pub(super) fn denied_reply(query: &Query<'_>, denied: &Denied, served: &Served, settings: &Settings) -> Vec<u8> {
    let mut policies: Vec<String> = denied.rules().iter().map(ToString::to_string).collect();
    policies.dedup();
    let policies = policies.join(", ");
    let (code, text) = match denied {
        Denied::Server(_) => (EdeCode::Prohibited, format!("{policies}: this server may not be asked")),
        Denied::Name(_) => (EdeCode::Blocked, format!("{policies}: the name is not allowed")),
        Denied::Label => (EdeCode::Blocked, "the name is not allowed".to_owned()),
        Denied::Type => (EdeCode::Prohibited, "this type may not be asked for".to_owned()),
        Denied::Class => (EdeCode::Prohibited, "only class IN may be asked for".to_owned()),
    };
    // The hint first: the text is cut, and a list of policies may be long.
    let text = denied.hint(&query.name).map_or(text.clone(), |hint| format!("{hint} ({text})"));
    // After REFUSED glibc and musl give up the search list, and never come to the name that is meant.
    let searched = matches!(denied, Denied::Name(_) | Denied::Label)
        && served.search.iter().any(|suffix| query.name != *suffix && query.name.ends_with(suffix));
    let rcode = if searched { Rcode::NxDomain } else { refusal(settings) };
    reply::failed(query, rcode, Some(&Ede::new(code, text)))
}

/// To a query for a server that nothing names.
pub(super) fn unnamed_server_reply(query: &Query<'_>, settings: &Settings) -> Vec<u8> {
    let text = "no policy and no setting names this server".to_owned();
    reply::failed(query, refusal(settings), Some(&Ede::new(EdeCode::Prohibited, text)))
}

/// The code of what policy denies.
fn refusal(settings: &Settings) -> Rcode {
    match settings.reject {
        RejectCode::Refused => Rcode::Refused,
        RejectCode::NameError => Rcode::NxDomain,
    }
}

pub(super) fn no_room(query: &Query<'_>, full: Full) -> Ending {
    Ending::failed("grants_full", query, &Ede::new(EdeCode::Other, full.to_string()))
}

pub(super) fn unreadable_answer(query: &Query<'_>, error: &dyn std::error::Error) -> Ending {
    Ending::failed("answer", query, &Ede::new(EdeCode::InvalidData, error.to_string()))
}

pub(super) fn ede_of(error: UpstreamError) -> EdeCode {
    match error {
        UpstreamError::Timeout => EdeCode::NoReachableAuthority,
        UpstreamError::Network(_) | UpstreamError::Tls => EdeCode::NetworkError,
        UpstreamError::Truncated => EdeCode::InvalidData,
        UpstreamError::Busy => EdeCode::Other,
    }
}
