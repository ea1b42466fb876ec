//! The three kinds of network a jail can have.

use crate::apply::SLEEP;
use crate::machine::Machine;

const HOST: &str = "[bridge.stockade0]\naddress = [\"10.77.0.1/24\", \"fd77::1/64\"]\n";
/// Answers each connection, of both families, with one line.
const SERVE: &str = "use IO::Socket::IP; my $s = IO::Socket::IP->new(LocalHost => \"::\", \
    LocalPort => 80, V6Only => 0, Listen => 5, ReuseAddr => 1) or die $@; \
    while (my $c = $s->accept) { print $c \"here\\n\"; close $c }";
const ASK: &str = "use IO::Socket::IP; my $c = IO::Socket::IP->new(PeerHost => $ARGV[0], \
    PeerPort => 80, Timeout => 2) or die \"$@\\n\"; print <$c>";

fn vnet(address: &str) -> String {
    format!("[network]\nmode = \"vnet\"\naddress = [\"10.77.0.{address}/24\", \"fd77::{address}/64\"]\n")
}

fn server(machine: &Machine, name: &str, address: &str) {
    let command = serde_json::json!(["perl", "-e", SERVE]);
    machine.jail(name, &format!("template = 'host'\nexec.command = {command}\n{}", vnet(address)));
}

#[test]
fn jails_reach_each_other_and_the_host_in_both_families() {
    let Some(machine) = Machine::new() else { return };
    machine.host(HOST);
    server(&machine, "a", "10");
    server(&machine, "b", "11");
    machine.good(&["apply"]);
    for address in ["10.77.0.10", "fd77::10"] {
        machine.wait_until(&format!("b reaches {address}"), || {
            machine.stockade(&["exec", "b", "--", "perl", "-e", ASK, address]).stdout == b"here\n"
        });
        let answer = machine.outside(&["perl", "-e", ASK, address]);
        assert_eq!(answer.stdout, b"here\n", "the host reaches {address}");
    }
    let routes = machine.inside("a", "ip route; ip -6 route");
    assert!(routes.contains("default via 10.77.0.1") && routes.contains("default via fd77::1"), "{routes}");
    assert_eq!(machine.ls()["a"]["address"], serde_json::json!(["10.77.0.10", "fd77::10"]));
}

#[test]
fn addresses_change_while_the_jail_runs_and_drift_is_repaired() {
    let Some(machine) = Machine::new() else { return };
    machine.host(HOST);
    machine.jail("a", &format!("{SLEEP}{}", vnet("10")));
    machine.good(&["apply"]);
    let pid = machine.pid("a");
    machine.jail("a", &format!("{SLEEP}{}", vnet("20")));
    machine.good(&["apply"]);
    let addresses = || machine.inside("a", "ip -o addr show dev eth0");
    assert!(addresses().contains("10.77.0.20/24") && !addresses().contains("10.77.0.10/24"));
    let net = format!("--net=/proc/{pid}/ns/net");
    machine.outside(&["nsenter", &net, "ip", "addr", "add", "10.77.0.99/24", "dev", "eth0"]);
    machine.status(&["plan"], 4);
    machine.good(&["apply"]);
    assert!(!addresses().contains("10.77.0.99"), "{}", addresses());
    assert_eq!(machine.pid("a"), pid);
}

#[test]
fn what_a_link_leads_to_and_a_name_are_set_back_while_the_jail_runs() {
    let Some(machine) = Machine::new() else { return };
    machine.host(HOST);
    let more = "mtu = 1400\nmac = '02:00:5E:10:00:01'\n[host]\nhostname = 'known'\n";
    machine.jail("a", &format!("{SLEEP}{}{more}", vnet("10")));
    machine.good(&["apply"]);
    assert_eq!(machine.good(&["plan"]), "No changes.\n");
    let pid = machine.pid("a");
    let [net, uts] = ["net", "uts"].map(|kind| format!("--{kind}=/proc/{pid}/ns/{kind}"));
    let port = String::from_utf8(machine.outside(&["ls", "/sys/class/net"]).stdout).unwrap();
    let port = port.lines().find(|name| name.starts_with("sj")).unwrap();
    let inside = |line: &'static str| [vec!["nsenter", &net], line.split(' ').collect()].concat();
    for (by_hand, drift) in [
        (inside("ip route del default"), "network.gateway [\"10.77.0.1\", \"fd77::1\"] -> [\"fd77::1\"]"),
        (inside("ip route replace default via 10.77.0.9"), "-> [\"10.77.0.9\", \"fd77::1\"]"),
        (inside("ip -6 route del default"), "-> [\"10.77.0.1\"]"),
        (inside("ip link set eth0 down"), "network.gateway"),
        (inside("ip link set eth0 mtu 1300"), "network.mtu 1400 -> 1300"),
        (
            inside("ip link set eth0 address 02:00:00:00:00:01"),
            "network.mac 02:00:5e:10:00:01 -> 02:00:00:00:00:01",
        ),
        (
            vec!["ip", "link", "set", port, "down"],
            "network.bridge stockade0 -> stockade0 (the jail's port is down)",
        ),
        (vec!["ip", "link", "set", "stockade0", "down"], "network.bridge stockade0 -> stockade0 (down)"),
        (vec!["ip", "addr", "flush", "dev", "stockade0"], "stockade0 (without 10.77.0.1/24)"),
        (vec!["nsenter", &uts, "hostname", "other"], "host.hostname known -> other"),
    ] {
        assert!(machine.outside(&by_hand).status.success(), "{by_hand:?}");
        let plan = machine.status(&["plan"], 4);
        assert!(plan.contains("Changed outside stockade") && plan.contains(drift), "{by_hand:?}: {plan}");
        machine.good(&["apply"]);
        assert_eq!(machine.good(&["plan"]), "No changes.\n", "{by_hand:?}");
    }
    assert_eq!(machine.pid("a"), pid, "all of it live");
    let routes = machine.inside("a", "ip route; ip -6 route; hostname");
    assert!(routes.contains("default via 10.77.0.1") && routes.contains("default via fd77::1"), "{routes}");
    assert!(routes.ends_with("known\n"), "{routes}");
}

