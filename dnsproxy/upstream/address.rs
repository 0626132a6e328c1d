//! Where a DNS server is and how it is spoken to, as an operator writes it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The port of DNS over UDP and TCP (RFC 1035).
const PLAIN_PORT: u16 = 53;
/// The port of DNS over TLS (RFC 7858).
const TLS_PORT: u16 = 853;
/// The port of DNS over HTTPS (RFC 8484).
const HTTPS_PORT: u16 = 443;
/// The path that most servers of DNS over HTTPS use.
const HTTPS_PATH: &str = "/dns-query";

/// A DNS server: `203.0.113.1`, `203.0.113.1:5353`, `[2001:db8::1]:53`, `tls://203.0.113.1#dns.example`,
/// `https://203.0.113.1/dns-query#dns.example`. What follows the `#` is the name that its certificate must bear.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServerAddress {
    /// Address and port.
    pub socket: SocketAddr,
    /// How it is spoken to.
    pub transport: Transport,
}

/// How a DNS server is spoken to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// UDP, and TCP where that does not do.
    Plain,
    /// TLS (RFC 7858).
    Tls {
        /// The name in the server's certificate.
        certificate: Arc<str>,
    },
    /// HTTPS (RFC 8484), HTTP/2.
    Https {
        /// The name in the server's certificate.
        certificate: Arc<str>,
        /// The path of the queries; begins with `/`.
        path: Arc<str>,
    },
}

impl ServerAddress {
    /// A server that is asked over UDP and TCP.
    pub fn plain(socket: SocketAddr) -> ServerAddress {
        ServerAddress { socket, transport: Transport::Plain }
    }

    /// From text, see the type. `None`: it is none of these forms.
    pub fn parse(text: &str) -> Option<ServerAddress> {
        if let Some(rest) = text.strip_prefix("tls://") {
            let (place, certificate) = rest.split_once('#')?;
            let transport = Transport::Tls { certificate: certificate_name(certificate)? };
            return Some(ServerAddress { socket: socket(place, TLS_PORT)?, transport });
        }
        if let Some(rest) = text.strip_prefix("https://") {
            let (place, certificate) = rest.split_once('#')?;
            let (place, path) = place.find('/').map_or((place, HTTPS_PATH), |at| place.split_at(at));
            let readable = |octet: u8| octet.is_ascii_graphic() && !b"?#\"\\<>^`{|}".contains(&octet);
            if !path.bytes().all(readable) {
                return None;
            }
            let transport = Transport::Https { certificate: certificate_name(certificate)?, path: path.into() };
            return Some(ServerAddress { socket: socket(place, HTTPS_PORT)?, transport });
        }
        Some(ServerAddress::plain(socket(text, PLAIN_PORT)?))
    }
}

fn socket(text: &str, port: u16) -> Option<SocketAddr> {
    let unbracketed = || text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let socket = match text.parse::<SocketAddr>() {
        Ok(socket) => socket,
        Err(_) => SocketAddr::new(unbracketed().parse::<IpAddr>().ok()?, port),
    };
    (socket.port() != 0 && !socket.ip().is_unspecified() && !socket.ip().is_multicast()).then_some(socket)
}

/// A host name as certificates have it: labels of letters, digits and `-`.
fn certificate_name(text: &str) -> Option<Arc<str>> {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
    };
    let name = text.len() <= 253 && text.split('.').all(label);
    (name || text.parse::<IpAddr>().is_ok()).then(|| text.to_ascii_lowercase().into())
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerAddress { socket, transport } = self;
        match transport {
            Transport::Plain => write!(f, "{socket}"),
            Transport::Tls { certificate } => write!(f, "tls://{socket}#{certificate}"),
            Transport::Https { certificate, path } => write!(f, "https://{socket}{path}#{certificate}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, shown: &str) {
        let address = ServerAddress::parse(text).unwrap_or_else(|| panic!("{text} is refused"));
        assert_eq!(address.to_string(), shown);
        assert_eq!(ServerAddress::parse(shown), Some(address));
    }

    #[test]
    fn addresses_ports_and_certificate_names_are_read() {
        reads("203.0.113.1", "203.0.113.1:53");
        reads("203.0.113.1:5353", "203.0.113.1:5353");
        reads("2001:db8::1", "[2001:db8::1]:53");
        reads("[2001:db8::1]", "[2001:db8::1]:53");
        reads("tls://203.0.113.1#Dns.Example", "tls://203.0.113.1:853#dns.example");
        reads("tls://[2001:db8::1]:8853#203.0.113.1", "tls://[2001:db8::1]:8853#203.0.113.1");
        reads("https://203.0.113.1#dns.example", "https://203.0.113.1:443/dns-query#dns.example");
        reads("https://203.0.113.1:8443/q/x#dns.example", "https://203.0.113.1:8443/q/x#dns.example");
    }

    #[test]
    fn what_has_no_address_or_no_certificate_name_is_refused() {
        for text in [
            "",
            "dns.example",
            "203.0.113.1:0",
            "0.0.0.0",
            "224.0.0.1",
            "::",
            "203.0.113.1#dns.example",
            "tls://203.0.113.1",
            "tls://203.0.113.1#",
            "tls://dns.example#dns.example",
            "https://203.0.113.1/dns query#dns.example",
            "https://203.0.113.1/?dns#dns.example",
            "udp://203.0.113.1",
            "tls://203.0.113.1#a..b",
        ] {
            assert_eq!(ServerAddress::parse(text), None, "{text}");
        }
    }
}
