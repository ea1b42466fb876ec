//! What is to be seen from within a jail's namespaces alone: its default routes, its end of the
//! link, its names. Whoever looks stays there, so threads do that go from one jail to the next and
//! end; the caller's own never leave their namespaces.

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::wants_link;
use crate::jail::Settings;
use crate::live::{LiveJail, Record};
use crate::network::{self, Asked, Inside};
use crate::sys::namespace;

const HOSTNAME: &str = "host.hostname";
const DOMAINNAME: &str = "host.domainname";
const MTU: &str = "network.mtu";
const MAC: &str = "network.mac";

/// Whether a jail of these settings has anything to be seen there.
pub fn is_wanted(settings: &Settings) -> bool {
    wants_link(settings) || has_name(settings)
}

fn has_name(settings: &Settings) -> bool {
    settings.contains_key(HOSTNAME) || settings.contains_key(DOMAINNAME)
}

/// Fills in what the jail has inside, by a pidfd of its init. Leaves the calling thread there.
pub fn look(jail: &mut LiveJail, init: BorrowedFd<'_>) -> Result<()> {
    let Some(Record { settings, .. }) = &jail.record else { return Ok(()) };
    let (link, names) = (wants_link(settings), has_name(settings));
    let kinds = if link { libc::CLONE_NEWNET } else { 0 } | if names { libc::CLONE_NEWUTS } else { 0 };
    namespace::setns(init, kinds).context("enter a jail's namespaces")?;
    if link {
        let inside = network::look_inside(asked(settings))?;
        see_link(&mut jail.observed, settings, &inside);
        jail.default_routes = Some(inside.routes);
    }
    if names {
        see_names(&mut jail.observed, settings, namespace::names());
    }
    Ok(())
}

/// A default route is meant to be only in a family of the jail's own.
fn asked(settings: &Settings) -> Asked {
    let lists = ["network.address", "network.gateway"].into_iter().filter_map(|key| settings.get(key));
    let texts = lists.filter_map(Value::as_array).flatten().filter_map(Value::as_str);
    let link = [MAC, MTU].iter().any(|key| settings.contains_key(*key));
    texts.fold(Asked { link, ..Asked::default() }, |asked, text| {
        let v6 = text.contains(':');
        Asked { v4: asked.v4 || !v6, v6: asked.v6 || v6, ..asked }
    })
}

fn see_link(observed: &mut Settings, settings: &Settings, inside: &Inside) {
    if let Some(wanted) = settings.get(MAC) {
        let same = wanted.as_str().and_then(network::parse_mac) == inside.mac;
        let shown = inside.mac.map(network::show_mac).unwrap_or_default();
        observed.insert(MAC.into(), if same { wanted.clone() } else { shown.into() });
    }
    if settings.contains_key(MTU) {
        observed.insert(MTU.into(), inside.mtu.map_or(Value::Null, Value::from));
    }
}

/// A name that was never set is told by the kernel as `(none)`.
fn see_names(observed: &mut Settings, settings: &Settings, [host, domain]: [String; 2]) {
    for (key, name) in [(HOSTNAME, host), (DOMAINNAME, domain)] {
        if settings.contains_key(key) {
            observed.insert(key.into(), name.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_asked_for_in_the_jails_own_families() {
        let check = |address: &[&str], gateway: &[&str], v4: bool, v6: bool| {
            let settings = [("network.address", address), ("network.gateway", gateway)];
            let settings = settings.map(|(key, list)| (key.to_owned(), list.into())).into();
            assert_eq!(asked(&settings), Asked { link: false, v4, v6 }, "{address:?} {gateway:?}");
        };
        check(&["10.77.0.2/24"], &[], true, false);
        check(&["fd77::2/64"], &[], false, true);
        check(&["10.77.0.2/24", "fd77::2/64"], &[], true, true);
        check(&["10.77.0.2/24"], &["fe80::1"], true, true);
        check(&[], &[], false, false);
        let mtu = Settings::from([(MTU.to_owned(), 1400.into())]);
        assert_eq!(asked(&mtu), Asked { link: true, v4: false, v6: false });
    }
}
