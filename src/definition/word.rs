//! What one string may be: a check and a normal form for each [`Word`].

use std::net::IpAddr;

use crate::diagnostic::{did_you_mean, nearest};
use crate::jail::{JailName, Network};
use crate::keys::Word;

use super::publish;
use super::units;
use super::wrong::Wrong;

type Checked = Result<String, Wrong>;

/// Longest string of any kind, an argument's own bound (`MAX_ARG_STRLEN`).
const STRING_BYTES_MAX: usize = 131_071;
/// `PATH_MAX` less its NUL.
const PATH_BYTES_MAX: usize = 4_095;
/// `__NEW_UTS_LEN`.
const HOST_NAME_BYTES_MAX: usize = 64;
/// `IFNAMSIZ` less its NUL.
const INTERFACE_BYTES_MAX: usize = 15;
/// useradd(8)'s own bound.
const USER_BYTES_MAX: usize = 32;

/// Signals that ask; KILL and STOP cannot be asked.
const SIGNALS: &[&str] = &["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "PWR", "WINCH", "CONT", "ALRM"];
/// Real-time signals of a C library: RTMIN and as many more.
const REAL_TIME_SIGNALS: u32 = 30;

/// capabilities(7), without CAP_.
#[rustfmt::skip]
const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN",
    "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE",
    "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE",
    "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN",
    "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
];

const MOUNT_OPTIONS: &[&str] = &["ro", "rw", "nosuid", "nodev", "noexec", "rbind", "optional", "idmap"];

/// Checks `text` and gives its normal form.
pub fn check(word: Word, text: &str) -> Checked {
    if text.contains('\0') {
        return Err(Wrong::new("a NUL byte cannot be part of it"));
    }
    if text.len() > STRING_BYTES_MAX {
        return Err(Wrong::new(format!("longer than {STRING_BYTES_MAX} bytes")));
    }
    match word {
        Word::Line if text.trim().is_empty() => Err(Wrong::new("an empty string")),
        Word::Line | Word::Argument => Ok(text.to_owned()),
        Word::JailName => JailName::new(text).map(String::from).map_err(Wrong::new),
        Word::Template => template(text),
        Word::Path => path(text),
        Word::CgroupPath => cgroup_path(text),
        Word::HostName => host_name(text),
        Word::MachineId => machine_id(text),
        Word::User => user(text),
        Word::Signal => signal(text),
        Word::CpuList => units::cpu_list(text),
        Word::Interface => interface(text),
        Word::Network => network(text),
        Word::Ip => ip(text),
        Word::Mac => mac(text),
        Word::Publish => publish::parse(text).map(|publish| publish::text(&publish)),
        Word::MountOption => mount_option(text),
        Word::Device => device(text),
        Word::Capability => capability(text),
        Word::Unsafe => one_of("an unsafe permission", text, &["host-root"]),
    }
}

fn template(text: &str) -> Checked {
    JailName::new(text).map(String::from).map_err(|_| {
        Wrong::help(
            format!("`{text}` is not a template name"),
            "a lower-case letter or digit, then up to 62 of a-z, 0-9 and -",
        )
    })
}

/// An absolute path without `.` and `..` parts; doubled and final slashes go.
fn path(text: &str) -> Checked {
    if !text.starts_with('/') {
        return Err(Wrong::new(format!("`{text}` is not an absolute path")));
    }
    if text.len() > PATH_BYTES_MAX {
        return Err(Wrong::new(format!("a path longer than {PATH_BYTES_MAX} bytes")));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| matches!(*part, "." | "..")) {
        return Err(Wrong::new(format!("`{text}` has `.` or `..` in it")));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn cgroup_path(text: &str) -> Checked {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b))
    };
    if text.len() <= 255 && text.split('/').all(good) {
        return Ok(text.to_owned());
    }
    Err(Wrong::help(format!("`{text}` is not a cgroup"), "a relative path such as \"stockade\""))
}

fn host_name(text: &str) -> Checked {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > HOST_NAME_BYTES_MAX {
        return Err(Wrong::new(format!("a host name longer than {HOST_NAME_BYTES_MAX} bytes")));
    }
    if text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(Wrong::help(format!("`{text}` is not a host name"), "letters, digits and -, parted by single dots"))
}

fn machine_id(text: &str) -> Checked {
    let hexadecimal = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if text.len() == 32 && hexadecimal && text.bytes().any(|b| b != b'0') {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!("`{text}` is not a machine id: 32 lower-case hexadecimal digits, not all 0")))
}

/// A user, and a group where one is named.
fn user(text: &str) -> Checked {
    match text.split_once(':') {
        Some((user, group)) => Ok(format!("{}:{}", one_user(user)?, one_user(group)?)),
        None => one_user(text),
    }
}

