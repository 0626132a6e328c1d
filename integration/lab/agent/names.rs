//! The name server: hickory-server with a zone that tests rewrite while it runs.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{Edns, HeaderCounts, Message, MessageType, Metadata, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::{Forgery, Reply, Script, failed};

/// Name without final dot in lower case, type, at which address only.
type Key = (String, String, Option<IpAddr>);

/// What to say. `*.suffix` answers for all names below it.
static ZONE: Mutex<Option<HashMap<Key, Script>>> = Mutex::new(None);
/// What a server does to every question.
static FAILING: Mutex<Option<HashMap<IpAddr, Script>>> = Mutex::new(None);
static ASKED: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Datagrams that were lost of each question, as its script has it.
static LOST: Mutex<BTreeMap<(String, String), u32>> = Mutex::new(BTreeMap::new());

pub fn say(name: &str, qtype: &str, script: Script) -> Reply {
    let key = (fold(name), qtype.to_owned(), script.by);
    LOST.lock().expect("no panic while locked").remove(&(key.0.clone(), key.1.clone()));
    ZONE.lock().expect("no panic while locked").get_or_insert_default().insert(key, script);
    Reply::Done
}

pub fn fail(at: IpAddr, script: Option<Script>) -> Reply {
    let mut failing = FAILING.lock().expect("no panic while locked");
    match script {
        Some(script) => drop(failing.get_or_insert_default().insert(at, script)),
        None => drop(failing.get_or_insert_default().remove(&at)),
    }
    Reply::Done
}

pub fn asked() -> Reply {
    Reply::Names(std::mem::take(&mut ASKED.lock().expect("no panic while locked")))
}

/// Adds to what [`asked`] says.
pub fn note(what: String) {
    ASKED.lock().expect("no panic while locked").push(what);
}

pub fn serve(at: &[SocketAddr]) -> Reply {
    let sockets: std::io::Result<Vec<_>> = at
        .iter()
        .map(|at| {
            let udp = UdpSocket::bind(at)?;
            let tcp = std::net::TcpListener::bind(at)?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })
        .collect();
    let sockets = match sockets {
        Ok(sockets) => sockets,
        Err(error) => return failed("name server", error),
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let mut servers = Vec::new();
            for (udp, tcp) in sockets {
                let own = Arc::new(udp.try_clone().expect("a descriptor can be copied"));
                let mut server = Server::new(Zone { own });
                server.register_socket(tokio::net::UdpSocket::from_std(udp).expect("non-blocking"));
                let tcp = tokio::net::TcpListener::from_std(tcp).expect("non-blocking");
                server.register_listener(tcp, Duration::from_secs(10), 64 << 10);
                servers.push(server);
            }
            for mut server in servers {
                let _ = server.block_until_done().await;
            }
        });
    });
    Reply::Done
}

struct Zone {
    /// The server's own UDP socket: what hickory-server would not send leaves through it.
    own: Arc<UdpSocket>,
}

#[async_trait]
impl RequestHandler for Zone {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut out: R) -> ResponseInfo {
        let Ok(info) = request.request_info() else { return nothing(request) };
        let (name, qtype) = (info.query.original().name().clone(), info.query.query_type());
        note(format!("{} {qtype}", fold(&name.to_string())));
        let udp = info.protocol == Protocol::Udp;
        let at = self.own.local_addr().map(|at| at.ip()).ok();
        let mut script = look_up(&name, qtype, at);
        let failing = at.and_then(|at| FAILING.lock().expect("no panic while locked").as_ref()?.get(&at).cloned());
        if let Some(failing) = failing {
            match failing.delay_ms {
                0 => script = Some(failing),
                late => script = Some(Script { delay_ms: late, ..script.unwrap_or_default() }),
            }
        }
        if udp {
            for forgery in script.iter().flat_map(|script| &script.forged) {
                self.forge(request, &name, qtype, *forgery);
            }
        }
        if udp && script.as_ref().is_some_and(|script| is_lost(script, &name, qtype)) {
            return nothing(request);
        }
        let delay = script.as_ref().map_or(0, |script| script.delay_ms);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        let mut answers = Vec::new();
        match &script {
            Some(script) if script.silent => return nothing(request),
            Some(script) => {
                metadata.response_code = rcode(&script.rcode);
                metadata.truncation = script.truncate && udp;
                if !metadata.truncation {
                    answers = records(script, &name);
                }
            }
            None if is_known(&name) => {}
            None => metadata.response_code = ResponseCode::NXDomain,
        }
        let soa = script.as_ref().and_then(|script| soa(script, &name));
        if udp && script.is_some_and(|script| script.folds) {
            self.answer_in_lower_case(request, &name, qtype, metadata, answers);
            return nothing(request);
        }
        let edns = request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(1232).set_version(0);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let soa: Vec<Record> = soa.into_iter().collect();
        let response = builder.build(metadata, answers.iter(), &[], soa.iter(), &[]);
        out.send_response(response).await.unwrap_or_else(|_| nothing(request))
    }
}

impl Zone {
    fn answer_in_lower_case(
        &self,
        request: &Request,
        asked: &Name,
        qtype: RecordType,
        metadata: Metadata,
        answers: Vec<Record>,
    ) {
        let mut message = Message::new(metadata.id, MessageType::Response, metadata.op_code);
        message.metadata = metadata;
        message.add_query(Query::query(asked.to_lowercase(), qtype));
        message.add_answers(answers);
        if let Ok(bytes) = message.to_vec() {
            let _ = self.own.send_to(&bytes, request.src());
        }
    }

