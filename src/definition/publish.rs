//! `network.publish` entries: `[address:]port:port[/protocol]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::jail::Publish;

use super::wrong::Wrong;

const HELP: &str = "address:port:port/protocol, such as \"0.0.0.0:8080:80/tcp\" or \"[::]:8080:80/tcp\"";

/// Reads one entry; without an address it listens on all IPv4 addresses, without a protocol on TCP.
pub fn parse(text: &str) -> Result<Publish, Wrong> {
    let wrong = || Wrong::help(format!("`{text}` is not a port to publish"), HELP);
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp") {
        return Err(Wrong::help(format!("`{protocol}` is not a protocol"), "tcp or udp"));
    }
    let (rest, inner) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (address, outer) = match rest.rsplit_once(':') {
        Some((address, outer)) => (host(address).ok_or_else(wrong)?, outer),
        None => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), rest),
    };
    let outer = port(outer).ok_or_else(wrong)?;
    let inner = port(inner).ok_or_else(wrong)?;
    Ok(Publish { listen: SocketAddr::new(address, outer), port: inner, protocol: protocol.to_owned() })
}

/// The normal form, with nothing left out.
pub fn text(publish: &Publish) -> String {
    format!("{}:{}/{}", publish.listen, publish.port, publish.protocol)
}

fn host(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?.parse().ok().filter(IpAddr::is_ipv6),
        None => text.parse().ok().filter(IpAddr::is_ipv4),
    }
}

fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_a_normal_form() {
        let check = |entry: &str, expect: Option<&str>| {
            assert_eq!(parse(entry).ok().map(|p| text(&p)).as_deref(), expect, "{entry}");
        };
        check("0.0.0.0:8080:80/tcp", Some("0.0.0.0:8080:80/tcp"));
        check("53:53/udp", Some("0.0.0.0:53:53/udp"));
        check("[::1]:8080:80", Some("[::1]:8080:80/tcp"));
        for bad in ["80", "a:80", "0:80", "99999:80", "1:2/icmp", "::1:80:80", "+1:2", ""] {
            check(bad, None);
        }
    }
}
