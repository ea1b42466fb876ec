//! What a jail's cgroup says now: limits for drift, use for people. Reads only.

use std::io;
use std::ops::Bound::{Excluded, Included};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::cgroup::Cgroup;
use super::hierarchies::join;
use super::mounts::Controller;
use super::setting::{LIMIT_ONE, SUM_ONE};
use super::value::{self, bytes, cpus, field, same_bytes, shares, thousandths, weight};
use crate::jail::Settings;
use crate::sys::cgroup::{Tree, VALUE_BYTES_MAX, page_bytes};

/// What a jail uses. What this host does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, page cache included.
    pub memory: u64,
    /// Microseconds of CPU time.
    pub cpu_usec: u64,
}

impl Cgroup {
    /// The limits among `wanted`'s keys as the kernel has them, in the same form: bytes,
    /// thousandths of a CPU. A value that is `wanted` but for the kernel's rounding is given as
    /// wanted; no limit is `null`. A key whose file is not there is absent, as all are once the
    /// cgroup is gone.
    pub fn observe(&self, wanted: &Settings) -> Result<Settings> {
        let mut observed = Settings::new();
        // All keys that begin with `limits.`, for `/` follows `.`.
        for (key, want) in wanted.range::<str, _>((Included("limits."), Excluded("limits/"))) {
            if let Some(found) = self.observe_one(key, want, wanted)? {
                observed.insert(key.clone(), found);
            }
        }
        Ok(observed)
    }

    fn observe_one(&self, key: &str, want: &Value, all: &Settings) -> Result<Option<Value>> {
        let two = self.host.two();
        let number = want.as_u64();
        match key {
            "limits.memory" => self.observe_bytes(if two { "memory.max" } else { LIMIT_ONE }, number),
            "limits.memory_high" if two => self.observe_bytes("memory.high", number),
            "limits.swap" if two => self.observe_bytes("memory.swap.max", number),
            "limits.swap" => self.observe_swap_one(number, all.get("limits.memory").and_then(Value::as_u64)),
            "limits.processes" => self.observe_bytes_of(Controller::Pids, "pids.max", 1, number),
            "limits.cpu" => self.observe_cpu(number),
            "limits.cpu_weight" => self.observe_weight(number),
            "limits.cpuset" => self.observe_cpuset(want),
            _ => Ok(None),
        }
    }

    fn observe_bytes(&self, file: &str, want: Option<u64>) -> Result<Option<Value>> {
        self.observe_bytes_of(Controller::Memory, file, page_bytes(), want)
    }

    fn observe_bytes_of(
        &self,
        at: Controller,
        file: &str,
        unit: u64,
        want: Option<u64>,
    ) -> Result<Option<Value>> {
        let found = self.number(at, file, bytes)?;
        Ok(found.map(|found| if same_bytes(unit, want, found) { want.into() } else { found.into() }))
    }

    /// v1 has the sum only; each of its parts is rounded by itself.
    fn observe_swap_one(&self, want: Option<u64>, memory: Option<u64>) -> Result<Option<Value>> {
        let limit = self.number(Controller::Memory, LIMIT_ONE, bytes)?;
        let sum = self.number(Controller::Memory, SUM_ONE, bytes)?;
        let (Some(limit), Some(sum)) = (limit, sum) else { return Ok(None) };
        let wanted_sum = want.zip(memory).map(|(swap, memory)| swap.saturating_add(memory));
        if same_bytes(page_bytes(), wanted_sum, sum) && same_bytes(page_bytes(), memory, limit) {
            return Ok(Some(want.into()));
        }
        Ok(Some(sum.zip(limit).map(|(sum, limit)| sum.saturating_sub(limit)).into()))
    }

    fn observe_cpu(&self, want: Option<u64>) -> Result<Option<Value>> {
        let found = if self.host.two() {
            self.number(Controller::Cpu, "cpu.max", |text| {
                let (quota, period) = text.split_once(' ')?;
                Some((bytes(quota)?, period.parse().ok()?))
            })?
        } else {
            let quota = self.number(Controller::Cpu, "cpu.cfs_quota_us", bytes)?;
            quota.zip(self.number(Controller::Cpu, "cpu.cfs_period_us", |text| text.parse::<u64>().ok())?)
        };
        let Some((quota, period)) = found else { return Ok(None) };
        let cpu = quota.and_then(|quota| thousandths(quota, period));
        Ok(Some(if quota.map(|quota| (quota, period)) == want.map(value::quota) {
            want.into()
        } else {
            cpu.into()
        }))
    }

    fn observe_weight(&self, want: Option<u64>) -> Result<Option<Value>> {
        let parse = |text: &str| text.parse::<u64>().ok();
        if self.host.two() {
            return Ok(self.number(Controller::Cpu, "cpu.weight", parse)?.map(Value::from));
        }
        let found = self.number(Controller::Cpu, "cpu.shares", parse)?;
        Ok(found
            .map(|found| if want.map(shares) == Some(found) { want.into() } else { weight(found).into() }))
    }

    fn observe_cpuset(&self, want: &Value) -> Result<Option<Value>> {
        let found = self.number(Controller::Cpuset, "cpuset.cpus", |text| Some(text.to_owned()))?;
        Ok(found.map(|found| {
            let wanted = want.as_str().and_then(cpus);
            if wanted.is_some() && wanted == cpus(&found) { want.clone() } else { found.into() }
        }))
    }

    /// One value; `None` where the file or the whole hierarchy is not there.
    fn number<T>(&self, at: Controller, file: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
        let Ok(tree) = self.host.tree(at) else { return Ok(None) };
        self.read_if_there(tree, file, parse)
    }

    fn read_if_there<T>(
        &self,
        tree: &Tree,
        file: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let (path, mut buffer) = (join(&self.path, file), [0; VALUE_BYTES_MAX]);
        let full = || tree.full(&path).display().to_string();
        match tree.read(&path, &mut buffer) {
            Ok(text) => {
                parse(text).map(Some).with_context(|| format!("read {}: `{text}` is not understood", full()))
            }
            // ENODEV: removed between the open and the read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", full())),
        }
    }

    /// What the jail uses, all zero when it is gone.
    pub fn usage(&self) -> Result<Usage> {
        let file = if self.host.two() { "memory.current" } else { "memory.usage_in_bytes" };
        let memory = self.number(Controller::Memory, file, |text| text.parse().ok())?;
        Ok(Usage { memory: memory.unwrap_or(0), cpu_usec: self.cpu_usec()? })
    }

    /// Processes killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        let file = if self.host.two() { "memory.events" } else { "memory.oom_control" };
        let kills = self.number(Controller::Memory, file, |text| field(text, "oom_kill"))?;
        Ok(kills.unwrap_or(0))
    }

    /// The v2 hierarchy counts time without any controller; without it, v1's own counts nanoseconds.
    fn cpu_usec(&self) -> Result<u64> {
        let found = match self.host.unified() {
            Some(tree) => self.read_if_there(tree, "cpu.stat", |text| field(text, "usage_usec"))?,
            None => self.number(Controller::Cpuacct, "cpuacct.usage", |text| {
                Some(text.parse::<u64>().ok()? / 1000)
            })?,
        };
        Ok(found.unwrap_or(0))
    }
}
