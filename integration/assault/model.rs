//! What may be seen on the wire: read from the policy by hand, not by the engine's code.
//!
//! The attacker may send anything but DNS to [`ALLOWED`], reach port 443 of what a fresh answer gave it, and speak ARP and
//! neighbour discovery for itself. The neighbour has [`NEIGHBOURS`]. The node asks the resolvers for names that policy allows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::World;
use crate::lab::agent::client::Agent;
use crate::lab::frame::mac;
use crate::lab::snapshot;
use crate::lab::world::PODS;

/// The resolver that the attacker may ask, and that namegate learns from.
pub const RESOLVER: &str = "203.0.113.60:53";
/// One that nobody may ask.
pub const FOREIGN_RESOLVER: &str = "203.0.113.61:53";
/// What the attacker may reach, on every port.
pub const ALLOWED: [&str; 2] = ["203.0.113.200", "2001:db8:2::200"];
/// Nobody may reach these.
pub const DENIED: [&str; 2] = ["203.0.113.201", "2001:db8:2::201"];
const NEIGHBOURS: [&str; 3] = ["203.0.113.202", "2001:db8:2::202", "203.0.113.40"];
const NODE: [&str; 6] =
    ["198.51.100.1", "198.18.255.1", "2001:db8:1::1", "2001:db8:ff::1", "169.254.77.1", "fd6e:616d:6567:6174::1"];
/// The outside's own address on the way to the node.
const OUTSIDE: &str = "2001:db8:ff::2";
/// Where the node's questions go: the resolver, and the pod behind kube-dns.
const RESOLVERS: [(&str, u16); 3] = [("203.0.113.60", 53), ("203.0.113.53", 5353), ("2001:db8:2::53", 5353)];
/// What a namegate beside its workload asks from (README): this port and those above.
const PROXY_PORTS: u16 = 61_000;
/// Suffixes of which one more label may be asked.
const ASKABLE: [&str; 6] =
    ["good.example", "apexone.example", "kelvin.example", "longs.example", "neigh.example", "exact.example"];

/// The policies of both workloads.
pub fn policy() -> String {
    let names = ["*.good.example", "*.apexone.example", "*.kelvin.example", "*.longs.example"]
        .map(|pattern| format!("{{matchPattern: \"{pattern}\"}}"))
        .join(", ");
    let dns = format!(
        "    toPorts:\n    - ports: [{{port: \"53\", protocol: ANY}}]\n      \
         rules: {{dns: [{names}, {{matchName: api.exact.example}}]}}\n"
    );
    let [v4, v6] = ALLOWED;
    let attacker = format!(
        "apiVersion: cilium.io/v2\n\
         kind: CiliumNetworkPolicy\n\
         metadata: {{name: payment-processor, namespace: payments}}\n\
         spec:\n  \
           endpointSelector: {{matchLabels: {{app: payment-processor}}}}\n  \
           egress:\n  \
           - toEndpoints:\n    \
             - matchLabels: {{k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}}\n{dns}  \
           - toCIDR: [203.0.113.60/32]\n{dns}  \
           - toFQDNs: [{{matchPattern: \"*.good.example\"}}]\n    \
             toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]\n  \
           - toCIDR: [{v4}/32, \"{v6}/128\"]\n---\n"
    );
    let rules = "  - toFQDNs: [{matchPattern: \"*.neigh.example\"}]\n    \
                 toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]\n  \
                 - toCIDR: [203.0.113.202/32, \"2001:db8:2::202/128\"]\n";
    attacker + &snapshot::policy("reports", rules)
}

/// Where a canary listens: at the far end of what it watches, so that it hears only what really left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The outside's end of the node's uplink.
    Outside,
    /// The outside's port on the bridge.
    Lan,
    /// The neighbour's interface.
    Neighbour,
}

impl Place {
    pub fn agent(self, world: &World) -> &Agent {
        if self == Place::Neighbour { &world.rep } else { &world.outside }
    }

