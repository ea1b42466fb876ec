//! The netlink messages, as values: what is asked of the kernel, and the few members that are
//! read of its answers. Nothing here talks to it.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{Spec, reaches};
use crate::jail::Network;
use crate::sys::netlink::Request;

/// One queue each way: a pair without hardware gains nothing from more, and each costs memory
/// and sysfs entries at every start.
const QUEUES: u32 = 1;

/// Creates the pair in one message: the host end as a port of the bridge with this index, the
/// other end directly in the jail's network namespace.
pub fn veth(spec: &Spec, bridge: u32, netns: BorrowedFd<'_>) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = sized(spec, &spec.inside);
    peer.attributes.push(LinkAttribute::Address(spec.mac.to_vec()));
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut host = LinkMessage::default();
    host.attributes = sized(spec, &spec.host_link);
    host.attributes.push(LinkAttribute::Controller(bridge));
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let what = format!("create link {} on bridge {}", spec.host_link, spec.bridge);
    Request::new(what, Message::NewLink(host), NLM_F_CREATE | NLM_F_EXCL)
}

fn sized(spec: &Spec, name: &str) -> Vec<LinkAttribute> {
    let mut attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::NumTxQueues(QUEUES),
        LinkAttribute::NumRxQueues(QUEUES),
    ];
    attributes.extend(spec.mtu.map(LinkAttribute::Mtu));
    attributes
}

/// Creates a bridge without spanning tree. Its address is given, for a bridge otherwise takes
/// that of a port, and changes it as ports come and go. Multicast snooping is off: nobody sends
/// the queries it lives on, so it would forward no less, but it arms timers of all ports
/// whenever one of them changes.
pub fn bridge(name: &str, mac: [u8; 6]) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::ForwardDelay(0),
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::MulticastSnooping(false),
            ])),
        ]),
    ];
    Request::new(format!("create bridge {name}"), Message::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// Changes the link called `name`; `up` brings it up too, none of these takes one down.
pub fn change(name: &str, attributes: Vec<LinkAttribute>, up: bool) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = attributes;
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    if up {
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
    }
    Request::new(format!("change link {name}"), Message::SetLink(link), 0)
}

/// No link-local address by the kernel's own choice.
pub fn no_generated_address() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

pub fn delete_link(name: &str, index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    Request::new(format!("delete link {name}"), Message::DelLink(link), 0)
}

/// One link, by name.
pub fn get_link(name: &str) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned()), short()];
    get(format!("read link {name}"), attributes)
}

/// All links of one kind, or all ports of the bridge with an index.
pub fn list_veths() -> Request {
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]);
    get("list links".to_owned(), vec![kind, short()])
}

pub fn list_ports(name: &str, bridge: u32) -> Request {
    get(format!("list ports of {name}"), vec![LinkAttribute::Controller(bridge), short()])
}

#[cfg(test)]
pub fn list_links() -> Request {
    get("list links".to_owned(), vec![short()])
}

fn get(what: String, attributes: Vec<LinkAttribute>) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = attributes;
    Request::new(what, Message::GetLink(link), 0)
}

fn short() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// Adds an address, or leaves it when it is there. IPv6 ones are usable at once: duplicate
/// address detection would keep them back for a second, and floods every port.
pub fn add_address(index: u32, network: &Network) -> Request {
    let mut message = address(index, network);
    match network.address {
        IpAddr::V4(own) if network.prefix < 31 => {
            let broadcast = u32::from(own) | (u32::MAX >> network.prefix);
            message.attributes.push(AddressAttribute::Broadcast(broadcast.into()));
        }
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    Request::new(format!("add address {network}"), Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

pub fn delete_address(index: u32, network: &Network) -> Request {
    Request::new(format!("delete address {network}"), Message::DelAddress(address(index, network)), 0)
}

fn address(index: u32, network: &Network) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(network.address);
    message.header.prefix_len = network.prefix;
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(network.address), AddressAttribute::Address(network.address)];
    message
}

/// The addresses of one link; `nsid` names the network namespace it is in, as the socket's own
/// namespace numbers it.
pub fn list_addresses(what: &str, index: u32, nsid: Option<i32>) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.attributes.extend(nsid.map(AddressAttribute::TargetNetNsId));
    Request::new(format!("list addresses of {what}"), Message::GetAddress(message), 0)
}

