//! The README's first command: the example as it is, in the directories and cgroup of the test.

use std::path::Path;

use rustix::process::Signal;

use crate::daemon::{signal, start};
use crate::machine::{Machine, said};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quickstart");

fn page(machine: &Machine) -> String {
    said(&machine.outside(&["curl", "-sS", "--max-time", "5", "http://10.77.0.10/"]))
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{}: {text}", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn the_quickstart_serves_its_page_as_soon_as_apply_ends_and_follows_what_is_edited() {
    let Some(mut machine) = Machine::new() else { return };
    let host = std::fs::read_to_string(format!("{EXAMPLE}/stockade.toml")).unwrap();
    machine.host(&host[host.find("[bridge").expect("its tables")..]);
    let etc = machine.config();
    let copied = std::process::Command::new("cp")
        .args(["-r", &format!("{EXAMPLE}/jails.d"), &format!("{EXAMPLE}/templates")])
        .arg(&etc)
        .status();
    assert!(copied.unwrap().success());
    machine.good(&["apply"]);
    let first = page(&machine);
    assert!(first.contains("<h1>Hello from a jail</h1>") && first.contains("Visits: 1"), "{first}");
    let pids = ["web", "db"].map(|name| machine.pid(name));
    start(&mut machine, &[]);
    let web = etc.join("jails.d/web.toml");
    edit(&web, "Hello from a jail", "Edited");
    machine.wait_until("the page follows", || page(&machine).contains("<h1>Edited</h1>"));
    edit(&etc.join("stockade.toml"), "memory = \"64M\"", "memory = \"80M\"");
    let limit = |machine: &Machine| {
        let file = |name| machine.cgroup_file("web", name);
        file("memory.limit_in_bytes").or_else(|| file("memory.max")).unwrap_or_default()
    };
    machine.wait_until("the limit follows", || limit(&machine).trim() == (80 << 20).to_string());
    edit(&web, "[network]", "nonsense = 1\n[network]");
    let wrong = machine.status(&["check"], 3);
    assert!(wrong.contains("web.toml:") && wrong.contains("unknown key `exec.nonsense`"), "{wrong}");
    signal(&machine, Signal::HUP);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(["web", "db"].map(|name| machine.pid(name)), pids, "nothing was restarted");
    machine.remove("web");
    machine.wait_until("it stops", || machine.state_of("web") == "stopped");
    assert_eq!(machine.state_of("db"), "running");
    machine.end_daemon();
    machine.remove("db");
    // With the last of its jails their bridge goes.
    machine.good(&["destroy", "--yes", "web", "db"]);
}
