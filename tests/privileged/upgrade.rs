//! A base changed under running jails: made once, taken over in order, and taken back where a jail
//! does not come up on it.

use crate::machine::Machine;
use crate::templates::busybox_root;

const COUNT: usize = 10;

/// The base of this version, with a program that only some versions have.
fn base(machine: &Machine, version: &str, has_special: bool) {
    let root = machine.path().join(format!("root-{version}"));
    busybox_root(&root);
    std::fs::write(root.join("etc/version"), version).unwrap();
    if has_special {
        std::os::unix::fs::symlink("busybox", root.join("bin/special")).unwrap();
    }
    let text =
        format!("[base]\ndirectory = \"{}\"\n[build]\nrun = [\"echo built > /etc/built\"]\n", root.display());
    machine.write("templates/app/template.toml", &text);
}

/// Each needs the one before it; the fourth runs what only some bases have.
fn jails(machine: &Machine) {
    for number in 0..COUNT {
        let depend = if number == 0 { String::new() } else { format!("depend = [\"j{}\"]\n", number - 1) };
        let line = if number == 3 { "special true; exec sleep 1000" } else { "exec sleep 1000" };
        let line = line.replace("special true", "ls /bin/special || exit 9");
        let text = format!("template = \"app\"\n{depend}exec.command = [\"/bin/sh\", \"-c\", \"{line}\"]\n");
        machine.jail(&format!("j{number}"), &text);
    }
}

fn layers(machine: &Machine) -> usize {
    let entries = std::fs::read_dir(machine.state().join("layers")).unwrap();
    entries
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("sha256-"))
        .count()
}

fn versions(machine: &Machine) -> Vec<String> {
    (0..COUNT).map(|number| machine.inside(&format!("j{number}"), "cat /etc/version")).collect()
}

#[test]
fn a_base_is_changed_under_ten_running_jails() {
    let Some(machine) = Machine::new() else { return };
    base(&machine, "1", true);
    jails(&machine);
    machine.good(&["apply"]);
    assert_eq!((versions(&machine), layers(&machine)), (vec!["1".to_owned(); COUNT], 2));
    machine.inside("j5", "echo kept > /etc/own");
    let pids: Vec<i32> = (0..COUNT).map(|number| machine.pid(&format!("j{number}"))).collect();

    // Until they restart they stay where they are, and the plan says so.
    base(&machine, "2", true);
    let plan = machine.status(&["plan"], 4);
    assert!(plan.contains("10 to restart") && plan.contains("-/+ j9") && plan.contains("template"), "{plan}");
    assert!(plan.contains("is built first, and it runs on its old layers until then"), "{plan}");
    let late = machine.good(&["apply", "--no-restart"]);
    assert!(late.contains("Waiting for a restart:"), "{late}");
    assert_eq!(versions(&machine), vec!["1"; COUNT]);
    machine.good(&["apply"]);
    assert_eq!((versions(&machine), layers(&machine)), (vec!["2".to_owned(); COUNT], 4), "built once");
    assert_eq!(machine.inside("j5", "cat /etc/own"), "kept\n");
    let started: Vec<u64> = (0..COUNT)
        .map(|number| machine.record(&format!("j{number}"))["started_ms"].as_u64().unwrap())
        .collect();
    assert!(started.is_sorted(), "in the order of depend: {started:?}");
    who_uses_what(&machine);
    assert!((0..COUNT).all(|number| machine.pid(&format!("j{number}")) != pids[number]));

    // One does not come up on the third, and the rest do.
    base(&machine, "3", false);
    let said = machine.status(&["apply"], 1);
    let expect = "j3: did not come up on the new base, runs again on the old one: it exited with 9 at once";
    assert!(said.contains(expect) && !said.contains("skipped"), "{said}");
    let mut expect = vec!["3"; COUNT];
    expect[3] = "2";
    assert_eq!(versions(&machine), expect);
    let plan = machine.good(&["plan"]);
    assert!(plan.contains("Waiting for a restart:") && plan.contains("did not come up with this"), "{plan}");
    let pid = machine.pid("j3");
    machine.good(&["apply"]);
    machine.good(&["apply"]);
    machine.good(&["gc"]);
    assert_eq!(machine.pid("j3"), pid, "nothing is tried twice");
    // One that is taken along with another comes back on the base that it runs on.
    machine.good(&["restart", "j2"]);
    assert_eq!(versions(&machine), expect);

    base(&machine, "4", true);
    machine.good(&["apply"]);
    assert_eq!(versions(&machine), vec!["4"; COUNT]);
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
}

/// Sizes as du(1) has them, and users also by way of a template that stands on this one.
fn who_uses_what(machine: &Machine) {
    machine.write("templates/child/template.toml", "[base]\ntemplate = 'app'\n");
    machine.jail("k", "template = 'child'\nenabled = false\nexec.command = ['/bin/true']\n");
    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_str(&machine.good(args)).unwrap() };
    let all = json(&["template", "ls", "--json"]);
    let app = all["items"].as_array().unwrap().iter().find(|item| item["name"] == "app").unwrap().clone();
    assert_eq!(app["jails"].as_array().unwrap().len(), COUNT + 1, "{app}");
    let shown = json(&["template", "show", "app", "--json"]);
    for (layer, shown) in app["layers"].as_array().unwrap().iter().zip(shown["items"].as_array().unwrap()) {
        let path = machine.state().join("layers").join(layer["id"].as_str().unwrap());
        let du = machine.outside(&["du", "-s", "--block-size=1", &path.display().to_string()]);
        let du = String::from_utf8(du.stdout).unwrap();
        assert_eq!(layer["size"].to_string(), du.split_whitespace().next().unwrap());
        assert_eq!((&shown["id"], &shown["size"]), (&layer["id"], &layer["size"]));
        assert_eq!(shown["jails"].as_array().unwrap().len(), COUNT + 1, "{shown}");
    }
    let text = machine.good(&["template", "ls"]);
    assert!(text.contains("2/2 built") && text.contains("j9,k"), "{text}");
    machine.remove("k");
    std::fs::remove_dir_all(machine.config().join("templates/child")).unwrap();
}

#[test]
fn a_base_that_cannot_be_made_takes_nothing_down() {
    let Some(machine) = Machine::new() else { return };
    base(&machine, "1", true);
    jails(&machine);
    machine.good(&["apply"]);
    let pids = |machine: &Machine| (0..COUNT).map(|n| machine.pid(&format!("j{n}"))).collect::<Vec<_>>();
    let before = pids(&machine);
    let text = format!(
        "[base]\ndirectory = \"{}\"\n[build]\nrun = [\"echo no such luck; exit 5\"]\n",
        machine.path().join("root-1").display()
    );
    machine.write("templates/app/template.toml", &text);
    let said = machine.status(&["apply"], 1);
    assert!(said.contains("j0: build layer") && said.contains("no such luck"), "{said}");
    assert_eq!(pids(&machine), before);
    assert_eq!(versions(&machine), vec!["1"; COUNT]);
}
