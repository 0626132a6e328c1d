//! What `namegate explain`, `policy` and `endpoint` ask on the admin socket, and how.

use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::names::AskedError;
use super::status::RefusalStatus;
use crate::engine::explain::diff::Diff;
use crate::engine::explain::overview::PolicyRow;
use crate::engine::explain::question::Asked;

/// A question about policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PolicyAsked {
    /// The chain to a verdict. Answered by an [`Answer`](crate::engine::explain::answer::Answer).
    Explain(Box<Asked>),
    /// What is in force. Answered by [`Policies`].
    Policies,
    /// Each selector, and whom it selects.
    Selectors,
    /// Each endpoint, and what its policies come to.
    Endpoints,
    /// What would change with the snapshot in this directory, which the running namegate reads. Answered by [`Compared`].
    Diff(PathBuf),
}

/// What is in force, and what is not.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policies {
    /// By kind, namespace and name; what still holds of refused ones last.
    pub policies: Vec<PolicyRow>,
    /// Objects that were refused.
    pub refused: Vec<RefusalStatus>,
}

/// What changes, and what could not be compared.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Compared {
    /// What changes.
    #[serde(flatten)]
    pub diff: Diff,
    /// Objects of the new snapshot that are refused: compared is what stands in their place.
    pub refused: Vec<RefusalStatus>,
    /// The same of the old one.
    pub refused_before: Vec<RefusalStatus>,
}

impl PolicyAsked {
    /// As a page of the admin socket.
    pub fn to_page(&self) -> String {
        let with = |page: &str, text: &str| format!("{page}{}", utf8_percent_encode(text, NON_ALPHANUMERIC));
        match self {
            PolicyAsked::Explain(asked) => {
                let text = serde_json::to_string(asked).expect("a question has no map keys that are no strings");
                with("/explain?q=", &text)
            }
            PolicyAsked::Policies => "/policy".to_owned(),
            PolicyAsked::Selectors => "/selectors".to_owned(),
            PolicyAsked::Endpoints => "/endpoints".to_owned(),
            PolicyAsked::Diff(dir) => with("/diff?q=", &dir.to_string_lossy()),
        }
    }

    /// From a page of the admin socket; `None` if it is about something else.
    ///
    /// # Errors
    /// The question is not what it may be.
    pub fn from_page(path: &str, query: &str) -> Option<Result<PolicyAsked, AskedError>> {
        let plain = |asked| Some(Ok(asked));
        match path {
            "/policy" => return plain(PolicyAsked::Policies),
            "/selectors" => return plain(PolicyAsked::Selectors),
            "/endpoints" => return plain(PolicyAsked::Endpoints),
            "/explain" | "/diff" => {}
            _ => return None,
        }
        let wrong = |found: &str, allowed| AskedError { key: "q", found: found.to_owned(), allowed };
        let text = query.strip_prefix("q=").map(|text| percent_decode_str(text).decode_utf8());
        let Some(Ok(text)) = text else { return Some(Err(wrong(query, "q=…, in UTF-8"))) };
        Some(match path {
            "/diff" => Ok(PolicyAsked::Diff(PathBuf::from(text.as_ref()))),
            _ => serde_json::from_str(&text)
                .map(|asked| PolicyAsked::Explain(Box::new(asked)))
                .map_err(|_| wrong(&text, "a question in JSON: from, to, port, qtype, resolver, id")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_the_way() {
        let asked: Asked = serde_json::from_str(
            r#"{"id":7,"from":{"namespace":"größe","labels":{"app":"a&b=c"}},"to":"a.test","port":"443/TCP","resolver":"2001:db8::1"}"#,
        )
        .expect("a question");
        for asked in [
            PolicyAsked::Explain(Box::new(asked)),
            PolicyAsked::Policies,
            PolicyAsked::Selectors,
            PolicyAsked::Endpoints,
            PolicyAsked::Diff(PathBuf::from("/a b/ü")),
        ] {
            let page = asked.to_page();
            let (path, query) = page.split_once('?').unwrap_or((&page, ""));
            assert_eq!(PolicyAsked::from_page(path, query), Some(Ok(asked)), "{page}");
        }
    }

    #[test]
    fn a_wrong_question_is_refused() {
        for (path, query) in [("/explain", ""), ("/explain", "q={}"), ("/explain", "q=%ff"), ("/diff", "x=1")] {
            assert!(matches!(PolicyAsked::from_page(path, query), Some(Err(_))), "{path} {query}");
        }
        assert_eq!(PolicyAsked::from_page("/metrics", ""), None);
    }
}
