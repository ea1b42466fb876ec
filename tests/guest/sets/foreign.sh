# Programs of another architecture: refused with the remedy, run once qemu is registered in
# binfmt_misc with the flag F, in a build jail and in a jail, neither of which has the interpreter.

install_stockade
register() {
    local magic='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:/guest/qemu-aarch64:OCF" > /proc/sys/fs/binfmt_misc/register
}
for name in etc proc sys dev tmp run root usr; do mkdir -p "/guest/foreign/$name"; done
for applet in sh cat uname sleep; do ln -sf busybox "/guest/foreign/bin/$applet"; done
mkdir -p /etc/stockade/templates/foreign /etc/stockade/templates/arm
cat > /etc/stockade/templates/foreign/template.toml <<'E2'
[base]
directory = "/guest/foreign"
[build]
run = ["uname -m > /etc/built"]
E2
cat > /etc/stockade/templates/arm/template.toml <<'E2'
[base]
debootstrap = { suite = "trixie", arch = "arm64" }
E2
refused() { stockade plan 2>&1 | grep -q "$1"; }
check "refused, with the remedy" refused "base.debootstrap.arch: it is for arm64.*install qemu-user-static"
check "doctor says so" sh -c 'stockade doctor | grep -A1 "other architectures" | grep -q "remedy: install qemu"'
check "it does not build" sh -c '! stockade template build foreign'
modprobe binfmt_misc 2>/dev/null
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
check "register" register
check "doctor knows" sh -c 'stockade doctor | grep -q "ok.*other architectures.*arm64 beside amd64"'
check "not refused any more" sh -c '! stockade plan 2>&1 | grep -q base.debootstrap.arch'
check "its lines run" stockade template build foreign
check_same "as arm64" aarch64 "$(stockade run foreign -- /bin/cat /etc/built)"
check_same "under the filter" 2 \
    "$(stockade run foreign -- /bin/cat /proc/self/status | sed -n 's/^Seccomp:[[:space:]]*//p')"
define box <<'E2'
template = "foreign"
[exec]
command = ["/bin/sh", "-c", "uname -m > /etc/ran; exec sleep 1000"]
stop_timeout = "0s"
E2
check "apply" stockade apply
ran() { [ "$(stockade exec box -- /bin/cat /etc/ran)" = aarch64 ]; }
check "it runs" within 20 ran
cp /var/log/stockade/box.log results/
rm /etc/stockade/jails.d/box.toml
check "stop" stockade apply
check "destroy" stockade destroy --yes box
echo -1 > /proc/sys/fs/binfmt_misc/qemu-aarch64
