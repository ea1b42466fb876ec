# A whole Debian with systemd as pid 1 boots in a jail with a user namespace.

up() { stockade exec sys -- systemctl is-active --quiet multi-user.target; }
down() { state_is sys stopped || state_is sys failed; }
pid_changed() { local now; now=$(field sys pid); [ -n "$now" ] && [ "$now" != "$1" ]; }

install_stockade
mkdir -p /etc/stockade/templates/debian
cat > /etc/stockade/templates/debian/template.toml <<'E2'
[base]
tar = "/guest/debian.tar"
E2
define sys <<'E2'
template = "debian"
[exec]
boot = "/sbin/init"
stop_timeout = "90s"
timeout = "180s"
[limits]
memory = "512M"
processes = 200
[restart]
policy = "always"
E2
check "apply" stockade apply
pid=$(field sys pid)
check "multi-user is reached" within 240 up
stockade exec sys -- systemctl --no-pager --failed > results/failed.txt 2>&1
check_same "no unit failed" 0 "$(stockade exec sys -- systemctl --failed --no-legend 2>/dev/null | grep -c .)"
check_same "pid 1 is systemd" systemd "$(stockade exec sys -- cat /proc/1/comm)"
check_same "which knows that it is in a jail" container-other "$(stockade exec sys -- systemd-detect-virt --container || true)"
check_same "its name is the jail's" sys "$(stockade exec sys -- hostname)"
check_same "root inside" 0 "$(stockade exec sys -- id -u)"
check "is not root outside" sh -c "! grep -q '^Uid:[[:space:]]*0[[:space:]]' /proc/$pid/status"
stockade exec sys -- systemd-cgls --no-pager > results/cgls.txt 2>&1
check "its own cgroups" test -d "$(dirname "$(cgroup_of "$pid")")/system.slice"
check_same "the limit is ours" $((512 << 20)) "$(cat "$(dirname "$(cgroup_of "$pid")")/memory.max")"
check "and not the jail's to change" sh -c '! stockade exec sys -- sh -c "echo max > /sys/fs/cgroup/memory.max"'
stockade exec sys -- sh -c 'printf "[Service]\nExecStart=/bin/sleep 600\nMemoryMax=32M\n" > /run/systemd/system/mine.service
    systemctl daemon-reload && systemctl start mine'
check_same "a unit's own limit" $((32 << 20)) \
    "$(cat "$(dirname "$(cgroup_of "$pid")")/system.slice/mine.service/memory.max")"
check "the console is in the log" grep -aq "systemd" /var/log/stockade/sys.log
cp /var/log/stockade/sys.log results/console.log
check_same "empty plan" "No changes." "$(stockade plan | tail -1)"

# Reboot from inside: the jail ends, and the next pass starts it again.
stockade exec sys -- systemctl reboot --no-block 2>/dev/null
ended() { ! kill -0 "$pid"; }
check "reboot ends it" within 120 ended
check "the next pass starts it" within 120 stockade apply
check "another process" within 60 pid_changed "$pid"
check "up again" within 240 up

# A clean stop by signal: systemd takes its time, and says so last.
started=$SECONDS
check "stop" stockade stop sys
echo "#    stopped in $((SECONDS - started)) s"
check "stopped" within 30 down
cp /var/log/stockade/sys.log results/console-2.log
check "it was a clean power-off" grep -aqi "power.off" /var/log/stockade/sys.log
check_same "cgroups left" "" "$(find /sys/fs/cgroup -path '*/stockade/*' -type d)"
