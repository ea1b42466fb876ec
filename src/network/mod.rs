//! The network of a jail: what it should be (pure: [`Spec`], [`hosts`], [`resolv`]), and the
//! netlink calls that make it so on the host and inside.
//!
//! A `vnet` jail has one veth pair: `eth0` inside, and a host end that is a port of a bridge.
//! The host end dies with the jail's network namespace, which is far cheaper than deleting it.
//! Foreign links, foreign bridge ports and the host's own routes are never touched.
#![forbid(unsafe_code)]

mod bridge;
mod inside;
mod link;
mod message;
mod observe;
mod texts;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::desired::{Bridge, HostConfig};
use crate::jail::{Jail, JailName, Network, NetworkMode};
use crate::template::hex;

pub use bridge::{ensure_bridge, is_unused_bridge, remove_bridge_if_unused};
pub use inside::{Asked, Inside, look_inside};
pub use link::{configure, connect, disconnect, readdress, rejoin};
pub use observe::{Observed, observe};
pub use texts::{hosts, resolv};

/// The bridge of a `vnet` jail that names none.
pub const DEFAULT_BRIDGE: &str = "stockade0";

/// The link's name inside every jail.
pub const INSIDE: &str = "eth0";

/// How the host ends of all jails' links begin.
pub const HOST_LINK_PREFIX: &str = "sj";

/// Everything about one `vnet` jail's link, addresses and routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: JailName,
    pub bridge: String,
    /// Name of the pair's end on the host, at most 15 bytes.
    pub host_link: String,
    /// Name of the pair's end in the jail.
    pub inside: String,
    pub mac: [u8; 6],
    /// Bytes, of both ends; absent: the kernel's default.
    pub mtu: Option<u32>,
    pub addresses: Vec<Network>,
    /// Gateways of the default routes, at most one of each family.
    pub routes: Vec<IpAddr>,
    /// The host's own addresses on the bridge.
    pub bridge_addresses: Vec<Network>,
    pub bridge_mtu: Option<u32>,
}

/// What `jail` is to have; `None` unless its network is a `vnet`.
pub fn spec(jail: &Jail, host: &HostConfig) -> Option<Spec> {
    if jail.network.mode != NetworkMode::Vnet {
        return None;
    }
    let (name, bridge) = bridge_of(jail, host);
    let bridge = bridge.cloned().unwrap_or_default();
    Some(Spec {
        name: jail.name.clone(),
        bridge: name.to_owned(),
        host_link: host_link(&jail.name),
        inside: INSIDE.to_owned(),
        mac: jail.network.mac.as_deref().and_then(parse_mac).unwrap_or_else(|| mac(&jail.name)),
        mtu: jail.network.mtu.or(bridge.mtu),
        addresses: jail.network.address.clone(),
        routes: routes(jail, &bridge.address),
        bridge_addresses: bridge.address,
        bridge_mtu: bridge.mtu,
    })
}

fn bridge_of<'a>(jail: &'a Jail, host: &'a HostConfig) -> (&'a str, Option<&'a Bridge>) {
    let name = jail.network.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE);
    (name, host.bridges.get(name))
}

/// The gateways of the default routes that `jail` is to have.
pub fn default_routes(jail: &Jail, host: &HostConfig) -> Vec<IpAddr> {
    let bridge = bridge_of(jail, host).1;
    if jail.network.mode == NetworkMode::Vnet {
        routes(jail, bridge.map_or(&[], |bridge| &bridge.address))
    } else {
        Vec::new()
    }
}

/// The jail's own gateways, and the bridge's address for a family in which the jail has an
/// address and names no gateway.
fn routes(jail: &Jail, bridge: &[Network]) -> Vec<IpAddr> {
    let mut routes = jail.network.gateway.clone();
    for network in bridge {
        let v4 = network.address.is_ipv4();
        let used = jail.network.address.iter().any(|own| own.address.is_ipv4() == v4);
        let own = jail.network.address.iter().any(|own| own.address == network.address);
        if used && !own && !routes.iter().any(|gateway| gateway.is_ipv4() == v4) {
            routes.push(network.address);
        }
    }
    routes
}