/// The default route through `gateway`, in place of another one. A gateway outside the link's
/// subnets is taken to be on the link all the same.
pub fn default_route(spec: &Spec, index: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if !reaches(&spec.addresses, gateway) {
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    let what = format!("set default route {gateway}");
    Request::new(what, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Every route of one family. Asked for all, the kernel goes through each protocol it knows.
pub fn list_routes(family: AddressFamily) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    Request::new("list routes".to_owned(), Message::GetRoute(message), 0)
}

const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
/// Length of `struct rtmsg`.
const ROUTE_HEADER_BYTES: usize = 12;

/// Reads an `RTM_NEWROUTE` payload: the gateway of a default route, if its metric is the one that
/// [`default_route`] leaves to the kernel, so that setting it again would replace it.
pub fn read_default_route(payload: &[u8]) -> Option<IpAddr> {
    let &[_, prefix, ..] = payload.first_chunk::<ROUTE_HEADER_BYTES>()?;
    let (mut gateway, mut metric) = (None, 0);
    for (kind, value) in Attributes(payload.get(ROUTE_HEADER_BYTES..)?) {
        match kind {
            RTA_GATEWAY => gateway = ip(value),
            RTA_PRIORITY => metric = number(value)?,
            _ => {}
        }
    }
    let ours = |gateway: &IpAddr| metric == if gateway.is_ipv4() { 0 } else { IP6_RT_PRIO_USER };
    gateway.filter(|gateway| prefix == 0 && ours(gateway))
}

/// linux/ipv6_route.h: the metric of a route that is set without one.
const IP6_RT_PRIO_USER: u32 = 1024;

/// A route to one address straight over a link.
#[cfg(test)]
pub fn on_link_route(index: u32, network: &Network) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(network.address);
    message.header.destination_prefix_length = network.prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if network.address.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(network.address.into()), RouteAttribute::Oif(index)];
    Request::new(format!("set route {network}"), Message::NewRoute(message), NLM_F_CREATE)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// What is read of a link. The crate's own decoder takes every attribute apart, which a list of
/// a thousand links would pay for; numbers are those of linux/if_link.h.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: String,
    pub alias: String,
    pub mac: Vec<u8>,
    pub mtu: Option<u32>,
    /// Both ends are up and joined.
    pub running: bool,
    pub up: bool,
    pub controller: Option<u32>,
    /// Index of the other end, in its own namespace.
    pub peer: Option<u32>,
    /// The other end's namespace; negative when that is dying.
    pub nsid: Option<i32>,
}

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;

/// Lengths of `struct ifinfomsg` and `struct ifaddrmsg`.
const LINK_HEADER_BYTES: usize = 16;
const ADDRESS_HEADER_BYTES: usize = 8;

impl Link {
    /// Reads an `RTM_NEWLINK` payload; `None` when it is no such thing.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let flags = LinkFlags::from_bits_retain(number(payload.get(8..12)?)?);
        let mut link = Self {
            index: number(payload.get(4..8)?)?,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            ..Self::default()
        };
        for (kind, value) in Attributes(payload.get(LINK_HEADER_BYTES..)?) {
            link.take(kind, value);
        }
        Some(link)
    }

    fn take(&mut self, kind: u16, value: &[u8]) {
        match kind {
            IFLA_ADDRESS => self.mac = value.to_vec(),
            IFLA_IFNAME => self.name = text(value),
            IFLA_IFALIAS => self.alias = text(value),
            IFLA_MTU => self.mtu = number(value),
            IFLA_LINK => self.peer = number(value),
            IFLA_MASTER => self.controller = number(value),
            IFLA_LINK_NETNSID => self.nsid = number(value).map(u32::cast_signed),
            IFLA_LINKINFO => self.kind = info_kind(value).unwrap_or_default(),
            _ => {}
        }
    }
}

fn info_kind(value: &[u8]) -> Option<String> {
    Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, value)| text(value))
}

/// The attributes of a message, each with its kind, up to the first that does not fit: `struct
/// nlattr` of linux/netlink.h. A list of a thousand links has some fifty thousand.
struct Attributes<'a>(&'a [u8]);

const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// Two bits of the kind say how the value is written.
const ATTRIBUTE_KIND_MASK: u16 = 0x3fff;

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(ATTRIBUTE_HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(ATTRIBUTE_HEADER_BYTES)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & ATTRIBUTE_KIND_MASK, value))
    }
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Reads an `RTM_NEWADDR` payload, if it is of the link `index` and of global scope: link-local
/// addresses belong to the kernel.
pub fn read_address(payload: &[u8], index: u32) -> Option<Network> {
    let &[_, prefix, _, scope] = payload.first_chunk::<4>()?;
    if AddressScope::from(scope) != AddressScope::Universe || number(payload.get(4..8)?)? != index {
        return None;
    }
    let (mut local, mut other) = (None, None);
    for (kind, value) in Attributes(payload.get(ADDRESS_HEADER_BYTES..)?) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => other = ip(value),
            _ => {}
        }
    }
    Some(Network { address: local.or(other)?, prefix })
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}
