//! A jail's network as it is inside: the link's own end and the default routes.

use std::net::IpAddr;

use anyhow::Result;
use netlink_packet_route::AddressFamily;
use nix::errno::Errno;

use super::{INSIDE, message, observe};
use crate::sys::netlink::{Netlink, refusal};

/// What somebody wants to know of it: with a thousand jails each question counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub link: bool,
    /// The default routes of a family.
    pub v4: bool,
    pub v6: bool,
}

/// What can only be seen there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
    /// Gateways of the default routes that are as important as ours.
    pub routes: Vec<IpAddr>,
}

/// Looks at the network namespace of the calling thread.
pub fn look_inside(asked: Asked) -> Result<Inside> {
    if asked == Asked::default() {
        return Ok(Inside::default());
    }
    let mut netlink = Netlink::open()?;
    let link = if asked.link { observe::read(&mut netlink, INSIDE)? } else { None }.unwrap_or_default();
    let mut routes = Vec::new();
    for (wanted, family) in [(asked.v4, AddressFamily::Inet), (asked.v6, AddressFamily::Inet6)] {
        if wanted {
            routes.extend(default_routes(&mut netlink, family)?);
        }
    }
    Ok(Inside { mac: link.mac.try_into().ok(), mtu: link.mtu, routes })
}

fn default_routes(netlink: &mut Netlink, family: AddressFamily) -> Result<Vec<IpAddr>> {
    match netlink.dump(&message::list_routes(family), message::read_default_route) {
        // There is no table before the first route.
        Err(error) if refusal(&error) == Some(Errno::ENOENT) => Ok(Vec::new()),
        result => result,
    }
}