/// The host end's name: `sj` and 12 hexadecimal digits, the same on every host and at every start.
pub fn host_link(name: &JailName) -> String {
    let digest = digest("link", name.as_str());
    HOST_LINK_PREFIX.to_owned() + &hex(&digest[..6])
}

/// The address of a jail that names none: locally administered, made from the name.
pub fn mac(name: &JailName) -> [u8; 6] {
    local_mac(&digest("mac", name.as_str()))
}

/// `02:00:5e:10:00:01` as bytes; `None` for anything else, and for group or zero addresses.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let parts: Vec<&str> = text.split(':').collect();
    let mut mac = [0; 6];
    if parts.len() != mac.len() {
        return None;
    }
    for (byte, part) in mac.iter_mut().zip(parts) {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        *byte = digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()?;
    }
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// The address as [`parse_mac`] reads it.
pub fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// `02` says that no manufacturer gave the address out (IEEE 802, locally administered).
fn local_mac(digest: &[u8; 32]) -> [u8; 6] {
    [0x02, digest[0], digest[1], digest[2], digest[3], digest[4]]
}

/// A digest for one purpose; the word keeps names for different things apart.
fn digest(purpose: &str, text: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update("stockade\0")
        .chain_update(purpose)
        .chain_update("\0")
        .chain_update(text)
        .finalize()
        .into()
}

/// RFC 4291's interface address made from a MAC address, as the kernel would make it.
fn link_local(mac: [u8; 6]) -> Network {
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, 0, 0, 0xff, 0xfe, 0, 0, 0];
    octets[9..11].copy_from_slice(&mac[1..3]);
    octets[13..].copy_from_slice(&mac[3..]);
    Network { address: Ipv6Addr::from(octets).into(), prefix: 64 }
}

/// `addresses`, and a link-local one when IPv6 is among them. The kernel's own are switched off:
/// each would announce itself on all ports of the bridge, which a thousand jails would feel.
fn with_link_local(addresses: &[Network], mac: [u8; 6]) -> Vec<Network> {
    let v6 = addresses.iter().any(|network| network.address.is_ipv6());
    addresses.iter().copied().chain(v6.then(|| link_local(mac))).collect()
}

/// Whether `gateway` lies in the subnet of one of `addresses`.
fn reaches(addresses: &[Network], gateway: IpAddr) -> bool {
    addresses.iter().any(|network| contains(network, gateway))
}

fn contains(network: &Network, address: IpAddr) -> bool {
    match (network.address, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let differ = u32::from(a) ^ u32::from(b);
            differ.leading_zeros() >= u32::from(network.prefix)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let differ = u128::from(a) ^ u128::from(b);
            differ.leading_zeros() >= u32::from(network.prefix)
        }
        _ => false,
    }
}

#[cfg(test)]
mod pure {
    use super::*;
    use crate::desired::{IdPool, Paths};
    use crate::jail::Settings;

    fn network(text: &str) -> Network {
        Network::try_from(text.to_owned()).unwrap()
    }

    fn jail(settings: &[(&str, serde_json::Value)]) -> Jail {
        let settings: Settings = settings.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        Jail::from_settings(&JailName::new("web").unwrap(), &settings).unwrap()
    }

    fn host(bridge: &[&str]) -> HostConfig {
        let address = bridge.iter().map(|text| network(text)).collect();
        let bridges = [(DEFAULT_BRIDGE.to_owned(), Bridge { address, mtu: Some(1400) })];
        let paths = Paths { config: "/c".into(), state: "/s".into(), run: "/r".into(), log: "/l".into() };
        let ids = IdPool { first: 1 << 20, ranges: 10 };
        HostConfig { paths, ids, bridges: bridges.into(), cgroup: "stockade".into(), broken: None }
    }

    #[test]
    fn only_a_vnet_has_a_spec() {
        for (mode, expect) in [("vnet", true), ("none", false), ("inherit", false)] {
            let jail = jail(&[("network.mode", mode.into())]);
            assert_eq!(spec(&jail, &host(&[])).is_some(), expect, "{mode}");
        }
    }

