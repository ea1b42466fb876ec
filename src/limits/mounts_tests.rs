use super::*;

const THIS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
const THIS_TABLE: &str = "\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpuset\t3\t1\t1
cpu\t1\t1\t1
cpuacct\t2\t1\t1
memory\t4\t13\t1
devices\t5\t1\t1
freezer\t6\t1\t1
hugetlb\t0\t1\t1
pids\t8\t1\t1
";
const TWO: &str = "\
24 30 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
35 24 0:29 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
90 30 0:60 / /srv/net\\040cls rw - cgroup net_cls rw,net_cls
";
const TWO_TABLE: &str = "#n\th\tc\te\ncpuset\t0\t90\t1\ncpu\t0\t90\t1\nmemory\t0\t90\t1\npids\t0\t90\t1\n";
const HYBRID: &str = "\
24 30 0:22 / /sys rw - sysfs sysfs rw
30 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
31 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
36 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
37 31 0:32 / /sys/fs/cgroup/memory rw shared:16 - cgroup cgroup rw,memory
38 31 0:33 / /sys/fs/cgroup/pids rw shared:17 - cgroup cgroup rw,pids
";
/// A container in a container: the outer one's hierarchies read only and from above, its own tmpfs
/// and mounts over them, and one hierarchy bound a second time, in part.
const DOCKER: &str = "\
500 400 0:50 / / rw - overlay overlay rw
501 500 0:51 / /sys ro - sysfs sysfs ro
502 501 0:52 / /sys/fs/cgroup rw - tmpfs tmpfs rw
503 502 0:28 /../.. /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct
504 502 0:32 /docker/abc /sys/fs/cgroup/memory ro master:16 - cgroup cgroup rw,memory
505 502 0:70 / /sys/fs/cgroup rw - tmpfs tmpfs rw
506 505 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
507 505 0:32 /docker/abc /srv/part rw - cgroup cgroup rw,memory
508 505 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
509 505 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";

fn check(mountinfo: &str, cgroups: &str, expect: &[(&str, &str)]) {
    let mounts = parse(mountinfo, cgroups).expect("a layout that is served");
    let unified = mounts.unified.iter().map(|path| ("unified", path.to_str().expect("ASCII")));
    let v1 = mounts.v1.iter().map(|(c, path)| (c.name(), path.to_str().expect("ASCII")));
    assert_eq!(v1.chain(unified).collect::<Vec<_>>(), expect);
}

fn refused(mountinfo: &str, cgroups: &str, expect: &str) {
    let error = parse(mountinfo, cgroups).expect_err("a layout that is refused").to_string();
    assert!(error.contains(expect), "{error}");
}

#[test]
fn v1_controllers_beside_an_empty_v2() {
    check(
        THIS,
        THIS_TABLE,
        &[
            ("memory", "/sys/fs/cgroup/memory"),
            ("pids", "/sys/fs/cgroup/pids"),
            ("cpu", "/sys/fs/cgroup/cpu"),
            ("cpuacct", "/sys/fs/cgroup/cpuacct"),
            ("cpuset", "/sys/fs/cgroup/cpuset"),
            ("devices", "/sys/fs/cgroup/devices"),
            ("freezer", "/sys/fs/cgroup/freezer"),
            ("unified", "/sys/fs/cgroup/unified"),
        ],
    );
}

#[test]
fn v2_alone_though_some_stray_v1_controller_is_mounted() {
    check(TWO, TWO_TABLE, &[("unified", "/sys/fs/cgroup")]);
    assert!(parse(TWO, TWO_TABLE).unwrap().two());
}

#[test]
fn controllers_mounted_together() {
    let table = "cpuset\t3\t1\t1\ncpu\t1\t1\t1\ncpuacct\t1\t1\t1\nmemory\t4\t1\t1\npids\t8\t1\t1\n";
    check(
        HYBRID,
        table,
        &[
            ("memory", "/sys/fs/cgroup/memory"),
            ("pids", "/sys/fs/cgroup/pids"),
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("unified", "/sys/fs/cgroup/unified"),
        ],
    );
    let missing = parse(HYBRID, table).unwrap().missing;
    assert!(missing[&Controller::Cpuset].contains("mount -t cgroup -o cpuset"));
    assert!(missing[&Controller::Devices].contains("built without"));
}

#[test]
fn hidden_foreign_and_partial_mounts_are_passed_over() {
    check(
        DOCKER,
        "cpu\t1\t1\t1\nmemory\t4\t1\t1\npids\t8\t1\t1\n",
        &[
            ("memory", "/sys/fs/cgroup/memory"),
            ("pids", "/sys/fs/cgroup/pids"),
            ("cpu", "/sys/fs/cgroup/cpu"),
            ("cpuacct", "/sys/fs/cgroup/cpu"),
        ],
    );
}

#[test]
fn a_disabled_controller_is_named_with_its_fix() {
    let mountinfo: String =
        THIS.lines().filter(|l| !l.ends_with("rw,memory")).flat_map(|l| [l, "\n"]).collect();
    let mounts = parse(&mountinfo, "memory\t0\t1\t0\npids\t8\t1\t1\ncpu\t1\t1\t1\n").unwrap();
    assert_eq!(mounts.missing[&Controller::Memory], "no memory controller: boot with cgroup_enable=memory");
}

#[test]
fn other_layouts_are_refused() {
    let split: String = THIS.lines().filter(|l| !l.ends_with("rw,pids")).flat_map(|l| [l, "\n"]).collect();
    refused(&split, "memory\t4\t1\t1\npids\t0\t1\t1\ncpu\t1\t1\t1\n", "memory is on v1 and pids on v2");
    refused("27 1 8:1 / / rw - ext4 /dev/vda rw\n", "", "no cgroup file system is mounted");
    refused(
        "35 24 0:29 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
        "",
        "/sys/fs/cgroup is mounted read only",
    );
    refused("35 24 0:29 /../x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "", "no cgroup file system");
    refused("not a mountinfo", "", "no cgroup file system");
}

#[test]
fn escapes_of_mountinfo() {
    assert_eq!(unescape("/a\\040b\\011c\\134040"), Path::new("/a b\tc\\040"));
}