#[test]
fn a_jail_knows_its_names_and_its_name_servers() {
    let Some(machine) = Machine::new() else { return };
    machine.host(HOST);
    let servers = "nameserver = [\"10.77.0.53\"]\nsearch = [\"example.org\"]\n";
    machine.jail("a", &format!("{SLEEP}{}{servers}", vnet("10")));
    machine.good(&["apply"]);
    let resolv = machine.inside("a", "cat /etc/resolv.conf");
    assert!(resolv.starts_with("nameserver 10.77.0.53\nsearch example.org\n"), "{resolv}");
    let hosts = machine.inside("a", "cat /etc/hosts");
    assert!(hosts.contains("10.77.0.10\ta\n") && hosts.contains("fd77::10\ta\n"), "{hosts}");
    let pid = machine.pid("a");
    machine.jail("a", &format!("{SLEEP}{}{servers}[host]\nhostname = \"a.example.org\"\n", vnet("20")));
    machine.good(&["apply"]);
    let hosts = machine.inside("a", "cat /etc/hosts");
    assert!(hosts.contains("10.77.0.20\ta.example.org a\n") && !hosts.contains("0.10"), "{hosts}");
    assert_eq!(machine.pid("a"), pid);
    machine.status(&["plan"], 0);
}

#[test]
fn the_etc_that_a_template_lays_stays() {
    let Some(machine) = Machine::new() else { return };
    machine.host(HOST);
    machine.write("templates/t/template.toml", "[base]\nhost = true\n");
    machine.write("templates/t/files/etc/hosts", "127.0.0.1 laid\n");
    let jail = format!("{}{}", SLEEP.replace("\"host\"", "\"t\""), vnet("10"));
    machine.jail("a", &jail);
    machine.good(&["apply"]);
    assert_eq!(machine.inside("a", "cat /etc/hosts"), "127.0.0.1 laid\n");
    let id = "0123456789abcdef0123456789abcdef";
    machine.jail("a", &format!("{jail}[host]\nmachine_id = \"{id}\"\n"));
    machine.good(&["apply"]);
    assert_eq!(machine.inside("a", "cat /etc/machine-id"), format!("{id}\n"));
}

#[test]
fn a_jail_without_network_has_only_its_loopback() {
    let Some(machine) = Machine::new() else { return };
    let links = machine.good(&["run", "host", "--", "ip", "-o", "link"]);
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.contains(" lo: ") && links.contains("LOOPBACK,UP"), "{links}");
    assert_eq!(machine.good(&["run", "host", "--", "ip", "route"]), "");
}

#[test]
fn the_hosts_network_needs_leave() {
    let Some(machine) = Machine::new() else { return };
    let inherit = format!("{SLEEP}[network]\nmode = \"inherit\"\n");
    machine.jail("a", &inherit);
    let said = machine.status(&["check"], 3);
    assert!(said.contains("host_network"), "{said}");
    machine.jail("a", &format!("{inherit}[allow]\nhost_network = true\n"));
    machine.good(&["apply"]);
    let own = std::fs::read_link(format!("/proc/{}/ns/net", machine.holder())).unwrap();
    assert_eq!(std::fs::read_link(format!("/proc/{}/ns/net", machine.pid("a"))).unwrap(), own);
}

#[test]
fn two_jails_with_one_address_are_refused() {
    let Some(machine) = Machine::new() else { return };
    machine.host(HOST);
    machine.jail("a", &format!("{SLEEP}{}", vnet("10")));
    machine.jail("b", &format!("{SLEEP}{}", vnet("10")));
    let said = machine.status(&["check"], 3);
    assert!(said.contains("10.77.0.10"), "{said}");
}
