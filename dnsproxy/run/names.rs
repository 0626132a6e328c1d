//! `namegate fqdn list`: what endpoints have learned. Called on the admin server's thread; a table is locked for one page.

use std::sync::Arc;

use super::packets::People;
use crate::clock;
use crate::engine::fqdn::FqdnTable;
use crate::engine::grant::MonoNs;
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::operate::names::{AddressStatus, AskedError, NameStatus, NamesAsked, NamesPage, Place};
use crate::serve::Served;

/// One page of what was asked for.
///
/// # Errors
/// No such pattern, name or endpoint.
pub(super) fn page(people: &People, asked: &NamesAsked) -> Result<NamesPage, AskedError> {
    let wanted = match &asked.pattern {
        None => None,
        Some(text) => {
            let wrong = AskedError { key: "name", found: text.clone(), allowed: "what a matchPattern may be" };
            let mut trie = PatternTrie::new(Bare::Every);
            trie.insert(Pattern::pattern(text).map_err(|_| wrong)?, (), None);
            Some(trie)
        }
    };
    let everyone = people.everyone();
    if let Some(endpoint) = asked.endpoint.as_ref().filter(|pod| everyone.iter().all(|one| one.0 != **pod)) {
        return Err(AskedError {
            key: "endpoint",
            found: endpoint.clone(),
            allowed: "one that `namegate status` lists",
        });
    }
    let place = asked.after.clone().unwrap_or_default();
    let now = clock::mono();
    let mut page = NamesPage::default();
    let mine = everyone.iter().filter(|(pod, _)| asked.endpoint.as_ref().is_none_or(|wanted| wanted == pod));
    for (pod, served) in mine.filter(|(pod, _)| *pod >= place.endpoint) {
        let after = match &place.name {
            Some(name) if *pod == place.endpoint => Some(read(name)?),
            None if *pod == place.endpoint => continue, // told to the end
            _ => None,
        };
        let end = |name: Option<Name>| Place { endpoint: pod.clone(), name: name.map(|name| name.to_string()) };
        let room = asked.count.saturating_sub(page.names.len()); // grants without a name come on top
        if room == 0 {
            return Ok(page);
        }
        let table = served.table();
        let found = table.list(after.as_ref(), room, &|name| {
            wanted.as_ref().is_none_or(|wanted| wanted.matches(name).next().is_some())
        });
        for listed in found.names {
            let addresses = listed.addresses.into_iter().map(|(at, until)| address(&table, at, until, now)).collect();
            let policies = policies(served, &listed.name);
            page.names.push(NameStatus { endpoint: pod.clone(), name: listed.name.to_string(), addresses, policies });
        }
        page.next = Some(end(found.next.clone()));
        if found.next.is_some() {
            return Ok(page);
        }
        if wanted.is_none() {
            page.names.extend(unnamed(pod, &table, now));
        }
    }
    page.next = None;
    Ok(page)
}

fn read(name: &str) -> Result<Name, AskedError> {
    Name::parse(name).map_err(|_| AskedError { key: "after_name", found: name.to_owned(), allowed: "a name" })
}

fn address(table: &FqdnTable, address: std::net::IpAddr, until: MonoNs, now: MonoNs) -> AddressStatus {
    let seconds_left = until.0.saturating_sub(now.0).div_ceil(1_000_000_000);
    AddressStatus { address, seconds_left, connections: table.is_live(address) }
}

/// Grants of an earlier run without a name, in one entry.
fn unnamed(pod: &str, table: &FqdnTable, now: MonoNs) -> Option<NameStatus> {
    let last = |slots: &[crate::engine::grant::Slot]| slots.iter().map(|slot| slot.until).max().unwrap_or_default();
    let addresses: Vec<_> = table.unnamed().map(|(at, slots)| address(table, at, last(slots), now)).collect();
    (!addresses.is_empty()).then(|| NameStatus { endpoint: pod.to_owned(), addresses, ..NameStatus::default() })
}

