//! What is asked: as people and programs write it, and typed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::ruleset::Protocol;
use crate::engine::wire::type_text;

/// A question as it is written: a line of a batch, or the command line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Comes back with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    /// Who asks.
    pub from: Asker,
    /// A name, an address, or a pod as `namespace/pod`.
    pub to: String,
    /// `443/TCP`, `443` (TCP), `8/ICMP`; none: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The type of record that is asked for; `A` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qtype: Option<String>,
    /// The DNS server that is asked; the cluster's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<IpAddr>,
}

/// Who asks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Asker {
    /// `namespace/pod`.
    Pod(String),
    /// A pod with these labels, whether there is one or not.
    Like(Like),
}

/// A pod that need not be there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Like {
    /// Its namespace; `default` unless given.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The account it runs under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// A question, typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Who asks: a pod of the world.
    pub from: PodRef,
    /// For what.
    pub to: Target,
    /// On which port; ICMP: type << 8. None: on any.
    pub port: Option<(Protocol, u16)>,
    /// The type of record.
    pub qtype: u16,
    /// The server that is asked.
    pub resolver: Option<IpAddr>,
}

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Whatever the name stands for.
    Name(Name),
    /// An address: outside, a pod's, a node's, a Service's.
    Address(IpAddr),
    /// A pod, at all its addresses.
    Pod(PodRef),
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Asked {
    /// The question, asked by the pod `from`.
    ///
    /// # Errors
    /// A part is not what it may be.
    pub fn typed(&self, from: PodRef) -> Result<Question, String> {
        Ok(Question {
            from,
            to: target(&self.to)?,
            port: self.port.as_deref().map(port).transpose()?,
            qtype: self.qtype.as_deref().map_or(Ok(1), qtype)?,
            resolver: self.resolver,
        })
    }
}

/// A pod as `namespace/pod`.
///
/// # Errors
/// It isn't one.
pub fn pod(text: &str) -> Result<PodRef, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(PodRef { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err(format!("found {text:?}; allowed is a pod as namespace/pod")),
    }
}

/// A name, an address or a pod.
///
/// # Errors
/// It is none of them.
pub fn target(text: &str) -> Result<Target, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(Target::Address(address.to_canonical()));
    }
    if text.contains('/') {
        return pod(text).map(Target::Pod);
    }
    let allowed = "a name, an address or a pod as namespace/pod";
    match Name::parse(text) {
        Ok(name) if !name.is_root() => Ok(Target::Name(name)),
        Ok(_) => Err(format!("found {text:?}; allowed is {allowed}")),
        Err(error) => Err(format!("found {text:?}: {error}; allowed is {allowed}")),
    }
}

/// A port with its protocol.
///
/// # Errors
/// It is none.
pub fn port(text: &str) -> Result<(Protocol, u16), String> {
    let wrong =
        || format!("found {text:?}; allowed is a port as 443/TCP (TCP, UDP, SCTP) or a type as 8/ICMP (ICMP, ICMPv6)");
    let (number, word) = text.split_once('/').unwrap_or((text, "TCP"));
    let protocol = protocol(word).ok_or_else(wrong)?;
    if matches!(protocol, Protocol::Icmp | Protocol::Icmpv6) {
        return number.parse::<u8>().map(|number| (protocol, u16::from(number) << 8)).map_err(|_| wrong());
    }
    match number.parse::<u16>() {
        Ok(number) if number > 0 => Ok((protocol, number)),
        _ => Err(wrong()),
    }
}

/// A protocol by its name, in any case.
pub fn protocol(word: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Icmpv6]
        .into_iter()
        .find(|protocol| super::words::protocol(*protocol).eq_ignore_ascii_case(word))
}

/// The number of a type of record: `AAAA`, `TYPE65`.
///
/// # Errors
/// There is no such type.
pub fn qtype(text: &str) -> Result<u16, String> {
    let folded = text.to_ascii_uppercase();
    let by_number = || folded.strip_prefix("TYPE").and_then(|number| number.parse().ok());
    let found = (1..=257).find(|number| type_text(*number) == folded).or_else(by_number);
    found.ok_or_else(|| format!("found {text:?}; allowed is a type of record as A, AAAA, HTTPS or TYPE65"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_an_address_or_a_pod() {
        assert!(matches!(target("api.example.com"), Ok(Target::Name(_))));
        assert_eq!(target("2001:db8::1"), Ok(Target::Address("2001:db8::1".parse().expect("an address"))));
        assert_eq!(target("[::ffff:192.0.2.1]"), Ok(Target::Address("192.0.2.1".parse().expect("an address"))));
        assert!(matches!(target("shop/web"), Ok(Target::Pod(_))));
        for wrong in ["", ".", "a/b/c", "/b", "a/", "a..b"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_has_a_protocol() {
        assert_eq!(port("443"), Ok((Protocol::Tcp, 443)));
        assert_eq!(port("53/udp"), Ok((Protocol::Udp, 53)));
        assert_eq!(port("8/ICMP"), Ok((Protocol::Icmp, 8 << 8)));
        assert_eq!(port("128/icmpv6"), Ok((Protocol::Icmpv6, 128 << 8)));
        for wrong in ["0", "65536/TCP", "http", "256/ICMP", "1/GRE", "1/-", "/TCP"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_type_of_record_is_known_by_name_or_number() {
        assert_eq!((qtype("a"), qtype("HTTPS"), qtype("TYPE65280")), (Ok(1), Ok(65), Ok(65280)));
        assert!(qtype("AAAAA").is_err() && qtype("").is_err());
    }
}
