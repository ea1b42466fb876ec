//! The rows themselves, in the order of the man page.

use super::template::{FILE_KEYS, TEMPLATE_KEYS};
use super::{Built, Cost, Key, Kind, Word};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The largest size: what a TOML integer and a kernel offset can both hold.
const SIZE_MAX: u64 = i64::MAX as u64;
pub(super) const SECOND: u64 = 1_000;
const DAY: u64 = 86_400 * SECOND;
const YEAR: u64 = 366 * DAY;
/// How long lists may be.
pub(super) const LINES_MAX: usize = 100;
pub(super) const ARGUMENTS_MAX: usize = 1_000;
/// The resolver reads no more (resolv.conf(5), MAXNS and MAXDNSRCH).
const NAME_SERVERS_MAX: usize = 3;
const SEARCH_MAX: usize = 6;
/// The kernel's own bounds: PID_MAX_LIMIT, and an interface's smallest and largest MTU.
const PROCESSES_MAX: u64 = 4_194_304;
const MTU_MIN: u64 = 68;
const MTU_MAX: u64 = 65_535;

const ANY_SIZE: Kind = Kind::Size { min: 0, max: SIZE_MAX };
const RATE: Kind = Kind::Size { min: KIB, max: SIZE_MAX };
const LINES: Kind = Kind::List { of: Word::Line, min: 0, max: LINES_MAX };
const OPERATIONS: Kind = Kind::Count { min: 1, max: 1_000_000_000 };

pub(super) const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    cost: Cost,
    linux: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, default, cost, built: Built::All, linux, doc }
}

const fn unbuilt(key: Key, built: Built) -> Key {
    Key { built, ..key }
}

/// Every row there is, those of the host, of templates and of inner tables too.
pub fn all() -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
        .chain(MOUNT_KEYS)
        .chain(IO_KEYS)
        .chain(SNAPSHOT_KEYS)
        .chain(TEMPLATE_KEYS)
        .chain(FILE_KEYS)
        .chain(HOST_KEYS)
}

