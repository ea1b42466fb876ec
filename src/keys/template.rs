//! The keys of a template.toml, in the order of the man page. It knows no expressions.

use super::table::{ARGUMENTS_MAX, LINES_MAX, SECOND, key};
use super::{Cost, Key, Kind, Word};

const LINE: Kind = Kind::Text(Word::Line);
const ID: Kind = Kind::Count { min: 0, max: 65_535 };
const PACKAGES: Kind = Kind::List { of: Word::Line, min: 0, max: 1_000 };
/// The kernel stacks no more layers than 500, and the jail's own lie over these.
const LAYERS: Kind = Kind::List { of: Word::Line, min: 1, max: 250 };
/// What mmdebstrap calls sets of packages; debootstrap knows two of them.
pub const VARIANTS: &[&str] =
    &["apt", "buildd", "essential", "extract", "important", "minbase", "required", "standard"];

#[rustfmt::skip]
pub const TEMPLATE_KEYS: &[Key] = &[
    key("base.host", Kind::Bool, "absent", Cost::Rebuild, "a mount of the host's /usr, read only",
        "`true`: the host's own /usr with a small /etc of its own; nothing is downloaded or copied."),
    key("base.directory", LINE, "absent", Cost::Rebuild, "a layer, copied",
        "A directory of the host, which is copied into a layer; raise `base.version` when it has changed."),
    key("base.tar", LINE, "absent", Cost::Rebuild, "a layer, unpacked",
        "A tar archive, plain or compressed by gzip, xz or zstd; a relative path is below the template's directory."),
    key("base.oci", LINE, "absent", Cost::Rebuild, "a layer for each of the image's",
        "An image made by another tool: an OCI layout, as a directory or a tar archive of it, or a docker archive."),
    key("base.debootstrap.suite", LINE, "required", Cost::Rebuild, "mmdebstrap(1), or debootstrap(8)",
        "The suite of a Debian root that is made from packages, such as \"trixie\"."),
    key("base.debootstrap.variant", Kind::Choice(VARIANTS), "the program's own", Cost::Rebuild, "--variant",
        "Which set of packages the root begins with."),
    key("base.debootstrap.include", PACKAGES, "[]", Cost::Rebuild, "--include",
        "More packages."),
    key("base.debootstrap.mirror", LINE, "the program's own", Cost::Rebuild, "a positional argument",
        "The URL of the packages' archive."),
    key("base.debootstrap.arch", LINE, "the host's own", Cost::Rebuild, "--architectures or --arch",
        "The architecture by Debian's name; another than the host's needs qemu-user registered in binfmt_misc, and is refused without."),
    key("base.debootstrap.components", PACKAGES, "[\"main\"]", Cost::Rebuild, "--components",
        "The components of the archive."),
    key("base.debootstrap.keyring", LINE, "the program's own", Cost::Rebuild, "--keyring",
        "A file with the archive's keys."),
    key("base.template", Kind::Text(Word::Template), "absent", Cost::Rebuild, "the layers below",
        "Another template, which this one is laid upon."),
    key("base.layers", LAYERS, "absent", Cost::Rebuild, "the layers themselves",
        "Layers that an import has brought, topmost first, alone or over `base.host`; nothing can build them again."),
    key("base.version", LINE, "absent", Cost::Rebuild, "part of the layer's name",
        "Any string, beside `base.directory` and `base.debootstrap`: another one makes another layer."),
    key("base.sha256", LINE, "absent", Cost::Rebuild, "compared while the archive is read",
        "The digest of the archive, beside `base.tar` or `base.changes`; another archive is refused."),
    key("base.changes", LINE, "absent", Cost::Rebuild, "a layer, unpacked",
        "An archive in the template's directory, beside `base.template`: a layer over that template, as `stockade commit` writes it."),
    key("base.reference", LINE, "absent", Cost::Rebuild, "nothing",
        "Which image, beside `base.oci`, where there are several."),
    key("base.run.command", Kind::List { of: Word::Argument, min: 0, max: ARGUMENTS_MAX }, "absent", Cost::Restart, "execve(2)",
        "Beside `base.layers`: the command of the image that these come from, a default for jails."),
    key("base.run.user", LINE, "absent", Cost::Restart, "setuid(2)",
        "Beside `base.layers`: the user of the image, a default for jails."),
    key("base.run.workdir", LINE, "absent", Cost::Restart, "chdir(2)",
        "Beside `base.layers`: the working directory of the image, a default for jails."),
    key("base.run.env", Kind::StringMap, "{}", Cost::Restart, "the environment of execve(2)",
        "Beside `base.layers`: the environment of the image, a default for jails."),
    key("base.setuid", Kind::Bool, "true", Cost::Rebuild, "S_ISUID and S_ISGID of files in a layer",
        "Whether files of the archive keep their set-user-ID and set-group-ID bits, which reach no further than the jail's own users, and nowhere without new privileges."),
    key("base.devices", Kind::Bool, "false", Cost::Rebuild, "mknod(2) in a layer, seen through mounts with nodev",
        "Whether device nodes and FIFOs of the archive are kept; the nodes are there to be seen and copied, and cannot be opened."),
    key("base.capabilities", Kind::Bool, "false", Cost::Rebuild, "the attribute security.capability of files in a layer",
        "Whether files of the archive keep their capabilities, which are those of the jail's own user namespace and within `security.capabilities`, and count for nothing without new privileges."),

    key("build.run", Kind::List { of: Word::Line, min: 1, max: LINES_MAX }, "required", Cost::Rebuild, "sh(1) in a jail of its own",
        "Lines that are run one after the other on the base, as root of a jail of their own; what they write becomes a layer."),
    key("build.network", Kind::Bool, "false", Cost::Rebuild, "the host's network namespace",
        "Whether the lines have the host's network and name servers."),
    key("build.env", Kind::StringMap, "{}", Cost::Rebuild, "the environment of execve(2)",
        "Environment variables for the lines."),
    key("build.timeout", Kind::Duration { min: SECOND, max: 1_800 * SECOND }, "\"30m\"", Cost::None, "SIGKILL to the build jail",
        "How long all of the lines may take, at most half an hour."),
    key("file", Kind::Tables(FILE_KEYS), "[]", Cost::Restart, "files written into a jail's root",
        "Files of the template's directory that are laid into the root, and what follows when one changes."),
];

#[rustfmt::skip]
pub const FILE_KEYS: &[Key] = &[
    key("file.source", LINE, "required", Cost::Restart, "nothing",
        "A file of the template's directory, rendered if its name ends in `.tera`."),
    key("file.target", Kind::Text(Word::Path), "required", Cost::Restart, "rename(2) over what was there",
        "The place inside the jail."),
    key("file.mode", LINE, "the source's own", Cost::Restart, "fchmod(2)",
        "Octal digits such as \"0644\"."),
    key("file.owner", ID, "0", Cost::Restart, "fchown(2)",
        "The number of a user inside the jail."),
    key("file.group", ID, "0", Cost::Restart, "fchown(2)",
        "The number of a group inside the jail."),
    key("file.on_change", Kind::OnChange, "\"restart\"", Cost::None, "nothing, or execve(2) inside",
        "What follows when the file changes in a running jail: `restart`, `none`, or a command that runs inside."),
];
