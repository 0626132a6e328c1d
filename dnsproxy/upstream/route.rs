//! Who is asked for a name: the resolver that the workload asked, or whom the operator put in its place.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::engine::name::Name;

use super::address::ServerAddress;

/// Servers of which any may answer; in the operator's order. Never empty. A clone is a pointer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Route(Arc<[ServerAddress]>);

impl Route {
    /// To one resolver, over UDP and TCP.
    pub fn to(resolver: SocketAddr) -> Route {
        Route(Arc::from([ServerAddress::plain(resolver)]))
    }

    /// To these; `None` if there are none.
    pub fn among(servers: &[ServerAddress]) -> Option<Route> {
        (!servers.is_empty()).then(|| Route(servers.into()))
    }

    /// Whether they are one and the same, not only equal.
    pub(super) fn is(&self, other: &Route) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The servers.
    pub fn servers(&self) -> &[ServerAddress] {
        &self.0
    }
}

/// Its servers, for people.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, server) in self.0.iter().enumerate() {
            write!(f, "{}{server}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What the operator put in place of the resolvers that workloads ask.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routes {
    /// For every name; `None`: the resolver asked.
    pub everywhere: Option<Route>,
    /// For names under a suffix.
    suffixes: Vec<(Name, Option<Route>)>,
}

impl Routes {
    /// `everywhere` for every name but those under a suffix: the longest that fits counts; `None` there means the
    /// resolver asked.
    pub fn new(everywhere: Option<Route>, mut suffixes: Vec<(Name, Option<Route>)>) -> Routes {
        suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.as_wire().len()));
        Routes { everywhere, suffixes }
    }

    /// Whom to ask for `name`; `None`: the resolver that the workload asked.
    pub fn of(&self, name: &Name) -> Option<&Route> {
        let suffix = self.suffixes.iter().find(|(suffix, _)| name == suffix || name.ends_with(suffix));
        suffix.map_or(self.everywhere.as_ref(), |(_, route)| route.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("a name")
    }

    fn route(text: &str) -> Route {
        Route::among(&[ServerAddress::parse(text).expect("an address")]).expect("a server")
    }

    #[track_caller]
    fn goes(routes: &Routes, asked: &str, to: Option<&str>) {
        assert_eq!(routes.of(&name(asked)), to.map(route).as_ref(), "{asked}");
    }

    #[test]
    fn the_longest_suffix_that_fits_decides_and_the_rest_goes_everywhere() {
        let suffixes = vec![
            (name("corp.example"), Some(route("203.0.113.1"))),
            (name("cluster.local"), None),
            (name("a.corp.example"), Some(route("203.0.113.2"))),
        ];
        let routes = Routes::new(Some(route("203.0.113.3")), suffixes.clone());
        goes(&routes, "corp.example", Some("203.0.113.1"));
        goes(&routes, "b.corp.example", Some("203.0.113.1"));
        goes(&routes, "x.a.corp.example", Some("203.0.113.2"));
        goes(&routes, "xcorp.example", Some("203.0.113.3"));
        goes(&routes, "kube-dns.kube-system.svc.cluster.local", None);
        goes(&routes, ".", Some("203.0.113.3"));
        goes(&Routes::new(None, suffixes), "www.example", None);
    }
}
