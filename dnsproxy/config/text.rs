//! Values as text: durations, endpoints, link-layer addresses, names.

use std::time::Duration;

use super::{Adopt, EndpointSetting};
use crate::engine::endpoint::PodRef;
use crate::host::floor::InterfaceNames;

/// An endpoint from `IFACE=NAMESPACE/POD[,mac=…]`.
///
/// # Errors
/// What would be allowed where the text is wrong.
pub fn endpoint_from_text(text: &str) -> Result<EndpointSetting, &'static str> {
    let (interface, rest) = text.split_once('=').ok_or(FORM)?;
    let (pod, options) = rest.split_once(',').map_or((rest, None), |(pod, options)| (pod, Some(options)));
    let mac = match options {
        None => None,
        Some(options) => Some(options.strip_prefix("mac=").ok_or(FORM)?),
    };
    endpoint_from_fields(|field| {
        Ok(match field {
            "interface" => Some(interface),
            "pod" => Some(pod),
            _ => mac,
        })
    })
    .map_err(|wrong| wrong.allowed)
}

/// Which field of an endpoint is wrong.
pub(super) struct WrongField {
    /// `.pod`; empty for the endpoint as a whole.
    pub(super) field: &'static str,
    pub(super) found: String,
    pub(super) allowed: &'static str,
}

/// An endpoint from its fields `interface`, `pod` and `mac`; `Err` of a field is what was found instead of text.
pub(super) fn endpoint_from_fields<'a>(
    get: impl Fn(&str) -> Result<Option<&'a str>, String>,
) -> Result<EndpointSetting, WrongField> {
    let text = |field: &'static str, dotted: &'static str, allowed: &'static str| match get(field) {
        Ok(found) => Ok(found),
        Err(found) => Err(WrongField { field: dotted, found, allowed }),
    };
    let missing =
        || WrongField { field: "", found: "no interface or no pod".to_owned(), allowed: "an interface and a pod" };
    let wrong = |field, found: &str, allowed| WrongField { field, found: format!("{found:?}"), allowed };

    let interface = text("interface", ".interface", INTERFACE)?.ok_or_else(missing)?;
    let pod = text("pod", ".pod", POD)?.ok_or_else(missing)?;
    let mac = text("mac", ".mac", MAC)?;
    Ok(EndpointSetting {
        interface: interface_name(interface).ok_or_else(|| wrong(".interface", interface, INTERFACE))?,
        pod: pod_ref(pod).ok_or_else(|| wrong(".pod", pod, POD))?,
        mac: match mac {
            None => None,
            Some(text) => Some(unicast_mac(text).ok_or_else(|| wrong(".mac", text, MAC))?),
        },
    })
}

const FORM: &str = "IFACE=NAMESPACE/POD[,mac=…]";
const INTERFACE: &str = "an interface's name: 1 to 15 octets without blanks, / and :";
const POD: &str = "NAMESPACE/POD as Kubernetes names them";
const MAC: &str = "a unicast link-layer address as 02:00:00:00:00:01";

/// As `dev_valid_name` of the kernel has it; IFNAMSIZ is 16 with the final NUL.
fn interface_name(text: &str) -> Option<String> {
    let ok = !text.is_empty() && text.len() <= 15 && text != "." && text != "..";
    let clean = text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':');
    (ok && clean).then(|| text.to_owned())
}

/// `eth1`, or `veth*` for all that begin so. Not `*`: that would cut the node itself off.
pub(super) fn interface_names(text: &str) -> Option<InterfaceNames> {
    let (name, make): (_, fn(String) -> InterfaceNames) = match text.strip_suffix('*') {
        Some(start) => (start, InterfaceNames::Prefix),
        None => (text, InterfaceNames::One),
    };
    interface_name(name).filter(|name| !name.contains('*')).map(make)
}

/// A pod as `namespace/name`.
pub fn pod_ref(text: &str) -> Option<PodRef> {
    let (namespace, name) = text.split_once('/')?;
    let ok = label(namespace) && subdomain(name);
    ok.then(|| PodRef { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// A node's name: an RFC 1123 subdomain, as Kubernetes has it.
pub fn node_name(text: &str) -> Option<String> {
    subdomain(text).then(|| text.to_owned())
}

/// A cluster's name, as Cilium checks it: at most 32 octets, an RFC 1123 label.
pub(super) fn cluster_name(text: &str) -> Option<String> {
    (text.len() <= 32 && label(text)).then(|| text.to_owned())
}

fn subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(label)
}

/// RFC 1123: letters (lower case in Kubernetes), digits and hyphens, no hyphen at the ends; at most 63.
fn label(text: &str) -> bool {
    let inside = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

fn unicast_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut mac {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    let group = mac[0] & 1 == 1;
    (parts.next().is_none() && !group && mac != [0; 6]).then_some(mac)
}

/// A link-layer address as text: `02:00:00:00:00:01`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// The text of a network without host bits, so that `10.0.0.1/8` is a mistake and not a /8.
pub(super) fn network(text: &str) -> Option<&str> {
    let net: ipnet::IpNet = text.parse().ok()?;
    (net.addr() == net.network()).then_some(text)
}

/// `250ms`, `5s`, `4m`, `8h`, or seconds without a unit.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        _ => return None,
    })
}

/// `cut`, or `observe` and for how long.
pub(super) fn adopt(text: &str) -> Option<Adopt> {
    let Some(window) = text.trim().strip_prefix("observe ") else {
        return (text.trim() == "cut").then_some(Adopt::Cut);
    };
    let window = duration(window.trim())?;
    (Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&window).then_some(Adopt::Observe(window))
}

/// The shortest text that [`duration`] reads back.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}
