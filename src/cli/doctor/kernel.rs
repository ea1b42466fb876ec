//! What the kernel can do, and what this process may.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::UnmountFlags;

use super::trial::in_child;
use super::{Line, Verdict};
use crate::desired::{Bridge, HostConfig};
use crate::jail::{JailName, JailNetwork, NetworkMode, Settings};
use crate::network;
use crate::security::capability;
use crate::sys::{confine, mount, namespace, process};

/// The first with everything that is used: overlayfs takes idmapped layers since 5.19.
const KERNEL_MIN: (u32, u32) = (5, 19);
/// Without one of these no jail starts.
const CAPABILITIES_NEEDED: &[&str] = &[
    "SYS_ADMIN",
    "NET_ADMIN",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "SYS_CHROOT",
    "SYS_PTRACE",
];
const KINDS: [(&str, i32); 7] = [
    ("mount", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("user", libc::CLONE_NEWUSER),
];

pub fn lines(config: &HostConfig) -> Vec<Line> {
    let place = existing(&config.paths.state);
    vec![
        release(),
        root(),
        capabilities(),
        namespaces(),
        time_namespace(),
        user_namespaces(),
        pidfd(),
        seccomp(),
        idmapped(&place, config.ids.first),
        overlay(&place),
        ipv6(),
        links(config),
    ]
}

fn release() -> Line {
    let name = rustix::system::uname();
    let text = name.release().to_string_lossy().into_owned();
    match version(&text) {
        Some(found) if found < KERNEL_MIN => {
            Line::no("kernel", text, format!("boot Linux {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1))
        }
        _ => Line::ok("kernel", text),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn root() -> Line {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        Line::ok("root", "yes")
    } else {
        Line::no("root", format!("uid {}", uid.as_raw()), "run it as root: the other lines depend on it too")
    }
}

fn capabilities() -> Line {
    let what = "capabilities";
    let Ok(bounding) = confine::bounding() else { return Line::no(what, "cannot be read", "mount /proc") };
    let missing: Vec<&str> = capability::NAMES
        .iter()
        .copied()
        .filter(|name| capability::bit(name).is_some_and(|bit| bounding & bit == 0))
        .collect();
    let seen = format!("missing in the bounding set: {}", missing.join(", "));
    if missing.iter().any(|name| CAPABILITIES_NEEDED.contains(name)) {
        return Line::no(what, seen, "run stockade outside this container, or let it have them");
    }
    if missing.is_empty() {
        return Line::ok(what, "all");
    }
    Line::limited(
        what,
        seen,
        "a jail cannot be given these; without SYS_RESOURCE, nor limits above stockade's own",
    )
}

fn namespaces() -> Line {
    let missing: Vec<String> = KINDS
        .iter()
        .filter_map(|(name, flag)| {
            let tried = in_child(|| namespace::unshare(*flag).context("unshare"));
            tried.err().map(|error| format!("{name}: {error}"))
        })
        .collect();
    if missing.is_empty() {
        let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        return Line::ok("namespaces", names.join(", "));
    }
    Line::no(
        "namespaces",
        missing.join("; "),
        "raise user.max_*_namespaces (sysctl), or lift what forbids unshare(2)",
    )
}

fn time_namespace() -> Line {
    let tried = in_child(|| {
        ensure!(namespace::unshare_time()?, "unshare: the kernel has none");
        Ok(())
    });
    let remedy = "a kernel with CONFIG_TIME_NS; until then uptime in a jail is the host's";
    Line::tried(
        "time namespace",
        tried.map(|()| "a jail's uptime starts at zero".into()),
        Line::limited_by,
        remedy,
    )
}

/// sysctl user.max_user_namespaces, and what Debian and Ubuntu add to it.
fn user_namespaces() -> Line {
    let what = "user namespaces";
    let most = super::limits::number("/proc/sys/user/max_user_namespaces");
    match most {
        Some(0) => Line::no(what, "none allowed", "sysctl user.max_user_namespaces=15000"),
        Some(most) if most < super::limits::JAILS => {
            let remedy = format!("for {} jails: sysctl user.max_user_namespaces=15000", super::limits::JAILS);
            Line::limited(what, format!("at most {most}"), remedy)
        }
        Some(most) => Line::ok(what, format!("at most {most}")),
        None => Line::no(what, "not in this kernel", "a kernel with CONFIG_USER_NS"),
    }
}

fn pidfd() -> Line {
    let own = process::identify(std::process::id().cast_signed()).map(process::open);
    match own {
        Ok(Some(_)) => Line::ok("pidfd", "processes are named beyond doubt"),
        _ => Line::no(
            "pidfd",
            "pidfd_open(2) does not work",
            "a kernel of Linux 5.3 or newer, and /proc mounted",
        ),
    }
}

fn seccomp() -> Line {
    let path = "/proc/sys/kernel/seccomp/actions_avail";
    match std::fs::read_to_string(path) {
        Ok(actions) if actions.split_whitespace().any(|action| action == "errno") => {
            Line::ok("seccomp", format!("actions: {}", actions.trim()))
        }
        _ => Line::no(
            "seccomp",
            "no filters",
            "a kernel with CONFIG_SECCOMP_FILTER, or security.seccomp = \"none\"",
        ),
    }
}

/// The nearest directory above that is there: doctor makes none of stockade's own.
pub fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// A directory with an unforgeable name that goes when the trial is over.
fn scratch<T>(place: &Path, work: impl FnOnce(&Path) -> Result<T, String>) -> Result<T, String> {
    let path = place.join(format!(".stockade-doctor-{}", std::process::id()));
    std::fs::create_dir(&path).map_err(|error| format!("make directory {}: {error}", path.display()))?;
    let done = work(&path);
    let removed = std::fs::remove_dir_all(&path);
    done.and_then(|value| {
        removed.map(|()| value).map_err(|error| format!("remove {}: {error}", path.display()))
    })
}

fn idmapped(place: &Path, first: u32) -> Line {
    let tried = scratch(place, |path| {
        in_child(|| {
            let users = namespace::users(0, first)?;
            let copy = mount::clone_tree(rustix::fs::CWD, path, false).context("clone a mount")?;
            mount::set_attributes(copy.as_fd(), 0, 0, Some(users.as_fd()), false).context("map its ids")
        })
    });
    let seen = tried.map(|()| format!("on the file system of {}", place.display()));
    let remedy = "keep the state directory on ext4, btrfs, xfs or tmpfs (6.3), on the host itself";
    Line::tried("idmapped mounts", seen, Line::no_by, remedy)
}

fn overlay(place: &Path) -> Line {
    let tried = scratch(place, |path| {
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(path.join(name)).map_err(|error| error.to_string())?;
        }
        in_child(|| {
            let at = |name: &str| path.join(name).display().to_string();
            let (lower, upper, work) = (at("lower"), at("upper"), at("work"));
            let options =
                [("lowerdir", lower.as_str()), ("upperdir", upper.as_str()), ("workdir", work.as_str())];
            let root = mount::create("overlay", &options, 0)?;
            rustix::fs::mkdirat(&root, "made", rustix::fs::Mode::from(0o755)).context("write to it")
        })
    });
    let seen = tried.map(|()| format!("on the file system of {}", place.display()));
    let remedy =
        "load the module overlay; keep the state directory on a file system that is no overlay itself";
    Line::tried("overlayfs", seen, Line::no_by, remedy)
}

fn ipv6() -> Line {
    if Path::new("/proc/sys/net/ipv6").exists() {
        return Line::ok("IPv6", "beside IPv4");
    }
    Line::limited("IPv6", "IPv4 only", "boot without ipv6.disable=1, or give jails IPv4 addresses only")
}

/// A bridge and a veth pair in a network namespace of their own.
fn links(config: &HostConfig) -> Line {
    let tried = in_child(|| {
        namespace::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS).context("unshare")?;
        mount::make_all_private().context("make the mounts private")?;
        // Only a sysfs of the new namespace shows its links; without it they work all the same.
        let _ = rustix::mount::unmount("/sys", UnmountFlags::DETACH);
        network::ensure_bridge(network::DEFAULT_BRIDGE, &Bridge::default())?;
        let own = namespace::open(std::process::id().cast_signed(), "net")?;
        let spec = network::spec(&vnet()?, config).context("no link was asked for")?;
        network::connect(&spec, own.as_fd())
    });
    let seen = tried.map(|()| "network.mode = \"vnet\" works".to_owned());
    let remedy = "load the modules bridge and veth; until then network.mode = \"none\" and \"inherit\" work";
    Line::tried("bridge and veth", seen, Line::limited_by, remedy)
}

fn vnet() -> Result<crate::jail::Jail> {
    let name = JailName::new("doctor").map_err(anyhow::Error::msg)?;
    let mut jail = crate::jail::Jail::from_settings(&name, &Settings::new()).map_err(anyhow::Error::msg)?;
    jail.network = JailNetwork { mode: NetworkMode::Vnet, ..JailNetwork::default() };
    Ok(jail)
}

impl Line {
    pub(super) fn limited_by(what: &'static str, seen: String, remedy: &'static str) -> Self {
        Self { what, verdict: Verdict::Limited, seen, remedy: Some(remedy.to_owned()) }
    }

    pub(super) fn no_by(what: &'static str, seen: String, remedy: &'static str) -> Self {
        Self { what, verdict: Verdict::No, seen, remedy: Some(remedy.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (release, expect) in [
            ("6.18.3-cloud", Some((6, 18))),
            ("5.4.0-100-generic", Some((5, 4))),
            ("6.1+", Some((6, 1))),
            ("next", None),
        ] {
            assert_eq!(version(release), expect, "{release}");
        }
        assert!(version("5.4.0") < Some(KERNEL_MIN) && version("6.1.0") > Some(KERNEL_MIN));
    }
}
