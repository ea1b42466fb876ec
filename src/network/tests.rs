//! The netlink half on a real kernel, in network namespaces of its own. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};

use super::message::{self, Link};
use super::observe::Port;
use super::*;
use crate::sys::netlink::{Netlink, in_netns};

mod drift;

/// How long a packet, or the end of a network namespace, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says why nothing is tested, or fails when it must be.
fn skipped() -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    assert!(std::env::var_os("STOCKADE_TEST_MUST_RUN").is_none(), "needs root");
    eprintln!("skipped: needs root");
    true
}

/// A new network namespace, alive as long as the descriptor.
fn netns() -> OwnedFd {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    };
    std::thread::spawn(make).join().unwrap()
}

/// Runs `test` with a new network namespace as the host's.
fn on_a_host(test: impl FnOnce() + Send) {
    if !skipped() {
        in_netns(netns().as_fd(), test).unwrap();
    }
}

fn network(text: &str) -> Network {
    text.to_owned().try_into().unwrap()
}

fn bridge_of(addresses: &[&str]) -> Bridge {
    Bridge { address: addresses.iter().map(|text| network(text)).collect(), mtu: None }
}

fn spec_of(number: u16) -> Spec {
    let name = JailName::new(&format!("test{number}")).unwrap();
    let [high, low] = (number + 10).to_be_bytes();
    Spec {
        bridge: "sbtest".into(),
        host_link: host_link(&name),
        inside: INSIDE.into(),
        mac: mac(&name),
        mtu: None,
        addresses: vec![
            network(&format!("10.77.{high}.{low}/16")),
            network(&format!("fd77::{:x}/64", number + 10)),
        ],
        routes: vec!["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()],
        bridge_addresses: Vec::new(),
        bridge_mtu: None,
        name,
    }
}

/// A jail's network from nothing: its namespace, connected and configured.
fn start(spec: &Spec) -> OwnedFd {
    let jail = netns();
    connect(spec, jail.as_fd()).unwrap();
    in_netns(jail.as_fd(), || configure(Some(spec), Path::new("/proc"))).unwrap().unwrap();
    jail
}

fn ensure_test_bridge() {
    ensure_bridge("sbtest", &bridge_of(&["10.77.0.1/16", "fd77::1/64"])).unwrap();
}

fn link(name: &str) -> Option<Link> {
    observe::read(&mut Netlink::open().unwrap(), name).unwrap()
}

fn addresses_of(name: &str) -> Vec<Network> {
    let index = link(name).unwrap().index;
    let request = message::list_addresses(name, index, None);
    Netlink::open().unwrap().dump(&request, |payload| message::read_address(payload, index)).unwrap()
}

/// Sends requests in the current namespace, as an administrator's `ip` would.
fn by_hand(requests: &[crate::sys::netlink::Request]) {
    Netlink::open().unwrap().send(requests).unwrap();
}

#[test]
fn a_bridge_is_made_once_and_marked() {
    on_a_host(|| {
        ensure_bridge("sbtest", &bridge_of(&["10.77.0.1/24"])).unwrap();
        let first = link("sbtest").unwrap();
        assert!(first.up && first.kind == "bridge" && first.alias == "stockade", "{first:?}");
        let grown = Bridge { mtu: Some(1400), ..bridge_of(&["10.77.0.1/24", "fd77::1/64"]) };
        ensure_bridge("sbtest", &grown).unwrap();
        ensure_bridge("sbtest", &grown).unwrap();
        let second = link("sbtest").unwrap();
        assert_eq!((second.index, &second.mac), (first.index, &first.mac));
        assert_eq!(addresses_of("sbtest"), grown.address);
        let setting =
            |name| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/sbtest/{name}")).unwrap();
        assert_eq!((setting("accept_ra").trim(), setting("mtu").trim()), ("0", "1400"));
        assert!(remove_bridge_if_unused("sbtest").unwrap());
        assert!(!remove_bridge_if_unused("sbtest").unwrap());
        assert_eq!(link("sbtest"), None);
    });
}

#[test]
fn a_foreign_bridge_keeps_what_it_has() {
    on_a_host(|| {
        by_hand(&[message::bridge("br0", [2, 0, 0, 0, 0, 1])]);
        ensure_bridge("br0", &Bridge { mtu: Some(1400), ..bridge_of(&["10.77.0.1/24"]) }).unwrap();
        assert_eq!(addresses_of("br0"), [network("10.77.0.1/24")]);
        let setting = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/br0/{name}")).unwrap();
        assert_eq!((setting("accept_ra").trim(), setting("mtu").trim()), ("1", "1500"));
        assert!(!remove_bridge_if_unused("br0").unwrap());
        assert!(link("br0").is_some());
        let error = ensure_bridge("lo", &Bridge::default()).unwrap_err().to_string();
        assert_eq!(error, "use lo as a bridge: it is a link of another kind");
    });
}

#[test]
fn a_jail_is_connected_and_read_back() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = Spec { mtu: Some(1400), ..spec_of(1) };
        let jail = start(&spec);
        let host = link(&spec.host_link).unwrap();
        assert!(host.running && host.alias == "stockade test1", "{host:?}");
        assert_eq!(host.controller, link("sbtest").map(|bridge| bridge.index));
        in_netns(jail.as_fd(), || {
            let inside = link(INSIDE).unwrap();
            assert!(inside.running && inside.mac == spec.mac, "{inside:?}");
            assert!(link("lo").unwrap().up);
            let setting =
                |name| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/eth0/{name}")).unwrap();
            assert_eq!((setting("accept_ra").trim(), setting("mtu").trim()), ("0", "1400"));
        })
        .unwrap();
        let observed = observe().unwrap();
        let bridge = vec![network("10.77.0.1/16"), network("fd77::1/64")];
        let port = Port { bridge: "sbtest".into(), up: true, addresses: bridge };
        let addresses = spec.addresses.clone();
        let expect = Observed { addresses, bridge: Some(Arc::new(port)), up: true };
        assert_eq!(observed, BTreeMap::from([(spec.host_link.clone(), expect)]));
        assert!(!remove_bridge_if_unused("sbtest").unwrap());
    });
}

