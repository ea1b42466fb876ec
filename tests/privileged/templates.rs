//! Roots: from directories, archives and other templates, and the files rendered into them.

use std::path::Path;
use std::process::Command;

use crate::apply::SLEEP;
use crate::machine::Machine;

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] =
    &["sh", "cat", "ls", "sleep", "init", "halt", "reboot", "poweroff", "touch", "kill", "id"];

/// A root with busybox alone.
pub fn busybox_root(directory: &Path) {
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "root", "usr"] {
        std::fs::create_dir_all(directory.join(name)).unwrap();
    }
    std::fs::copy(BUSYBOX, directory.join("bin/busybox")).expect("busybox-static is installed");
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", directory.join("bin").join(applet)).unwrap();
    }
    std::fs::write(directory.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    std::fs::write(directory.join("etc/motd"), "from the base\n").unwrap();
}

fn tar(directory: &Path, archive: &Path, flag: &str) {
    let status =
        Command::new("tar").arg("-C").arg(directory).args([flag, "-cf"]).arg(archive).arg(".").status();
    assert!(status.unwrap().success());
}

fn template(machine: &Machine, name: &str, text: &str) {
    machine.write(&format!("templates/{name}/template.toml"), text);
}

fn run(machine: &Machine, template: &str, script: &str) -> String {
    machine.good(&["run", template, "--", "/bin/sh", "-c", script])
}

#[test]
fn a_root_comes_from_a_directory_or_an_archive_of_any_kind() {
    let Some(machine) = Machine::new() else { return };
    let base = machine.path().join("base");
    busybox_root(&base);
    template(&machine, "directory", &format!("[base]\ndirectory = '{}'\n", base.display()));
    assert_eq!(run(&machine, "directory", "cat /etc/motd"), "from the base\n");
    for (flag, suffix) in [("-z", "tar.gz"), ("-J", "tar.xz"), ("--zstd", "tar.zst"), ("--format=pax", "tar")]
    {
        let archive = machine.path().join(format!("base.{suffix}"));
        tar(&base, &archive, flag);
        let name = suffix.replace('.', "-");
        template(&machine, &name, &format!("[base]\ntar = '{}'\n", archive.display()));
        assert_eq!(run(&machine, &name, "cat /etc/motd; id -u"), "from the base\n0\n", "{suffix}");
    }
    assert!(
        std::fs::read_to_string(base.join("etc/motd")).unwrap().contains("base"),
        "the base is as it was"
    );
}

#[test]
fn a_template_builds_on_another_and_lays_its_files_over_it() {
    let Some(machine) = Machine::new() else { return };
    let base = machine.path().join("base");
    busybox_root(&base);
    template(&machine, "parent", &format!("[base]\ndirectory = '{}'\n", base.display()));
    template(&machine, "child", "[base]\ntemplate = 'parent'\n");
    machine.write("templates/parent/files/etc/who", "parent\n");
    machine.write("templates/child/files/etc/motd", "from the child\n");
    machine.write("templates/child/files/etc/name.tera", "I am {{ name }}\n");
    let text = machine.good(&[
        "run",
        "--name",
        "web",
        "child",
        "--",
        "/bin/cat",
        "/etc/who",
        "/etc/motd",
        "/etc/name",
    ]);
    assert_eq!(text, "parent\nfrom the child\nI am web\n");
}

#[test]
fn a_wrong_digest_builds_nothing() {
    let Some(machine) = Machine::new() else { return };
    let base = machine.path().join("base");
    busybox_root(&base);
    let archive = machine.path().join("base.tar");
    tar(&base, &archive, "--format=pax");
    let digest = "0".repeat(64);
    template(&machine, "t", &format!("[base]\ntar = '{}'\nsha256 = '{digest}'\n", archive.display()));
    let said = machine.status(&["run", "t", "--", "/bin/sh"], 125);
    assert!(said.contains("sha256"), "{said}");
}