    pub fn interface(self) -> &'static str {
        if self == Place::Lan { "lan0" } else { "eth0" }
    }
}

/// What the attacker's answers have opened so far.
#[derive(Default)]
pub struct Model {
    /// namegate stands in the attacker's own namespace: what it asks has the attacker's address.
    beside: bool,
    learned: BTreeSet<IpAddr>,
    /// Who has sent the attacker something: it may answer.
    askers: BTreeSet<IpAddr>,
    /// Where the first fragments that may be seen end, by place, addresses and number.
    firsts: BTreeMap<(Place, IpAddr, IpAddr, u32), usize>,
}

type Judged = Result<(), String>;

impl Model {
    /// Of a namegate beside its workload.
    pub fn beside() -> Model {
        Model { beside: true, ..Model::default() }
    }

    pub fn learns(&mut self, address: IpAddr) {
        self.learned.insert(address);
    }

    /// Its time is over.
    pub fn forgets(&mut self, address: IpAddr) {
        self.learned.remove(&address);
    }

    pub fn is_asked_by(&mut self, address: IpAddr) {
        self.askers.insert(address);
    }

    /// Whether the frame may be seen there.
    pub fn judge(&mut self, place: Place, frame: &[u8]) -> Judged {
        let sender = frame.get(6..12).ok_or("no Ethernet header")?;
        let speaker = match () {
            () if sender == mac(PODS[0].mac) => Speaker::Attacker,
            () if sender == mac(PODS[1].mac) => Speaker::Neighbour,
            () => Speaker::Node,
        };
        match word(frame, 12)? {
            0x0800 => self.judge_ip(place, speaker, sender, &V4::read(&frame[14..])?),
            0x86dd => self.judge_ip(place, speaker, sender, &V6::read(&frame[14..])?),
            0x0806 => judge_arp(speaker, frame),
            other => Err(format!("ethertype {other:#06x}")),
        }
    }

    fn judge_ip(&mut self, place: Place, speaker: Speaker, sender: &[u8], packet: &Packet) -> Judged {
        let Some(piece) = &packet.piece else { return self.judge_whole(place, speaker, sender, packet) };
        let datagram = (place, packet.from, packet.to, piece.id);
        let end = piece.begin + packet.payload.len();
        if piece.more && !packet.payload.len().is_multiple_of(8) || end > 65_535 {
            return Err("a fragment of a wrong length".into());
        }
        match self.firsts.get(&datagram) {
            Some(first) if piece.begin >= *first => return Ok(()),
            Some(_) => return Err("a fragment over its first".into()),
            None if piece.begin > 0 => return Err("a fragment without its first".into()),
            None if !piece.more => return Err("a fragment of one piece".into()),
            None if packet.payload.len() < packet.header() => return Err("a first fragment without its header".into()),
            None => {}
        }
        self.judge_whole(place, speaker, sender, packet)?;
        self.firsts.insert(datagram, end);
        Ok(())
    }

    fn judge_whole(&self, place: Place, speaker: Speaker, sender: &[u8], packet: &Packet) -> Judged {
        let own = |index: usize| [PODS[index].v4, PODS[index].v6].iter().any(|own| is(packet.from, own));
        let whose = match () {
            () if own(0) => Speaker::Attacker,
            () if own(1) => Speaker::Neighbour,
            () if NODE.iter().any(|own| is(packet.from, own)) => Speaker::Node,
            () => Speaker::Stranger,
        };
        if packet.protocol == 58 && packet.payload.first().is_some_and(|kind| matches!(kind, 130..=143)) {
            return judge_neighbour_discovery(speaker, whose, sender, packet);
        }
        // On a shared segment the frame's sender is the packet's; behind the node it is always the node.
        if place != Place::Outside && whose != speaker && !(speaker == Speaker::Node && whose == Speaker::Stranger) {
            return Err(format!("{} from the MAC of {speaker:?}", packet.from));
        }
        match whose {
            Speaker::Attacker => self.may_attacker(place, packet),
            Speaker::Neighbour => may_neighbour(packet),
            Speaker::Node => may_node(packet),
            // What the node forwards to the neighbour comes from the world.
            Speaker::Stranger if place == Place::Neighbour && speaker == Speaker::Node => Ok(()),
            Speaker::Stranger => Err(format!("{} is nobody's address", packet.from)),
        }
    }