/// Numeric means numeric, within 32 bits and without the id that means "none".
fn one_user(text: &str) -> Checked {
    let numeric = text.starts_with(|c: char| c.is_ascii_digit());
    if numeric {
        let number = text.parse::<u32>().ok().filter(|id| *id < u32::MAX);
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        return match number {
            Some(_) if plain => Ok(text.to_owned()),
            _ => Err(Wrong::new(format!("`{text}` is not a user number below {}", u32::MAX))),
        };
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let head = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if head && text.len() <= USER_BYTES_MAX && text.bytes().all(good) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!("`{text}` is not a user name or number")))
}

fn signal(text: &str) -> Checked {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let real_time = |offset: &str| offset.parse::<u32>().is_ok_and(|n| n <= REAL_TIME_SIGNALS);
    let rt = name == "RTMIN" || name.strip_prefix("RTMIN+").is_some_and(real_time);
    if rt || SIGNALS.contains(&name) {
        return Ok(name.to_owned());
    }
    let help = match name {
        "KILL" | "STOP" => {
            Some("it cannot be refused; `exec.stop_timeout = \"0s\"` kills at once".to_owned())
        }
        _ => did_you_mean(&name.to_ascii_uppercase(), SIGNALS.iter().copied()),
    };
    Err(Wrong { message: format!("`{text}` is not a signal to stop with"), help })
}

pub fn interface(text: &str) -> Checked {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let sized = (1..=INTERFACE_BYTES_MAX).contains(&text.len());
    if sized && text.bytes().all(good) && !matches!(text, "." | ".." | "all" | "default" | "lo") {
        return Ok(text.to_owned());
    }
    let help = format!("1 to {INTERFACE_BYTES_MAX} of letters, digits, `-`, `_` and `.`");
    Err(Wrong::help(format!("`{text}` is not an interface name"), help))
}

/// An address a host can have, with its prefix length.
fn network(text: &str) -> Checked {
    let network = Network::try_from(text.to_owned()).map_err(|message| {
        let bare = text.parse::<IpAddr>().ok();
        let length = bare.map(|ip| if ip.is_ipv4() { 24 } else { 64 });
        Wrong { message, help: length.map(|n| format!("add the prefix length, such as `{text}/{n}`")) }
    })?;
    unusable(network.address).map_or(Ok(()), |why| Err(Wrong::new(format!("`{text}` is {why}"))))?;
    if let Some(why) = reserved(&network) {
        return Err(Wrong::new(format!("`{text}` is the {why} address of its network, not one of a host")));
    }
    Ok(network.to_string())
}

fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        a if a.is_unspecified() => Some("the unspecified address"),
        a if a.is_loopback() => Some("a loopback address"),
        a if a.is_multicast() => Some("a multicast address"),
        IpAddr::V4(a) if a.is_broadcast() => Some("the broadcast address"),
        _ => None,
    }
}

/// Whether it is the first or last address of an IPv4 network that has more than two.
fn reserved(network: &Network) -> Option<&'static str> {
    let IpAddr::V4(address) = network.address else { return None };
    if network.prefix == 0 || network.prefix > 30 {
        return None;
    }
    let hosts = u32::MAX >> network.prefix;
    match u32::from(address) & hosts {
        0 => Some("first"),
        part if part == hosts => Some("broadcast"),
        _ => None,
    }
}

fn ip(text: &str) -> Checked {
    let address: IpAddr = text.parse().map_err(|_| {
        let help = text.contains('/').then(|| "write it without the prefix length".to_owned());
        Wrong { message: format!("`{text}` is not an IP address"), help }
    })?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(Wrong::new(format!("`{text}` is not the address of a host")));
    }
    Ok(address.to_string())
}