    /// Sends a wrong answer before the right one.
    fn forge(&self, request: &Request, name: &Name, qtype: RecordType, forgery: Forgery) {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        let mut asked = name.clone();
        let mut from = self.own.clone();
        let address = match forgery {
            Forgery::Number(address) => {
                metadata.id = metadata.id.wrapping_add(1);
                address
            }
            Forgery::Question(address) => {
                asked = Name::from_str("other.example.").expect("a name");
                address
            }
            Forgery::Case(address) => {
                let flipped: String = name
                    .to_ascii()
                    .chars()
                    .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
                    .collect();
                asked = Name::from_ascii(flipped).expect("a name");
                address
            }
            Forgery::Port(address) => {
                let Ok(local) = self.own.local_addr() else { return };
                let Ok(socket) = UdpSocket::bind((local.ip(), 0)) else { return };
                from = Arc::new(socket);
                address
            }
            Forgery::Address(address) => {
                let other: IpAddr = if request.src().is_ipv4() {
                    Ipv4Addr::new(203, 0, 113, 54).into()
                } else {
                    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x54).into()
                };
                let port = self.own.local_addr().map_or(0, |at| at.port());
                let Ok(socket) = UdpSocket::bind((other, port)) else { return };
                from = Arc::new(socket);
                address
            }
            Forgery::Header => {
                let mut header = request.as_slice()[..12].to_vec();
                header[2] |= 0x80;
                header[4..].fill(0);
                let _ = from.send_to(&header, request.src());
                return;
            }
        };
        let mut message = Message::new(metadata.id, MessageType::Response, metadata.op_code);
        message.metadata = metadata;
        message.add_query(Query::query(asked.clone(), qtype));
        message.add_answer(Record::from_rdata(asked, 60, address_data(address)));
        if let Ok(bytes) = message.to_vec() {
            let _ = from.send_to(&bytes, request.src());
        }
    }
}

/// Counts one more datagram of the question as lost, if it is to be.
fn is_lost(script: &Script, name: &Name, qtype: RecordType) -> bool {
    let mut lost = LOST.lock().expect("no panic while locked");
    let lost = lost.entry((fold(&name.to_string()), qtype.to_string())).or_default();
    let more = *lost < script.loses;
    *lost += u32::from(more);
    more
}

fn look_up(name: &Name, qtype: RecordType, at: Option<IpAddr>) -> Option<Script> {
    let zone = ZONE.lock().expect("no panic while locked");
    let zone = zone.as_ref()?;
    let name = fold(&name.to_string());
    let mut candidates = vec![name.clone()];
    let mut rest = name.as_str();
    while let Some((_, parent)) = rest.split_once('.') {
        candidates.push(format!("*.{parent}"));
        rest = parent;
    }
    let says = |name: &String, at| zone.get(&(name.clone(), qtype.to_string(), at)).cloned();
    candidates.iter().find_map(|name| at.and_then(|at| says(name, Some(at))).or_else(|| says(name, None)))
}

/// Whether the zone has the name with any type: NODATA rather than NXDOMAIN.
fn is_known(name: &Name) -> bool {
    let types = [RecordType::A, RecordType::AAAA, RecordType::CNAME, RecordType::HTTPS, RecordType::TXT];
    types.into_iter().any(|qtype| look_up(name, qtype, None).is_some())
}

/// The records of a script, for the name that was asked.
pub fn records(script: &Script, asked: &Name) -> Vec<Record> {
    let mut built = Vec::new();
    for (owner, qtype, data) in &script.records {
        let owner = if owner.is_empty() { asked.clone() } else { name(owner) };
        let Ok(rtype) = RecordType::from_str(qtype) else { continue };
        let data = match data.strip_suffix('+') {
            Some(base) => base.parse().ok().map(|base| address_data(add(base, number_of(asked)))),
            None if rtype == RecordType::CNAME => Some(RData::CNAME(hickory_proto::rr::rdata::CNAME(name(data)))),
            None => RData::try_from_str(rtype, data).ok(),
        };
        match data {
            Some(data) => built.push(Record::from_rdata(owner, script.ttl, data)),
            None => eprintln!("name server: not a record: {owner} {qtype} {data:?}"),
        }
    }
    built
}

/// The SOA record of the zone that the name lies in: its parent.
pub fn soa(script: &Script, asked: &Name) -> Option<Record> {
    let data = SOA::new(name("ns.example.net."), name("host.example.net."), 1, 3_600, 600, 86_400, script.soa);
    (script.soa > 0).then(|| Record::from_rdata(asked.base_name(), script.soa, RData::SOA(data)))
}

fn name(text: &str) -> Name {
    let mut name = Name::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    name.set_fqdn(true);
    name
}

/// The number in a name's first label: `n17.rush.example` is 17.
fn number_of(name: &Name) -> u32 {
    let digits: BTreeMap<usize, u8> = name
        .iter()
        .next()
        .unwrap_or_default()
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, octet)| octet.is_ascii_digit())
        .collect();
    digits.values().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'))
}

/// The address `number` further on.
pub fn add(base: IpAddr, number: u32) -> IpAddr {
    match base {
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base) + number).into(),
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) + u128::from(number)).into(),
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    }
}

/// The code of a script; NOERROR if it has none.
pub fn rcode(text: &str) -> ResponseCode {
    match text {
        "FORMERR" => ResponseCode::FormErr,
        "SERVFAIL" => ResponseCode::ServFail,
        "NXDOMAIN" => ResponseCode::NXDomain,
        "NOTIMP" => ResponseCode::NotImp,
        "REFUSED" => ResponseCode::Refused,
        _ => ResponseCode::NoError,
    }
}

fn fold(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// What the handler returns when it sent nothing.
fn nothing(request: &Request) -> ResponseInfo {
    let metadata = Metadata::response_from_request(&request.metadata);
    ResponseInfo::from(hickory_proto::op::Header { metadata, counts: HeaderCounts::default() })
}
