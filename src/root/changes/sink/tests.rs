use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::root::is_root;
use crate::root::shown::view;

const HAVE: [&str; 6] = ["absent", "file", "directory", "opaque", "whiteout", "link"];

/// Something of this kind; directories have a child of their own and one that all have.
fn put(layer: &Path, name: &str, have: &str) {
    let path = layer.join(name);
    let who = layer.file_name().unwrap().to_str().unwrap();
    match have {
        "file" => fs::write(&path, who).unwrap(),
        "link" => std::os::unix::fs::symlink(who, &path).unwrap(),
        "whiteout" => {
            let kind = FileType::CharacterDevice;
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::empty(), 0).unwrap();
        }
        "directory" | "opaque" => {
            fs::create_dir_all(path.join("inner/most")).unwrap();
            fs::write(path.join("inner").join(who), who).unwrap();
            fs::write(path.join("all"), who).unwrap();
            fs::write(path.join("inner/most/all"), who).unwrap();
            let mode = if who == "upper" { 0o750 } else { 0o701 };
            fs::set_permissions(path.join("inner"), fs::Permissions::from_mode(mode)).unwrap();
            let directory = file::open_directory(&path).unwrap();
            let attribute = format!("trusted.{who}");
            rustix::fs::fsetxattr(&directory, &attribute, b"1", rustix::fs::XattrFlags::empty()).unwrap();
            if have == "opaque" {
                marks::hide_below(directory.as_fd()).unwrap();
            }
        }
        _ => {}
    }
}

#[test]
fn what_two_layers_show_stays_the_same() {
    if !is_root("what_two_layers_show_stays_the_same") {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let [upper, lower, bottom] = ["upper", "lower", "bottom"].map(|name| temporary.path().join(name));
    for layer in [&upper, &lower, &bottom] {
        fs::create_dir(layer).unwrap();
    }
    for one in HAVE {
        for two in HAVE {
            for three in ["absent", "file", "directory"] {
                let name = format!("{one}-{two}-{three}");
                put(&upper, &name, one);
                put(&lower, &name, two);
                put(&bottom, &name, three);
            }
        }
    }
    let before = view(&[&upper, &lower, &bottom]);
    assert!(before.len() > 200, "{}", before.len());
    let (open_upper, open_lower) =
        (file::open_directory(&upper).unwrap(), file::open_directory(&lower).unwrap());
    // Cut off after any entry.
    let at = Pair { upper: again(&open_upper).unwrap(), lower: again(&open_lower).unwrap() };
    for (count, name) in file::names(&open_upper, NAMES_MAX).unwrap().into_iter().enumerate() {
        entry(&at, &name).unwrap();
        if count % 7 == 0 {
            assert_eq!(view(&[&upper, &lower, &bottom]), before, "after {}", name.display());
        }
    }
    assert_eq!(view(&[&upper, &lower, &bottom]), before);
    sink(&open_upper, &open_lower).unwrap();
    assert_eq!(view(&[&upper, &lower, &bottom]), before);
    assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
    assert_eq!(view(&[&lower, &bottom]), before);
    sink(&open_upper, &open_lower).unwrap();
    assert_eq!(view(&[&lower, &bottom]), before, "once more");
}
