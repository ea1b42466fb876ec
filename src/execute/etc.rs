//! The files of a jail's /etc as they are now: what [`crate::etc`] says, with the host's own texts.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result};

use crate::desired::{DesiredJail, EtcFile, OnChange, RootFile};
use crate::etc::{self, HostTexts};
use crate::network;

/// The rest of a longer file is left out.
const TEXT_BYTES_MAX: u64 = 64 << 10;
const RESOLV: &str = "/etc/resolv.conf";
/// systemd-resolved(8): the servers behind its stub.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

pub fn files(wanted: &DesiredJail, link: Option<&network::Spec>) -> Result<Vec<RootFile>> {
    let files = &wanted.root.etc;
    let host = if files.contains(&EtcFile::ResolvConf) { texts()? } else { HostTexts::default() };
    Ok(files.iter().map(|file| root_file(*file, wanted, link, &host)).collect())
}

fn root_file(
    file: EtcFile,
    wanted: &DesiredJail,
    link: Option<&network::Spec>,
    host: &HostTexts,
) -> RootFile {
    RootFile {
        target: file.target().to_owned(),
        contents: etc::contents(file, &wanted.jail, link, host).into_bytes(),
        mode: file.mode(),
        uid: 0,
        gid: 0,
        on_change: OnChange::None,
    }
}

fn texts() -> Result<HostTexts> {
    Ok(HostTexts { resolv: text(RESOLV)?.unwrap_or_default(), upstream: text(UPSTREAM)? })
}

fn text(path: &str) -> Result<Option<String>> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("open {path}"))?,
    };
    let mut bytes = Vec::new();
    file.take(TEXT_BYTES_MAX).read_to_end(&mut bytes).with_context(|| format!("read {path}"))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
