//! A jail's network as it is inside: the link's own end and the default routes.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use anyhow::Result;

use super::{INSIDE, message, observe};
use crate::sys::netlink::Netlink;

/// What can only be seen there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
    /// Gateways of the default routes that are as important as ours.
    pub routes: Vec<IpAddr>,
}

/// Looks at the network namespace `netns`, and leaves the calling thread in it. At the link itself
/// only where somebody asks for it: with a thousand jails each question counts.
pub fn look_inside(netns: BorrowedFd<'_>, at_link: bool) -> Result<Inside> {
    let mut netlink = Netlink::enter(netns)?;
    let link = if at_link { observe::read(&mut netlink, INSIDE)? } else { None }.unwrap_or_default();
    let routes = netlink.dump(&message::list_routes(), message::read_default_route)?;
    Ok(Inside { mac: link.mac.try_into().ok(), mtu: link.mtu, routes })
}
