//! Limits as files and texts, for either version of cgroups. Pure.

use super::mounts::Controller;
use super::value::{Kind, PERIOD_US, quota, shares};
use crate::jail::Limits;

/// Processes and threads of a jail that says nothing of `limits.processes`: enough for a busy
/// server, little enough that a fork bomb leaves the host usable; podman's number too.
pub const PROCESSES_DEFAULT: u64 = 2048;

/// One file and what is to be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key of the definition, for messages.
    pub key: &'static str,
    pub controller: Controller,
    pub file: &'static str,
    pub value: String,
    /// What a fresh cgroup has in this file.
    pub fresh: &'static str,
    pub kind: Kind,
}

impl Setting {
    /// Whether the file has to be written in a fresh cgroup.
    pub fn needed(&self) -> bool {
        self.value != self.fresh
    }
}

/// What the kernel of this host offers beyond the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub two: bool,
    /// Swap is accounted, and so can be limited.
    pub swap: bool,
}

/// All files the limits decide, in the order in which a fresh cgroup takes them. The lists for any
/// two limits on one host have the same files in the same order.
pub fn settings(offer: Offer, limits: &Limits) -> Vec<Setting> {
    if offer.two { settings_two(limits) } else { settings_one(offer, limits) }
}

fn row(
    key: &'static str,
    controller: Controller,
    file: &'static str,
    value: String,
    fresh: &'static str,
    kind: Kind,
) -> Setting {
    Setting { key, controller, file, value, fresh, kind }
}

fn settings_two(limits: &Limits) -> Vec<Setting> {
    use Controller::{Cpu, Cpuset, Memory};
    let max = |limit: Option<u64>| limit.map_or_else(|| "max".to_owned(), |n| n.to_string());
    // With memory limited and nothing said of swap, swap would be a way around the limit.
    let swap = limits.swap.or(limits.memory.map(|_| 0));
    let cpu = limits.cpu.map_or((None, PERIOD_US), |cpu| {
        let (quota, period) = quota(cpu);
        (Some(quota), period)
    });
    vec![
        row("limits.memory", Memory, "memory.oom.group", "1".into(), "0", Kind::Text),
        row("limits.swap", Memory, "memory.swap.max", max(swap), "max", Kind::Bytes),
        row("limits.memory_high", Memory, "memory.high", max(limits.memory_high), "max", Kind::Bytes),
        row("limits.memory", Memory, "memory.max", max(limits.memory), "max", Kind::Bytes),
        processes(limits),
        row("limits.cpu", Cpu, "cpu.max", format!("{} {}", max(cpu.0), cpu.1), "max 100000", Kind::Text),
        row(
            "limits.cpu_weight",
            Cpu,
            "cpu.weight",
            limits.cpu_weight.unwrap_or(100).to_string(),
            "100",
            Kind::Text,
        ),
        row("limits.cpuset", Cpuset, "cpuset.cpus", cpuset(limits), "", Kind::Cpus),
    ]
}

fn settings_one(offer: Offer, limits: &Limits) -> Vec<Setting> {
    use Controller::{Cpu, Cpuset, Memory};
    let none = || "-1".to_owned();
    let memory = limits.memory.map_or_else(none, |n| n.to_string());
    // v1 limits the sum. A swap key without accounting is refused before this.
    let sum = limits.memory.filter(|_| offer.swap).map(|n| n.saturating_add(limits.swap.unwrap_or(0)));
    let cpu = limits.cpu.map(quota);
    vec![
        row("limits.memory", Memory, LIMIT_ONE, memory, "-1", Kind::Bytes),
        row("limits.swap", Memory, SUM_ONE, sum.map_or_else(none, |n| n.to_string()), "-1", Kind::Bytes),
        processes(limits),
        row(
            "limits.cpu",
            Cpu,
            "cpu.cfs_period_us",
            cpu.map_or(PERIOD_US, |c| c.1).to_string(),
            "100000",
            Kind::Text,
        ),
        row(
            "limits.cpu",
            Cpu,
            "cpu.cfs_quota_us",
            cpu.map_or_else(none, |c| c.0.to_string()),
            "-1",
            Kind::Text,
        ),
        row(
            "limits.cpu_weight",
            Cpu,
            "cpu.shares",
            shares(limits.cpu_weight.unwrap_or(100)).to_string(),
            "1024",
            Kind::Text,
        ),
        row("limits.cpuset", Cpuset, "cpuset.cpus", cpuset(limits), "", Kind::Cpus),
    ]
}

/// The hard memory limit of cgroup v1.
pub const LIMIT_ONE: &str = "memory.limit_in_bytes";
/// The limit on memory and swap together of cgroup v1; never below [`LIMIT_ONE`].
pub const SUM_ONE: &str = "memory.memsw.limit_in_bytes";

fn processes(limits: &Limits) -> Setting {
    let value = limits.processes.unwrap_or(PROCESSES_DEFAULT).to_string();
    row("limits.processes", Controller::Pids, "pids.max", value, "max", Kind::Text)
}

fn cpuset(limits: &Limits) -> String {
    limits.cpuset.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The written files as `file=value`, those of a fresh cgroup left out.
    fn check(offer: Offer, limits: &Limits, expect: &[&str]) {
        let all = settings(offer, limits);
        let written: Vec<String> =
            all.iter().filter(|s| s.needed()).map(|s| format!("{}={}", s.file, s.value)).collect();
        assert_eq!(written, expect);
    }

    fn full() -> Limits {
        Limits {
            memory: Some(512 << 20),
            memory_high: Some(256 << 20),
            swap: Some(1 << 20),
            cpu: Some(1500),
            cpu_weight: Some(200),
            cpuset: Some("0-1".into()),
            processes: Some(200),
            ..Limits::default()
        }
    }

    const TWO: Offer = Offer { two: true, swap: true };
    const ONE: Offer = Offer { two: false, swap: true };

    #[test]
    fn version_two() {
        check(TWO, &Limits::default(), &["memory.oom.group=1", "pids.max=2048"]);
        check(
            TWO,
            &full(),
            &[
                "memory.oom.group=1",
                "memory.swap.max=1048576",
                "memory.high=268435456",
                "memory.max=536870912",
                "pids.max=200",
                "cpu.max=150000 100000",
                "cpu.weight=200",
                "cpuset.cpus=0-1",
            ],
        );
        let memory = Limits { memory: Some(4096), ..Limits::default() };
        check(TWO, &memory, &["memory.oom.group=1", "memory.swap.max=0", "memory.max=4096", "pids.max=2048"]);
    }

    #[test]
    fn version_one() {
        check(ONE, &Limits::default(), &["pids.max=2048"]);
        check(
            ONE,
            &full(),
            &[
                "memory.limit_in_bytes=536870912",
                "memory.memsw.limit_in_bytes=537919488",
                "pids.max=200",
                "cpu.cfs_quota_us=150000",
                "cpu.shares=2048",
                "cpuset.cpus=0-1",
            ],
        );
        let small = Limits { memory: Some(4096), cpu: Some(5), ..Limits::default() };
        check(
            Offer { swap: false, ..ONE },
            &small,
            &[
                "memory.limit_in_bytes=4096",
                "pids.max=2048",
                "cpu.cfs_period_us=1000000",
                "cpu.cfs_quota_us=5000",
            ],
        );
    }

    #[test]
    fn two_lists_of_one_host_pair_up() {
        for offer in [ONE, TWO, Offer { swap: false, ..ONE }] {
            let files = |limits| settings(offer, &limits).into_iter().map(|s| s.file).collect::<Vec<_>>();
            assert_eq!(files(full()), files(Limits::default()));
        }
    }
}
