//! What a workload may do to its own interface, as root of its namespace. Then its kernel sends a datagram to a denied address.

use crate::bench::{Case, Shown, Side};
use crate::lab::process;
use crate::lab::world::{Family, NODE_MAC, PODS};
use crate::model::{ALLOWED, DENIED};

const CLASS: &str = "interfaces";
/// Octets of the datagram behind its mark.
const MORE: usize = 1300;

struct Row {
    name: &'static str,
    tries: &'static str,
    /// Lines of shell; `$gate` is the gateway, `$to` where the datagram goes.
    change: &'static str,
    /// Brings back what was.
    undo: &'static str,
}

/// Brings back the workload's own MAC.
const HOME: &str = "ip link set eth0 address 02:00:00:00:01:10";

/// In each version of IP.
const CHANGES: &[Row] = &[
    Row { name: "nothing changed", tries: "an ordinary socket", change: "", undo: "" },
    Row {
        name: "another mac",
        tries: "the workload's frames are no longer its own",
        change: "ip link set eth0 address 02:00:00:00:01:77",
        undo: HOME,
    },
    Row {
        name: "the neighbour's mac",
        tries: "the workload's frames are its neighbour's",
        change: "ip link set eth0 address 02:00:00:00:01:11",
        undo: HOME,
    },
    Row {
        name: "another address",
        tries: "an address that no endpoint has",
        change: "ip address add $other dev eth0 $nodad; ip route add $to via $gate dev eth0 onlink src $other",
        undo: "ip route del $to; ip address del $other dev eth0",
    },
    Row {
        name: "the neighbour's address",
        tries: "another's policy",
        change: "ip address add $neighbour dev eth0 $nodad; ip route add $to via $gate dev eth0 onlink src $neighbour",
        undo: "ip route del $to; ip address del $neighbour dev eth0",
    },
    Row {
        name: "a small mtu",
        tries: "the kernel sends what is denied in fragments",
        change: "ip link set eth0 mtu 1280; ip route add $to via $gate dev eth0 onlink",
        undo: "ip route del $to; ip link set eth0 mtu 1500",
    },
    Row {
        name: "down and up",
        tries: "the programs are gone when the interface is back",
        change: "echo 1 > /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down; ip link set eth0 down; ip link set eth0 up; \
                 for _ in {1..100}; do ip -o link show eth0 | grep -q 'state UP' && break; sleep 0.02; done; sleep 0.2; \
                 ip -4 route add default via 198.51.100.1 dev eth0 onlink; \
                 ip -6 route add default via 2001:db8:1::1 dev eth0 onlink",
        undo: "",
    },
    Row {
        name: "a priority for the wire",
        tries: "marks and priorities of the sender's that the host could take for its own",
        change: "nft 'add table inet own; add chain inet own out { type filter hook output priority 0; }; \
                 add rule inet own out meta mark set 0x4e47; add rule inet own out meta priority set 1:7'",
        undo: "nft delete table inet own",
    },
    Row {
        name: "an allowed address rewritten",
        tries: "a NAT in the workload's own namespace",
        change: "nft \"add table inet own; add chain inet own out { type nat hook output priority -100; }; \
                 add rule inet own out meta nfproto $nf udp dport 9 dnat $family to $to; \"; sent=$allowed",
        undo: "nft delete table inet own",
    },
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in CHANGES {
        for family in [Family::V4, Family::V6] {
            let name = format!("{}: {}", family.pick("ipv4", "ipv6"), row.name);
            cases.push(Case::new(CLASS, name, row.tries, move |side, mark| {
                attempt(side, family, row, mark);
                Shown::Frames(1)
            }));
        }
    }
    cases
}

/// Changes, sends, and changes back.
fn attempt(side: &Side, family: Family, row: &Row, mark: &str) {
    let pick = |pair: [&'static str; 2]| family.pick(pair[0], pair[1]);
    let values = [
        ("to", pick(DENIED)),
        ("sent", pick(DENIED)),
        ("allowed", pick(ALLOWED)),
        ("gate", pick(["198.51.100.1", "2001:db8:1::1"])),
        ("other", pick(["198.51.100.77", "2001:db8:1::77"])),
        ("neighbour", pick([PODS[1].v4, PODS[1].v6])),
        ("nodad", pick(["", "nodad"])),
        ("nf", pick(["ipv4", "ipv6"])),
        ("family", pick(["ip", "ip6"])),
    ];
    let values: String = values.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    let Row { change, undo, .. } = row;
    // The gateway's MAC is given: who changed its own may get no answer to a question for it.
    let script = format!(
        "{values}{change}\n\
         ip neigh replace $gate lladdr {NODE_MAC} dev eth0 nud permanent\n\
         exec 3<>/dev/udp/$sent/9; printf '%s%{MORE}s' {mark} >&3; exec 3>&-\n\
         sleep 0.05\n\
         ip neigh del $gate dev eth0\n\
         {undo}\n"
    );
    let mut command = process::inside(&side.world.namespace("pay"), "bash");
    command.args(["-c", &script]);
    let output = process::output(command).expect("bash starts");
    assert!(output.status.success(), "{script}{}", String::from_utf8_lossy(&output.stderr));
}