    fn may_attacker(&self, place: Place, packet: &Packet) -> Judged {
        let denied = || Err(format!("the attacker to {} by protocol {}", packet.to, packet.protocol));
        if place == Place::Neighbour {
            return denied();
        }
        if self.beside && matches!(packet.protocol, 6 | 17) && word(packet.payload, 0)? >= PROXY_PORTS {
            let port = word(packet.payload, 2)?;
            if RESOLVERS.iter().any(|(known, at)| is(packet.to, known) && port == *at) {
                return if packet.protocol == 17 { judge_question(packet.payload) } else { Ok(()) };
            }
        }
        // What the attacker's own kernel says to who sent it something: RST, an acknowledgement, "unreachable".
        let answers = match packet.protocol {
            6 => packet.payload.get(13).is_some_and(|flags| flags & 0x16 & !2 != 0),
            1 => packet.payload.first() == Some(&3),
            58 => packet.payload.first() == Some(&1),
            _ => false,
        };
        let unmarked = !packet.payload.windows(3).any(|octets| octets == b"ngx");
        if answers && unmarked && self.askers.contains(&packet.to) {
            return Ok(());
        }
        let allowed = ALLOWED.iter().any(|allowed| is(packet.to, allowed));
        match packet.protocol {
            6 | 17 => {
                let port = word(packet.payload, 2)?;
                let whole = match packet.protocol {
                    6 => packet.payload.len() >= 20 && packet.payload[12] >> 4 >= 5,
                    _ => packet.payload.len() >= 8,
                };
                let granted = packet.protocol == 6 && port == 443 && self.learned.contains(&packet.to);
                if whole && ((allowed && port != 53) || granted) { Ok(()) } else { denied() }
            }
            1 | 58 => {
                let echo = if packet.to.is_ipv4() { 8 } else { 128 };
                if allowed && packet.payload.first() == Some(&echo) { Ok(()) } else { denied() }
            }
            _ => denied(),
        }
    }
}

fn may_neighbour(packet: &Packet) -> Judged {
    let known = NEIGHBOURS.iter().any(|known| is(packet.to, known)) && matches!(packet.protocol, 1 | 6 | 17 | 58);
    if known { Ok(()) } else { Err(format!("the neighbour to {} by protocol {}", packet.to, packet.protocol)) }
}

fn may_node(packet: &Packet) -> Judged {
    let port = word(packet.payload, 2).unwrap_or(0);
    match packet.protocol {
        6 | 17 if RESOLVERS.iter().any(|(known, at)| is(packet.to, known) && port == *at) => match packet.protocol {
            17 => judge_question(packet.payload),
            _ => Ok(()),
        },
        // Errors, and the kernel's word to what nobody listens to.
        1 if matches!(packet.payload.first(), Some(3 | 11)) => Ok(()),
        58 if matches!(packet.payload.first(), Some(1..=4)) => Ok(()),
        6 if packet.payload.get(13).is_some_and(|flags| flags & 4 != 0) => Ok(()),
        _ => Err(format!("the node to {} by protocol {}, port {port}", packet.to, packet.protocol)),
    }
}

