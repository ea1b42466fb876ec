# What the sets are written in. Sourced in the guest; counts failures in `failed`.

# check WHAT COMMAND...: one line, and on failure what the command said.
check() {
    local what=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "ok   $what"
    else
        echo "FAIL $what ($(head -c 2000 <<<"$said" | tr '\n' '|')) [$*]"
        failed=1
    fi
}

# check_same WHAT EXPECTED FOUND
check_same() {
    if [ "$2" = "$3" ]; then
        echo "ok   $1: $3"
    else
        echo "FAIL $1: expected \`$2\`, found \`$3\`"
        failed=1
    fi
}

# within SECONDS COMMAND...: until it succeeds. The seconds are those of a machine with nothing
# else to do; on a busy one emulation takes several times as long.
within() {
    local end=$((SECONDS + 4 * $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "not within its time; at last: $("$@" 2>&1 | tail -3)"
            return 1
        fi
        sleep 0.2
    done
}

# The binary, the unit and the directories as a package would install them.
install_stockade() {
    install -m 755 /guest/stockade /usr/sbin/stockade
    install -m 644 /guest/etc/stockade.service /usr/lib/systemd/system/stockade.service
    install -m 644 /guest/etc/stockade.tmpfiles /usr/lib/tmpfiles.d/stockade.conf
    mkdir -p /etc/stockade/jails.d /etc/stockade/templates
    install -m 644 /guest/etc/stockade.toml /etc/stockade/stockade.toml
    systemd-tmpfiles --create /usr/lib/tmpfiles.d/stockade.conf
    systemctl daemon-reload
}

# clear_away SET: what it left must not meet the next one.
clear_away() {
    mkdir -p "results/$1"
    find results -maxdepth 1 -type f ! -name 'journal-*' -exec mv -t "results/$1" {} +
    if [ -d /etc/stockade ]; then
        rm -rf /etc/stockade/jails.d/* /etc/stockade/templates/*
        check "$1: its jails go" stockade apply
    fi
    while umount /dev/vdc 2>/dev/null; do :; done
}

# The exit status of a set that has asked for a reboot.
readonly rebooting=99

# next_boot: the same set again after a reboot, with PHASE one higher; never returns. A set that
# calls it says `# reboots` in its first lines.
next_boot() {
    echo "$failed" > /guest/failed
    journalctl -b --no-pager > "/guest/results/journal-$PHASE.log" 2>/dev/null
    echo $((PHASE + 1)) > /guest/phase
    rm /guest/running
    sync
    # Without D-Bus it complains of logind and then asks systemd itself.
    systemctl reboot 2>/dev/null
    exit "$rebooting"
}

# define NAME: a jail's file from standard input, put in place by rename.
define() {
    cat > "/etc/stockade/jails.d/.$1.new"
    mv "/etc/stockade/jails.d/.$1.new" "/etc/stockade/jails.d/$1.toml"
}

# field NAME MEMBER: one plain member of a jail's item in `ls --json`.
field() {
    stockade ls --json "$1" | tr ',{}[]' '\n' | sed -n "s/^ *\"$2\": *\"*\([^\"]*\)\"* *$/\1/p" | head -1
}
state_is() { [ "$(field "$1" state)" = "$2" ]; }
pid_is() { [ "$(field "$1" pid)" = "$2" ]; }

# cgroup_of PID: its v2 directory.
cgroup_of() { echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")"; }