#[test]
fn jails_and_host_talk_over_the_bridge() {
    on_a_host(|| {
        ensure_test_bridge();
        let (a, b) = (spec_of(1), spec_of(2));
        let (jail_a, jail_b) = (start(&a), start(&b));
        for own in &a.addresses {
            tcp(own.address, &jail_a, &jail_b);
            udp(own.address, &jail_a, &jail_b);
        }
        for address in ["10.77.0.1", "fd77::1"] {
            let here = in_netns(jail_a.as_fd(), netns_of_this_thread).unwrap();
            let host = netns_of_this_thread();
            tcp(address.parse().unwrap(), &host, &here);
        }
    });
}

fn netns_of_this_thread() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

fn tcp(address: IpAddr, server: &OwnedFd, client: &OwnedFd) {
    let listener = in_netns(server.as_fd(), || TcpListener::bind((address, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let mut client =
        in_netns(client.as_fd(), || TcpStream::connect_timeout(&target, PATIENCE).unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let mut text = [0; 5];
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}

fn udp(address: IpAddr, server: &OwnedFd, client: &OwnedFd) {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let server = in_netns(server.as_fd(), || UdpSocket::bind((address, 0)).unwrap()).unwrap();
    let client = in_netns(client.as_fd(), || UdpSocket::bind(any).unwrap()).unwrap();
    let target: SocketAddr = server.local_addr().unwrap();
    let mut text = [0; 8];
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"ping", target).unwrap();
    let (length, from) = server.recv_from(&mut text).unwrap();
    server.send_to(&text[..length], from).unwrap();
    assert_eq!(client.recv_from(&mut text).unwrap(), (4, target));
}

#[test]
fn a_gateway_off_the_subnet_is_on_the_link() {
    on_a_host(|| {
        ensure_bridge("sbtest", &bridge_of(&["192.0.2.1/32", "2001:db8::1/128"])).unwrap();
        let routes = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let addresses = vec![network("10.77.0.9/32"), network("fd77::9/128")];
        let spec = Spec { routes: routes.clone(), addresses, ..spec_of(1) };
        let jail = start(&spec);
        let bridge = link("sbtest").unwrap().index;
        by_hand(&[
            message::on_link_route(bridge, &spec.addresses[0]),
            message::on_link_route(bridge, &spec.addresses[1]),
        ]);
        let host = netns_of_this_thread();
        for gateway in routes {
            tcp(gateway, &host, &jail);
        }
    });
}

#[test]
fn a_dying_link_is_replaced_and_a_living_one_is_not() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = spec_of(1);
        let jail = start(&spec);
        let other = netns();
        let error = connect(&spec, other.as_fd()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("File exists") && text.contains("is in use"), "{text}");
        drop(jail);
        let second = start(&spec);
        assert_eq!(observe().unwrap()[&spec.host_link].addresses, spec.addresses);
        drop(second);
    });
}

