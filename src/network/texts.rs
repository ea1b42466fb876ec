//! /etc/hosts and /etc/resolv.conf of a jail. Pure.

use std::fmt::Write;
use std::net::IpAddr;

use super::Spec;
use crate::jail::{Jail, NetworkMode};

/// Where Debian puts a host's own name when it has no address of its own, hosts(5).
const OWN_LOOPBACK: &str = "127.0.1.1";

/// The jail's hosts(5): loopback names, and its own name at each of its addresses.
pub fn hosts(jail: &Jail, spec: Option<&Spec>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    let names = own_names(jail);
    let mut addresses: Vec<String> =
        spec.iter().flat_map(|spec| &spec.addresses).map(|own| own.address.to_string()).collect();
    if addresses.is_empty() {
        addresses.push(OWN_LOOPBACK.to_owned());
    }
    for address in addresses {
        writeln!(text, "{address}\t{names}").expect("writing to a string cannot fail");
    }
    text
}

/// The full name first, as `hostname --fqdn` wants it, then the short one.
fn own_names(jail: &Jail) -> String {
    let name = jail.hostname();
    match (name.split_once('.'), jail.host.domainname.as_deref()) {
        (Some((short, _)), _) => format!("{name} {short}"),
        (None, Some(domain)) if !domain.is_empty() => format!("{name}.{domain} {name}"),
        (None, _) => name.to_owned(),
    }
}

/// The jail's resolv.conf(5). `host` is the host's own file; `upstream` is the list behind a
/// local stub, where there is one (systemd-resolved's /run/systemd/resolve/resolv.conf), for
/// what listens on the host's loopback cannot be reached from another network stack.
pub fn resolv(jail: &Jail, host: &str, upstream: Option<&str>) -> String {
    let network = &jail.network;
    let own_stack = network.mode != NetworkMode::Inherit;
    let source = upstream.filter(|_| own_stack && servers(host, true).is_empty()).unwrap_or(host);
    let servers = match (network.nameserver.is_empty(), network.mode) {
        (false, _) => network.nameserver.iter().map(ToString::to_string).collect(),
        (true, NetworkMode::None) => Vec::new(),
        (true, _) => servers(source, own_stack),
    };
    let mut text = String::new();
    if servers.is_empty() {
        text += "# No name server of the host can be reached from this jail: set network.nameserver.\n";
    }
    for server in servers {
        line(&mut text, "nameserver", &server);
    }
    line(&mut text, "search", &search(jail, source));
    line(&mut text, "options", &last(source, "options").unwrap_or_default());
    text
}

fn line(text: &mut String, keyword: &str, value: &str) {
    if !value.is_empty() {
        writeln!(text, "{keyword} {value}").expect("writing to a string cannot fail");
    }
}

/// The name servers of a resolv.conf(5). One on loopback, or known by a link of the host
/// (`fe80::1%eth0`), is no use in another network stack.
fn servers(text: &str, own_stack: bool) -> Vec<String> {
    let values = text.lines().filter_map(|line| value(line, "nameserver"));
    values.filter(|server| !own_stack || reachable(server)).collect()
}

fn reachable(server: &str) -> bool {
    match server.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => !v4.is_loopback() && !v4.is_unspecified(),
        Ok(IpAddr::V6(v6)) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
        Err(_) => false,
    }
}

/// The jail's own search list, else the host's; `domain` is the older spelling of it.
fn search(jail: &Jail, source: &str) -> String {
    if !jail.network.search.is_empty() {
        return jail.network.search.join(" ");
    }
    let last = source.lines().rev().find_map(|line| value(line, "search").or_else(|| value(line, "domain")));
    last.unwrap_or_default()
}

/// The last line of a keyword is the one that counts.
fn last(text: &str, keyword: &str) -> Option<String> {
    text.lines().rev().find_map(|line| value(line, keyword))
}