fn mac(text: &str) -> Checked {
    let wrong = || Wrong::help(format!("`{text}` is not a MAC address"), "such as \"02:00:00:00:00:01\"");
    let parts: Vec<&str> = text.split(':').collect();
    let byte = |part: &&str| {
        let two = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        two.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Vec<u8> = parts.iter().map(byte).collect::<Option<_>>().ok_or_else(wrong)?;
    if bytes.len() != 6 || bytes.iter().all(|b| *b == 0) {
        return Err(wrong());
    }
    if bytes[0] & 1 == 1 {
        return Err(Wrong::new(format!("`{text}` is a multicast MAC address, not one of a host")));
    }
    Ok(text.to_ascii_lowercase())
}

fn mount_option(text: &str) -> Checked {
    if let Some(size) = text.strip_prefix("size=") {
        return units::size(size).map(|_| text.to_owned());
    }
    if let Some(mode) = text.strip_prefix("mode=") {
        let octal = (3..=4).contains(&mode.len()) && mode.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let wrong = || {
            Wrong::help(format!("`{mode}` is not a file mode"), "three or four octal digits, such as 1777")
        };
        return if octal { Ok(text.to_owned()) } else { Err(wrong()) };
    }
    one_of("a mount option", text, MOUNT_OPTIONS)
}

fn device(text: &str) -> Checked {
    let path = path(text)?;
    if path.strip_prefix("/dev/").is_some_and(|rest| !rest.is_empty()) {
        return Ok(path);
    }
    Err(Wrong::new(format!("`{text}` is not a device below /dev")))
}

fn capability(text: &str) -> Checked {
    let name = text.strip_prefix('!').unwrap_or(text);
    if text == "default" || CAPABILITIES.contains(&name) {
        return Ok(text.to_owned());
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Err(Wrong {
        message: format!("`{text}` is not a capability, nor `default`"),
        help: nearest(bare, CAPABILITIES.iter().copied().chain(["default"]))
            .map(|found| format!("did you mean `{}{found}`?", if text.starts_with('!') { "!" } else { "" })),
    })
}

/// `text`, when it is one of `words`.
pub fn one_of(noun: &str, text: &str, words: &[&str]) -> Checked {
    if words.contains(&text) {
        return Ok(text.to_owned());
    }
    let known = || format!("one of: {}", words.join(", "));
    let help = did_you_mean(text, words.iter().copied()).unwrap_or_else(known);
    Err(Wrong::help(format!("`{text}` is not {noun}"), help))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn good_words_have_a_normal_form() {
        let cases = [
            (Word::Path, "/srv//web/", "/srv/web"), (Word::Path, "/", "/"),
            (Word::Mac, "02:AB:00:00:00:01", "02:ab:00:00:00:01"),
            (Word::Network, "fd77:0::0010/64", "fd77::10/64"), (Word::Network, "10.0.0.0/31", "10.0.0.0/31"),
            (Word::Signal, "SIGUSR1", "USR1"), (Word::Signal, "RTMIN+3", "RTMIN+3"),
            (Word::User, "33", "33"), (Word::User, "www-data", "www-data"), (Word::User, "a:0", "a:0"),
            (Word::Capability, "!NET_RAW", "!NET_RAW"), (Word::MountOption, "size=64M", "size=64M"),
            (Word::Publish, "8080:80", "0.0.0.0:8080:80/tcp"), (Word::Ip, "FD77::1", "fd77::1"),
        ];
        for (word, text, expect) in cases {
            assert_eq!(check(word, text).ok().as_deref(), Some(expect), "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn bad_words_are_refused() {
        let cases: &[(Word, &[&str])] = &[
            (Word::Line, &["", "  ", "a\0b"]),
            (Word::Path, &["", "a", "./a", "/a/../b", "/a/."]),
            (Word::CgroupPath, &["", "/a", "a//b", "..", "a/../b"]),
            (Word::HostName, &["", "-a", "a..b", "a b", "a."]),
            (Word::MachineId, &["0", "00000000000000000000000000000000", "A0000000000000000000000000000000"]),
            (Word::User, &["", "-1", "4294967295", "01", "1x", "a b", "+1", ":", "a:", ":0", "a:b:c"]),
            (Word::Signal, &["KILL", "NOPE", "RTMIN+99", "9"]),
            (Word::Interface, &["", "a/b", "sixteen-bytes-xx", "lo", "a b"]),
            (Word::Network, &["10.0.0.1", "10.0.0.0/24", "10.0.0.255/24", "127.0.0.1/8", "10.0.0.1/33", "::/64"]),
            (Word::Ip, &["10.0.0.1/24", "x", "0.0.0.0", "224.0.0.1"]),
            (Word::Mac, &["", "02:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "0g:00:00:00:00:01"]),
            (Word::MountOption, &["read-only", "size=64", "mode=9", "mode=77777"]),
            (Word::Device, &["/dev", "/etc/passwd", "fuse", "/dev/../etc"]),
            (Word::Capability, &["CAP_NET_RAW", "!default", "all"]),
            (Word::Unsafe, &["host_root"]),
        ];
        for (word, texts) in cases {
            for text in *texts {
                assert!(check(*word, text).is_err(), "{word:?} {text:?}");
            }
        }
    }

    #[test]
    fn near_misses_are_named() {
        let help = |word, text| check(word, text).expect_err("a near miss is a miss").help;
        assert_eq!(help(Word::Capability, "!CAP_NETRAW").as_deref(), Some("did you mean `!NET_RAW`?"));
        assert_eq!(help(Word::MountOption, "nosiud").as_deref(), Some("did you mean `nosuid`?"));
        assert!(help(Word::Network, "10.0.0.1").is_some_and(|text| text.contains("10.0.0.1/24")));
    }
}
