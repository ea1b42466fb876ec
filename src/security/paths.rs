//! What of /proc, /sys and /dev a jail does not see, cannot write, or finds ready.
//!
//! Data only, after moby's and systemd-nspawn's lists of 2026. A path that a kernel does not have
//! needs no mask; a mask that cannot be put over a path that is there must end the start.

#![forbid(unsafe_code)]

/// Covered: files by the null device, directories by an empty read-only file system.
pub const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmcore",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

/// Covered below each CPU's directory `cpuN` here: a clock of the host's load (GHSA-6fw5-f8r9-fgfm).
pub const CPUS: &str = "/sys/devices/system/cpu";
/// See [`CPUS`].
pub const MASKED_PER_CPU: &str = "thermal_throttle";

/// Bound onto themselves, read only.
pub const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/driver", "/proc/fs", "/proc/irq", "/proc/mtrr", "/proc/sys", "/proc/tty"];

/// Left writable below a read-only path, in a jail that boots a system: its own network's switches.
pub const WRITABLE_IN_SYSTEM: &[&str] = &["/proc/sys/net"];

/// A character device that a jail finds in /dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: &'static str,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
}

const fn device(name: &'static str, major: u32, minor: u32) -> Device {
    Device { name, major, minor, mode: 0o666 }
}

/// Bound from the host, or made where that is allowed.
pub const DEVICES: &[Device] = &[
    device("null", 1, 3),
    device("zero", 1, 5),
    device("full", 1, 7),
    device("random", 1, 8),
    device("urandom", 1, 9),
    device("tty", 5, 0),
];

/// With `allow.kmsg`, besides [`DEVICES`]; the host's own mode and `kernel.dmesg_restrict` still rule.
pub const KMSG: Device = Device { name: "kmsg", major: 1, minor: 11, mode: 0o644 };

/// Links in /dev: name, target.
pub const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// For the device cgroup, besides [`DEVICES`]: any slave of the jail's own devpts, and its ptmx.
/// Major, and minor or all of them; read and write, no mknod.
pub const TERMINALS: &[(u32, Option<u32>)] = &[(136, None), (5, Some(2))];