// Three lines a row read as a table; one argument a line would not.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("template", Kind::Text(Word::Template), "none; either this or `path`", Cost::Rebuild, "the lower layers of an overlay mount",
        "The template, a directory below templates/, that the root is made from; `host` is built in and shows the host's own /usr."),
    key("path", Kind::Text(Word::Path), "none; either this or `template`", Cost::Rebuild, "the directory that pivot_root(2) makes the root",
        "An existing directory of the host that is the jail's root, whose root user writes there as the host's."),
    key("depend", Kind::List { of: Word::JailName, min: 0, max: LINES_MAX }, "[]", Cost::None, "the order of starts and stops",
        "Jails that must be up before this one starts, and that stop after it."),
    key("enabled", Kind::Bool, "true", Cost::None, "nothing",
        "Whether the jail is to be up; a jail that is not enabled is defined but kept down."),
    key("persist", Kind::Bool, "false", Cost::Restart, "stockade's own init as the only process",
        "Whether the jail stays up without a process of its own."),

    key("host.hostname", Kind::Text(Word::HostName), "the jail's name", Cost::Live, "sethostname(2), and /etc/hostname of a booted system",
        "The name the jail has for itself."),
    key("host.domainname", Kind::Text(Word::HostName), "none", Cost::Live, "setdomainname(2) in the UTS namespace",
        "The NIS domain name of the jail."),
    key("host.machine_id", Kind::Text(Word::MachineId), "made from the jail's name", Cost::Restart, "/etc/machine-id inside",
        "The jail's machine-id(5), 32 lower-case hexadecimal digits."),

    key("exec.prepare", LINES, "[]", Cost::None, "sh(1) on the host",
        "Lines run on the host before anything of the jail exists."),
    key("exec.prestart", LINES, "[]", Cost::None, "sh(1) on the host",
        "Lines run on the host when the root is ready and before the jail is created."),
    key("exec.created", LINES, "[]", Cost::None, "sh(1) on the host",
        "Lines run on the host when the jail exists and nothing runs in it yet."),
    key("exec.start", LINES, "[]", Cost::Restart, "sh(1) inside",
        "Lines run inside the jail, before its command."),
    key("exec.command", Kind::List { of: Word::Argument, min: 1, max: ARGUMENTS_MAX }, "none", Cost::Restart, "execve(2) inside, below stockade's init",
        "The main process as an argument vector; when it ends, the jail does."),
    key("exec.boot", Kind::Text(Word::Path), "none", Cost::Restart, "execve(2) inside as process 1",
        "The path, inside, of the init of a whole system; instead of `exec.command`."),
    key("exec.poststart", LINES, "[]", Cost::None, "sh(1) on the host",
        "Lines run on the host after the main process has started; then the jail is up."),
    key("exec.prestop", LINES, "[]", Cost::None, "sh(1) on the host",
        "Lines run on the host before the jail is stopped."),
    key("exec.stop", LINES, "[]", Cost::None, "sh(1) inside",
        "Lines run inside the jail to stop it, before its processes are signalled."),
    key("exec.poststop", LINES, "[]", Cost::None, "sh(1) on the host",
        "Lines run on the host when the jail has no process any more."),
    key("exec.release", LINES, "[]", Cost::None, "sh(1) on the host",
        "Lines run on the host last of all, when nothing of the running jail is left."),
    key("exec.user", Kind::Text(Word::User), "root", Cost::Restart, "setgroups(2), setgid(2), setuid(2)",
        "The user of the main process, by name or number, looked up in the jail's own passwd(5); `user:group` names the group too."),
    key("exec.workdir", Kind::Text(Word::Path), "/", Cost::Restart, "chdir(2) inside",
        "The directory the main process starts in."),
    key("exec.env", Kind::StringMap, "PATH, HOME and the like only", Cost::Restart, "the environment of execve(2)",
        "Environment variables of everything that runs inside."),
    key("exec.timeout", Kind::Duration { min: 1, max: DAY }, "\"60s\"", Cost::None, "SIGKILL to the hook's process group",
        "How long one hook line may take."),
    key("exec.stop_timeout", Kind::Duration { min: 0, max: DAY }, "\"10s\"", Cost::None, "the wait before cgroup.kill",
        "How long the jail has to end after the polite signal; \"0s\" skips that signal."),
    key("exec.stop_signal", Kind::Text(Word::Signal), "TERM, or what the booted init wants", Cost::None, "kill(2) to the main process",
        "The signal that asks the main process to end, without SIG."),
    key("exec.console", Kind::Bool, "false", Cost::Restart, "a pty(7) instead of pipes",
        "Whether the main process has a terminal."),

    key("network.mode", Kind::Choice(&["vnet", "inherit", "none"]), "\"none\"", Cost::Restart, "CLONE_NEWNET, with a veth(4) pair for vnet",
        "The jail's network: `vnet` is a stack of its own on a bridge, `inherit` the host's, `none` its own with nothing in it."),
    key("network.bridge", Kind::Text(Word::Interface), "\"stockade0\"", Cost::Restart, "the bridge the host's end of the veth pair joins",
        "The bridge a vnet jail is joined to, made when it is missing."),
    key("network.address", Kind::List { of: Word::Network, min: 0, max: LINES_MAX }, "[]", Cost::Live, "RTM_NEWADDR in the jail's network namespace",
        "The jail's addresses with their prefix lengths, of both families."),
    key("network.gateway", Kind::List { of: Word::Ip, min: 0, max: 2 }, "the bridge's own addresses", Cost::Restart, "RTM_NEWROUTE in the jail's network namespace",
        "The default routes, at most one of each family."),
    key("network.mac", Kind::Text(Word::Mac), "made from the jail's name", Cost::Restart, "IFLA_ADDRESS of the jail's interface",
        "The hardware address of the jail's interface."),
    key("network.mtu", Kind::Count { min: MTU_MIN, max: MTU_MAX }, "the bridge's", Cost::Restart, "IFLA_MTU of both ends of the veth pair",
        "The largest packet of the jail's interface, in bytes."),
    key("network.nameserver", Kind::List { of: Word::Ip, min: 0, max: NAME_SERVERS_MAX }, "the host's, as far as the jail can reach them", Cost::Restart, "/etc/resolv.conf inside",
        "The name servers the jail asks."),
    key("network.search", Kind::List { of: Word::HostName, min: 0, max: SEARCH_MAX }, "[]", Cost::Restart, "/etc/resolv.conf inside",
        "The domains in which the jail looks up short names."),
    unbuilt(key("network.publish", Kind::List { of: Word::Publish, min: 0, max: LINES_MAX }, "[]", Cost::Restart, "nftables rules on the host",
        "Ports of the host that lead to ports of the jail: address:port:port/protocol."), Built::Nothing),

    key("limits.memory", Kind::Size { min: MIB, max: SIZE_MAX }, "no limit", Cost::Live, "memory.max; on v1 memory.limit_in_bytes",
        "The most memory the jail may use, hard."),
    key("limits.memory_high", Kind::Size { min: MIB, max: SIZE_MAX }, "no limit", Cost::Live, "memory.high; on v1 memory.soft_limit_in_bytes",
        "The amount of memory above which the jail is slowed and reclaimed."),
    key("limits.swap", ANY_SIZE, "\"0\" where `limits.memory` is set, else no limit", Cost::Live, "memory.swap.max; on v1 memory.memsw.limit_in_bytes",
        "The most swap the jail may use beside `limits.memory`."),
    key("limits.cpu", Kind::Cpus, "no limit", Cost::Live, "cpu.max; on v1 cpu.cfs_quota_us",
        "How many CPUs' worth of time the jail may use, such as 1.5."),
    key("limits.cpu_weight", Kind::Count { min: 1, max: 10_000 }, "100", Cost::Live, "cpu.weight; on v1 cpu.shares",
        "The jail's part of the CPU time when there is not enough for all."),
    key("limits.cpuset", Kind::Text(Word::CpuList), "all", Cost::Live, "cpuset.cpus",
        "The CPUs the jail may run on."),
    key("limits.processes", Kind::Count { min: 1, max: PROCESSES_MAX }, "2048", Cost::Live, "pids.max",
        "The most processes and threads the jail may have."),
    key("limits.disk", Kind::Size { min: MIB, max: SIZE_MAX }, "no limit", Cost::Live, "a project quota, a limit of the subvolume's quota group, or the size of the root's own file system",
        "The most disk space the jail's own files may take, hard; what cannot be changed live is restarted for."),
    key("limits.inodes", Kind::Count { min: 1, max: SIZE_MAX }, "no limit", Cost::Live, "a project quota; nr_inodes of a tmpfs",
        "The most files the jail may have, hard."),
    unbuilt(key("limits.io", Kind::Tables(IO_KEYS), "[]", Cost::Live, "io.max; on v1 blkio.throttle",
        "The most disk traffic of the jail, by device."), Built::Nothing),

    key("mount", Kind::Tables(MOUNT_KEYS), "[]", Cost::Restart, "mount_setattr(2) and move_mount(2)",
        "File systems of the host, or fresh ones in memory, that the jail sees at places of its own."),

    key("allow.raw_sockets", Kind::Bool, "false", Cost::Restart, "CAP_NET_RAW",
        "Whether the jail may use raw sockets."),
    key("allow.mount", Kind::Bool, "false", Cost::Restart, "CAP_SYS_ADMIN in the jail's user namespace, and mount(2)",
        "Whether the jail may mount what its user namespace permits."),
    key("allow.ptrace", Kind::Bool, "false", Cost::Restart, "CAP_SYS_PTRACE and ptrace(2)",
        "Whether the jail may trace its own processes of other users."),
    key("allow.mlock", Kind::Bool, "false", Cost::Restart, "CAP_IPC_LOCK",
        "Whether the jail may lock any amount of memory."),
    key("allow.chflags", Kind::Bool, "false", Cost::Restart, "CAP_LINUX_IMMUTABLE",
        "Whether the jail may set the immutable and append-only flags of files."),
    key("allow.settime", Kind::Bool, "false", Cost::Restart, "CAP_SYS_TIME",
        "Whether the jail may set the host's clock."),
    key("allow.kmsg", Kind::Bool, "false", Cost::Restart, "/dev/kmsg and syslog(2)",
        "Whether the jail may read the kernel's messages."),
    key("allow.host_network", Kind::Bool, "false", Cost::Restart, "no CLONE_NEWNET",
        "Whether `network.mode = \"inherit\"` is permitted, which shares every socket of the host."),
    key("allow.devices", Kind::List { of: Word::Device, min: 0, max: LINES_MAX }, "[]", Cost::Restart, "bind mounts in /dev and the device cgroup",
        "Devices of the host that the jail may use, such as \"/dev/fuse\"."),
    unbuilt(key("allow.jails", Kind::Count { min: 0, max: 1_000 }, "0", Cost::Restart, "nested user namespaces and a delegated cgroup",
        "How many jails of its own the jail may make."), Built::Zero),

    key("security.userns", Kind::Bool, "true", Cost::Restart, "CLONE_NEWUSER with 65,536 ids",
        "Whether the jail's root is nobody outside; false needs `security.unsafe = [\"host-root\"]`."),
    key("security.capabilities", Kind::List { of: Word::Capability, min: 0, max: LINES_MAX }, "[\"default\"]", Cost::Restart, "all five capability sets",
        "The capabilities(7) of the jail: `default`, a name to add, `!` and a name to drop."),
    key("security.seccomp", Kind::Choice(&["default", "none"]), "\"default\"", Cost::Restart, "seccomp(2)",
        "The filter of system calls."),
    key("security.unsafe", Kind::List { of: Word::Unsafe, min: 0, max: 1 }, "[]", Cost::Restart, "nothing by itself",
        "Protections given up on purpose: `host-root` goes with `security.userns = false`."),
    key("security.rlimits", Kind::Rlimits, "{}", Cost::Restart, "setrlimit(2)",
        "Resource limits of each process, by their setrlimit(2) names in lower case."),

    key("root.storage", Kind::Choice(&["auto", "overlay", "btrfs", "image", "directory", "tmpfs"]), "\"auto\"", Cost::Restart, "overlay over the layers, its upper part on disk, in a subvolume, in an image file or on tmpfs; or a copy of the layers",
        "Where the jail's own writes go; a change moves them, but to tmpfs, which throws them away."),
    key("root.on_stop", Kind::Choice(&["keep", "discard"]), "\"keep\"", Cost::None, "removal of the upper directory",
        "What becomes of the jail's own writes when it stops."),
    key("root.read_only", Kind::Bool, "false", Cost::Restart, "MOUNT_ATTR_RDONLY on the root",
        "Whether the jail's root cannot be written."),

    key("snapshot", Kind::Tables(SNAPSHOT_KEYS), "[]", Cost::None, "nothing",
        "Snapshots that are taken again and again, each a while after the last, and removed when there are too many."),

    key("restart.policy", Kind::Choice(&["no", "on-failure", "always"]), "\"always\"", Cost::None, "nothing",
        "When a jail that ended by itself is started again."),
    key("restart.delay", Kind::Duration { min: 100, max: DAY }, "\"1s\"", Cost::None, "nothing",
        "The wait before the first restart, doubled each time up to five minutes."),
    key("restart.max", Kind::Count { min: 0, max: 1_000_000 }, "10", Cost::None, "nothing",
        "How many restarts in a row are tried before the jail is left in `crash-loop`."),

    key("vars", Kind::Vars, "{}", Cost::None, "nothing by itself",
        "Values for this jail's expressions and templates."),
];

