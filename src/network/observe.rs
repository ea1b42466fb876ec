//! What every jail's link and addresses are now, seen from the host without entering a jail.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use nix::errno::Errno;

use super::HOST_LINK_PREFIX;
use super::message::{self, Link};
use crate::cores;
use crate::jail::Network;
use crate::sys::netlink::{Netlink, refusal};

/// One jail's network as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Global addresses of the link inside, in the kernel's order; link-local ones are left out.
    pub addresses: Vec<Network>,
    /// The bridge that the host end is a port of.
    pub bridge: Option<Arc<Port>>,
    /// The host end is up, whatever the other one is.
    pub up: bool,
}

/// A bridge that jails are joined to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    pub bridge: String,
    pub up: bool,
    /// The host's global addresses on it.
    pub addresses: Vec<Network>,
}

/// All jails' links, by the name of the host end. One list of links, then one question for each
/// jail, on all cores: the kernel answers for another namespace by the number the host knows it
/// under. Links of namespaces without a process are left out.
pub fn observe() -> Result<BTreeMap<String, Observed>> {
    let mut links = Netlink::open()?.dump(&message::list_veths(), Link::read)?;
    links.retain(is_host_end);
    let each = cores::shares(&links, observe_each);
    each.into_iter().try_fold(BTreeMap::new(), |mut all, more| {
        all.extend(more?);
        Ok(all)
    })
}

fn observe_each(links: &[Link]) -> Result<Vec<(String, Observed)>> {
    let mut netlink = Netlink::open()?;
    let mut bridges = BTreeMap::new();
    let mut observed = Vec::with_capacity(links.len());
    for link in links {
        let Some(addresses) = addresses(&mut netlink, link)? else { continue };
        let bridge = bridge(&mut netlink, &mut bridges, link.controller)?;
        observed.push((link.name.clone(), Observed { addresses, bridge, up: link.up }));
    }
    Ok(observed)
}

/// The link of this name, if there is one.
pub(super) fn read(netlink: &mut Netlink, name: &str) -> Result<Option<Link>> {
    match netlink.get(&message::get_link(name), Link::read) {
        Err(error) if refusal(&error) == Some(Errno::ENODEV) => Ok(None),
        result => result,
    }
}

/// Whether this is the host end of a jail whose network namespace has no process left. The
/// kernel takes its time to clear such a namespace away, and the link with it.
pub(super) fn is_dying(netlink: &mut Netlink, link: &Link) -> Result<bool> {
    Ok(is_host_end(link) && link.nsid.is_some() && addresses(netlink, link)?.is_none())
}

fn is_host_end(link: &Link) -> bool {
    link.kind == "veth" && link.name.starts_with(HOST_LINK_PREFIX)
}

/// `None` for a link whose other end is dying or gone. A dying namespace keeps its number for a
/// while, or shows a negative one, but the kernel no longer answers for it (EINVAL).
fn addresses(netlink: &mut Netlink, link: &Link) -> Result<Option<Vec<Network>>> {
    let (Some(nsid @ 0..), Some(peer)) = (link.nsid, link.peer) else { return Ok(None) };
    let request = message::list_addresses(&link.name, peer, Some(nsid));
    match netlink.dump(&request, |payload| message::read_address(payload, peer)) {
        Err(error) if matches!(refusal(&error), Some(Errno::EINVAL | Errno::ENODEV)) => Ok(None),
        result => result.map(Some),
    }
}

/// The bridge with this index, looked at once.
fn bridge(
    netlink: &mut Netlink,
    known: &mut BTreeMap<u32, Option<Arc<Port>>>,
    index: Option<u32>,
) -> Result<Option<Arc<Port>>> {
    let Some(index) = index else { return Ok(None) };
    if let Some(port) = known.get(&index) {
        return Ok(port.clone());
    }
    let port = match netlink.name(index)? {
        Some(name) => port(netlink, name, index)?.map(Arc::new),
        None => None,
    };
    known.insert(index, port.clone());
    Ok(port)
}

fn port(netlink: &mut Netlink, name: String, index: u32) -> Result<Option<Port>> {
    let Some(link) = read(netlink, &name)? else { return Ok(None) };
    let request = message::list_addresses(&name, index, None);
    let addresses = netlink.dump(&request, |payload| message::read_address(payload, index))?;
    Ok(Some(Port { bridge: name, up: link.up, addresses }))
}
