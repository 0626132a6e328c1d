//! Routing rules of a pod's own network namespace (ip-rule(8)): every query to a DNS server is answered here, whoever's
//! address that server has, and whatever stands in resolv.conf.
//!
//! ```text
//!   5301: ipproto udp sport 61000-65534 dport 53 lookup main        what the proxy asks itself; and the same for tcp
//!   5302: ipproto udp dport 53 lookup 53053                         everything else to port 53
//!   table 53053: local default dev lo
//! ```
//!
//! Ports alone let a workload past, as it may bind any from 1024 on: such a query leaves, and the programs on the interface
//! drop it, because it does not come from a socket of the proxy. Why not a mark instead of ports: the answer has none, so
//! the kernel's check of its way back fails.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use futures::TryStreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::links::{LOOPBACK, Netlink};

/// The table in which every address is local.
const TABLE: u32 = 53_053;
const OWN: u32 = 5_301;
const REST: u32 = 5_302;
const MAIN: u32 = 254;
const DNS: RulePortRange = RulePortRange { start: 53, end: 53 };

impl Netlink {
    /// Lets every query end in this namespace, but for those from local ports `own`. Done already: fine.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn redirect_queries(&self, own: RangeInclusive<u16>) -> io::Result<()> {
        for version in families() {
            let any = match version {
                IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
                    .pref_source(Ipv4Addr::LOCALHOST)
                    .output_interface(LOOPBACK)
                    .table_id(TABLE)
                    .scope(RouteScope::Host)
                    .kind(RouteType::Local)
                    .build(),
                IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
                    .output_interface(LOOPBACK)
                    .table_id(TABLE)
                    .kind(RouteType::Local)
                    .build(),
            };
            there(self.handle.route().add(any).execute().await)?;
            for protocol in [IpProtocol::Udp, IpProtocol::Tcp] {
                let ports = RulePortRange { start: *own.start(), end: *own.end() };
                let mine = [RuleAttribute::IpProtocol(protocol), RuleAttribute::SourcePortRange(ports)];
                self.rule(&version, OWN, MAIN, &mine).await?;
                self.rule(&version, REST, TABLE, &[RuleAttribute::IpProtocol(protocol)]).await?;
            }
        }
        Ok(())
    }

    async fn rule(&self, version: &IpVersion, priority: u32, table: u32, of: &[RuleAttribute]) -> io::Result<()> {
        let request = self.handle.rule().add().table_id(table).priority(priority).action(RuleAction::ToTable);
        let mut request = match version {
            IpVersion::V4 => {
                let mut request = request.v4();
                std::mem::take(request.message_mut())
            }
            IpVersion::V6 => {
                let mut request = request.v6();
                std::mem::take(request.message_mut())
            }
        };
        request.attributes.extend(of.iter().cloned());
        request.attributes.push(RuleAttribute::DestinationPortRange(DNS));
        let mut add = self.handle.rule().add();
        *add.message_mut() = request;
        there(add.execute().await)
    }

    /// Takes back what [`Netlink::redirect_queries`] did in this namespace; whether there was any of it. Others' rules stay.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn stop_redirecting(&self) -> io::Result<bool> {
        let mut found = false;
        for (version, family) in [(IpVersion::V4, AddressFamily::Inet), (IpVersion::V6, AddressFamily::Inet6)] {
            if matches!(version, IpVersion::V6) && !has_v6() {
                continue;
            }
            let rules: Vec<RuleMessage> =
                self.handle.rule().get(version).execute().try_collect().await.map_err(io::Error::other)?;
            for rule in rules.into_iter().filter(is_ours) {
                gone(self.handle.rule().del(rule).execute().await)?;
                found = true;
            }
            let mut asked = RouteMessage::default();
            asked.header.address_family = family;
            let routes: Vec<RouteMessage> =
                self.handle.route().get(asked).execute().try_collect().await.map_err(io::Error::other)?;
            let in_table = |route: &RouteMessage| {
                route.attributes.contains(&RouteAttribute::Table(TABLE))
                    && route.header.kind == RouteType::Local
                    && route.header.destination_prefix_length == 0
            };
            for route in routes.into_iter().filter(in_table) {
                gone(self.handle.route().del(route).execute().await)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Whether [`Netlink::redirect_queries`] was done in this namespace.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn is_redirected(&self) -> io::Result<bool> {
        for version in families() {
            let rules: Vec<RuleMessage> =
                self.handle.rule().get(version).execute().try_collect().await.map_err(io::Error::other)?;
            let to_table = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Table(TABLE));
            if !rules.iter().any(to_table) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where default routes lead, of both families: behind a pod's interface that is its node.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn gateways(&self) -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut asked = RouteMessage::default();
            asked.header.address_family = family;
            let routes: Vec<RouteMessage> =
                self.handle.route().get(asked).execute().try_collect().await.map_err(io::Error::other)?;
            let default = |route: &&RouteMessage| {
                route.header.destination_prefix_length == 0
                    && route.header.kind == RouteType::Unicast
                    && u32::from(route.header.table) == MAIN
            };
            found.extend(routes.iter().filter(default).flat_map(|route| &route.attributes).filter_map(|attribute| {
                match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
                    RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
                    _ => None,
                }
            }));
        }
        Ok(found)
    }
}

/// Those that this kernel has, and that are not switched off in this network namespace.
fn families() -> impl Iterator<Item = IpVersion> {
    let is_off =
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|text| text.trim() == "1");
    std::iter::once(IpVersion::V4).chain((has_v6() && !is_off).then_some(IpVersion::V6))
}

fn has_v6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

/// By number, table and port.
fn is_ours(rule: &RuleMessage) -> bool {
    let has = |attribute: &RuleAttribute| rule.attributes.contains(attribute);
    let place = |priority, table| has(&RuleAttribute::Priority(priority)) && has(&RuleAttribute::Table(table));
    (place(OWN, MAIN) || place(REST, TABLE)) && has(&RuleAttribute::DestinationPortRange(DNS))
}

fn there(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        result => result.map_err(io::Error::other),
    }
}

/// Somebody else was quicker: fine.
fn gone(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if [-libc::ENOENT, -libc::ESRCH].contains(&error.raw_code()) => {
            Ok(())
        }
        result => result.map_err(io::Error::other),
    }
}
