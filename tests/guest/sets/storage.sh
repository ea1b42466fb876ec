# limits.disk and limits.inodes by project quota, on an ext4 and an xfs of their own (/dev/vdc): met,
# changed live, and nobody else's harm; an image of ext4 that grows while it is mounted; and the
# moves between kinds on this kernel, which merges no detached mounts.

state=/var/lib/storage
define_box() {
    define box <<E2
template = "host"
[exec]
command = ["sleep", "infinity"]
stop_timeout = "0s"
$1
E2
}
# size_inside: what df shows, in MiB. fill: MiB that fit in before it says no.
size_inside() { stockade exec box -- df -BM --output=size / | tail -1 | tr -dc 0-9; }
fill() {
    stockade exec box -- sh -c 'dd if=/dev/zero of=/root/big bs=1M count=400 2>/dev/null; sync
        echo $(($(stat -c %s /root/big) >> 20))'
}
# about MIB FOUND: a little less at most, for metadata, and never more.
about() { [ "$2" -le "$1" ] && [ "$2" -ge $(($1 * 7 / 10)) ]; }
storage_of() { stockade show --json "$1" | tr ',{}' '\n' | sed -n "s/^ *\"$2\": *\"*\([^\"]*\)\"* *$/\1/p" | head -1; }
others_write() {
    dd if=/dev/zero of="$state/host-file" bs=1M count=20 2>/dev/null && rm "$state/host-file" &&
        stockade exec other -- sh -c 'dd if=/dev/zero of=/root/more bs=1M count=20 2>/dev/null && rm /root/more'
}
# limit_of_project: what the file system itself has to say about all projects with a limit.
projects() { xfs_quota -f -x -c 'report -p -n -N' "$state" 2>/dev/null | awk '$4 > 0'; }

project_quota() {
    local kind=$1 pid
    mkdir -p "$state"
    mount -o prjquota /dev/vdc "$state"
    define other <<'E2'
template = "host"
[exec]
command = ["sleep", "infinity"]
stop_timeout = "0s"
E2
    define_box '[limits]
disk = "32M"
inodes = 300'
    check "$kind: doctor knows" sh -c 'stockade doctor | grep -q "limits.disk.*by project quota"'
    check "$kind: apply" stockade apply
    check_same "$kind: overlay" overlay "$(storage_of box kind)"
    check_same "$kind: df inside" 32 "$(size_inside)"
    check "$kind: it fits in what it may" about 32 "$(fill)"
    check "$kind: the others write on" others_write
    check "$kind: use is known" about 32 $(($(storage_of box used) >> 20))
    check_same "$kind: empty plan" "No changes." "$(stockade plan | tail -1)"
    pid=$(field box pid)
    define_box '[limits]
disk = "64M"
inodes = 300'
    check "$kind: grow" stockade apply
    check "$kind: live" pid_is box "$pid"
    check_same "$kind: df inside" 64 "$(size_inside)"
    check "$kind: more fits in" about 64 "$(fill)"
    define_box '[limits]
disk = "16M"
inodes = 300'
    check "$kind: shrink below what is used" stockade apply
    check "$kind: live" pid_is box "$pid"
    check "$kind: nothing more fits in" sh -c '! stockade exec box -- sh -c "echo more > /root/more"'
    stockade exec box -- rm -f /root/big /root/more
    check "$kind: files end too" sh -c '! stockade exec box -- sh -c "for i in \$(seq 400); do echo > /root/f\$i || exit 1; done" 2>/dev/null'
    stockade exec box -- sh -c 'rm -f /root/f*'
    define_box ''
    check "$kind: the limit is lifted" stockade apply
    check "$kind: live" pid_is box "$pid"
    check "$kind: anything fits in" sh -c 'stockade exec box -- dd if=/dev/zero of=/root/big bs=1M count=100 2>/dev/null'
    define_box '[limits]
disk = "32M"
[root]
storage = "directory"'
    stockade exec box -- rm /root/big
    check "$kind: as a directory" stockade apply
    check_same "$kind: df inside" 32 "$(size_inside)"
    check "$kind: and full" about 32 "$(fill)"
    check_same "$kind: one limit" 1 "$(projects | wc -l)"
    rm /etc/stockade/jails.d/*.toml
    stockade apply >/dev/null 2>&1
    check "$kind: destroy" stockade destroy --yes box other
    check_same "$kind: no limit left" "" "$(projects)"
    check "$kind: nothing holds it" within 30 umount "$state"
}

install_stockade
sed -i "1i state_dir = \"$state\"" /etc/stockade/stockade.toml
mkfs.ext4 -q -F -O project,quota -E quotatype=prjquota /dev/vdc
project_quota ext4
mkfs.xfs -q -f /dev/vdc
project_quota xfs

# Without quotas: a jail that was there before gets its limit by a restart, into an image.
mkfs.ext4 -q -F /dev/vdc
mount /dev/vdc "$state"
define_box ''
check "image: apply" stockade apply
stockade exec box -- sh -c 'echo kept > /root/kept'
define_box '[limits]
disk = "32M"'
check "image: the files move" sh -c 'stockade plan | grep -q "move from overlay to image"'
check "image: apply" stockade apply
check_same "image: ext4" ext4 "$(storage_of box file_system)"
check "image: df inside" about 32 "$(size_inside)"
pid=$(field box pid)
define_box '[limits]
disk = "64M"'
check "image: grow" stockade apply
check "image: live" pid_is box "$pid"
check "image: df inside" about 64 "$(size_inside)"
check "image: more fits in" about 64 "$(fill)"
stockade exec box -- rm /root/big
for kind in directory overlay image; do
    define_box "[root]
storage = \"$kind\""
    check "move to $kind" stockade apply
    check_same "it is there" "$kind" "$(storage_of box kind)"
    check_same "with its files" kept "$(stockade exec box -- cat /root/kept)"
done
rm /etc/stockade/jails.d/*.toml
stockade apply >/dev/null 2>&1
check "destroy" stockade destroy --yes box
loops_left() { [ -z "$(losetup -a)" ]; }
check "no loop device left" within 30 loops_left
check "nothing holds it" within 30 umount "$state"