#[test]
fn an_archive_cannot_write_beside_its_layer() {
    let Some(machine) = Machine::new() else { return };
    let victim = machine.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    let (one, two) = (machine.path().join("one"), machine.path().join("two"));
    busybox_root(&one);
    // First a link that leads out, then a file through it.
    std::os::unix::fs::symlink(&victim, one.join("out")).unwrap();
    std::fs::create_dir_all(two.join("out")).unwrap();
    std::fs::write(two.join("out/file"), "escaped").unwrap();
    let archive = machine.path().join("hostile.tar");
    tar(&one, &archive, "--format=gnu");
    let append = Command::new("tar").arg("-C").arg(&two).arg("-rf").arg(&archive).arg("./out/file").status();
    assert!(append.unwrap().success());
    template(&machine, "t", &format!("[base]\ntar = '{}'\n", archive.display()));
    machine.stockade(&["run", "t", "--", "/bin/sh"]);
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
}

#[test]
fn rendered_files_follow_their_variables_into_the_running_jail() {
    let Some(machine) = Machine::new() else { return };
    let reload = "{ reload = ['sh', '-c', 'echo reloaded >> /srv/seen'] }";
    template(
        &machine,
        "app",
        &format!(
            "[base]\nhost = true\n[[file]]\nsource = 'app.conf.tera'\ntarget = '/etc/app.conf'\n\
            mode = '0640'\non_change = {reload}\n"
        ),
    );
    machine.write("templates/app/app.conf.tera", "workers = {{ vars.workers }}\n");
    let jail = |workers: u32| {
        let text = SLEEP.replace("\"host\"", "\"app\"");
        machine.jail("a", &format!("{text}[vars]\nworkers = {workers}\n"));
    };
    jail(2);
    machine.good(&["apply"]);
    let pid = machine.pid("a");
    let look = || {
        machine
            .inside("a", "cat /etc/app.conf; stat -c %a:%u /etc/app.conf; cat /srv/seen 2>/dev/null || true")
    };
    assert_eq!(look(), "workers = 2\n640:0\n");
    jail(3);
    machine.status(&["plan"], 4);
    machine.good(&["apply"]);
    assert_eq!(look(), "workers = 3\n640:0\nreloaded\n");
    machine.inside("a", "echo broken > /etc/app.conf");
    machine.status(&["plan"], 4);
    machine.good(&["apply"]);
    assert_eq!(look(), "workers = 3\n640:0\nreloaded\nreloaded\n");
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    assert_eq!(machine.pid("a"), pid, "nothing was restarted");
}

#[test]
fn files_are_rendered_into_a_root_of_any_kind() {
    let Some(machine) = Machine::new() else { return };
    machine.write("templates/page/page.tera", "of {{ vars.word }}\n");
    let file =
        "[[file]]\nsource = 'page.tera'\ntarget = '/srv/deep/page'\nmode = '0640'\non_change = 'none'\n";
    template(&machine, "page", &format!("[base]\nhost = true\n{file}"));
    let jail = |kind: &str, word: &str| {
        let text = SLEEP.replace("\"host\"", "\"page\"");
        machine.jail(
            "a",
            &format!("root.storage = '{kind}'\nhost.hostname = '{word}'\nvars.word = '{word}'\n{text}"),
        );
        machine.good(&["apply"]);
        assert_eq!(machine.good(&["apply"]), "No changes.\n", "{kind}");
        let look = "cat /srv/deep/page; stat -c '%u:%g %a' /srv/deep/page; stat -c '%u:%g %a' /srv/deep";
        let expect = format!("of {word}\n0:0 640\n0:0 755\n");
        assert_eq!(machine.inside("a", look), expect, "{kind}");
    };
    for kind in ["directory", "overlay", "image", "tmpfs", "directory"] {
        jail(kind, "one");
        let pid = machine.pid("a");
        jail(kind, "two");
        assert_eq!(machine.pid("a"), pid, "{kind}: it is a live change");
    }
}
