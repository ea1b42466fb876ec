//! Profiles from the keys of jails.

use serde_json::{Value, json};

use super::*;
use crate::jail::{JailName, Settings};

fn jail(settings: &[(&str, Value)]) -> Jail {
    let settings: Settings = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Jail::from_settings(&JailName::new("web").unwrap(), &settings).unwrap()
}

fn made(settings: &[(&str, Value)]) -> Profile {
    profile(&jail(settings)).unwrap_or_else(|refusals| panic!("{settings:?}: {refusals:?}"))
}

const RUNS: (&str, Value) = ("persist", Value::Bool(true));

fn on_host() -> [(&'static str, Value); 2] {
    [("security.userns", json!(false)), ("security.unsafe", json!(["host-root"]))]
}

#[test]
fn a_command_gets_the_app_profile() {
    let profile = made(&[("exec.command", json!(["/bin/true"]))]);
    assert_eq!(profile.kind, Kind::App);
    assert_eq!(profile.capabilities, APP & !known("NET_BIND_SERVICE"));
    assert!(profile.no_new_privs && profile.filter);
    assert_eq!(profile.allowances, Allowances::default());
    assert!(profile.masked.iter().any(|path| path == "/proc/kcore"));
    assert!(profile.writable.is_empty());
    assert_eq!(profile.env["container"], "stockade");
    assert_eq!(profile.sysctls[0].1, "0");
}

#[test]
fn a_boot_gets_the_system_profile() {
    let profile = made(&[("exec.boot", json!("/sbin/init"))]);
    assert_eq!(profile.kind, Kind::System);
    assert_eq!(profile.capabilities, SYSTEM | known("NET_ADMIN"));
    assert!(!profile.no_new_privs);
    assert_eq!(profile.writable, ["/proc/sys/net"]);
}

/// The kernel takes a filter from a process without SYS_ADMIN only with no_new_privs set.
#[test]
fn a_system_without_sys_admin_gains_no_privileges() {
    let profile = made(&[
        ("exec.boot", json!("/sbin/init")),
        ("security.capabilities", json!(["default", "!SYS_ADMIN"])),
    ]);
    assert!(profile.no_new_privs);
}

#[test]
fn keys_open_one_thing_each() {
    let plain = made(&[RUNS]).capabilities;
    for (key, name) in [
        ("allow.raw_sockets", "NET_RAW"),
        ("allow.mlock", "IPC_LOCK"),
        ("allow.kmsg", "SYSLOG"),
        ("allow.mount", "SYS_ADMIN"),
    ] {
        assert_eq!(made(&[RUNS, (key, json!(true))]).capabilities, plain | known(name), "{key}");
    }
    assert_eq!(made(&[RUNS, ("allow.ptrace", json!(true))]).capabilities, plain);
    assert!(made(&[RUNS, ("allow.ptrace", json!(true))]).allowances.ptrace);
    assert!(made(&[RUNS, ("allow.mount", json!(true))]).allowances.mount);
    let kmsg = made(&[RUNS, ("allow.kmsg", json!(true))]);
    assert!(!kmsg.masked.iter().any(|path| path == "/proc/kmsg"));
    assert!(made(&[RUNS]).masked.iter().any(|path| path == "/proc/kmsg"));
    let inherit = made(&[RUNS, ("network.mode", json!("inherit"))]);
    assert_eq!((inherit.capabilities, inherit.sysctls.len()), (APP, 0));
    assert!(made(&[RUNS, ("security.seccomp", json!("none"))]).program().is_none());
}

#[test]
fn without_a_user_namespace_the_set_is_narrower() {
    let [userns, host_root] = on_host();
    let profile = made(&[RUNS, userns, host_root, ("allow.settime", json!(true))]);
    assert_eq!(profile.capabilities & NEVER_ON_HOST, 0);
    assert_eq!(profile.capabilities & known("SYS_TIME"), known("SYS_TIME"));
}

#[track_caller]
fn check_refused(settings: &[(&str, Value)], expect: &[(&str, &str)]) {
    let refusals = profile(&jail(settings)).expect_err("a refusal");
    let keys: Vec<_> = refusals.iter().map(|refusal| refusal.key).collect();
    assert_eq!(keys, expect.iter().map(|(key, _)| *key).collect::<Vec<_>>(), "{refusals:?}");
    for (refusal, (_, part)) in refusals.iter().zip(expect) {
        assert!(refusal.message.contains(part), "{refusal:?} lacks {part:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_key() {
    let [userns, host_root] = on_host();
    check_refused(std::slice::from_ref(&userns), &[("security.userns", "host-root")]);
    check_refused(
        &[userns.clone(), host_root.clone(), ("exec.boot", json!("/sbin/init"))],
        &[("exec.boot", "userns")],
    );
    check_refused(
        &[userns.clone(), host_root.clone(), ("allow.mount", json!(true))],
        &[("allow.mount", "userns")],
    );
    check_refused(
        &[userns, host_root, ("security.capabilities", json!(["default", "SYS_MODULE", "SYS_ADMIN"]))],
        &[("security.capabilities", "SYS_MODULE, SYS_ADMIN: never")],
    );
    check_refused(
        &[("allow.settime", json!(true)), ("allow.chflags", json!(true))],
        &[("allow.settime", "clock"), ("allow.chflags", "immutable")],
    );
    check_refused(
        &[("allow.raw_sockets", json!(true)), ("security.capabilities", json!(["default", "!NET_RAW"]))],
        &[("allow.raw_sockets", "leaves out")],
    );
    check_refused(
        &[
            ("security.capabilities", json!(["NET_ROW"])),
            ("security.seccomp", json!("strict")),
            ("security.rlimits", json!({"nofiles": 1})),
        ],
        &[
            ("security.capabilities", "did you mean `NET_RAW`?"),
            ("security.seccomp", "`default` or `none`"),
            ("security.rlimits", "nofile"),
        ],
    );
}

#[test]
fn profiles_survive_a_pipe() {
    let profile = made(&[("exec.boot", json!("/sbin/init"))]);
    let text = serde_json::to_string(&profile).unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), profile);
}
