//! What `namegate fqdn list` tells, page by page, and how it asks.

use std::net::IpAddr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

/// How many names one page has at most.
pub const PAGE: usize = 1_000;

/// Which names to tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NamesAsked {
    /// Of this endpoint only, `namespace/name`.
    pub endpoint: Option<String>,
    /// Those that this pattern selects only, as in a `matchPattern`.
    pub pattern: Option<String>,
    /// Those after what the last page ended with.
    pub after: Option<Place>,
    /// How many, at most; from 1 to [`PAGE`].
    pub count: usize,
}

/// Where a page ends.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// The endpoint, `namespace/name`.
    pub endpoint: String,
    /// Its last name; none: all of them are told.
    pub name: Option<String>,
}

/// Some names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NamesPage {
    /// By endpoint, then by name.
    pub names: Vec<NameStatus>,
    /// Where the next page begins; none: there is no more.
    pub next: Option<Place>,
}

/// A name that an endpoint has learned.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NameStatus {
    /// Who may reach its addresses, `namespace/name`.
    pub endpoint: String,
    /// The name. Empty for grants of an earlier run whose names are not known.
    pub name: String,
    /// What it stands for.
    pub addresses: Vec<AddressStatus>,
    /// The policies that say so, `namespace/name`.
    pub policies: Vec<String>,
}

/// An address that a name stands for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressStatus {
    /// The address.
    pub address: IpAddr,
    /// How long new connections are let to it. 0: it only stays while its connections live.
    pub seconds_left: u64,
    /// Whether connections to it live; at most some seconds old.
    pub connections: bool,
}

/// What is wrong with a question.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: found {found:?}; allowed is {allowed}")]
pub struct AskedError {
    /// The part of the question.
    pub key: &'static str,
    /// What it was.
    pub found: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl NamesAsked {
    /// As the query part of a request.
    pub fn to_query(&self) -> String {
        let after = self.after.as_ref();
        let parts = [
            ("endpoint", self.endpoint.clone()),
            ("name", self.pattern.clone()),
            ("after_endpoint", after.map(|place| place.endpoint.clone())),
            ("after_name", after.and_then(|place| place.name.clone())),
            ("count", Some(self.count.to_string())),
        ];
        let parts = parts
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", utf8_percent_encode(&value?, NON_ALPHANUMERIC))));
        parts.collect::<Vec<_>>().join("&")
    }

    /// From the query part of a request.
    ///
    /// # Errors
    /// A part is not known, or not what it may be.
    pub fn from_query(query: &str) -> Result<NamesAsked, AskedError> {
        let mut asked = NamesAsked { count: PAGE, ..NamesAsked::default() };
        let (mut after_endpoint, mut after_name) = (None, None);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = |key, allowed| AskedError { key, found: part.to_owned(), allowed };
            let value = percent_decode_str(value).decode_utf8().map_err(|_| wrong("query", "UTF-8"))?.into_owned();
            match key {
                "endpoint" => asked.endpoint = Some(value),
                "name" => asked.pattern = Some(value),
                "after_endpoint" => after_endpoint = Some(value),
                "after_name" => after_name = Some(value),
                "count" => {
                    let count = value.parse().ok().filter(|count| (1..=PAGE).contains(count));
                    asked.count = count.ok_or_else(|| wrong("count", "1 to 1000"))?;
                }
                _ => return Err(wrong("query", "endpoint, name, after_endpoint, after_name and count")),
            }
        }
        asked.after = after_endpoint.map(|endpoint| Place { endpoint, name: after_name });
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_the_way() {
        let place = Place { endpoint: "payments/a".to_owned(), name: Some("a\\.b&=%.test.".to_owned()) };
        let whole = NamesAsked {
            endpoint: Some("payments/größe".to_owned()),
            pattern: Some("**.example.com".to_owned()),
            after: Some(place),
            count: 7,
        };
        assert_eq!(NamesAsked::from_query(&whole.to_query()), Ok(whole));
        let short = NamesAsked { count: PAGE, ..NamesAsked::default() };
        assert_eq!(NamesAsked::from_query(""), Ok(short));
    }

    #[test]
    fn a_wrong_question_is_refused() {
        for wrong in ["count=0", "count=1001", "count=x", "nmae=x", "name=%ff"] {
            assert!(NamesAsked::from_query(wrong).is_err(), "{wrong}");
        }
    }
}
