use super::*;

#[test]
fn labels_are_file_names() {
    for good in ["a", "2026-11-25T10:00:00", "hourly-1", "v1.2_b", &"a".repeat(63)] {
        assert!(check_label(good).is_ok(), "{good}");
    }
    for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", &"a".repeat(64)] {
        assert!(check_label(bad).is_err(), "{bad}");
    }
}

fn snapshot(label: &str, chain: &[&str]) -> Snapshot {
    Snapshot {
        schema: SCHEMA,
        label: label.into(),
        at_ms: 1,
        chain: chain.iter().map(ToString::to_string).collect(),
        layers: Vec::new(),
        how: How::Moved,
        pause_ms: None,
        flush_ms: 0.0,
        schedule: None,
        instance: None,
    }
}

fn set_aside(state: &Path, id: &str, jail: &JailName, range: u32) {
    let origin = changes::Origin { schema: 1, jail: jail.clone(), first_id: 7, range: Some(range) };
    changes::begin(state, id, &origin).unwrap();
    fs::create_dir(changes::upper(state, id)).unwrap();
}

/// Cut off before and after each of its steps, an operation is undone or finished whole.
#[test]
fn what_was_cut_off_is_undone_or_finished() {
    for whole in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (state, name) = (directory.path(), JailName::new("web").unwrap());
        set_aside(state, "old", &name, 3);
        write_base(state, &name, &["old".into()]).unwrap();
        let chain = ["new", "old"];
        let base = chain.map(ToOwned::to_owned).to_vec();
        let pending = Pending {
            schema: SCHEMA,
            change: Some("new".into()),
            snapshot: Some(snapshot("s", &chain)),
            base: Some(base.clone()),
            froze: true,
            clear: false,
            definition: Some((state.join("jails.d/web.toml"), "a = 1\n".to_owned())),
        };
        fs::create_dir(state.join("jails.d")).unwrap();
        for left in [".web.toml.4711", ".web.toml.swp"] {
            fs::write(state.join("jails.d").join(left), "").unwrap();
        }
        begin(state, &name, &pending).unwrap();
        let origin = changes::Origin { schema: 1, jail: name.clone(), first_id: 7, range: None };
        changes::begin(state, "new", &origin).unwrap();
        if whole {
            fs::create_dir(changes::upper(state, "new")).unwrap();
        }
        let thawed = std::cell::Cell::new(0);
        let thaw = || {
            thawed.set(thawed.get() + 1);
            Ok(())
        };
        settle(state, &name, &thaw).unwrap();
        settle(state, &name, &thaw).unwrap();
        assert_eq!(thawed.get(), 1);
        assert_eq!(super::base(state, &name).unwrap(), if whole { base } else { vec!["old".to_owned()] });
        assert_eq!(find(state, &name, "s").unwrap().is_some(), whole);
        assert_eq!(state.join("changes/new").exists(), whole);
        assert!(pending_names(state).unwrap().is_empty());
        let is_there = |name: &str| state.join("jails.d").join(name).exists();
        assert_eq!(is_there("web.toml"), whole);
        assert!(!is_there(".web.toml.4711") && is_there(".web.toml.swp"), "an editor's is not ours");
    }
}

#[test]
fn what_was_never_written_down_is_cleared_away() {
    let directory = tempfile::tempdir().unwrap();
    clear_unwritten(directory.path()).unwrap();
    fs::create_dir(directory.path().join("pending")).unwrap();
    for name in ["web", ".web.7"] {
        fs::write(directory.path().join("pending").join(name), "").unwrap();
    }
    clear_unwritten(directory.path()).unwrap();
    assert!(directory.path().join("pending/web").exists());
    assert!(!directory.path().join("pending/.web.7").exists());
}

#[test]
fn changes_stay_as_long_as_somebody_names_them() {
    let directory = tempfile::tempdir().unwrap();
    let (state, web, copy) =
        (directory.path(), JailName::new("web").unwrap(), JailName::new("copy").unwrap());
    fs::create_dir(state.join("ids")).unwrap();
    std::os::unix::fs::symlink("web", state.join("ids/3")).unwrap();
    for id in ["one", "two", "three"] {
        set_aside(state, id, &web, 3);
    }
    write(&snapshot_path(state, &web, "s"), &snapshot("s", &["one"])).unwrap();
    write_base(state, &web, &["two".into()]).unwrap();
    write_base(state, &copy, &["one".into()]).unwrap();
    assert_eq!(changes::unused(state).unwrap(), ["three"]);
    changes::sweep(state).unwrap();
    destroy(state, &web).unwrap();
    changes::sweep(state).unwrap();
    assert!(changes::inherit_range(state, 3).unwrap(), "the copy still has files of these ids");
    let left = || changes::own_lowers(state, &["one".into()]).is_ok();
    assert!(left() && !changes::is_whole(state, "two"));
    forget_base(state, &copy).unwrap();
    assert!(!left());
    assert!(fs::read_link(state.join("ids/3")).is_err(), "the range is free again");
    let gone = Pending {
        schema: 1,
        change: None,
        snapshot: None,
        base: Some(vec!["one".into()]),
        froze: false,
        clear: false,
        definition: None,
    };
    assert!(begin(state, &copy, &gone).is_err(), "what is gone is not built upon");
}
