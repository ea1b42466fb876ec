//! What was changed by hand is seen, and put back.

use std::net::UdpSocket;
use std::os::fd::AsFd;

use netlink_packet_route::link::LinkAttribute;

use super::{
    by_hand, ensure_test_bridge, link, netns_of_this_thread, network, on_a_host, spec_of, start, tcp,
};
use crate::network::{Asked, INSIDE, Inside, Spec, look_inside, message, observe, readdress, rejoin};
use crate::sys::netlink::in_netns;

#[test]
fn drift_is_seen_and_repaired() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = spec_of(1);
        let jail = start(&spec);
        in_netns(jail.as_fd(), || {
            let index = link(INSIDE).unwrap().index;
            by_hand(&[
                message::delete_address(index, &spec.addresses[0]),
                message::delete_address(index, &spec.addresses[1]),
                message::add_address(index, &network("10.77.9.9/16")),
                message::add_address(index, &network("192.0.2.1/24")),
                message::add_address(index, &network("fd78::1/64")),
                message::add_address(index, &spec.addresses[0]),
            ]);
        })
        .unwrap();
        let drifted = observe().unwrap().remove(&spec.host_link).unwrap().addresses;
        assert_eq!(drifted.len(), 4, "{drifted:?}");
        readdress(&spec, jail.as_fd()).unwrap();
        assert_eq!(observe().unwrap()[&spec.host_link].addresses, spec.addresses);
        tcp("10.77.0.1".parse().unwrap(), &netns_of_this_thread(), &jail);
        let far = in_netns(jail.as_fd(), || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("203.0.113.1:9").map(|()| socket.local_addr().unwrap().ip())
        });
        assert_eq!(far.unwrap().unwrap(), spec.addresses[0].address, "the default route is back");
        readdress(&spec, jail.as_fd()).unwrap();
        assert_eq!(observe().unwrap()[&spec.host_link].addresses, spec.addresses);
    });
}

#[test]
fn addresses_of_the_jails_own_stay() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = Spec { addresses: Vec::new(), routes: Vec::new(), ..spec_of(1) };
        let jail = start(&spec);
        assert_eq!(observe().unwrap()[&spec.host_link].addresses, []);
        let own = network("10.77.3.3/16");
        in_netns(jail.as_fd(), || by_hand(&[message::add_address(link(INSIDE).unwrap().index, &own)]))
            .unwrap();
        readdress(&spec, jail.as_fd()).unwrap();
        assert_eq!(observe().unwrap()[&spec.host_link].addresses, [own]);
    });
}

#[test]
fn what_is_inside_is_read_and_set_back() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = Spec { mtu: Some(1400), ..spec_of(1) };
        let jail = start(&spec);
        let all = Asked { link: true, v4: true, v6: true };
        let look_for = |asked| in_netns(jail.as_fd(), || look_inside(asked).unwrap()).unwrap();
        let look = || look_for(all);
        let expect = Inside { mac: Some(spec.mac), mtu: Some(1400), routes: spec.routes.clone() };
        assert_eq!(look(), expect);
        let attributes = vec![LinkAttribute::Mtu(1300), LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1])];
        in_netns(jail.as_fd(), || {
            by_hand(&[message::change(INSIDE, attributes, false)]);
            let other = Spec { routes: vec!["10.77.0.9".parse().unwrap()], ..spec.clone() };
            by_hand(&[message::default_route(&other, link(INSIDE).unwrap().index, other.routes[0])]);
        })
        .unwrap();
        let found = Inside {
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: Some(1300),
            routes: vec!["10.77.0.9".parse().unwrap(), "fd77::1".parse().unwrap()],
        };
        assert_eq!(look(), found);
        for (asked, routes) in [
            (Asked { v4: true, ..Asked::default() }, &found.routes[..1]),
            (Asked { v6: true, ..Asked::default() }, &found.routes[1..]),
        ] {
            assert_eq!(look_for(asked), Inside { routes: routes.to_vec(), ..Inside::default() });
        }
        readdress(&spec, jail.as_fd()).unwrap();
        assert_eq!(look(), expect);
    });
}

#[test]
fn where_no_route_ever_was_there_is_none() {
    on_a_host(|| {
        let all = Asked { link: true, v4: true, v6: true };
        let look = || {
            crate::sys::namespace::unshare(libc::CLONE_NEWNET).unwrap();
            look_inside(all).unwrap()
        };
        let found = std::thread::scope(|scope| scope.spawn(look).join().unwrap());
        assert_eq!(found, Inside::default());
    });
}

#[test]
fn a_port_taken_away_rejoins() {
    on_a_host(|| {
        ensure_test_bridge();
        let spec = spec_of(1);
        let jail = start(&spec);
        by_hand(&[message::change(&spec.host_link, vec![LinkAttribute::Controller(0)], false)]);
        assert_eq!(observe().unwrap()[&spec.host_link].bridge, None);
        rejoin(&spec, jail.as_fd()).unwrap();
        assert_eq!(observe().unwrap()[&spec.host_link].bridge.as_ref().unwrap().bridge, "sbtest");
        let before = observe().unwrap()[&spec.host_link].clone();
        by_hand(&[message::delete_link(&spec.host_link, link(&spec.host_link).unwrap().index)]);
        rejoin(&spec, jail.as_fd()).unwrap();
        assert_eq!(observe().unwrap()[&spec.host_link], before);
    });
}