/// The words after `keyword`, joined by single spaces.
fn value(line: &str, keyword: &str) -> Option<String> {
    let rest = line.strip_prefix(keyword)?;
    rest.starts_with([' ', '\t']).then(|| rest.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::{JailName, Settings};
    use crate::network::Spec;

    fn jail(settings: &[(&str, serde_json::Value)]) -> Jail {
        let settings: Settings = settings.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        Jail::from_settings(&JailName::new("web").unwrap(), &settings).unwrap()
    }

    fn spec(addresses: &[&str]) -> Spec {
        Spec {
            name: JailName::new("web").unwrap(),
            bridge: "b".into(),
            host_link: "sj0".into(),
            inside: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            addresses: addresses.iter().map(|text| (*text).to_owned().try_into().unwrap()).collect(),
            routes: Vec::new(),
            bridge_addresses: Vec::new(),
            bridge_mtu: None,
        }
    }

    #[test]
    fn hosts_name_the_jail_at_its_addresses() {
        let check = |settings: &[(&str, serde_json::Value)], spec: Option<&Spec>, expect: &[&str]| {
            let text = hosts(&jail(settings), spec);
            let own: Vec<&str> = text.lines().skip(4).collect();
            assert_eq!(own, expect);
            assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost "));
        };
        check(&[], None, &["127.0.1.1\tweb"]);
        check(&[], Some(&spec(&[])), &["127.0.1.1\tweb"]);
        let both = spec(&["10.77.0.10/24", "fd77::10/64"]);
        let full = ("host.hostname", "www.example.org".into());
        check(&[full], Some(&both), &["10.77.0.10\twww.example.org www", "fd77::10\twww.example.org www"]);
        check(&[("host.domainname", "example.org".into())], None, &["127.0.1.1\tweb.example.org web"]);
    }

    const STUB: &str = "# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch stub.example\n";
    const REAL: &str = "nameserver 192.0.2.1\nnameserver\tfe80::1%eth0\nnameserver 2001:db8::1\nsearch a.example  b.example\n";

    fn check(settings: &[(&str, serde_json::Value)], host: &str, upstream: Option<&str>, expect: &str) {
        assert_eq!(resolv(&jail(settings), host, upstream), expect, "{settings:?} {host}");
    }

    #[test]
    fn a_vnet_jail_gets_servers_it_can_reach() {
        let vnet: &[_] = &[("network.mode", "vnet".into())];
        let real = "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a.example b.example\n";
        check(vnet, REAL, None, real);
        check(vnet, STUB, Some(REAL), real);
        check(vnet, REAL, Some("nameserver 198.51.100.1\n"), real);
        check(vnet, "nameserver 127.0.0.1\nnameserver 192.0.2.7\n", None, "nameserver 192.0.2.7\n");
        check(
            vnet,
            "nameserver 192.0.2.7 # c\nnameservers 1.1.1.1\n",
            None,
            resolv(&jail(vnet), "", None).as_str(),
        );
    }

    #[test]
    fn no_server_is_said_not_hidden() {
        for mode in ["vnet", "none"] {
            let text = resolv(&jail(&[("network.mode", mode.into())]), STUB, None);
            assert!(text.starts_with("# No name server") && !text.contains("\nnameserver"), "{text}");
        }
    }

    #[test]
    fn the_jails_own_keys_replace_the_hosts() {
        let own: &[_] = &[
            ("network.mode", "vnet".into()),
            ("network.nameserver", ["10.77.0.1", "fd77::1"].as_slice().into()),
            ("network.search", ["one.example", "two.example"].as_slice().into()),
        ];
        let expect =
            "nameserver 10.77.0.1\nnameserver fd77::1\nsearch one.example two.example\noptions ndots:2\n";
        check(
            own,
            "domain host.example\noptions ndots:1\noptions ndots:2\nnameserver 192.0.2.1\n",
            None,
            expect,
        );
    }

    #[test]
    fn an_inheriting_jail_keeps_the_stub() {
        let expect = "nameserver 127.0.0.53\nsearch stub.example\noptions edns0 trust-ad\n";
        check(&[("network.mode", "inherit".into())], STUB, Some(REAL), expect);
    }
}
