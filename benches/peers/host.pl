# The host that is made for the run, and cleared away after it.
use strict;
use warnings;
use Errno;
use POSIX ();
use Socket;

use constant {
    FIRST_ID => 1_700_000_000, # the peers' id range; stockade's pool follows it
    ID_RANGE => 65_536,
};

our %within;
our $top = "/tmp/stockade-peers-" . POSIX::strftime('%H%M%S', gmtime) . int rand 1e6;
our $cgroup = "stockade-peers-" . int rand 1e6;
our @dirs = ('--config-dir', "$top/etc", '--state-dir', "$top/state", '--run-dir', "$top/run", '--log-dir', "$top/log");

# Reaps what keepers and monitors leave behind, and cleans up however the measuring ends.
sub watch_over {
    $SIG{INT} = $SIG{TERM} = sub { };
    my ($worker) = @_;
    while ((my $ended = wait) != $worker) { $ended != -1 or $!{EINTR} or last }
    my $status = $?;
    clean();
    exit($status >> 8 || ($status ? 1 : 0));
}

sub make_host {
    mkdir $_, 0755 or die "$_: $!\n" for $top, map { "$top/$_" } qw(etc etc/jails.d state run log bundle root lxc);
    # As /run is on any distribution; the peers have theirs, and a /var/lib, for this run alone.
    run_ok(qw(mount -t tmpfs -o mode=755 tmpfs), $_) for "$top/run", '/run';
    mkdir "$top/run/$_" for qw(lib work);
    run_ok(qw(mount -t overlay overlay /var/lib -o), "lowerdir=/var/lib,upperdir=$top/run/lib,workdir=$top/run/work");
    hide_v2();
    write_file("$top/etc/stockade.toml", <<"END");
cgroup = "$cgroup"
[ids]
first = @{[FIRST_ID - FIRST_ID % ID_RANGE + ID_RANGE]}
ranges = 4000
[bridge.stockade0]
address = ["10.77.0.1/16"]
END
    link_up('lo');
    make_root("$top/root");
    make_bundle("$top/bundle");
    make_lxc("$top/lxc/bench");
    allow_ids();
}

# crun, by which podman runs its own, refuses a host with v1 hierarchies whose v2 has controllers
# too. In these mounts there is only v1.
sub hide_v2 {
    my $v2 = '/sys/fs/cgroup/unified';
    return unless read_file("$v2/cgroup.controllers") =~ /\S/;
    write_file("$top/without-v2", '');
    # A kernel that counts namespaces by processor refuses to bind some of them at random.
    for (1 .. 20) { last unless system "unshare --mount=$top/without-v2 umount $v2 2>/dev/null" }
    run_ok('nsenter', "--mount=$top/without-v2", 'true');
    $within{$_} = "$top/without-v2" for qw(crun podman);
}

sub link_up {
    socket my $socket, AF_INET, SOCK_DGRAM, 0 or die "socket: $!\n";
    my ($SIOCSIFFLAGS, $IFF_UP) = (0x8914, 1);
    ioctl $socket, $SIOCSIFFLAGS, pack 'a16 s x14', $_[0], $IFF_UP or die "link up $_[0]: $!\n";
}

# A root with nothing of its own but the host's /usr, which each peer binds read only.
sub make_root {
    my ($root) = @_;
    mkdir "$root/$_" for qw(usr proc sys dev etc tmp run var);
    for my $link (grep { -l "/$_" } qw(bin sbin lib lib32 lib64 libx32)) { symlink "usr/$link", "$root/$link" }
    my $first = peer_id();
    chown $first, $first, $root, glob "$root/*";
}

sub peer_id { return FIRST_ID - FIRST_ID % ID_RANGE }

