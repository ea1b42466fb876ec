//! Bridges on the host: made on demand, and removed when empty if they are ours.
//!
//! Ours are marked by their alias. Of a bridge that was there before us only missing addresses
//! are added; its ports, its mtu and its settings are its owner's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use super::message::{self, Link};
use super::observe::{is_dying, read};
use super::{digest, local_mac, with_link_local};
use crate::desired::Bridge;
use crate::sys::netlink::{Netlink, Request, refusal};

/// The alias of a bridge that we made (`ip link` shows it).
const MARK: &str = "stockade";

const HOST_PROC: &str = "/proc";

/// Makes sure that the bridge exists, is up, and has the addresses. Idempotent.
pub fn ensure_bridge(name: &str, bridge: &Bridge) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let link = match read(&mut netlink, name)? {
        Some(link) => link,
        None => create(&mut netlink, name)?,
    };
    ensure!(link.kind == "bridge", "use {name} as a bridge: it is a link of another kind");
    let ours = link.alias == MARK;
    if ours && has_ipv6() {
        refuse_advertisements(name, Path::new(HOST_PROC))?;
    }
    let requests = missing(&mut netlink, &link, bridge, ours)?;
    netlink.send(&requests).with_context(|| format!("set up bridge {name}"))
}

/// The messages that bring `link` to what `bridge` asks for.
fn missing(netlink: &mut Netlink, link: &Link, bridge: &Bridge, ours: bool) -> Result<Vec<Request>> {
    let mtu: Vec<_> = bridge.mtu.filter(|_| ours).map(LinkAttribute::Mtu).into_iter().collect();
    let mut requests = vec![message::change(&link.name, mtu, true)];
    let request = message::list_addresses(&link.name, link.index, None);
    let present = netlink.dump(&request, |payload| message::read_address(payload, link.index))?;
    let wanted = match <[u8; 6]>::try_from(link.mac.as_slice()) {
        Ok(mac) if ours => with_link_local(&bridge.address, mac),
        _ => bridge.address.clone(),
    };
    let absent = wanted.iter().filter(|network| !present.contains(network));
    requests.extend(absent.map(|network| message::add_address(link.index, network)));
    Ok(requests)
}

/// Creates and marks the bridge in one datagram, so that nobody sees it without its mark.
fn create(netlink: &mut Netlink, name: &str) -> Result<Link> {
    let mut attributes = vec![LinkAttribute::IfAlias(MARK.to_owned())];
    attributes.extend(has_ipv6().then(message::no_generated_address));
    let mac = bridge_mac(name)?;
    netlink.send(&[message::bridge(name, mac), message::change(name, attributes, false)])?;
    read(netlink, name)?.with_context(|| format!("find bridge {name} after its creation"))
}

/// Different on every host, since two of them may share a wire; the bridge lives as long as the boot.
fn bridge_mac(name: &str) -> Result<[u8; 6]> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let boot = fs::read_to_string(BOOT_ID).context("read the boot id")?;
    Ok(local_mac(&digest("bridge", &format!("{boot}{name}"))))
}

/// A jail could otherwise make itself a router of the host, or of other jails (CVE-2020-13401).
pub(super) fn refuse_advertisements(name: &str, proc: &Path) -> Result<()> {
    let file = proc.join("sys/net/ipv6/conf").join(name).join("accept_ra");
    fs::write(&file, "0").with_context(|| format!("write {}", file.display()))
}

/// Whether the kernel has IPv6. Not asked of /proc: there the names of all network namespaces
/// share one hash chain, and a look-up costs more with each jail.
pub(super) fn has_ipv6() -> bool {
    socket(AddressFamily::INET6, SocketType::DGRAM, None).is_ok()
}

/// Whether the bridge is one that [`remove_bridge_if_unused`] would remove.
pub fn is_unused_bridge(name: &str) -> Result<bool> {
    Ok(unused(&mut Netlink::open()?, name)?.is_some())
}

fn unused(netlink: &mut Netlink, name: &str) -> Result<Option<Link>> {
    let Some(link) = read(netlink, name)? else { return Ok(None) };
    if link.kind != "bridge" || link.alias != MARK {
        return Ok(None);
    }
    let ports = netlink.dump(&message::list_ports(name, link.index), Link::read)?;
    for port in ports.iter().filter(|port| port.controller == Some(link.index)) {
        if !is_dying(netlink, port)? {
            return Ok(None);
        }
    }
    Ok(Some(link))
}

/// Removes the bridge if we made it and it has no port left; says whether it did. Host ends of
/// jails whose namespace is already dying are no reason to keep it; right after a jail's end that
/// cannot always be told, so [`super::disconnect`] comes first.
pub fn remove_bridge_if_unused(name: &str) -> Result<bool> {
    let mut netlink = Netlink::open()?;
    let Some(link) = unused(&mut netlink, name)? else { return Ok(false) };
    match netlink.send(&[message::delete_link(name, link.index)]) {
        Ok(()) => Ok(true),
        Err(error) if refusal(&error) == Some(Errno::ENODEV) => Ok(false),
        Err(error) => bail!(error),
    }
}
