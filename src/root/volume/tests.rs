use super::*;
use crate::root::{is_root, prepare};

#[test]
fn a_volume_is_there_once_it_is_prepared() {
    if !is_root("a_volume_is_there_once_it_is_prepared") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a directory");
    let (state, name) = (temporary.path(), JailName::new("web").expect("a name"));
    assert!(Volume::open(state, &name).expect("looked").is_none());
    prepare(state, &name, 1_000_000, false).expect("made");
    let volume = Volume::open(state, &name).expect("looked").expect("it is there");
    assert_eq!(volume.kind(), Kind::Overlay);
    file::open_child(volume.directory(), "upper".as_ref()).expect("an upper directory");
}