#[test]
fn nothing_is_left_on_the_host() {
    on_a_host(|| {
        let before = links();
        ensure_test_bridge();
        let jails: Vec<_> = (1..=5).map(|number| start(&spec_of(number))).collect();
        assert_eq!(links().len(), before.len() + 6);
        drop(jails);
        disconnect(&(1..=5).map(|number| spec_of(number).host_link).collect()).unwrap();
        assert!(remove_bridge_if_unused("sbtest").unwrap());
        assert_eq!(links(), before);
    });
}

#[test]
fn a_link_that_does_not_die_is_deleted() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = spec_of(1);
        let jail = start(&spec);
        disconnect(&BTreeSet::from([spec.host_link.clone(), "sjabsent".to_owned()])).unwrap();
        assert_eq!(link(&spec.host_link), None);
        assert!(remove_bridge_if_unused("sbtest").unwrap());
        assert_eq!(in_netns(jail.as_fd(), || link(INSIDE)).unwrap(), None);
    });
}

/// Names of all links of the current namespace.
fn links() -> Vec<String> {
    let name = |payload: &[u8]| Link::read(payload).map(|link| link.name);
    Netlink::open().unwrap().dump(&message::list_links(), name).unwrap()
}

#[test]
fn two_hundred_jails_are_observed() {
    on_a_host(|| {
        ensure_test_bridge();
        let specs: Vec<Spec> = (0..200).map(spec_of).collect();
        let _jails: Vec<_> = specs.iter().map(start).collect();
        let observed = observe().unwrap();
        assert_eq!(observed.len(), specs.len());
        for spec in &specs {
            assert_eq!(observed[&spec.host_link].addresses, spec.addresses, "{}", spec.name);
        }
    });
}

#[test]
fn refusals_carry_the_kernels_words() {
    on_a_host(|| {
        let jail = netns();
        let error = connect(&spec_of(1), jail.as_fd()).unwrap_err();
        assert_eq!(error.to_string(), "find bridge sbtest");
        ensure_test_bridge();
        let wrong = Spec { mtu: Some(1), ..spec_of(1) };
        let error = connect(&wrong, jail.as_fd()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("create link {} on bridge sbtest: Invalid argument (os error 22)", wrong.host_link)
        );
        assert_eq!(link(&wrong.host_link), None);
        let wrong = Spec { routes: vec!["10.77.255.255".parse().unwrap()], ..spec_of(1) };
        connect(&wrong, jail.as_fd()).unwrap();
        let error = in_netns(jail.as_fd(), || configure(Some(&wrong), Path::new("/proc")))
            .unwrap()
            .unwrap_err()
            .to_string();
        let expect =
            "set default route 10.77.255.255: Invalid argument (os error 22): Nexthop has invalid gateway";
        assert_eq!(error, expect);
    });
}

