//! Debian and its kin, by mmdebstrap or debootstrap: as an argument vector, never by a shell, in a
//! mount and process namespace that end with it, and its root comes as a stream of tar.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};

use super::program::Program;
use super::tree::{BUILD_TIME_MAX, Tree};
use super::{Progress, archive, copied, stream};
use crate::desired::{Debootstrap, Kept};

/// Where the programs are looked for, and what they find theirs in.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What of the environment is the programs' business: the way to the mirror.
const PROXIES: &[&str] = &["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
/// Mounts and processes end with the first of them, and that one with this process.
const CONTAINED: &[&str] = &[
    "setpriv",
    "--pdeathsig=KILL",
    "--",
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
    "--",
];
/// The variants that debootstrap knows.
const DEBOOTSTRAP_VARIANTS: &[&str] = &["minbase", "buildd"];

/// Fills `tree`; `aside` is a directory for what is only needed meanwhile.
pub fn build(wanted: &Debootstrap, aside: &Path, tree: &mut Tree, progress: Progress<'_>) -> Result<()> {
    if let Some(program) = find("mmdebstrap") {
        let (mut running, output) =
            Program::start(command(&program, &mmdebstrap(wanted), aside), "mmdebstrap")?;
        running.wait_for_output(&output, progress)?;
        let rules = archive::Rules { name: "mmdebstrap", whiteouts: false, kept: Kept::default() };
        let source = File::from(OwnedFd::from(output)).take(u64::MAX);
        let unpacked = stream::read(source, None, |reader| archive::entries(reader, tree, rules, progress));
        // What it says of its failure explains an archive that ends too early.
        return running.finish(progress).and(unpacked);
    }
    let Some(program) = find("debootstrap") else {
        bail!("neither mmdebstrap nor debootstrap is installed: install mmdebstrap");
    };
    let target = aside.join("root");
    let arguments = debootstrap(wanted, &target)?;
    let mut command = command(&program, &arguments, aside);
    command.stdin(Stdio::null());
    Program::start_talking(command, "debootstrap", Instant::now() + BUILD_TIME_MAX)?.finish(progress)?;
    copied::directory(&target, tree, progress)
}

fn find(name: &str) -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

fn command(program: &Path, arguments: &[String], aside: &Path) -> Command {
    let mut command = Command::new(CONTAINED[0]);
    command.args(&CONTAINED[1..]).arg(program).args(arguments);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8").env("TMPDIR", aside);
    for name in PROXIES {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.current_dir("/");
    command
}

/// Every value was checked, and stands behind `=` or `--` besides.
fn mmdebstrap(wanted: &Debootstrap) -> Vec<String> {
    let mut words = options(wanted, "--architectures");
    words.extend(["--format=tar", "--", &wanted.suite, "-"].map(str::to_owned));
    words.extend(wanted.mirror.clone());
    words
}

fn debootstrap(wanted: &Debootstrap, target: &Path) -> Result<Vec<String>> {
    if let Some(variant) = wanted.variant.as_deref().filter(|name| !DEBOOTSTRAP_VARIANTS.contains(name)) {
        bail!("debootstrap knows no variant `{variant}`: install mmdebstrap");
    }
    let mut words = options(wanted, "--arch");
    // It takes no `--`, but a suite begins with a letter or a digit.
    words.push(wanted.suite.clone());
    words.push(target.display().to_string());
    words.extend(wanted.mirror.clone());
    Ok(words)
}

fn options(wanted: &Debootstrap, arch: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut add =
        |option: &str, value: Option<String>| words.extend(value.map(|value| format!("{option}={value}")));
    let list = |words: &[String]| (!words.is_empty()).then(|| words.join(","));
    add("--variant", wanted.variant.clone());
    add("--include", list(&wanted.include));
    add("--components", list(&wanted.components));
    add(arch, wanted.arch.clone());
    add("--keyring", wanted.keyring.as_ref().map(|path| path.display().to_string()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_where_they_are_no_options() {
        let wanted = Debootstrap {
            suite: "trixie".into(),
            variant: Some("minbase".into()),
            include: vec!["nginx".into(), "g++".into()],
            mirror: Some("http://x/debian".into()),
            arch: Some("amd64".into()),
            components: vec!["main".into()],
            keyring: Some("/k".into()),
        };
        let expect = "--variant=minbase --include=nginx,g++ --components=main --architectures=amd64 --keyring=/k \
            --format=tar -- trixie - http://x/debian";
        assert_eq!(mmdebstrap(&wanted).join(" "), expect);
        let expect = "--variant=minbase --include=nginx,g++ --components=main --arch=amd64 --keyring=/k trixie /t \
            http://x/debian";
        assert_eq!(debootstrap(&wanted, Path::new("/t")).expect("known").join(" "), expect);
        let other = Debootstrap { variant: Some("apt".into()), ..wanted };
        assert!(debootstrap(&other, Path::new("/t")).is_err());
    }
}
