//! The veth pair of a jail: made by the host, set up inside, and put right again.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;

use super::bridge::{has_ipv6, refuse_advertisements};
use super::observe::is_dying;
use super::observe::read;
use super::{Spec, message, with_link_local};
use crate::jail::Network;
use crate::sys::netlink::{Netlink, Request, in_netns, refusal};

/// The loopback link, in every network namespace.
const LOOPBACK: &str = "lo";

/// How long the links of ended jails are waited for. The kernel clears dead namespaces away in
/// its own time, some 10 ms for one; a netlink socket that was open inside adds as much.
const DEATH_MAX: Duration = Duration::from_secs(2);
const DEATH_POLL: Duration = Duration::from_millis(2);

/// Joins the network namespace `netns` to the bridge, from the host: the pair is created with
/// its inner end in place, the outer end a port of the bridge and up.
///
/// The bridge must exist ([`super::ensure_bridge`]). The pair dies with the namespace.
///
/// A link of that name is waited for to die with the last run of the same jail; one that lives
/// on is another jail's, of another instance, and an error.
pub fn connect(spec: &Spec, netns: BorrowedFd<'_>) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let bridge = netlink.index(&spec.bridge)?.with_context(|| format!("find bridge {}", spec.bridge))?;
    let requests = [message::veth(spec, bridge, netns), port(spec, None)];
    match netlink.send(&requests) {
        Err(error) if refusal(&error) == Some(Errno::EEXIST) => {
            clear(&mut netlink, &spec.host_link).context(error)?;
            netlink.send(&requests)
        }
        result => result,
    }
}

/// Deletes the link once its jail's network namespace is seen to be without a process.
fn clear(netlink: &mut Netlink, name: &str) -> Result<()> {
    let start = Instant::now();
    while let Some(link) = read(netlink, name)? {
        if is_dying(netlink, &link)? {
            return delete(netlink, name, link.index);
        }
        ensure!(start.elapsed() < DEATH_MAX, "link {name} is in use");
        thread::sleep(DEATH_POLL);
    }
    Ok(())
}

fn delete(netlink: &mut Netlink, name: &str, index: u32) -> Result<()> {
    match netlink.send(&[message::delete_link(name, index)]) {
        Err(error) if refusal(&error) == Some(Errno::ENODEV) => Ok(()),
        result => result,
    }
}

/// Makes sure that the host ends of stopped jails are gone: waits for those that die with their
/// namespaces, all of them together, and deletes what is then still there, which takes longer.
pub fn disconnect(host_links: &BTreeSet<String>) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let start = Instant::now();
    for name in host_links {
        while netlink.index(name)?.is_some() && start.elapsed() < DEATH_MAX {
            thread::sleep(DEATH_POLL);
        }
        if let Some(index) = netlink.index(name)? {
            delete(&mut netlink, name, index)?;
        }
    }
    Ok(())
}

/// The host end: named after the jail for people, silent on its own, up.
fn port(spec: &Spec, bridge: Option<u32>) -> Request {
    let mut attributes = vec![LinkAttribute::IfAlias(format!("stockade {}", spec.name))];
    attributes.extend(bridge.map(LinkAttribute::Controller));
    attributes.extend(has_ipv6().then(message::no_generated_address));
    message::change(&spec.host_link, attributes, true)
}

/// Makes the host end a port of its bridge again, and up, after somebody has changed that. A pair
/// that was deleted is made anew, and set up as at the start; `netns` is the jail's.
pub fn rejoin(spec: &Spec, netns: BorrowedFd<'_>) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let bridge = netlink.index(&spec.bridge)?.with_context(|| format!("find bridge {}", spec.bridge))?;
    match netlink.send(&[port(spec, Some(bridge))]) {
        Err(error) if refusal(&error) == Some(Errno::ENODEV) => {
            connect(spec, netns)?;
            in_netns(netns, || configure(Some(spec), Path::new("/proc")))?
        }
        result => result,
    }
}

/// Sets up the calling thread's network namespace: loopback, and with a `spec` the link that
/// [`connect`] has put there, its addresses and default routes. `CAP_NET_ADMIN` in the user
/// namespace that owns it is enough.
///
/// `proc` is where a writable proc(5) is mounted. Best the jail's own: in the host's, the names
/// of all network namespaces share one hash chain, so that each jail makes the next one slower.
pub fn configure(spec: Option<&Spec>, proc: &Path) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let mut requests = vec![message::change(LOOPBACK, Vec::new(), true)];
    if let Some(spec) = spec {
        let index = inner(&netlink, spec)?;
        if has_ipv6() {
            refuse_advertisements(&spec.inside, proc)?;
        }
        requests.extend(raise(spec));
        let addresses = with_link_local(&spec.addresses, spec.mac);
        requests.extend(addresses.iter().map(|network| message::add_address(index, network)));
        requests.extend(gateways(spec, index));
    }
    netlink.send(&requests)
}

fn inner(netlink: &Netlink, spec: &Spec) -> Result<u32> {
    netlink.index(&spec.inside)?.with_context(|| format!("find link {} in the jail", spec.inside))
}

/// Two messages, for the kernel looks at the address mode last: in one, the link would come up
/// and make its address before it is told not to.
fn raise(spec: &Spec) -> [Request; 2] {
    let mut attributes: Vec<_> = spec.mtu.map(LinkAttribute::Mtu).into_iter().collect();
    attributes.extend(has_ipv6().then(message::no_generated_address));
    [message::change(&spec.inside, attributes, false), message::change(&spec.inside, Vec::new(), true)]
}

fn gateways(spec: &Spec, index: u32) -> impl Iterator<Item = Request> {
    spec.routes.iter().map(move |gateway| message::default_route(spec, index, *gateway))
}

/// Brings the addresses and default routes in the network namespace `netns` back to the spec,
/// from the host. Without addresses in the spec they are the jail's own business and stay.
pub fn readdress(spec: &Spec, netns: BorrowedFd<'_>) -> Result<()> {
    let mut netlink = Netlink::open_in(netns)?;
    let index = inner(&netlink, spec)?;
    let mac = LinkAttribute::Address(spec.mac.to_vec());
    netlink.send(&[message::change(&spec.inside, vec![mac], false)])?;
    netlink.send(&raise(spec))?;
    if !spec.addresses.is_empty() {
        let present = addresses(&mut netlink, spec, index)?;
        let strays = present.iter().filter(|network| !spec.addresses.contains(network));
        let strays: Vec<_> = strays.map(|network| message::delete_address(index, network)).collect();
        tolerate_absent(netlink.send(&strays))?;
    }
    // Read again: with an address goes every other one of its subnet that came after it.
    let present = addresses(&mut netlink, spec, index)?;
    let wanted = with_link_local(&spec.addresses, spec.mac);
    let absent = wanted.iter().filter(|network| !present.contains(network));
    let mut requests: Vec<_> = absent.map(|network| message::add_address(index, network)).collect();
    requests.extend(gateways(spec, index));
    netlink.send(&requests)
}

fn addresses(netlink: &mut Netlink, spec: &Spec, index: u32) -> Result<Vec<Network>> {
    let request = message::list_addresses(&spec.inside, index, None);
    netlink.dump(&request, |payload| message::read_address(payload, index))
}

/// An address that went together with another one is gone as wanted.
fn tolerate_absent(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if refusal(&error) == Some(Errno::EADDRNOTAVAIL) => Ok(()),
        result => result,
    }
}
