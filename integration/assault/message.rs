//! DNS messages octet by octet: what no library would write.

use std::net::IpAddr;

pub const A: u16 = 1;
pub const AAAA: u16 = 28;
pub const IN: u16 = 1;
/// The owner that was asked for, as a pointer to the question.
pub const ASKED: [u8; 2] = [0xc0, 12];

/// Labels as they stand, and the root.
pub fn wire(labels: &[&[u8]]) -> Vec<u8> {
    let labels = labels.iter().flat_map(|label| [&[label.len() as u8][..], label].concat());
    labels.chain([0]).collect()
}

/// A name of ordinary text.
pub fn name(text: &str) -> Vec<u8> {
    wire(&text.split('.').map(str::as_bytes).collect::<Vec<_>>())
}

/// A question with RD and nothing else.
pub fn query(id: u16, name: &[u8], qtype: u16, qclass: u16) -> Vec<u8> {
    let header = [id, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    [&header[..], name, &qtype.to_be_bytes(), &qclass.to_be_bytes()].concat()
}

/// The same message with one more record behind it; the section is 0 for answers, 1 for authority, 2 for additional.
pub fn with_record(message: &[u8], section: usize, record: &[u8]) -> Vec<u8> {
    let mut message = [message, record].concat();
    message[7 + 2 * section] += 1;
    message
}

pub fn record(owner: &[u8], rtype: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [owner, &rtype.to_be_bytes(), &class.to_be_bytes(), &ttl.to_be_bytes(), &length, data].concat()
}

/// An OPT record with one option.
pub fn opt(code: u16, data: &[u8]) -> Vec<u8> {
    let option = [&code.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat();
    record(&[0], 41, 1232, 0, &option)
}

/// An address of the asked name.
pub fn address_record(address: IpAddr, ttl: u32) -> Vec<u8> {
    record(&ASKED, qtype_of(address), IN, ttl, &octets(address))
}

/// An alias.
pub fn alias(owner: &[u8], target: &str) -> Vec<u8> {
    record(owner, 5, IN, 1, &name(target))
}

/// HTTPS or SVCB in service mode, its target the owner, with one parameter.
pub fn service(owner: &[u8], rtype: u16, key: u16, value: &[u8]) -> Vec<u8> {
    let data = [&[0, 1, 0][..], &key.to_be_bytes(), &(value.len() as u16).to_be_bytes(), value].concat();
    record(owner, rtype, IN, 1, &data)
}

pub fn qtype_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { A } else { AAAA }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
