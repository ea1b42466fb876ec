//! Who `exec.user` is, by the jail's own passwd(5) and group(5).
//!
//! Pure, over text that the caller has read inside the jail's root: a regular file of at most
//! [`TEXT_BYTES_MAX`] bytes. The text is the jail's, so hostile: a number is a number and nothing
//! else, a name is a name and nothing else, and doubt is an error, never uid 0.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The largest passwd or group file that is read.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// The most supplementary groups a process can have, `NGROUPS_MAX`.
pub const GROUPS_MAX: usize = 65_536;

/// A user as a process is one, in ids of the jail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary, exactly: the process has no others.
    pub groups: Vec<u32>,
    /// Absolute.
    pub home: String,
    /// Absolute.
    pub shell: String,
}

impl Identity {
    /// The jail's root, for a jail that names no user.
    pub fn root() -> Self {
        Self::bare(0, 0)
    }

    fn bare(uid: u32, gid: u32) -> Self {
        let home = if uid == 0 { "/root" } else { "/" };
        Self { uid, gid, groups: Vec::new(), home: home.into(), shell: "/bin/sh".into() }
    }
}

/// What one side of `user:group` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who<'a> {
    Number(u32),
    Name(&'a str),
}

/// Finds `wanted`: `user` or `user:group`, each a name or a number. With a group named, the
/// user's supplementary groups are left out. A number other than 0 that passwd does not list
/// needs its group named, for guessing one would give rights nobody asked for.
pub fn identity(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    bounded("passwd", passwd)?;
    bounded("group", group)?;
    let (user, own_group) = match wanted.split_once(':') {
        Some((user, group)) => (who(user)?, Some(who(group)?)),
        None => (who(wanted)?, None),
    };
    let entry = find_user(user, passwd)?;
    let gid = own_group.map(|who| gid(who, group)).transpose()?;
    let (name, mut identity) = match (entry, user, gid) {
        (Some((name, identity)), ..) => (Some(name), identity),
        (None, Who::Number(uid), Some(gid)) => (None, Identity::bare(uid, gid)),
        (None, Who::Number(0), None) => (None, Identity::root()),
        (None, Who::Number(uid), None) => {
            return Err(format!("the jail's passwd has no uid {uid}: name its group too, `{uid}:GROUP`"));
        }
        (None, Who::Name(name), _) => return Err(format!("the jail's passwd has no user `{name}`")),
    };
    match (gid, name) {
        (Some(gid), _) => identity.gid = gid,
        (None, Some(name)) => identity.groups = memberships(name, identity.gid, group)?,
        (None, None) => {}
    }
    Ok(identity)
}

fn bounded(file: &str, text: &str) -> Result<(), String> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(format!("the jail's {file} is larger than {TEXT_BYTES_MAX} bytes"))
}

/// Digits are a number, whatever passwd says; a number that does not fit is an error, not a name.
fn who(text: &str) -> Result<Who<'_>, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        return id(text).map(Who::Number).ok_or_else(|| format!("`{text}` is not an id: 0 to 4294967294"));
    }
    let head = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.$".contains(&b));
    if head && rest {
        return Ok(Who::Name(text));
    }
    Err(format!("`{text}` is neither a name nor a number: `user`, `user:group`, `1000` or `1000:1000`"))
}

/// An id of digits only. The largest `u32` means "unchanged" to setresuid(2), so it is none.
fn id(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&id| id != u32::MAX)
}

/// The fields of every line that is an entry; comments, NIS lines and short lines are none.
fn entries<const FIELDS: usize>(text: &str) -> impl Iterator<Item = [&str; FIELDS]> {
    text.lines().filter_map(|line| {
        if line.starts_with(['#', '+', '-']) {
            return None;
        }
        line.split(':').collect::<Vec<_>>().try_into().ok()
    })
}

/// The first entry for `user`, as libc takes it. An entry with a broken id is an error.
fn find_user<'a>(user: Who, passwd: &'a str) -> Result<Option<(&'a str, Identity)>, String> {
    let mut all = entries::<7>(passwd);
    let Some([name, _, uid, gid, _, home, shell]) = all.find(|[name, _, uid, ..]| match user {
        Who::Number(number) => id(uid) == Some(number),
        Who::Name(wanted) => *name == wanted,
    }) else {
        return Ok(None);
    };
    let (Some(uid), Some(gid)) = (id(uid), id(gid)) else {
        return Err(format!("the jail's passwd has no valid ids for `{name}`"));
    };
    let mut identity = Identity::bare(uid, gid);
    if home.starts_with('/') {
        home.clone_into(&mut identity.home);
    }
    if shell.starts_with('/') {
        shell.clone_into(&mut identity.shell);
    }
    Ok(Some((name, identity)))
}

