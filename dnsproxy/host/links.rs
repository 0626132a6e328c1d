//! Interfaces by netlink (rtnetlink(7)).

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};

use super::paths::{self, Path, of_route};

/// An interface of this network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its number: never used again while the kernel runs, save after 2^31 others.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is set up (IFF_UP).
    pub up: bool,
    /// Its own MAC.
    pub mac: Option<[u8; 6]>,
    /// The bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Whether it is a bridge itself.
    pub bridge: bool,
    /// Whether it is one end of a veth pair, and where the other is.
    pub veth: Option<Peer>,
}

/// Where the other end of a veth pair is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// In another network namespace.
    Elsewhere,
    /// In this one, with this number.
    Here(u32),
}

/// The loopback interface has this number in every network namespace (LOOPBACK_IFINDEX).
pub const LOOPBACK: u32 = 1;

/// How many octets of events the kernel keeps for us: a hundred pods a second make a thousand messages.
const BUFFER: libc::c_int = 8 << 20;

/// Without CAP_NET_ADMIN it stays as it is, and more events are lost, which is told.
fn widen(socket: std::os::fd::RawFd) {
    let (octets, size) = (BUFFER, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: a number of the size that is given.
    let failed = unsafe {
        libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const octets).cast(), size) != 0
    };
    if failed {
        tracing::debug!(error = %io::Error::last_os_error(), "the buffer for events stays as it is");
    }
}

/// What happened to an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It is there, new or changed.
    Present(Link),
    /// It is gone.
    Gone(u32),
    /// These lead over interfaces, by their numbers, or do not any more.
    Leads {
        /// What leads over which.
        paths: Vec<(u32, Path)>,
        /// Whether they do now.
        now: bool,
    },
    /// This machine has an address, or has it no more.
    Address {
        /// The interface, by its number, the address and its prefix length.
        at: (u32, IpAddr, u8),
        /// What leads over the interface because of it.
        path: Option<Path>,
        /// Whether it has it now.
        now: bool,
    },
    /// Somebody attached, replaced or removed a traffic-control filter: look again.
    Recheck,
    /// Events were lost: look at everything.
    Lost,
}

/// Requests to the kernel. Cheap to clone.
#[derive(Clone)]
pub struct Netlink {
    pub(super) handle: Handle,
}

/// What the kernel tells by itself, in its order.
pub struct Events {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

/// Opens a socket for requests and events. Must be called inside a tokio runtime, which drives it.
///
/// # Errors
/// The socket can't be opened.
pub fn open() -> io::Result<(Netlink, Events)> {
    open_for(&[MulticastGroup::Link, MulticastGroup::Tc])
}

/// The same, and tells of [`Event::Leads`] and [`Event::Address`].
///
/// # Errors
/// The socket can't be opened.
pub fn open_with_paths() -> io::Result<(Netlink, Events)> {
    open_for(&[
        MulticastGroup::Link,
        MulticastGroup::Tc,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])
}

fn open_for(groups: &[MulticastGroup]) -> io::Result<(Netlink, Events)> {
    let (mut connection, handle, messages) = new_multicast_connection(groups)?;
    widen(connection.socket_mut().socket_ref().as_raw_fd());
    tokio::spawn(connection);
    Ok((Netlink { handle }, Events { messages }))
}

impl Events {
    /// The next event; `None` when the socket is closed.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let (message, _) = self.messages.next().await?;
            let event = event_of(message.payload);
            if event.is_some() {
                return event;
            }
        }
    }

    /// An event that has come already, if there is one.
    pub fn ready(&mut self) -> Option<Event> {
        while let Ok((message, _)) = self.messages.try_recv() {
            let event = event_of(message.payload);
            if event.is_some() {
                return event;
            }
        }
        None
    }
}

