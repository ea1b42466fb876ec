//! The flags that every verb takes.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::desired::Paths;

#[derive(Debug, Args)]
pub struct Options {
    /// Definitions and templates [default: /etc/stockade]
    #[arg(long, global = true, value_name = "DIR", env = "STOCKADE_CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// Layers and the jails' own files [default: /var/lib/stockade]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What is gone after a reboot [default: /run/stockade]
    #[arg(long, global = true, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Console logs [default: /var/log/stockade]
    #[arg(long, global = true, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

impl Options {
    /// The directories that flags name; an empty one is left to the host's file or the default.
    pub fn paths(&self) -> Paths {
        let or_empty = |path: &Option<PathBuf>| path.as_deref().map(absolute).unwrap_or_default();
        Paths {
            config: or_empty(&self.config_dir),
            state: or_empty(&self.state_dir),
            run: or_empty(&self.run_dir),
            log: or_empty(&self.log_dir),
        }
    }
}

/// Keepers run elsewhere than the caller: a relative directory would mean another one to them.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
