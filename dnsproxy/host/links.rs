//! Interfaces by netlink (rtnetlink(7)).

use std::io;
use std::net::IpAddr;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};

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
}

/// What happened to an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It is there, new or changed.
    Present(Link),
    /// It is gone.
    Gone(u32),
    /// Somebody attached, replaced or removed a traffic-control filter, or events were lost: look again.
    Recheck,
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
    let (connection, handle, messages) = new_multicast_connection(&[MulticastGroup::Link, MulticastGroup::Tc])?;
    tokio::spawn(connection);
    Ok((Netlink { handle }, Events { messages }))
}

impl Events {
    /// The next event; `None` when the socket is closed.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let (message, _) = self.messages.next().await?;
            let event = match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => read(&link).map(Event::Present),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                    Some(Event::Gone(link.header.index))
                }
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewTrafficFilter(_) | RouteNetlinkMessage::DelTrafficFilter(_),
                )
                | NetlinkPayload::Overrun(_) => Some(Event::Recheck),
                _ => None,
            };
            if event.is_some() {
                return event;
            }
        }
    }
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(io::Error::other)?;
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
            .filter_map(|message| {
                let local = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
                let address = local.or_else(|| {
                    message.attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(*address),
                        _ => None,
                    })
                });
                Some((message.header.index, address?, message.header.prefix_len))
            })
            .collect())
    }

    /// Gives this namespace's loopback interface one more address of its own (/32 or /128). There already: fine.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn add_local(&self, address: IpAddr) -> io::Result<()> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let lo = self.loopback().await?;
        self.handle.address().add(lo, address, prefix).replace().execute().await.map_err(io::Error::other)
    }

    /// Takes an address that [`Netlink::add_local`] gave away again. Not there: fine.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn remove_local(&self, address: IpAddr) -> io::Result<()> {
        let lo = self.loopback().await?;
        let request = self.handle.address().get().set_link_index_filter(lo).set_address_filter(address);
        let found: Vec<_> = request.execute().try_collect().await.map_err(io::Error::other)?;
        for message in found {
            self.handle.address().del(message).execute().await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    pub(super) async fn loopback(&self) -> io::Result<u32> {
        let links = self.links().await?;
        let lo = links.iter().find(|link| link.name == "lo");
        lo.map(|link| link.index).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no interface lo"))
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
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(info) => {
                link.bridge = info.iter().any(|part| matches!(part, LinkInfo::Kind(InfoKind::Bridge)));
            }
            _ => (),
        }
    }
    (!link.name.is_empty()).then_some(link)
}