#[rustfmt::skip]
pub const MOUNT_KEYS: &[Key] = &[
    key("mount.source", Kind::Text(Word::Path), "required for a bind", Cost::Restart, "open_tree(2)",
        "The file or directory of the host to show."),
    key("mount.target", Kind::Text(Word::Path), "required", Cost::Restart, "move_mount(2)",
        "The place inside the jail."),
    key("mount.type", Kind::Choice(&["bind", "tmpfs", "readonly", "hidden"]), "\"bind\"", Cost::Restart, "open_tree(2) or fsopen(2)",
        "A `bind` of something of the host, to which the jail writes through; a fresh `tmpfs`; or, of a path of the jail's own root, `readonly` or `hidden`, which shows something empty instead."),
    key("mount.options", Kind::List { of: Word::MountOption, min: 0, max: LINES_MAX }, "[\"rw\", \"nosuid\", \"nodev\"]", Cost::Restart, "mount_setattr(2)",
        "Options: ro, rw, nosuid, nodev, noexec, rbind, optional, idmap; of a tmpfs size=64M and mode=1777 too."),
];

#[rustfmt::skip]
pub const SNAPSHOT_KEYS: &[Key] = &[
    key("snapshot.every", Kind::Duration { min: SECOND, max: YEAR }, "required", Cost::None, "nothing",
        "How long after the last of these the next is taken."),
    key("snapshot.keep", Kind::Count { min: 1, max: 1_000 }, "24", Cost::None, "nothing",
        "How many of these are kept; the oldest goes first."),
    key("snapshot.label", Kind::Text(Word::JailName), "\"auto\"", Cost::None, "nothing",
        "What their labels begin with; the time follows."),
];

