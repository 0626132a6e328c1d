//! Many fresh names at once: ask, and connect the moment that the answer is there.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::traffic::{ask, reach_of};
use super::{Question, Reply, Rush, Rushed};
use crate::lab::clock::now;

pub fn run(rush: &Rush) -> Reply {
    let start = now();
    let next = AtomicU32::new(0);
    let total = Mutex::new(Rushed::default());
    std::thread::scope(|scope| {
        for _ in 0..rush.at_once {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= rush.count {
                        return;
                    }
                    one(rush, rush.first + index, &total);
                }
            });
        }
    });
    let mut total = total.into_inner().expect("no panic while locked");
    total.micros = start.elapsed().as_micros() as u64;
    Reply::Rushed(total)
}

fn one(rush: &Rush, number: u32, total: &Mutex<Rushed>) {
    let address: Result<IpAddr, String> = match rush.unasked_base {
        Some(base) => Ok(super::names::add(base, number)),
        None => {
            let answered = ask(&Question {
                server: rush.server,
                name: rush.pattern.replace("{}", &number.to_string()),
                qtype: if rush.server.is_ipv4() { "A".into() } else { "AAAA".into() },
                tcp: false,
                tls: None,
                edns: Some(1232),
                within_ms: 6000,
            });
            answered.addresses.first().copied().ok_or_else(|| format!("{number}: no address, {:?}", answered.rcode))
        }
    };
    // A SYN that is dropped is sent again after a second: who connects within 900 ms had its first one pass.
    let limit = Duration::from_millis(rush.within_ms);
    let reached = address.clone().and_then(|address| {
        TcpStream::connect_timeout(&SocketAddr::new(address, rush.port), limit)
            .map(close_with_rst)
            .map_err(|error| format!("{number}: {address}: {:?} ({error})", reach_of(&error)))
    });
    let mut total = total.lock().expect("no panic while locked");
    total.answered += u32::from(address.is_ok() && rush.unasked_base.is_none());
    match reached {
        Ok(()) => total.connected += 1,
        Err(why) if total.failures.len() < 5 => total.failures.push(why),
        Err(_) => {}
    }
}

/// Twenty thousand connections in TIME_WAIT would exhaust what is being measured.
fn close_with_rst(stream: TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    let _ = socket.set_linger(Some(Duration::ZERO));
}