fn gid(who: Who, group: &str) -> Result<u32, String> {
    let wanted = match who {
        Who::Number(gid) => return Ok(gid),
        Who::Name(name) => name,
    };
    let entry = entries::<4>(group).find(|[name, ..]| *name == wanted);
    let [_, _, gid, _] = entry.ok_or_else(|| format!("the jail's group has no group `{wanted}`"))?;
    id(gid).ok_or_else(|| format!("the jail's group has no valid id for `{wanted}`"))
}

/// The primary group and all that list `user`, each once.
fn memberships(user: &str, primary: u32, group: &str) -> Result<Vec<u32>, String> {
    let mut groups = vec![primary];
    for [name, _, gid, members] in entries::<4>(group) {
        if !members.split(',').any(|member| member == user) {
            continue;
        }
        let gid = id(gid).ok_or_else(|| format!("the jail's group has no valid id for `{name}`"))?;
        groups.push(gid);
    }
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > GROUPS_MAX {
        return Err(format!("`{user}` is in more than {GROUPS_MAX} groups"));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "\
# a comment:x:0:0::/:/bin/sh
root:x:0:0:root:/root:/bin/bash
www-data:x:33:33:www:/var/www:/usr/sbin/nologin
1000:x:0:0:a name of digits:/:/bin/sh
short:x:5
odd:x:0x1:0::/:/bin/sh
minus:x:-1:0::/:/bin/sh
huge:x:4294967296:0::/:/bin/sh
all:x:4294967295:0::/:/bin/sh
empty:x::0::/:/bin/sh
bare:x:7:8:::relative
www-data:x:0:0:a second entry:/:/bin/sh
+nis:x:0:0::/:/bin/sh
";
    const GROUP: &str = "\
root:x:0:
adm:x:4:www-data,bare
www-data:x:33:
shadow:x:42:bare
broken:x:zero:broken-member
12:x:0:
";

    fn check(wanted: &str, expect: Result<(u32, u32, &[u32]), &str>) {
        let found = identity(wanted, PASSWD, GROUP);
        match (&found, expect) {
            (Ok(found), Ok((uid, gid, groups))) => {
                assert_eq!((found.uid, found.gid, &*found.groups), (uid, gid, groups), "{wanted}");
            }
            (Err(found), Err(part)) => assert!(found.contains(part), "{wanted}: {found}"),
            _ => panic!("{wanted}: {found:?}, wanted {expect:?}"),
        }
    }

    #[test]
    fn names_and_numbers_are_found() {
        check("root", Ok((0, 0, &[0])));
        check("0", Ok((0, 0, &[0])));
        check("www-data", Ok((33, 33, &[4, 33])));
        check("33", Ok((33, 33, &[4, 33])));
        check("bare", Ok((7, 8, &[4, 8, 42])));
        check("www-data:adm", Ok((33, 4, &[])));
        check("www-data:99", Ok((33, 99, &[])));
        check("1234:1234", Ok((1234, 1234, &[])));
        check("0:12", Ok((0, 12, &[])));
    }

    /// CVE-2026-46680, CVE-2026-30892 and their kin: nothing odd may end at uid 0.
    #[test]
    fn numbers_are_never_names() {
        check("1000", Err("no uid 1000: name its group too"));
        check("4294967295", Err("not an id"));
        check("4294967296", Err("not an id"));
        check("99999999999999999999", Err("not an id"));
        check("0:4294967295", Err("not an id"));
        for odd in ["-1", "+0", " 0", "0x0", "1e3", "", ":0", "0:", "www data", "a\nb", "0:0:0", "٣"] {
            check(odd, Err("neither a name nor a number"));
        }
    }

    #[test]
    fn doubtful_entries_fail_closed() {
        for name in ["odd", "minus", "huge", "all", "empty"] {
            check(name, Err("no valid ids"));
        }
        for name in ["short", "nis", "nobody"] {
            check(name, Err("no user"));
        }
        check("root:broken", Err("no valid id for `broken`"));
        check("root:nothing", Err("no group `nothing`"));
        let member = "broken-member:x:9:9::/:/bin/sh";
        assert!(identity("broken-member", member, GROUP).unwrap_err().contains("no valid id"));
    }

    #[test]
    fn homes_and_shells_are_absolute() {
        let bare = identity("bare", PASSWD, GROUP).unwrap();
        assert_eq!((bare.home.as_str(), bare.shell.as_str()), ("/", "/bin/sh"));
        let root = identity("root", PASSWD, GROUP).unwrap();
        assert_eq!((root.home.as_str(), root.shell.as_str()), ("/root", "/bin/bash"));
    }

    #[test]
    fn an_empty_root_has_only_root() {
        assert_eq!(identity("0", "", "").unwrap(), Identity::root());
        assert!(identity("root", "", "").is_err());
        let large = " ".repeat(TEXT_BYTES_MAX + 1);
        assert!(identity("0", &large, "").is_err() && identity("0", "", &large).is_err());
    }
}
