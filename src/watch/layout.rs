//! Which directories must be watched for the trees as they are now, and what an event there means.
//!
//! Owns the walk along links and towards directories that do not exist yet. It looks at names and
//! inodes only, and opens nothing but the template directory's list.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::{Metadata, symlink_metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};

use super::{CHANGED, EXITED, LOST, Places};

/// The kernel's own limit of links in one path, path_resolution(7).
const LINKS_MAX: usize = 40;

/// The directories to watch, as they were when this was made. Two that are equal need the same watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// By real path.
    watched: BTreeMap<PathBuf, Watched>,
    /// Names whose making, replacing or removing changes this layout: a link on the way, or the
    /// first name that does not exist. Their directories are watched too.
    turns: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Watched {
    /// Device and inode: a directory replaced by another one of its name is a different one.
    identity: (u64, u64),
    part: Part,
    recursive: bool,
}

/// What a directory is watched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// For a name among [`Layout::turns`] only.
    #[default]
    Way,
    Exits,
    Definitions,
}

impl Layout {
    pub(super) fn of(places: &Places) -> Self {
        let mut layout = Self::default();
        layout.add(&places.config, Part::Definitions, false);
        layout.add(&places.config.join("jails.d"), Part::Definitions, false);
        layout.add(&places.exits, Part::Exits, false);
        if let Some(templates) = layout.add(&places.config.join("templates"), Part::Definitions, true) {
            layout.add_linked_templates(&templates);
        }
        layout
    }

    /// Every directory and whether all below it counts.
    pub(super) fn directories(&self) -> impl Iterator<Item = (PathBuf, bool)> {
        self.watched.iter().map(|(path, watched)| (path.clone(), watched.recursive))
    }

