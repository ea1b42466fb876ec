# Every limit on cgroup v2: in force from the start, read back, changed live, and what happens
# to a jail that runs into it.

of() { cat "$(cgroup_of "$(field box pid)")/$1"; }
define_box() {
    define box <<E2
template = "host"
[exec]
command = ["sleep", "infinity"]
[limits]
$1
E2
}

install_stockade
define_box 'memory = "64M"
memory_high = "48M"
swap = "16M"
cpu = 0.5
cpu_weight = 50
cpuset = "1"
processes = 20'
check "apply" stockade apply
check_same "memory" $((64 << 20)) "$(of memory.max)"
check_same "memory_high" $((48 << 20)) "$(of memory.high)"
check_same "swap" $((16 << 20)) "$(of memory.swap.max)"
check_same "cpu" "50000 100000" "$(of cpu.max)"
check_same "cpu_weight" 50 "$(of cpu.weight)"
check_same "cpuset" 1 "$(of cpuset.cpus.effective)"
check_same "processes" 20 "$(of pids.max)"
check_same "empty plan" "No changes." "$(stockade plan | tail -1)"

pid=$(field box pid)
define_box 'memory = "96M"
swap = "0M"
cpu = 1.25
cpuset = "0"
processes = 30'
check "live change" stockade apply
check "the same process" pid_is box "$pid"
check_same "memory" $((96 << 20)) "$(of memory.max)"
check_same "memory_high given up" max "$(of memory.high)"
check_same "no swap" 0 "$(of memory.swap.max)"
check_same "cpu" "125000 100000" "$(of cpu.max)"
check_same "cpu_weight given up" 100 "$(of cpu.weight)"
check_same "cpuset" 0 "$(of cpuset.cpus.effective)"
check_same "processes" 30 "$(of pids.max)"
check_same "empty plan" "No changes." "$(stockade plan | tail -1)"

# The fork that would be one too many fails inside, and the host has its own processes.
forks=$(stockade exec box -- sh -c 'i=0; while [ $i -lt 60 ]; do sleep 3 2>/dev/null & i=$((i+1)); done' 2>&1)
check "the limit of processes was hit" grep -q '^max [1-9]' "$(cgroup_of "$pid")/pids.events"
echo "#    $(head -1 <<<"$forks")"
check "the jail lives on" state_is box running

# A cut below what is in use waits, and kills nothing.
stockade exec box -- perl -e 'vec($x, 50 << 20, 8) = 1; $| = 1; print "full\n"; sleep 600' > /tmp/eater &
eater=$!
check "memory in use" within 60 grep -q full /tmp/eater
define_box 'memory = "24M"
swap = "0M"'
stockade apply > results/staged.txt 2>&1
echo "#    apply of a staged cut: status $?, $(tail -1 results/staged.txt)"
check "nothing was killed" kill -0 "$eater"
check_same "no kill counted" "oom_kill 0" "$(of memory.events | grep '^oom_kill ')"
check "still above the cut" test "$(of memory.max)" -gt $((24 << 20))
kill "$eater"
wait "$eater" 2>/dev/null
check "the cut goes through when there is room" within 60 stockade apply
check_same "memory" $((24 << 20)) "$(of memory.max)"

# Out of memory: the jail dies of it, the host does not, and it is written down.
define hog <<'E2'
template = "host"
[exec]
command = ["perl", "-e", "$x = 'x' x (200 << 20); sleep 600"]
[limits]
memory = "32M"
swap = "0M"
E2
stockade apply > results/hog.txt 2>&1
hog_failed() { state_is hog failed || state_is hog stopped; }
check "the hog ends" within 60 hog_failed
stockade ls > results/ls.txt 2>&1
stockade status >> results/ls.txt 2>&1
check "and is said to be out of memory" grep -q "out of memory" results/ls.txt
check "the neighbour lives on" state_is box running
check "the kernel killed in the jail's cgroup" sh -c 'dmesg | grep -q "oom_memcg=.*/stockade/hog"'

# Freezing, killing, and nothing left.
check "freeze" stockade freeze box
check_same "frozen" frozen "$(field box state)"
check "thaw" stockade thaw box
check "running again" state_is box running
rm /etc/stockade/jails.d/*.toml
check "removal" stockade apply
check_same "cgroups left" "" "$(find /sys/fs/cgroup -mindepth 2 -path '*/stockade/*' -type d)"