    #[test]
    fn names_and_addresses_come_from_the_jails_name() {
        let (web, db) = (JailName::new("web").unwrap(), JailName::new("db").unwrap());
        assert_eq!(host_link(&web), host_link(&web));
        assert_ne!(host_link(&web), host_link(&db));
        assert!(host_link(&JailName::new(&"x".repeat(63)).unwrap()).len() <= 15);
        assert_ne!(mac(&web), mac(&db));
        assert_eq!(mac(&web)[0], 0x02);
    }

    #[test]
    fn a_mac_is_six_pairs_of_digits_of_one_station() {
        let check = |text: &str, expect: Option<[u8; 6]>| assert_eq!(parse_mac(text), expect, "{text}");
        check("02:00:5e:10:00:01", Some([2, 0, 0x5e, 0x10, 0, 1]));
        check("02:AB:cd:ef:00:ff", Some([2, 0xab, 0xcd, 0xef, 0, 0xff]));
        check("01:00:5e:10:00:01", None);
        check("00:00:00:00:00:00", None);
        check("02:00:5e:10:00", None);
        check("02:00:5e:10:00:01:02", None);
        check("2:00:5e:10:00:01", None);
        check("02:00:5e:10:00:+1", None);
        check("", None);
    }

    #[test]
    fn routes_follow_the_bridge_unless_named() {
        let check = |own: &[&str], gateway: &[&str], bridge: &[&str], expect: &[&str]| {
            let jail = jail(&[
                ("network.mode", "vnet".into()),
                ("network.address", own.into()),
                ("network.gateway", gateway.into()),
            ]);
            let routes: Vec<_> =
                spec(&jail, &host(bridge)).unwrap().routes.iter().map(ToString::to_string).collect();
            assert_eq!(routes, expect, "{own:?} {gateway:?} {bridge:?}");
        };
        let both = ["10.77.0.1/24", "fd77::1/64"];
        check(&["10.77.0.2/24", "fd77::2/64"], &[], &both, &["10.77.0.1", "fd77::1"]);
        check(&["10.77.0.2/24"], &[], &both, &["10.77.0.1"]);
        check(&["10.77.0.2/24", "fd77::2/64"], &["10.77.0.9"], &both, &["10.77.0.9", "fd77::1"]);
        check(&["10.77.0.2/24"], &[], &[], &[]);
        check(&["10.77.0.1/24"], &[], &both, &[]);
        check(&[], &["10.0.0.1"], &both, &["10.0.0.1"]);
    }

    #[test]
    fn the_jails_own_keys_win_over_the_bridges() {
        let spec_of = |jail: &Jail| spec(jail, &host(&[])).unwrap();
        let plain = spec_of(&jail(&[("network.mode", "vnet".into())]));
        assert_eq!((plain.mtu, plain.mac), (Some(1400), mac(&plain.name)));
        let own = spec_of(&jail(&[
            ("network.mode", "vnet".into()),
            ("network.mtu", 1300.into()),
            ("network.mac", "02:00:00:00:00:09".into()),
        ]));
        assert_eq!((own.mtu, own.mac), (Some(1300), [2, 0, 0, 0, 0, 9]));
    }

    #[test]
    fn link_local_addresses_are_those_of_rfc_4291() {
        assert_eq!(link_local([0x02, 0, 0x5e, 0x10, 0, 1]).to_string(), "fe80::5eff:fe10:1/64");
        let v4 = [network("10.0.0.1/8")];
        assert_eq!(with_link_local(&v4, [2, 0, 0, 0, 0, 1]), v4);
        assert_eq!(with_link_local(&[network("fd77::2/64")], [2, 0, 0, 0, 0, 1]).len(), 2);
    }

    #[test]
    fn a_subnet_contains_its_own_family_only() {
        let check = |subnet: &str, address: &str, expect: bool| {
            assert_eq!(contains(&network(subnet), address.parse().unwrap()), expect, "{subnet} {address}");
        };
        check("10.77.0.2/24", "10.77.0.1", true);
        check("10.77.0.2/24", "10.77.1.1", false);
        check("10.77.0.2/0", "192.0.2.1", true);
        check("10.77.0.2/32", "10.77.0.1", false);
        check("10.77.0.2/32", "10.77.0.2", true);
        check("fd77::2/64", "fd77::ffff", true);
        check("fd77::2/64", "fd78::1", false);
        check("::/0", "fd78::1", true);
        check("::/0", "10.0.0.1", false);
    }
}