/// One label of letters, digits, - and _ before a suffix that may be asked; and nothing behind the question but OPT.
fn judge_question(datagram: &[u8]) -> Judged {
    let message = datagram.get(8..).ok_or("no DNS message")?;
    let mut at = 12;
    let mut labels: Vec<String> = Vec::new();
    while let octets @ 1.. = usize::from(*message.get(at).ok_or("a name that does not end")?) {
        let label = message.get(at + 1..at + 1 + octets).ok_or("a label that does not end")?;
        if !label.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_')) {
            return Err(format!("a question with the label {label:?}"));
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + octets;
    }
    let known = labels.len() == 3 && ASKABLE.contains(&labels[1..].join(".").as_str());
    let tail = message.get(at + 5..).ok_or("a question that does not end")?;
    let opt = tail.is_empty() || (tail.starts_with(&[0, 0, 41]) && tail.len() <= 11 + 4 + 40);
    match known && opt && word(message, 4)? == 1 {
        true => Ok(()),
        false => Err(format!("a question for {}, {} octets behind it", labels.join("."), tail.len())),
    }
}

/// Who says so is who it is, and nothing hides behind the message.
fn judge_arp(speaker: Speaker, frame: &[u8]) -> Judged {
    let sender_mac = frame.get(22..28).ok_or("a short ARP")?;
    let sender: [u8; 4] = frame.get(28..32).ok_or("a short ARP")?.try_into().map_err(|_| "a short ARP")?;
    let sender = IpAddr::from(sender);
    let owner = match () {
        () if is(sender, PODS[0].v4) => Speaker::Attacker,
        () if is(sender, PODS[1].v4) => Speaker::Neighbour,
        () if sender == IpAddr::from([0, 0, 0, 0]) && word(frame, 20)? == 1 => speaker, // a probe (RFC 5227)
        () if NODE.iter().any(|own| is(sender, own)) => Speaker::Node,
        () => Speaker::Stranger,
    };
    if owner != speaker || sender_mac != &frame[6..12] {
        return Err(format!("ARP for {sender} from {speaker:?}"));
    }
    if frame.len() > 60 { Err(format!("ARP of {} octets", frame.len())) } else { Ok(()) }
}

fn judge_neighbour_discovery(speaker: Speaker, whose: Speaker, sender: &[u8], packet: &Packet) -> Judged {
    let kind = packet.payload[0];
    let link_local = matches!(packet.from, IpAddr::V6(from) if (from.segments()[0] & 0xffc0) == 0xfe80);
    let unspecified = packet.from == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let reports = matches!(kind, 131 | 132 | 143);
    let hops = if reports { 1 } else { 255 };
    if !(reports || matches!(kind, 133 | 135 | 136)) || packet.hops != hops {
        return Err(format!("ICMPv6 type {kind} with {} hops", packet.hops));
    }
    if !(whose == speaker || link_local || unspecified) {
        return Err(format!("neighbour discovery from {}", packet.from));
    }
    let on_link = match packet.to {
        IpAddr::V6(to) => {
            let segments = to.segments();
            segments[0] & 0xff0f == 0xff02
                || segments[0] & 0xffc0 == 0xfe80
                || [PODS[0].v6, PODS[1].v6, OUTSIDE].iter().chain(&NODE).any(|known| is(packet.to, known))
        }
        IpAddr::V4(_) => false,
    };
    if !on_link {
        return Err(format!("neighbour discovery to {}", packet.to));
    }
    if kind == 136 && speaker != Speaker::Node {
        let target: [u8; 16] =
            packet.payload.get(8..24).and_then(|o| o.try_into().ok()).ok_or("a short advertisement")?;
        let target = Ipv6Addr::from(target);
        let pod = &PODS[usize::from(speaker == Speaker::Neighbour)];
        let octets = mac(pod.mac);
        let from_mac = [octets[0] ^ 2, octets[1], octets[2], 0xff, 0xfe, octets[3], octets[4], octets[5]];
        if !is(target.into(), pod.v6) && target.octets()[8..] != from_mac {
            return Err(format!("{speaker:?} advertises {target}"));
        }
    }
    if !reports
        && kind != 133
        && packet.payload.get(24..32).is_some_and(|option| option[0] <= 2 && &option[2..] != sender)
    {
        return Err("neighbour discovery with another link-layer address in it".into());
    }
    // The target, one address option and a nonce are all that these carry; a report carries a group, or sixteen of them.
    let most = match kind {
        131 | 132 => 24,
        143 => 8 + 16 * 20,
        _ => 24 + 8 + 8,
    };
    if packet.payload.len() > most {
        return Err(format!("neighbour discovery of {} octets", packet.payload.len()));
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaker {
    Attacker,
    Neighbour,
    Node,
    Stranger,
}

/// A fragment's place in its datagram.
struct Piece {
    id: u32,
    begin: usize,
    more: bool,
}

/// An IP packet without source routes or tricks of length.
struct Packet<'a> {
    /// None: whole.
    piece: Option<Piece>,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    hops: u8,
    payload: &'a [u8],
}

impl Packet<'_> {
    /// The least octets that say who speaks to whom.
    fn header(&self) -> usize {
        match self.protocol {
            6 => self.payload.get(12).map_or(20, |octet| usize::from(octet >> 4).max(5) * 4),
            132 => 12,
            _ => 8,
        }
    }
}