/// `cargo test --lib network::tests::measure -- --ignored --nocapture`; with `V4=1`, IPv4 only.
#[test]
#[ignore = "prints figures, checks none"]
fn measure_a_thousand() {
    on_a_host(|| {
        ensure_test_bridge();
        let mut specs: Vec<Spec> = (0..1000).map(spec_of).collect();
        if std::env::var("V4").is_ok() {
            for s in &mut specs {
                s.addresses.truncate(1);
                s.routes.truncate(1);
            }
        }
        let jails: Vec<_> = specs.iter().map(|_| netns()).collect();
        let (mut connecting, mut configuring) = (Vec::new(), Vec::new());
        for (spec, jail) in specs.iter().zip(&jails) {
            let start = Instant::now();
            connect(spec, jail.as_fd()).unwrap();
            connecting.push(start.elapsed());
            let own = proc();
            let proc = PathBuf::from(format!("/proc/self/fd/{}", own.as_raw_fd()));
            configuring
                .push(in_netns(jail.as_fd(), || timed(|| configure(Some(spec), &proc).unwrap())).unwrap());
        }
        for (what, times) in [("connect", &connecting), ("configure", &configuring)] {
            for part in [&times[..100], &times[900..]] {
                eprintln!("{what}: {:?} each", part.iter().sum::<Duration>() / 100);
            }
        }
        for _ in 0..3 {
            let used =
                || getrusage(UsageWho::RUSAGE_THREAD).map(|u| (u.user_time(), u.system_time())).unwrap();
            let before = used();
            eprintln!("observe: {:?}", timed(|| assert_eq!(observe().unwrap().len(), 1000)));
            let after = used();
            eprintln!("user {} system {}", after.0 - before.0, after.1 - before.1);
        }
        eprintln!("readdress: {:?}", timed(|| readdress(&specs[7], jails[7].as_fd()).unwrap()));
        let host_links = specs.iter().map(|spec| spec.host_link.clone()).collect();
        eprintln!("close: {:?}", timed(|| drop(jails)));
        eprintln!("disconnect: {:?}", timed(|| disconnect(&host_links).unwrap()));
        eprintln!("remove bridge: {:?}", timed(|| assert!(remove_bridge_if_unused("sbtest").unwrap())));
    });
}

/// A new mount of proc(5), as a jail has it.
fn proc() -> OwnedFd {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(context.as_fd()).unwrap();
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

/// What the next test runs in a user namespace: waits for a line, configures, waits for the end.
#[test]
#[ignore = "run by a_jail_configures_itself_without_the_hosts_root"]
fn inside_child() {
    let spec: Spec = serde_json::from_str(&std::env::var("STOCKADE_TEST_SPEC").unwrap()).unwrap();
    let mut line = String::new();
    eprintln!("ready");
    std::io::stdin().read_line(&mut line).unwrap();
    configure(Some(&spec), Path::new("/proc")).unwrap();
    eprintln!("configured");
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn a_jail_configures_itself_without_the_hosts_root() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = spec_of(1);
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "network::tests::inside_child", "--ignored", "--nocapture"])
            .env("STOCKADE_TEST_SPEC", serde_json::to_string(&spec).unwrap())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(says.any(|line| line == "ready"));
        let jail = std::fs::File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        connect(&spec, jail.as_fd()).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"go\n").unwrap();
        assert!(says.any(|line| line == "configured"));
        assert_eq!(observe().unwrap()[&spec.host_link].addresses, spec.addresses);
        let moved = Spec { addresses: vec![network("10.77.0.99/16")], ..spec.clone() };
        readdress(&moved, jail.as_fd()).unwrap();
        assert_eq!(observe().unwrap()[&spec.host_link].addresses, moved.addresses);
        drop(stdin);
        assert!(child.wait().unwrap().success());
    });
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