    /// A template that is a link to a tree elsewhere: the recursive watch does not follow it.
    fn add_linked_templates(&mut self, templates: &Path) {
        // A directory that vanished since it was found is noticed by its watch.
        let Ok(entries) = std::fs::read_dir(templates) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                self.add(&entry.path(), Part::Definitions, true);
            }
        }
    }

    /// Adds a directory and what leads to it; gives its real path if it exists.
    fn add(&mut self, path: &Path, part: Part, recursive: bool) -> Option<PathBuf> {
        let (real, metadata) = self.walk(path)?;
        self.put(&real, &metadata, part, recursive);
        Some(real)
    }

    fn put(&mut self, real: &Path, metadata: &Metadata, part: Part, recursive: bool) {
        let watched = self.watched.entry(real.to_owned()).or_default();
        watched.identity = (metadata.dev(), metadata.ino());
        watched.part = watched.part.max(part);
        watched.recursive |= recursive;
    }

    /// Goes along `path` as the kernel does, noting each link and the first missing name; gives
    /// the directory at its end.
    fn walk(&mut self, path: &Path) -> Option<(PathBuf, Metadata)> {
        let mut here = PathBuf::from("/");
        let mut rest = names(path);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&name);
            match symlink_metadata(&next) {
                Ok(metadata) if metadata.is_symlink() && links < LINKS_MAX => {
                    links += 1;
                    self.turn(&here, &next);
                    let target = std::fs::read_link(&next).ok()?;
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    rest = names(&target).into_iter().chain(rest).collect();
                }
                Ok(metadata) if metadata.is_dir() => here = next,
                _ => {
                    self.turn(&here, &next);
                    return None;
                }
            }
        }
        symlink_metadata(&here).ok().map(|metadata| (here, metadata))
    }

    /// Notes a name on which the way depends.
    fn turn(&mut self, directory: &Path, name: &Path) {
        if let Ok(metadata) = symlink_metadata(directory) {
            self.put(directory, &metadata, Part::Way, false);
        }
        self.turns.insert(name.to_owned());
    }

    /// The bits an event sets. Errors and lost events count as everything at once.
    pub(super) fn weigh(&self, event: &notify::Result<notify::Event>) -> u8 {
        let Ok(event) = event else { return CHANGED | EXITED | LOST };
        if event.need_rescan() {
            return CHANGED | EXITED | LOST;
        }
        // Our own reading opens files: an answer to it would never end.
        let end_of_write = EventKind::Access(AccessKind::Close(AccessMode::Write));
        if event.kind.is_access() && event.kind != end_of_write {
            return 0;
        }
        event.paths.iter().fold(0, |bits, path| bits | self.weigh_path(path, event.kind))
    }

    fn weigh_path(&self, path: &Path, kind: EventKind) -> u8 {
        let moved = matches!(kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        if self.turns.contains(path) || (moved && self.watched.contains_key(path)) {
            return CHANGED | LOST;
        }
        match self.part_of(path) {
            Part::Definitions => CHANGED,
            // Only the rename that completes a file: its removal is the daemon's own.
            Part::Exits if kind == EventKind::Modify(ModifyKind::Name(RenameMode::To)) => EXITED,
            Part::Exits | Part::Way => 0,
        }
    }

    /// The nearest watched directory above `path`, or itself, says what it belongs to.
    fn part_of(&self, path: &Path) -> Part {
        path.ancestors().find_map(|p| self.watched.get(p)).map_or(Part::Way, |watched| watched.part)
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, remove_dir};
    use std::os::unix::fs::symlink;

    use notify::event::{CreateKind, Event, Flag, MetadataKind, RemoveKind};

    use super::*;

    struct Tree {
        dir: tempfile::TempDir,
        places: Places,
    }

    /// `etc` with everything, `run/exits`, below a directory whose own path has no links.
    fn tree() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for name in ["etc/jails.d", "etc/templates/web/files", "run/exits", "srv/tpl/files"] {
            create_dir_all(base.join(name)).unwrap();
        }
        Tree { places: Places { config: base.join("etc"), exits: base.join("run/exits") }, dir }
    }

    /// Watched directories and turns, relative to the tree; `**` marks recursion.
    fn shown(tree: &Tree) -> (Vec<String>, Vec<String>) {
        let base = tree.dir.path().canonicalize().unwrap();
        let short = |path: &Path| path.strip_prefix(&base).unwrap_or(path).display().to_string();
        let layout = Layout::of(&tree.places);
        let watched = layout
            .directories()
            .map(|(path, recursive)| short(&path) + if recursive { "/**" } else { "" })
            .collect();
        (watched, layout.turns.iter().map(|path| short(path)).collect())
    }

    fn check(tree: &Tree, watched: &[&str], turns: &[&str]) {
        assert_eq!(
            shown(tree),
            (
                watched.iter().map(ToString::to_string).collect(),
                turns.iter().map(ToString::to_string).collect()
            )
        );
    }

    #[test]
    fn plain_directories_need_nothing_above_them() {
        check(&tree(), &["etc", "etc/jails.d", "etc/templates/**", "run/exits"], &[]);
    }

    #[test]
    fn a_missing_directory_is_awaited_in_the_next_one_above() {
        let tree = tree();
        let base = tree.places.config.parent().unwrap();
        std::fs::remove_dir_all(base.join("etc")).unwrap();
        check(&tree, &["", "run/exits"], &["etc"]);
        create_dir_all(base.join("etc")).unwrap();
        check(&tree, &["etc", "run/exits"], &["etc/jails.d", "etc/templates"]);
        std::fs::remove_dir_all(base.join("run")).unwrap();
        check(&tree, &["", "etc"], &["etc/jails.d", "etc/templates", "run"]);
    }

    #[test]
    fn links_are_watched_where_they_lie() {
        let tree = tree();
        let base = tree.places.config.parent().unwrap().to_owned();
        std::fs::rename(base.join("etc"), base.join("srv/v1")).unwrap();
        symlink("srv/current", base.join("etc")).unwrap();
        symlink("../srv/v1", base.join("srv/current")).unwrap();
        symlink(base.join("srv/tpl"), base.join("srv/v1/templates/linked")).unwrap();
        check(
            &tree,
            &["", "run/exits", "srv", "srv/tpl/**", "srv/v1", "srv/v1/jails.d", "srv/v1/templates/**"],
            &["etc", "srv/current", "srv/v1/templates/linked"],
        );
    }

    #[test]
    fn links_in_a_circle_end() {
        let tree = tree();
        let jails = tree.places.config.join("jails.d");
        remove_dir(&jails).unwrap();
        symlink("jails.d", &jails).unwrap();
        check(&tree, &["etc", "etc/templates/**", "run/exits"], &["etc/jails.d"]);
    }

    #[test]
    fn a_replaced_directory_is_a_different_layout() {
        let tree = tree();
        let before = Layout::of(&tree.places);
        assert_eq!(before, Layout::of(&tree.places));
        let jails = tree.places.config.join("jails.d");
        std::fs::rename(&jails, tree.places.config.join("old")).unwrap();
        create_dir_all(&jails).unwrap();
        assert_ne!(before, Layout::of(&tree.places));
    }

    #[test]
    fn events_are_weighed_by_kind_and_place() {
        let tree = tree();
        let base = tree.places.config.parent().unwrap().to_owned();
        std::fs::rename(base.join("etc"), base.join("v1")).unwrap();
        symlink("v1", base.join("etc")).unwrap();
        let layout = Layout::of(&tree.places);
        let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let open = EventKind::Access(AccessKind::Open(AccessMode::Any));
        let create = EventKind::Create(CreateKind::File);
        let remove = EventKind::Remove(RemoveKind::File);
        let chmod = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        let from = EventKind::Modify(ModifyKind::Name(RenameMode::From));
        let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        for (path, kind, expect) in [
            ("v1/jails.d/web.toml", close, CHANGED),
            ("v1/jails.d/web.toml", open, 0),
            ("v1/jails.d/web.toml", remove, CHANGED),
            ("v1/stockade.toml", chmod, CHANGED),
            ("v1/templates/web/files/deep/x", create, CHANGED),
            ("v1/jails.d", chmod, CHANGED),
            ("v1/jails.d", from, CHANGED | LOST),
            ("v1", remove, CHANGED | LOST),
            ("etc", to, CHANGED | LOST),
            // The directory of the link is watched for the link alone.
            ("passwd", close, 0),
            ("run/exits/web", to, EXITED),
            ("run/exits/.web", create, 0),
            ("run/exits/web", remove, 0),
            ("run/exits", remove, CHANGED | LOST),
        ] {
            let event = Event::new(kind).add_path(base.join(path));
            assert_eq!(layout.weigh(&Ok(event)), expect, "{path} {kind:?}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(layout.weigh(&Ok(overflow)), CHANGED | EXITED | LOST);
        assert_eq!(layout.weigh(&Err(notify::Error::generic("gone"))), CHANGED | EXITED | LOST);
    }
}