struct V4;
struct V6;

impl V4 {
    fn read(packet: &[u8]) -> Result<Packet<'_>, String> {
        let header = packet.get(..20).ok_or("a short IPv4 header")?;
        let words = usize::from(header[0] & 15);
        let total = usize::from(word(header, 2)?);
        if header[0] >> 4 != 4 || words < 5 || total < words * 4 || total > packet.len() {
            return Err("a wrong IPv4 header".into());
        }
        let field = word(header, 6)?;
        let piece =
            Piece { id: word(header, 4)?.into(), begin: usize::from(field & 0x1fff) * 8, more: field & 0x2000 != 0 };
        let piece = (field & 0x3fff != 0).then_some(piece);
        let mut options = packet.get(20..words * 4).ok_or("options that do not end")?;
        while let [kind, rest @ ..] = options {
            match kind {
                0 => break,
                1 => options = rest,
                131 | 137 => return Err("a source route".into()),
                _ => {
                    let length = usize::from(*rest.first().ok_or("an option without a length")?);
                    options = options.get(length.max(2)..).ok_or("an option that does not end")?;
                    if length < 2 {
                        return Err("an option of no length".into());
                    }
                }
            }
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
        let payload = &packet[words * 4..total];
        Ok(Packet { piece, from: address(12), to: address(16), protocol: header[9], hops: header[8], payload })
    }
}

impl V6 {
    /// No extension header but that of a fragment and the options that go before a listener report.
    fn read(packet: &[u8]) -> Result<Packet<'_>, String> {
        let header = packet.get(..40).ok_or("a short IPv6 header")?;
        let payload = packet.get(40..40 + usize::from(word(header, 4)?)).ok_or("an IPv6 packet that does not end")?;
        if header[0] >> 4 != 6 {
            return Err("a wrong IPv6 header".into());
        }
        let address = |at: usize| -> IpAddr {
            let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen octets");
            Ipv6Addr::from(octets).into()
        };
        let mut piece = None;
        let (protocol, payload) = match header[6] {
            44 => {
                let field = word(payload, 2)?;
                let id = u32::from(word(payload, 4)?) << 16 | u32::from(word(payload, 6)?);
                piece = Some(Piece { id, begin: usize::from(field & 0xfff8), more: field & 1 != 0 });
                (payload[0], payload.get(8..).ok_or("a short fragment header")?)
            }
            0 if payload.first() == Some(&58) => (58, payload.get(8..).ok_or("options that do not end")?),
            other => (other, payload),
        };
        Ok(Packet { piece, from: address(8), to: address(24), protocol, hops: header[7], payload })
    }
}

fn word(octets: &[u8], at: usize) -> Result<u16, String> {
    octets.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).ok_or_else(|| "cut off".into())
}

fn is(address: IpAddr, text: &str) -> bool {
    text.parse() == Ok(address)
}
