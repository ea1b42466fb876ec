//! The files in a jail's /etc that tell it who and where it is: hosts, resolv.conf, hostname and
//! machine-id. Pure.
//!
//! They are stockade's own and written at every start, unless a template lays a file of that name.
//! A jail on a directory of the host's (`path`) keeps what is there, but for what a key asks for.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::desired::EtcFile;
use crate::jail::{Jail, NetworkMode};
use crate::network;

/// What the host itself has, as far as a jail's files follow it.
#[derive(Clone, Debug, Default)]
pub struct HostTexts {
    pub resolv: String,
    /// The list behind a local stub, see [`network::resolv`].
    pub upstream: Option<String>,
}

/// The files that `jail` is to have; `laid` says which its templates lay themselves. None that a
/// `[[mount]]` would hide.
pub fn wanted(jail: &Jail, laid: impl Fn(&Path) -> bool) -> Vec<EtcFile> {
    let has_network = jail.network.mode != NetworkMode::None;
    let boots = jail.exec.boot.is_some();
    let of_template = jail.template.is_some();
    let names_servers = !jail.network.nameserver.is_empty() || !jail.network.search.is_empty();
    let is_wanted = |file: &EtcFile| match file {
        EtcFile::Hosts => of_template && has_network,
        EtcFile::ResolvConf => names_servers || of_template && has_network,
        EtcFile::Hostname => of_template && boots,
        EtcFile::MachineId => jail.host.machine_id.is_some() || of_template && boots,
    };
    let is_hidden = |target: &Path| jail.mount.iter().any(|mount| target.starts_with(&mount.target));
    let is_free = |file: &EtcFile| !laid(file.target()) && !is_hidden(file.target());
    EtcFile::ALL.into_iter().filter(is_wanted).filter(is_free).collect()
}

pub fn contents(file: EtcFile, jail: &Jail, link: Option<&network::Spec>, host: &HostTexts) -> String {
    match file {
        EtcFile::Hosts => network::hosts(jail, link),
        EtcFile::ResolvConf => network::resolv(jail, &host.resolv, host.upstream.as_deref()),
        EtcFile::Hostname => format!("{}\n", jail.hostname()),
        EtcFile::MachineId => format!("{}\n", machine_id(jail)),
    }
}

/// The definition's, or one made from the name, so that it stays when the jail moves to another
/// host. A version 4 UUID without its dashes, as machine-id(5) has it.
fn machine_id(jail: &Jail) -> String {
    if let Some(own) = &jail.host.machine_id {
        return own.clone();
    }
    let digest = Sha256::digest(format!("stockade\0machine-id\0{}", jail.name));
    let mut id: [u8; 16] = digest[..16].try_into().expect("a digest has 32 bytes");
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    format!("{:032x}", u128::from_be_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::{JailName, Settings};

    fn jail(settings: &[(&str, serde_json::Value)]) -> Jail {
        let settings: Settings = settings.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        Jail::from_settings(&JailName::new("web").unwrap(), &settings).unwrap()
    }

    #[test]
    fn each_jail_gets_what_it_can_use() {
        let template = ("template", "host".into());
        let vnet = ("network.mode", "vnet".into());
        let check = |settings: &[(&str, serde_json::Value)], expect: &[EtcFile]| {
            assert_eq!(wanted(&jail(settings), |_| false), expect, "{settings:?}");
        };
        check(std::slice::from_ref(&template), &[]);
        check(&[template.clone(), vnet.clone()], &[EtcFile::Hosts, EtcFile::ResolvConf]);
        let boot = ("exec.boot", "/sbin/init".into());
        check(&[template.clone(), boot.clone()], &[EtcFile::Hostname, EtcFile::MachineId]);
        check(&[template.clone(), vnet.clone(), boot.clone()], &EtcFile::ALL);
        let path = ("path", "/srv/web".into());
        check(&[path.clone(), vnet.clone(), boot], &[]);
        check(&[path, vnet.clone(), ("network.search", vec!["a.org"].into())], &[EtcFile::ResolvConf]);
        let mounted = serde_json::json!([{ "source": "/srv/etc", "target": "/etc" }]);
        check(&[template.clone(), vnet.clone(), ("mount", mounted)], &[]);
        let laid = wanted(&jail(&[template, vnet]), |target| target == Path::new("/etc/hosts"));
        assert_eq!(laid, [EtcFile::ResolvConf]);
    }

    #[test]
    fn a_machine_id_is_the_definitions_or_made_from_the_name() {
        let host = HostTexts::default();
        let of = |settings: &[(&str, serde_json::Value)]| {
            contents(EtcFile::MachineId, &jail(settings), None, &host)
        };
        let made = of(&[]);
        assert_eq!((made.len(), &made[12..13], made == of(&[])), (33, "4", true), "{made}");
        let own = "0123456789abcdef0123456789abcdef";
        assert_eq!(of(&[("host.machine_id", own.into())]), format!("{own}\n"));
    }
}