/// The policies whose selectors select the name.
fn policies(served: &Arc<Served>, name: &Name) -> Vec<String> {
    let rules = served.rules.load();
    let mut policies: Vec<String> =
        rules.names.matches(name).filter_map(|found| found.rule).map(ToString::to_string).collect();
    policies.sort_unstable();
    policies.dedup();
    policies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::answer::Learned;
    use crate::engine::bits::Bits;
    use crate::engine::endpoint::{EndpointId, PodRef};
    use crate::engine::fqdn::{Caps, Meaning, Timing};
    use crate::engine::grant::{GrantWrite, Slot};
    use crate::engine::ruleset::RuleSet;
    use crate::engine::verdict::{RuleRef, RuleText};

    /// Two endpoints that know the same five names.
    fn people() -> People {
        let policy = RuleText { namespace: "payments".into(), policy: "egress".into(), ..RuleText::default() };
        let mut names = PatternTrie::new(Bare::Valid);
        names.insert(Pattern::pattern("*.test").expect("a pattern"), Bits::of(1), Some(RuleRef(policy.into())));
        let rules = Arc::new(RuleSet { selected: true, names: Arc::new(names), ..RuleSet::unselected() });
        let people = People::default();
        let endpoint = |(id, name): (u32, &str)| {
            let pod = PodRef { namespace: "payments".to_owned(), name: name.to_owned() };
            let served = Served::new(EndpointId(id), pod, Vec::new(), 1, rules.clone(), Caps::default());
            let mut table = served.table();
            for at in 0..5 {
                let name = Name::parse(&format!("n{at}.test")).expect("a name");
                let learned = Learned { name, addresses: vec![[203, 0, 113, at].into()], ttl: 60 };
                let plan = table.plan(&learned, &rules, clock::mono(), &Timing::default()).expect("room");
                table.record(plan);
            }
            drop(table);
            (EndpointId(id), (Arc::new(served), "veth".to_owned()))
        };
        people.know([(1, "b"), (2, "a")].into_iter().map(endpoint).collect());
        people
    }

    /// Every name that pages of `count` tell, as `pod name`.
    fn all(people: &People, count: usize, mut asked: NamesAsked) -> Vec<String> {
        asked.count = count;
        let mut told = Vec::new();
        loop {
            let page = page(people, &asked).expect("a good question");
            assert!(page.names.len() <= count);
            told.extend(page.names.iter().map(|one| format!("{} {}", one.endpoint, one.name)));
            match page.next {
                Some(next) => asked.after = Some(next),
                None => return told,
            }
        }
    }

    #[test]
    fn pages_tell_every_name_once_in_order_whatever_their_size() {
        let people = people();
        let whole = all(&people, 100, NamesAsked::default());
        let expected: Vec<_> =
            ["a", "b"].iter().flat_map(|pod| (0..5).map(move |at| format!("payments/{pod} n{at}.test."))).collect();
        assert_eq!(whole, expected);
        for count in 1..12 {
            assert_eq!(all(&people, count, NamesAsked::default()), expected, "{count} a page");
        }
    }

    #[test]
    fn names_are_picked_by_endpoint_and_pattern() {
        let people = people();
        let asked = NamesAsked { endpoint: Some("payments/b".into()), ..NamesAsked::default() };
        assert_eq!(all(&people, 2, asked).len(), 5);
        let asked = NamesAsked { pattern: Some("n[".into()), ..NamesAsked::default() };
        assert!(page(&people, &asked).is_err());
        let asked = NamesAsked { pattern: Some("*3.test".into()), ..NamesAsked::default() };
        assert_eq!(all(&people, 1, asked), ["payments/a n3.test.", "payments/b n3.test."]);
        let asked = NamesAsked { endpoint: Some("payments/c".into()), count: 1, ..NamesAsked::default() };
        assert!(page(&people, &asked).is_err());
    }

    #[test]
    fn a_name_comes_with_its_time_and_its_policies() {
        let asked = NamesAsked { count: 1, ..NamesAsked::default() };
        let page = page(&people(), &asked).expect("a good question");
        let one = &page.names[0];
        assert_eq!(one.policies, ["payments/egress"]);
        assert!((114..=116).contains(&one.addresses[0].seconds_left), "{one:?}");
        assert!(!one.addresses[0].connections);
    }

    #[test]
    fn grants_without_a_name_are_told_at_the_end() {
        let people = people();
        let everyone = people.everyone();
        let slots = [Slot { bits: Bits::of(1), until: MonoNs(5) }, Slot::default(), Slot::default(), Slot::default()];
        let row = GrantWrite { address: [203, 0, 113, 99].into(), slots };
        everyone[0].1.table().adopt(&row, None, &Meaning::of(&[]), MonoNs(1));
        let whole = all(&people, 100, NamesAsked::default());
        assert_eq!((whole.len(), whole[5].as_str()), (11, "payments/a "));
    }
}
