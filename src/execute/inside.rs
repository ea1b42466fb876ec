//! `exec.stop` lines and `on_change` commands: run in the jail, from a process with threads.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Host;
use crate::inside::{self, Visit};
use crate::jail::Jail;
use crate::live::Record;

/// `exec.stop`, line by line, each within `exec.timeout`.
pub fn run_lines(host: &Host, jail: &Jail, record: &Record) -> Result<()> {
    for line in &jail.exec.stop {
        let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()];
        run(host, jail, record, argv).context("exec.stop")?;
    }
    Ok(())
}

/// One command.
pub fn run(host: &Host, jail: &Jail, record: &Record, argv: Vec<String>) -> Result<()> {
    let visit = Visit::new(record, &host.config.cgroup, argv)?;
    inside::send(host.program()?, &visit, Duration::from_millis(jail.exec.timeout))
}
