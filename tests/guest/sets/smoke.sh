# The binary runs here at all, and a jail in it.
install_stockade
check "version" stockade --version
check "check of an empty host" stockade check
stockade doctor > results/doctor.txt 2>&1
check "doctor" stockade doctor
check "run host -- true" stockade run host -- true
stockade run host -- sh -c 'exit 7'
check_same "status of a command" 7 $?
check_same "own pid namespace" 1 "$(stockade run host -- sh -c 'echo $PPID')"
check_same "root inside, somebody else outside" 0 "$(stockade run host -- id -u)"
for _ in 1 2 3; do check "once more" stockade run host -- true; done
check_same "cgroups left" "" "$(find /sys/fs/cgroup -mindepth 2 -path '*/stockade/*' -type d)"
check_same "mounts left" "" "$(grep -c stockade /proc/self/mountinfo | grep -v '^0$')"
