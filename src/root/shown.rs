//! What overlayfs shows of layers, for tests.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::sys::{file, mount};

/// Mode, contents, time and, of directories, the names of attributes, by path.
pub type View = BTreeMap<String, (u32, String, i64, Vec<OsString>)>;

/// What the kernel makes of the layers, topmost first.
pub fn view(layers: &[&Path]) -> View {
    let joined = layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":");
    let options = [("lowerdir", joined.as_str()), ("redirect_dir", "nofollow"), ("xino", "off")];
    let merged = mount::create("overlay", &options, mount::READ_ONLY).expect("an overlay");
    let mut seen = View::new();
    let top = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&merged));
    look(Path::new(&top), "", &mut seen);
    seen
}

fn look(directory: &Path, shown: &str, seen: &mut View) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let (path, shown) = (entry.path(), format!("{shown}/{}", entry.file_name().display()));
        let found = fs::symlink_metadata(&path).unwrap();
        let mut attributes = Vec::new();
        let contents = if found.is_dir() {
            look(&path, &shown, seen);
            let open = file::open_directory(&path).unwrap();
            attributes =
                file::all_attributes(open.as_fd()).unwrap().into_iter().map(|(name, _)| name).collect();
            attributes.sort();
            String::new()
        } else if found.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            contents_of(&path, &found)
        };
        seen.insert(shown, (found.mode(), contents, found.mtime_nsec(), attributes));
    }
}

fn contents_of(path: &Path, found: &Metadata) -> String {
    if found.is_file() { fs::read_to_string(path).unwrap() } else { format!("{:x}", found.rdev()) }
}
