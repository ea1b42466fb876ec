use super::*;
use crate::jail::JailName;

fn jail(storage: &str, disk: Option<u64>, inodes: Option<u64>) -> Jail {
    let settings = [("template".to_owned(), "host".into())].into();
    let mut jail = Jail::from_settings(&JailName::new("web").unwrap(), &settings).unwrap();
    jail.root.storage = storage.to_owned();
    (jail.limits.disk, jail.limits.inodes) = (disk, inodes);
    jail
}

fn ext4() -> Ground {
    Ground {
        file_system: "ext4".into(),
        project: Err("ext4 has no project quota".into()),
        subvolume: Err("not btrfs".into()),
        image: Ok(vec![FileSystem::Ext4, FileSystem::Xfs]),
        grows_ext4: true,
    }
}

fn with_project() -> Ground {
    Ground { project: Ok(()), ..ext4() }
}

fn btrfs(limits: bool) -> Ground {
    let subvolume = if limits { Ok(()) } else { Err("quotas are off".into()) };
    Ground { file_system: "btrfs".into(), subvolume, ..ext4() }
}

fn held(kind: Kind, file_system: Option<FileSystem>, bytes: Option<u64>) -> Held {
    Held { kind, file_system, bytes, ..Held::overlay() }
}

/// Kind and what enforces it, or key and reason.
fn check(jail: &Jail, ground: &Ground, held: Option<&Held>, expect: &str) {
    let found = match choose(jail, ground, held) {
        Ok(Some(choice)) => format!("{} {:?}: {}", choice.kind, choice.quota, choice.why),
        Ok(None) => "none".to_owned(),
        Err(refusal) => format!("{}: {}", refusal.key, refusal.reason),
    };
    assert_eq!(found, expect);
}

const DISK: Option<u64> = Some(1 << 30);

#[test]
fn auto_takes_the_cheapest_that_keeps_the_limit() {
    let (free, limited, files) =
        (jail("auto", None, None), jail("auto", DISK, None), jail("auto", None, Some(9)));
    check(&free, &ext4(), None, "overlay None: auto");
    check(&free, &btrfs(true), None, "btrfs None: auto");
    check(&free, &btrfs(false), None, "btrfs None: auto");
    check(&limited, &with_project(), None, "overlay Project: auto");
    check(&limited, &ext4(), None, "image Size: auto, for ext4 has no project quota");
    check(&limited, &btrfs(true), None, "btrfs Subvolume: auto");
    check(&limited, &btrfs(false), None, "image Size: auto, for quotas are off");
    check(&files, &with_project(), None, "overlay Project: auto");
    check(
        &files,
        &ext4(),
        None,
        "limits.inodes: ext4 has no project quota; the file system of an image has as many files as it has",
    );
    let none = Ground { image: Err("no mkfs".into()), ..ext4() };
    check(&limited, &none, None, "limits.disk: ext4 has no project quota; no mkfs");
}

#[test]
fn auto_leaves_data_where_it_is() {
    let (free, limited) = (jail("auto", None, None), jail("auto", DISK, None));
    let image = held(Kind::Image, Some(FileSystem::Xfs), DISK);
    check(&free, &ext4(), Some(&image), "image Size: auto");
    check(&limited, &with_project(), Some(&image), "image Size: auto");
    check(&limited, &ext4(), Some(&Held::overlay()), "image Size: auto, for ext4 has no project quota");
}

#[test]
fn what_is_asked_for_is_taken_or_refused() {
    check(&jail("image", None, None), &ext4(), None, "image Size: asked for");
    check(&jail("overlay", DISK, None), &ext4(), None, "limits.disk: ext4 has no project quota");
    check(&jail("directory", DISK, None), &with_project(), None, "directory Project: asked for");
    check(
        &jail("btrfs", None, None),
        &ext4(),
        None,
        "root.storage: the state directory is on ext4, not on btrfs",
    );
    check(&jail("btrfs", DISK, None), &btrfs(false), None, "limits.disk: quotas are off");
    check(&jail("btrfs", None, Some(1)), &btrfs(true), None, "limits.inodes: btrfs does not count files");
    check(&jail("tmpfs", DISK, Some(7)), &Ground::default(), None, "tmpfs Size: asked for");
    let small = jail("image", Some(MIB), None);
    check(&small, &ext4(), None, "limits.disk: no image can be smaller than 8M here");
    let xfs = Ground { image: Ok(vec![FileSystem::Xfs]), ..ext4() };
    check(
        &jail("image", DISK, None),
        &xfs,
        None,
        "image Size: asked for; with xfs, for there is no mkfs.ext4",
    );
}

#[test]
fn an_image_of_xfs_does_not_shrink() {
    let image = |file_system| held(Kind::Image, Some(file_system), Some(2 << 30));
    let xfs = image(FileSystem::Xfs);
    let reason = "limits.disk: an image with xfs cannot shrink, and has 2G";
    check(&jail("image", DISK, None), &ext4(), Some(&xfs), reason);
    check(&jail("image", Some(3 << 30), None), &ext4(), Some(&xfs), "image Size: asked for");
    check(&jail("image", DISK, None), &ext4(), Some(&image(FileSystem::Ext4)), "image Size: asked for");
}

#[test]
fn without_a_volume_nothing_is_limited() {
    let host =
        |storage, disk| Jail { path: Some("/srv".into()), template: None, ..jail(storage, disk, None) };
    check(&host("auto", None), &with_project(), None, "none");
    check(
        &host("auto", DISK),
        &with_project(),
        None,
        "limits.disk: the root is a directory of the host (`path`)",
    );
    check(&host("image", None), &ext4(), None, "root.storage: the root is a directory of the host (`path`)");
    let mut host_root = jail("auto", DISK, None);
    host_root.security.userns = false;
    check(
        &host_root,
        &with_project(),
        None,
        "image Size: auto, for a jail without a range of ids has no project number",
    );
}
