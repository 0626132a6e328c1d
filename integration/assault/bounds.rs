//! What namegate holds for what a workload makes it hold, in octets, measured on the process that the attacks were run against.

use std::collections::BTreeMap;
use std::fs;

use namegate::kernel::abi;
use serde_json::{Value, json};

use crate::bench::Side;
use crate::lab::World;
use crate::lab::agent::{Many, hex};
use crate::message::{A, IN, name, query};
use crate::model::RESOLVER;
use crate::resources;

/// Names that the neighbour asks for, one address each.
const NAMES: u32 = 8_000;

/// The peak of the one that was attacked; and of one that was not, octets for each of a flow (its map is allocated at once), a
/// grant in the kernel, and a name with its cached answer and its row in user space.
pub fn measure(attacked: &Side, fresh: &Side) -> Value {
    let (Some(process), Some(daemon)) = (&attacked.daemon, &fresh.daemon) else { return Value::Null };
    let peak = status(process.pid(), "VmHWM:");
    let (pid, world) = (daemon.pid(), &fresh.world);
    let held = || (maps(pid), crate::lab::grants::read(&world.directory).expect("the map of grants").len());
    let resident = status(pid, "VmRSS:");
    let names = ask(world);
    let grown = status(pid, "VmRSS:").saturating_sub(resident) * 1024;
    let (before, few) = held();
    resources::ask_for_many_addresses(world, 0..100);
    let (after, many) = held();
    let flows = map_of::<abi::flow_key, abi::flow>(&after);
    let grant = |maps: &Maps| map_of::<abi::grant_key, abi::grant>(maps).map_or(0, |map| map.octets);
    let each = |octets: u64, count: u64| octets.checked_div(count);
    json!({
        "rss_peak_kib": peak,
        "maps_kib": after.values().map(|map| map.octets).sum::<u64>() / 1024,
        "octets_per_flow": flows.and_then(|map| each(map.octets, map.entries)),
        "octets_per_grant": each(grant(&after).saturating_sub(grant(&before)), many.saturating_sub(few) as u64),
        "octets_per_name": each(grown, names as u64),
        "names": names,
    })
}

/// How many of [`NAMES`] were answered.
fn ask(world: &World) -> usize {
    let server = RESOLVER.parse().expect("an address");
    let mut answered = 0;
    for first in (0..NAMES).step_by(500) {
        let messages = (first..first + 500)
            .map(|n| hex(&query(n as u16, &name(&format!("bound{n}.neigh.example")), A, IN)))
            .collect();
        let replies = world.rep.ask_many(Many { server, tcp: false, messages, at_once: 16, within_ms: 3000 });
        answered += replies.into_iter().flatten().count();
    }
    answered
}

/// By number: what the kernel says of each map that a process holds.
type Maps = BTreeMap<u64, Map>;

struct Map {
    octets: u64,
    entries: u64,
    key: u64,
    value: u64,
}

fn map_of<K, V>(maps: &Maps) -> Option<&Map> {
    maps.values().find(|map| map.key == size_of::<K>() as u64 && map.value == size_of::<V>() as u64)
}

fn maps(pid: u32) -> Maps {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process lives");
    let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts
        .filter_map(|text| {
            let number = |field: &str| after(&text, field).unwrap_or(0);
            let map = Map {
                octets: number("memlock:"),
                entries: number("max_entries:"),
                key: number("key_size:"),
                value: number("value_size:"),
            };
            Some((after(&text, "map_id:")?, map))
        })
        .collect()
}

/// KiB.
fn status(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    after(&text, field).expect("a process has it")
}

fn after(text: &str, field: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_whitespace().next()?.parse().ok()
}