#[rustfmt::skip]
pub const IO_KEYS: &[Key] = &[
    unbuilt(key("limits.io.path", Kind::Text(Word::Path), "required", Cost::Live, "the device below that path",
        "A path of the host on the device meant."), Built::Nothing),
    unbuilt(key("limits.io.read", RATE, "no limit", Cost::Live, "rbps",
        "Bytes read a second."), Built::Nothing),
    unbuilt(key("limits.io.write", RATE, "no limit", Cost::Live, "wbps",
        "Bytes written a second."), Built::Nothing),
    unbuilt(key("limits.io.read_ops", OPERATIONS, "no limit", Cost::Live, "riops",
        "Reads a second."), Built::Nothing),
    unbuilt(key("limits.io.write_ops", OPERATIONS, "no limit", Cost::Live, "wiops",
        "Writes a second."), Built::Nothing),
];

/// The keys of stockade.toml; `*` is a name of the user's. Costs are those for the jails.
#[rustfmt::skip]
pub const HOST_KEYS: &[Key] = &[
    key("state_dir", Kind::Text(Word::Path), "/var/lib/stockade", Cost::None, "layers, jails' own files, id ranges",
        "Where the data of jails is kept."),
    key("run_dir", Kind::Text(Word::Path), "/run/stockade", Cost::None, "records and sockets of running jails",
        "Where the state of running jails is kept, gone at reboot."),
    key("log_dir", Kind::Text(Word::Path), "/var/log/stockade", Cost::None, "one console log a jail",
        "Where the console logs of jails are kept."),
    key("cgroup", Kind::Text(Word::CgroupPath), "\"stockade\"", Cost::None, "a directory in each cgroup hierarchy",
        "The cgroup below which all jails live."),
    key("ids.first", Kind::Count { min: 65_536, max: 4_294_836_224 }, "1879048192", Cost::None, "the first host id of uid_map and gid_map",
        "The first host id handed to jails, a multiple of 65536; it stays as it is while a jail has files."),
    key("ids.ranges", Kind::Count { min: 1, max: 65_535 }, "4094", Cost::None, "65,536 ids each",
        "How many ranges of 65536 ids there are, one for each jail."),
    key("bridge.*.address", Kind::List { of: Word::Network, min: 0, max: 2 }, "[]", Cost::None, "RTM_NEWADDR on the bridge",
        "The host's own addresses on the bridge, at most one of each family; the default route of its jails."),
    key("bridge.*.mtu", Kind::Count { min: MTU_MIN, max: MTU_MAX }, "1500", Cost::None, "IFLA_MTU of the bridge",
        "The largest packet of the bridge, in bytes."),
    key("defaults", Kind::Jail, "{}", Cost::None, "nothing by itself",
        "Keys of every jail that does not set them itself."),
    key("enforce", Kind::Jail, "{}", Cost::None, "nothing by itself",
        "Keys of every jail, whatever it sets itself."),
];
