use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

use super::super::http::tests::operator_with;
use super::super::{Readiness, Server};
use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// A namegate that can be succeeded, as far as the admin socket knows.
struct Running {
    server: Server,
    successors: mpsc::UnboundedReceiver<Successor>,
    admin: PathBuf,
    home: Home,
    directory: tempfile::TempDir,
}

fn running(sockets: &[UdpSocket]) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let home = Home { state_dir: directory.path().join("state"), pin_dir: "/sys/fs/bpf/namegate".into() };
    let (hand_over, successors) = HandOver::new(home.clone());
    hand_over.keep(Role::Udp, sockets.iter().map(AsFd::as_fd)).unwrap();
    let admin = directory.path().join("admin.sock");
    let operator = operator_with(&Readiness::waiting_for("start"), Some(hand_over));
    let server = Server::start(Some("127.0.0.1:0".parse().unwrap()), &admin, operator).unwrap();
    Running { server, successors, admin, home, directory }
}

fn udp() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

#[test]
fn a_successor_gets_every_socket_and_what_waits_in_it() {
    let socket = udp();
    let at = socket.local_addr().unwrap();
    let mut running = running(&[socket]);
    let metrics = running.server.metrics_address().unwrap();
    let offer = ask(&running.admin, &running.home).unwrap().expect("somebody runs");
    udp().send_to(b"query", at).unwrap();
    let ends = thread::spawn(move || {
        let successor = running.successors.blocking_recv().expect("it goes on");
        running.server.leave();
        drop(successor);
        running.directory
    });
    let handed = offer.accept(PATIENCE).unwrap();
    let _directory = ends.join().unwrap();
    let mut roles: Vec<Role> = handed.iter().map(|(role, _)| *role).collect();
    roles.sort_unstable();
    assert_eq!(roles, [Role::Udp, Role::Metrics, Role::Admin]);
    // Nobody accepts, and nobody is refused: connections wait.
    TcpStream::connect(metrics).unwrap();
    for (role, socket) in handed {
        match role {
            Role::Udp => {
                let socket = UdpSocket::from(socket);
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut octets = [0; 16];
                assert_eq!(socket.recv(&mut octets).unwrap(), 5);
            }
            Role::Metrics => {
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(false).unwrap();
                assert_eq!(listener.accept().unwrap().0.local_addr().unwrap(), metrics);
            }
            _ => (),
        }
    }
}

#[test]
fn more_sockets_than_one_message_takes_all_arrive() {
    let sockets: Vec<UdpSocket> = (0..2 * DESCRIPTORS + 1).map(|_| udp()).collect();
    let running = running(&sockets);
    let offer = ask(&running.admin, &running.home).unwrap().expect("somebody runs");
    let addresses = |(role, socket): &Handed| {
        (*role == Role::Udp).then(|| UdpSocket::from(socket.try_clone().unwrap()).local_addr().unwrap())
    };
    let came: Vec<_> = offer.sockets.iter().filter_map(addresses).collect();
    let sent: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    assert_eq!(came, sent);
}

#[test]
fn one_that_goes_away_before_it_says_go_changes_nothing() {
    let mut running = running(&[udp()]);
    for _ in 0..3 {
        // Until it is heard of that the one before went away, that one is in the way.
        let mut offer = ask(&running.admin, &running.home);
        for _ in 0..100 {
            if offer.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            offer = ask(&running.admin, &running.home);
        }
        drop(offer.unwrap().expect("somebody runs"));
    }
    assert!(running.successors.try_recv().is_err());
}

#[test]
fn one_that_goes_away_after_it_said_go_is_noticed_and_another_may_ask() {
    let mut running = running(&[udp()]);
    let Offer { stream, .. } = ask(&running.admin, &running.home).unwrap().expect("somebody runs");
    (&stream).write_all(GO).unwrap();
    let successor = running.successors.blocking_recv().expect("it goes on");
    assert!(!successor.is_gone());
    drop(stream);
    assert!(successor.is_gone());
    assert!(ask(&running.admin, &running.home).unwrap().is_some());
}

#[test]
fn a_second_successor_is_refused_while_there_is_one() {
    let running = running(&[udp()]);
    let _first = ask(&running.admin, &running.home).unwrap().expect("somebody runs");
    let error = ask(&running.admin, &running.home).unwrap_err().to_string();
    assert!(error.contains("409 Conflict") && error.contains("stop it first"), "{error}");
}

#[test]
fn one_of_another_state_is_no_successor() {
    let running = running(&[udp()]);
    let other = Home { state_dir: "/elsewhere".into(), ..running.home.clone() };
    let error = ask(&running.admin, &other).unwrap_err().to_string();
    assert!(
        error.contains("has state_dir") && error.ends_with("this one /elsewhere; they must be the same"),
        "{error}"
    );
}

#[test]
fn nobody_runs_where_nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let admin = directory.path().join("admin.sock");
    let home = Home { state_dir: "/s".into(), pin_dir: "/p".into() };
    assert!(ask(&admin, &home).unwrap().is_none());
    drop(std::os::unix::net::UnixListener::bind(&admin).unwrap());
    assert!(ask(&admin, &home).unwrap().is_none(), "a socket that a killed one left");
}

#[test]
fn one_that_cannot_hand_over_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let admin = directory.path().join("admin.sock");
    let operator = operator_with(&Readiness::waiting_for("start"), None);
    let _older = Server::start(None, &admin, operator).unwrap();
    let error = ask(&admin, &Home { state_dir: "/s".into(), pin_dir: "/p".into() }).unwrap_err().to_string();
    assert!(error.contains("405 Method Not Allowed") && error.contains("stop it first"), "{error}");
}

#[test]
fn a_plain_request_for_the_page_is_told_what_it_is_for() {
    let running = running(&[]);
    let answer = super::super::client::get(&running.admin, PAGE, PATIENCE).unwrap();
    assert_eq!(answer.status, 426);
    assert!(answer.body.contains("--take-over"), "{answer:?}");
}
