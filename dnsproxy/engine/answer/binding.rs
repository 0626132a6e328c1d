//! Service bindings (SVCB and HTTPS records, RFC 9460): read where they lie.
//!
//! # Whose addresses are hints?
//!
//! Hints are addresses of TargetName, which may be another name than the one asked for. They are learned for the name
//! asked for all the same: that name's own zone says that its service is at TargetName, just as a CNAME record does, and
//! the addresses behind a CNAME are learned too. It is a forward answer that we relayed (I6), not a claim of the
//! destination. A record in AliasMode has no hints: its parameters mean nothing (section 2.4.2), and the client asks for
//! TargetName next, which policy judges by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Record;
use crate::engine::wire::{rtype, skip_plain_name, u16_at};

/// The parameter that lists those which a client must understand (section 8).
pub const MANDATORY: u16 = 0;
/// IPv4 addresses of TargetName (section 7.3).
pub const IPV4HINT: u16 = 4;
/// IPv6 addresses of TargetName (section 7.3).
pub const IPV6HINT: u16 = 6;

/// A service binding that is well formed as far as anything here depends on it.
///
/// TargetName is not compressed, parameters are whole and in rising order without repeats, hints are addresses, at
/// least one, and `mandatory` is a list of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    rdata: &'a [u8],
    /// Where the parameters start, behind priority and TargetName.
    params: usize,
}

impl<'a> Binding<'a> {
    /// Reads a record's data; `None`: malformed.
    pub fn read(rdata: &'a [u8]) -> Option<Binding<'a>> {
        let params = skip_plain_name(rdata, 2)?;
        let (mut at, mut last) = (params, None);
        while at < rdata.len() {
            let key = u16_at(rdata, at)?;
            let value = rdata.get(at + 4..at + 4 + usize::from(u16_at(rdata, at + 2)?))?;
            let unit = match key {
                MANDATORY => 2,
                IPV4HINT => 4,
                IPV6HINT => 16,
                _ => 0,
            };
            let whole = unit == 0 || !value.is_empty() && value.len() % unit == 0;
            if !whole || last.is_some_and(|last| last >= key) {
                return None;
            }
            last = Some(key);
            at += 4 + value.len();
        }
        Some(Binding { rdata, params })
    }

    /// Whether it describes an endpoint of the service (ServiceMode); else it is an alias.
    pub fn describes(&self) -> bool {
        u16_at(self.rdata, 0) != Some(0)
    }

    /// Priority and TargetName, as they stand.
    pub fn head(&self) -> &'a [u8] {
        &self.rdata[..self.params]
    }

    /// The parameters in order: key, value.
    pub fn params(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut rest = &self.rdata[self.params..];
        std::iter::from_fn(move || {
            let (key, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
            let (value, behind) = rest.get(4..)?.split_at_checked(length)?;
            rest = behind;
            Some((key, value))
        })
    }

    /// The addresses of all hints.
    pub fn hints(&self) -> impl Iterator<Item = IpAddr> + use<'a> {
        self.params().flat_map(|(key, value)| hints_in(key, value))
    }
}

/// The addresses in the value of a parameter; none unless it is a hint.
pub fn hints_in(key: u16, value: &[u8]) -> impl Iterator<Item = IpAddr> {
    let (v4, v6) = match key {
        IPV4HINT => (value, &[][..]),
        IPV6HINT => (&[][..], value),
        _ => (&[][..], &[][..]),
    };
    let v4 = v4.as_chunks().0.iter().map(|octets: &[u8; 4]| Ipv4Addr::from(*octets).into());
    let v6 = v6.as_chunks().0.iter().map(|octets: &[u8; 16]| Ipv6Addr::from(*octets).into());
    v4.chain(v6)
}

impl<'a> Record<'a> {
    /// The service binding in an SVCB or HTTPS record; `None` for other types, and for a malformed one.
    pub fn binding(&self) -> Option<Binding<'a>> {
        matches!(self.rtype, rtype::SVCB | rtype::HTTPS).then(|| Binding::read(self.rdata()))?
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn hints(rdata: &[u8], expected: Option<&[&str]>) {
        let found = Binding::read(rdata).map(|binding| binding.hints().map(|hint| hint.to_string()).collect());
        assert_eq!(found, expected.map(|hints| hints.iter().map(ToString::to_string).collect::<Vec<_>>()));
    }

    #[test]
    fn hints_of_both_families_are_read() {
        hints(b"\0\x01\0", Some(&[]));
        hints(b"\0\x01\0\0\x01\0\x03\x02h2\0\x04\0\x08\xc0\0\x02\x01\xc0\0\x02\x02", Some(&["192.0.2.1", "192.0.2.2"]));
        hints(b"\0\x01\x03svc\0\0\x06\0\x10\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01", Some(&["2001:db8::1"]));
    }

    #[test]
    fn priority_zero_is_an_alias() {
        assert!(!Binding::read(b"\0\0\x03svc\0").expect("a binding").describes());
        assert!(Binding::read(b"\x01\0\x03svc\0").expect("a binding").describes());
    }

    #[test]
    fn what_breaks_the_format_is_no_binding() {
        hints(b"", None);
        hints(b"\0\x01", None);
        hints(b"\0\x01\xc0\x0c", None);
        hints(b"\0\x01\0\0\x04\0\x09\xc0", None);
        hints(b"\0\x01\0\0\x04\0", None);
        // Hints of no, of three and of five octets.
        hints(b"\0\x01\0\0\x04\0\0", None);
        hints(b"\0\x01\0\0\x04\0\x03\xc0\0\x02", None);
        hints(b"\0\x01\0\0\x06\0\x05\xc0\0\x02\x01\x01", None);
        // Falling, and twice the same.
        hints(b"\0\x01\0\0\x04\0\x04\xc0\0\x02\x01\0\x01\0\x03\x02h2", None);
        hints(b"\0\x01\0\0\x04\0\x04\xc0\0\x02\x01\0\x04\0\x04\xc0\0\x02\x02", None);
        hints(b"\0\x01\0\0\0\0\x03\0\x04\0", None);
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused_and_what_is_read_is_whole(octets in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(binding) = Binding::read(&octets) {
                let params: usize = binding.params().map(|(_, value)| 4 + value.len()).sum();
                prop_assert_eq!(binding.head().len() + params, octets.len());
                binding.hints().count();
            }
        }
    }
}