fn event_of(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    let message = match payload {
        NetlinkPayload::InnerMessage(message) => message,
        NetlinkPayload::Overrun(_) => return Some(Event::Lost),
        _ => return None,
    };
    let leads = |paths: Vec<(u32, Path)>, now: bool| (!paths.is_empty()).then_some(Event::Leads { paths, now });
    match message {
        // A bridge tells of its ports in a family of its own: half of a link, and one that leaves it as a link that is gone.
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family != AddressFamily::Unspec =>
        {
            None
        }
        RouteNetlinkMessage::NewLink(link) => read(&link).map(Event::Present),
        RouteNetlinkMessage::DelLink(link) => Some(Event::Gone(link.header.index)),
        RouteNetlinkMessage::NewTrafficFilter(_) | RouteNetlinkMessage::DelTrafficFilter(_) => Some(Event::Recheck),
        RouteNetlinkMessage::NewRoute(route) => leads(of_route(&route), true),
        RouteNetlinkMessage::DelRoute(route) => leads(of_route(&route), false),
        RouteNetlinkMessage::NewAddress(address) => of_address(&address, true),
        RouteNetlinkMessage::DelAddress(address) => of_address(&address, false),
        _ => None,
    }
}

fn of_address(message: &AddressMessage, now: bool) -> Option<Event> {
    let address = address_of(message)?;
    let at = (message.header.index, address, message.header.prefix_len);
    Some(Event::Address { at, path: paths::of_address(message, address), now })
}

fn path_of_address(message: &AddressMessage) -> Option<(u32, Path)> {
    Some((message.header.index, paths::of_address(message, address_of(message)?)?))
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let request = self.handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let messages: Vec<LinkMessage> = request.execute().try_collect().await.map_err(io::Error::other)?;
        Ok(messages.iter().filter_map(read).collect())
    }

    /// All addresses with their interface and prefix length.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn addresses(&self) -> io::Result<Vec<(u32, IpAddr, u8)>> {
        let messages: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(io::Error::other)?;
        Ok(messages
            .iter()
            .filter_map(|message| Some((message.header.index, address_of(message)?, message.header.prefix_len)))
            .collect())
    }

    /// One interface, as it is now; none: it is gone.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn link(&self, index: u32) -> io::Result<Option<Link>> {
        let found: Result<Vec<LinkMessage>, rtnetlink::Error> =
            self.handle.link().get().match_index(index).execute().try_collect().await;
        match found {
            Ok(messages) => Ok(messages.iter().find_map(read)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// What leads over which interface.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn paths(&self) -> io::Result<Vec<(u32, Path)>> {
        let addresses: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.map_err(io::Error::other)?;
        let mut paths: Vec<(u32, Path)> = addresses.iter().filter_map(path_of_address).collect();
        let of_v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let of_v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for of_family in [of_v4, of_v6] {
            let routes: Vec<RouteMessage> =
                self.handle.route().get(of_family).execute().try_collect().await.map_err(io::Error::other)?;
            paths.extend(routes.iter().flat_map(of_route));
        }
        Ok(paths)
    }

    /// Gives this namespace's loopback interface one more address of its own (/32 or /128). There already: fine.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn add_local(&self, address: IpAddr) -> io::Result<()> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        self.handle.address().add(LOOPBACK, address, prefix).replace().execute().await.map_err(io::Error::other)
    }

    /// Takes an address that [`Netlink::add_local`] gave away again. Not there: fine.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn remove_local(&self, address: IpAddr) -> io::Result<()> {
        let request = self.handle.address().get().set_link_index_filter(LOOPBACK).set_address_filter(address);
        let found: Vec<_> = request.execute().try_collect().await.map_err(io::Error::other)?;
        for message in found {
            self.handle.address().del(message).execute().await.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn read(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mac: None,
        controller: None,
        bridge: false,
        veth: None,
    };
    let (mut is_veth, mut other, mut elsewhere) = (false, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(info) => {
                link.bridge = info.iter().any(|part| matches!(part, LinkInfo::Kind(InfoKind::Bridge)));
                is_veth = info.iter().any(|part| matches!(part, LinkInfo::Kind(InfoKind::Veth)));
            }
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            _ => (),
        }
    }
    // A pair whose other end can't be told has it elsewhere: nobody lets that one pass for the machine's own.
    link.veth = is_veth.then(|| match other.filter(|_| !elsewhere) {
        Some(index) => Peer::Here(index),
        None => Peer::Elsewhere,
    });
    (!link.name.is_empty()).then_some(link)
}
