//! Datagrams over loopback, there and back by the batch: the one place where namegate hands the kernel pointers. Under the
//! fuzzer the address sanitizer watches.
//!
//! Octets: one for the family, then datagrams, each behind two octets of length.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use namegate::listen::datagrams::{BATCH, DATAGRAM, Inbox, Outbox, Outgoing};

/// More than a batch, and no more than a socket holds.
const DATAGRAMS: usize = BATCH + 8;
/// Octets in all: a socket's buffer holds them, bookkeeping included.
const OCTETS: usize = 64 * 1024;

pub fn check(octets: &[u8]) {
    let Some((&family, mut rest)) = octets.split_first() else { return };
    let address = if family & 1 == 0 { "127.0.0.1:0" } else { "[::1]:0" };
    let (Ok(server), Ok(client)) = (UdpSocket::bind(address), UdpSocket::bind(address)) else { return };
    let place = client.local_addr().expect("an address");
    let mut sent = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        // Lengths around what is read whole come about by repeating what little there is.
        let length = usize::from(u16::from_be_bytes(*length)) % (DATAGRAM + 64);
        let (bytes, behind) = behind.split_at(behind.len().min(length));
        let datagram: Vec<u8> = bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { length }).collect();
        rest = behind;
        if sent.len() == DATAGRAMS || sent.iter().map(Vec::len).sum::<usize>() + datagram.len() > OCTETS {
            break;
        }
        client.send_to(&datagram, server.local_addr().expect("an address")).expect("loopback takes it");
        sent.push(datagram);
    }
    let mut inbox = Inbox::new();
    let mut queue = Vec::new();
    loop {
        match inbox.receive(server.as_raw_fd()) {
            Ok(batch) => {
                assert!((1..=BATCH).contains(&batch.count));
                for at in 0..batch.count {
                    let datagram = inbox.get(at);
                    let original = &sent[queue.len()];
                    assert_eq!(datagram.bytes, &original[..original.len().min(DATAGRAM)]);
                    assert_eq!(datagram.cut, original.len() > DATAGRAM);
                    // Nobody asked where it arrived; the sender is always told.
                    assert_eq!((datagram.from, datagram.arrived), (Some(place), None));
                    let bytes = datagram.bytes.to_vec();
                    queue.push(Outgoing { bytes, to: place, from: (place.ip(), 0) });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("a batch could not be read: {error}"),
        }
    }
    assert_eq!(queue.len(), sent.len());
    let mut outbox = Outbox::default();
    let mut gone = 0;
    let mut buffer = [0; DATAGRAM + 1];
    while gone < queue.len() {
        let count = outbox.send(server.as_raw_fd(), &mut queue[gone..]).expect("loopback takes them");
        for original in &queue[gone..gone + count] {
            let length = client.recv(&mut buffer).expect("it is there");
            assert_eq!(buffer[..length], original.bytes);
        }
        gone += count;
    }
}
