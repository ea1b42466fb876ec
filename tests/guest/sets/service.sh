# reboots
# The unit from etc/ under systemd: up at boot, adopts what runs, never stops a jail.

web_pid() { field web pid; }
limit_of() { cat "$(cgroup_of "$(field "$1" pid)")/$2"; }
limit_is() { [ "$(limit_of "$1" "$2")" = "$3" ]; }
same_pids() { [ "$(field web pid) $(field db pid)" = "$before" ]; }
# A daemon is settled when its status names the number of jails it has up.
settled() { systemctl show -p StatusText --value stockade | grep -q '^2 jails up$'; }
daemon_pid() { systemctl show -p MainPID --value stockade; }
main_changed() { local now; now=$(daemon_pid); [ "$now" != 0 ] && [ "$now" != "$1" ]; }

define_web() {
    define web <<E2
template = "host"
depend = ["db"]
[exec]
command = ["/usr/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/usr/lib/stockade-guest"]
[network]
mode = "vnet"
address = ["10.77.0.10/24"]
[limits]
memory = "$1"
cpu = 0.5
processes = 50
E2
}

case $PHASE in
1)
    install_stockade
    mkdir -p /usr/lib/stockade-guest
    echo hello > /usr/lib/stockade-guest/hello.txt
    define db <<'E2'
template = "host"
[exec]
command = ["sleep", "infinity"]
[limits]
memory = "32M"
E2
    define_web 64M
    check "definitions" stockade check
    check "systemd-analyze verify" systemd-analyze verify --man=no stockade.service
    check_same "verify says nothing" "" "$(systemd-analyze verify --man=no stockade.service 2>&1)"
    systemd-analyze security --no-pager stockade.service > results/security.txt 2>&1
    echo "#    $(tail -1 results/security.txt)"
    check "enable" systemctl enable stockade.service
    next_boot
    ;;
2)
    check "active at boot" within 120 systemctl is-active --quiet stockade
    check "READY with a status" within 120 settled
    systemctl status --no-pager -l stockade > results/status.txt 2>&1
    systemd-cgls --no-pager /system.slice/stockade.service > results/cgls.txt 2>&1
    check_same "daemon's leaf" /system.slice/stockade.service/daemon \
        "$(sed -n 's/^0:://p' "/proc/$(daemon_pid)/cgroup")"
    check_same "a jail's cgroup" /system.slice/stockade.service/stockade/web \
        "$(sed -n 's/^0:://p' "/proc/$(web_pid)/cgroup")"
    check "page by the jail's address" within 60 curl -fsS -o /dev/null http://10.77.0.10/hello.txt --max-time 10
    check_same "empty plan" "No changes." "$(stockade plan | tail -1)"

    before="$(field web pid) $(field db pid)"
    define_web 96M
    check "edit converges" within 60 limit_is web memory.max $((96 << 20))
    check "without a restart" same_pids
    cp /etc/stockade/jails.d/db.toml /root/db.toml
    echo "template = nowhere" | define db
    sleep 5
    check "a broken file stops nothing" same_pids
    define db < /root/db.toml
    check "settled again" within 60 settled

    main=$(daemon_pid)
    check "systemctl restart" systemctl restart stockade
    check "settled after restart" within 60 settled
    check "jails kept by restart" same_pids
    main=$(daemon_pid)
    kill -KILL "$main"
    check "systemd starts it anew" within 60 main_changed "$main"
    check "settled after kill -9" within 60 settled
    check "jails kept by kill -9" same_pids

    systemctl daemon-reload
    check_same "memory after daemon-reload" $((96 << 20)) "$(limit_of web memory.max)"
    check_same "cpu after daemon-reload" "50000 100000" "$(limit_of web cpu.max)"
    check_same "processes after daemon-reload" 50 "$(limit_of web pids.max)"
    check "systemctl reload" systemctl reload stockade
    check "settled after reload" within 60 settled
    check "jails kept by reload" same_pids

    # What only stands in the kernel is put back.
    echo 40 > "$(cgroup_of "$(web_pid)")/pids.max"
    systemctl reload stockade
    check "drift of a limit is repaired" within 60 limit_is web pids.max 50

    kill -KILL "$(field db pid)"
    check "a killed jail is seen" within 60 state_is db failed
    stockade ls > results/ls.txt
    check "started by hand" stockade start db
    check "settled with it" within 60 settled
    before="$(field web pid) $(field db pid)"

    check "systemctl stop" systemctl stop stockade
    check "jails stay" same_pids
    check_same "a shell finds them" "No changes." "$(stockade plan | tail -1)"
    check "exec from a shell" stockade exec db -- true
    systemctl daemon-reload
    check_same "memory without the daemon" $((96 << 20)) "$(limit_of web memory.max)"
    check_same "cpu without the daemon" "50000 100000" "$(limit_of web cpu.max)"
    define_web 80M
    check "apply without the daemon" stockade apply
    check_same "limit by apply" $((80 << 20)) "$(limit_of web memory.max)"
    check "start again" systemctl start stockade
    check "adopted" within 60 settled
    check "with the same processes" same_pids
    next_boot
    ;;
3)
    check "back after a reboot" within 180 settled
    check_same "with the last limit" $((80 << 20)) "$(limit_of web memory.max)"
    rm /etc/stockade/jails.d/web.toml
    gone() { ! [ -e /sys/fs/cgroup/system.slice/stockade.service/stockade/web ]; }
    check "a removed file stops its jail" within 60 gone
    check "the other stays" state_is db running
    ;;
esac
journalctl -b -u stockade --no-pager > "results/stockade-$PHASE.log" 2>&1