# What runc and crun run: the same namespaces, id map, masks and cgroup; no filter, no network.
sub make_bundle {
    my ($bundle) = @_;
    my $map = sprintf '[{"containerID":0,"hostID":%d,"size":%d}]', peer_id(), ID_RANGE;
    my $namespaces = join ',', map { qq({"type":"$_"}) } qw(pid network ipc uts mount cgroup user);
    my $capabilities = join ',', map { qq("$_":["CAP_CHOWN","CAP_SETUID","CAP_SETGID","CAP_KILL"]) } qw(bounding effective permitted);
    my $mount = sub { sprintf '{"destination":"%s","type":"%s","source":"%s","options":[%s]}', @_ };
    my $mounts = join ',',
        $mount->('/proc', 'proc', 'proc', ''),
        $mount->('/dev', 'tmpfs', 'tmpfs', '"nosuid","mode=755","size=65536k"'),
        $mount->('/dev/pts', 'devpts', 'devpts', '"nosuid","noexec","newinstance","ptmxmode=0666","mode=0620"'),
        $mount->('/dev/shm', 'tmpfs', 'shm', '"nosuid","noexec","nodev","mode=1777"'),
        $mount->('/dev/mqueue', 'mqueue', 'mqueue', '"nosuid","noexec","nodev"'),
        $mount->('/sys', 'sysfs', 'sysfs', '"nosuid","noexec","nodev","ro"'),
        $mount->('/usr', 'bind', '/usr', '"rbind","ro"');
    for my $program (['true', '"/bin/true"'], ['sleep', '"/bin/sleep","infinity"']) {
        my ($name, $args) = @$program;
        mkdir "$bundle/$name";
        write_file("$bundle/$name/config.json", <<"END");
{"ociVersion":"1.0.2","hostname":"bench","root":{"path":"$top/root","readonly":false},
"process":{"terminal":false,"user":{"uid":0,"gid":0},"args":[$args],"env":["PATH=/usr/bin:/bin"],"cwd":"/",
"capabilities":{$capabilities},"noNewPrivileges":true},"mounts":[$mounts],
"linux":{"namespaces":[$namespaces],"uidMappings":$map,"gidMappings":$map,
"maskedPaths":["/proc/kcore","/proc/keys"],"readonlyPaths":["/proc/sys","/proc/sysrq-trigger"]}}
END
    }
}

sub make_lxc {
    my ($directory) = @_;
    mkdir $directory, 0755;
    my $map = join "\n", map { sprintf 'lxc.idmap = %s 0 %d %d', $_, peer_id(), ID_RANGE } qw(u g);
    write_file("$directory/config", <<"END");
lxc.rootfs.path = dir:$top/root
$map
lxc.net.0.type = empty
lxc.mount.auto = proc:mixed sys:ro
lxc.mount.entry = /usr usr none ro,bind 0 0
lxc.tty.max = 0
lxc.console.path = none
END
}

# LXC maps by newuidmap even as root, and that only what these files list: here, in this namespace.
sub allow_ids {
    write_file("$top/subid", sprintf "root:%d:%d\n", peer_id(), ID_RANGE);
    for my $file (grep { -e } qw(/etc/subuid /etc/subgid)) { run_ok(qw(mount --bind), "$top/subid", $file) }
}

# Ends what still runs, then removes the directories and the cgroups. The links, the mounts and
# the processes end with the namespaces.
sub clean {
    kill 'KILL', -1;
    1 while waitpid(-1, 0) > 0;
    remove_cgroups($_) for grep { -d } glob "/sys/fs/cgroup/{,*/}{,lxc.payload.,lxc.monitor.}$cgroup*";
    system 'umount', '-l', $_ for grep { -e } "$top/without-v2", '/var/lib', "$top/run";
    system 'rm', '-rf', '--one-file-system', $top;
}

sub remove_cgroups {
    my ($directory) = @_;
    remove_cgroups($_) for grep { -d && !-l } glob "$directory/*";
    for (1 .. 100) { return if rmdir $directory; sleep_s(0.01) }
    warn "benches/peers: $directory: $!\n";
}

1;
