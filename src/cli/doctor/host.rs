//! How this host is set up: directories, ids, firewall, daemon.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Line;
use super::limits::number;
use crate::daemon;
use crate::desired::{HostConfig, IdPool};
use crate::root::layers::architecture;
use crate::sys::{mount, namespace};

/// Bits that let others than root write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Where systemd looks for units, first match wins.
const UNIT_DIRECTORIES: &[&str] = &[
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const UNIT: &str = "stockade.service";

pub fn lines(config: &HostConfig) -> Vec<Line> {
    vec![
        directory("config directory", &config.paths.config, "0755"),
        directory("state directory", &config.paths.state, "0700"),
        directory("run directory", &config.paths.run, "0711"),
        directory("log directory", &config.paths.log, "0750"),
        ids(config.ids),
        firewall(),
        architectures(),
        daemon_line(&config.paths.run),
        service_manager(),
        boot(),
    ]
}

fn architectures() -> Line {
    let what = "other architectures";
    let foreign = architecture::foreign();
    if foreign.is_empty() {
        return Line::limited(what, format!("none beside {}", architecture::host()), architecture::REMEDY);
    }
    Line::ok(what, format!("{} beside {}", foreign.join(", "), architecture::host()))
}

fn directory(what: &'static str, path: &Path, mode: &str) -> Line {
    let shown = path.display();
    let Ok(found) = fs::metadata(path) else {
        if what == "config directory" {
            return Line::limited(what, format!("{shown} is not there"), format!("mkdir -p {shown}/jails.d"));
        }
        return Line::ok(what, format!("{shown} is made when it is needed"));
    };
    if found.uid() != 0 || found.mode() & WRITABLE_BY_OTHERS != 0 {
        let seen = format!("{shown} is of user {} with mode {:04o}", found.uid(), found.mode() & 0o7777);
        return Line::no(what, seen, format!("chown root:root {shown} && chmod {mode} {shown}"));
    }
    Line::ok(what, format!("{shown} on {}", file_system(path)))
}

fn file_system(path: &Path) -> String {
    match fs::File::open(path) {
        Ok(open) => mount::file_system_name(open.as_fd()),
        Err(_) => "a file system that cannot be asked".to_owned(),
    }
}

fn ids(pool: IdPool) -> Line {
    let last = u64::from(pool.first) + u64::from(pool.ranges) * u64::from(namespace::IDS) - 1;
    let pool = (u64::from(pool.first), last);
    let mut clashes = Vec::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        clashes.extend(
            text.lines().filter_map(|line| handed_out(line, pool)).map(|who| format!("{file}: {who}")),
        );
    }
    for file in ["/etc/passwd", "/etc/group"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        clashes.extend(text.lines().filter_map(|line| taken(line, pool)).map(|who| format!("{file}: {who}")));
    }
    let seen = format!("{} to {}", pool.0, pool.1);
    if clashes.is_empty() {
        return Line::ok("id pool", seen);
    }
    let seen = format!("{seen} is used elsewhere too: {}", clashes.join(", "));
    Line::limited("id pool", seen, "set [ids] first and ranges in stockade.toml to ids that nobody has")
}

/// Whom a line of subuid(5), `name:first:count`, gives ids of the pool to.
fn handed_out(line: &str, pool: (u64, u64)) -> Option<String> {
    let mut fields = line.trim().split(':');
    let (who, first, count) = (fields.next()?, fields.next()?, fields.next()?);
    let (first, count): (u64, u64) = (first.parse().ok()?, count.parse().ok()?);
    (count > 0 && first <= pool.1 && first.saturating_add(count - 1) >= pool.0).then(|| who.to_owned())
}

/// Who in passwd(5) or group(5) has an id of the pool.
fn taken(line: &str, pool: (u64, u64)) -> Option<String> {
    let mut fields = line.split(':');
    let who = fields.next()?;
    let id: u64 = fields.nth(1)?.parse().ok()?;
    (pool.0..=pool.1).contains(&id).then(|| who.to_owned())
}

/// With br_netfilter, traffic between two jails of a bridge passes the host's FORWARD chain.
fn firewall() -> Line {
    let what = "firewall";
    if number("/proc/sys/net/bridge/bridge-nf-call-iptables") != Some(1) {
        return Line::ok(what, "jails of one bridge reach each other without the host's rules");
    }
    let policy =
        Command::new("iptables").args(["-S", "FORWARD"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let drops = policy
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).lines().any(|line| line == "-P FORWARD DROP"));
    let remedy = "sysctl net.bridge.bridge-nf-call-iptables=0, or accept the bridge in FORWARD";
    if drops {
        return Line::limited(
            what,
            "br_netfilter is loaded and FORWARD drops: jails do not reach each other",
            remedy,
        );
    }
    Line::limited(what, "br_netfilter is loaded: the host's FORWARD rules hold between jails too", remedy)
}

fn daemon_line(run: &Path) -> Line {
    if daemon::is_running(run) {
        return Line::ok("daemon", "runs");
    }
    Line::limited(
        "daemon",
        "does not run: files are followed by `apply` only",
        "systemctl enable --now stockade, or stockade daemon &",
    )
}

fn service_manager() -> Line {
    let what = "systemd";
    if !Path::new("/run/systemd/system").exists() {
        return Line::ok(what, "not here; the daemon runs under any supervisor");
    }
    let unit = UNIT_DIRECTORIES
        .iter()
        .find_map(|directory| fs::read_to_string(Path::new(directory).join(UNIT)).ok());
    match unit {
        Some(text) if delegates(&text) => Line::ok(what, format!("{UNIT} has Delegate=yes")),
        Some(_) => Line::limited(
            what,
            format!("{UNIT} has no Delegate=yes"),
            "systemctl edit stockade: [Service] Delegate=yes",
        ),
        None => Line::limited(
            what,
            format!("{UNIT} is not installed"),
            "install it from etc/, then systemctl daemon-reload",
        ),
    }
}

fn delegates(unit: &str) -> bool {
    let value = unit.lines().rev().find_map(|line| line.trim().strip_prefix("Delegate="));
    value.is_some_and(|value| !matches!(value.trim(), "" | "no" | "false" | "off" | "0"))
}

/// Records of another boot are not believed, so the boot has to be known.
fn boot() -> Line {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let at = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i64>().ok());
    match (at.and_then(|second| jiff::Timestamp::from_second(second).ok()), crate::journal::boot_id()) {
        (Some(at), Ok(id)) => Line::ok("boot", format!("{at}, {id}")),
        (_, Err(error)) => Line::no("boot", format!("{error:#}"), "mount /proc"),
        (None, Ok(id)) => Line::ok("boot", id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ids_are_found() {
        let pool = (1000, 1999);
        for (line, expect) in [
            ("ann:1000:1", Some("ann")),
            ("ann:0:1000", None),
            ("ann:0:1001", Some("ann")),
            ("ann:2000:10", None),
            ("ann:1999:18446744073709551615", Some("ann")),
            ("ann:1500:0", None),
            ("", None),
            ("# comment", None),
        ] {
            assert_eq!(handed_out(line, pool).as_deref(), expect, "{line}");
        }
        assert_eq!(taken("bob:x:1500:1500::/:", pool).as_deref(), Some("bob"));
        assert_eq!(taken("bob:x:15:1500::/:", pool), None);
    }

    #[test]
    fn the_last_delegate_line_counts() {
        for (unit, expect) in [
            ("Delegate=yes", true),
            ("Delegate=yes\nDelegate=no", false),
            ("Delegate=cpu memory", true),
            ("", false),
        ] {
            assert_eq!(delegates(unit), expect, "{unit}");
        }
    }
}
