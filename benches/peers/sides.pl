# Who takes part: stockade, and each peer that is here and runs.
use strict;
use warnings;
use POSIX ();

our ($stockade, $top, $cgroup, @dirs);

sub stockade { return ($stockade, @dirs, @_) }

# No name of the host's own: runc and LXC make a cgroup of this name at the top.
sub named { return "$cgroup-$_[0]" }

sub define {
    my ($name, $text) = @_;
    write_file("$top/etc/jails.d/$name.toml", $text);
}

sub idle { return qq(template = "host"\nexec.command = ["/bin/sleep", "infinity"]\nexec.stop_timeout = "1s"\n$_[0]) }

sub oci {
    my ($runtime) = @_;
    my @all = ($runtime, '--root', "$top/run/$runtime");
    return {
        once => sub { [@all, 'run', '--bundle', "$top/bundle/true", $_[0]] },
        up => sub { [@all, 'run', '--detach', '--bundle', "$top/bundle/sleep", $_[0]] },
        exec => sub { [@all, 'exec', $_[0], '/bin/true'] },
        down => sub { [@all, 'delete', '--force', $_[0]] },
    };
}

# Each peer's commands by the jail's name: `once` runs /bin/true, `up` returns with it running,
# `stays` stays as long as the jail, and what it runs ends both.
sub peers {
    my @bwrap = (qw(bwrap --unshare-all --die-with-parent --new-session --ro-bind /usr /usr --proc /proc --dev /dev --tmpfs /tmp),
        map { -l "/$_" ? ('--symlink', "usr/$_", "/$_") : () } qw(bin sbin lib lib64));
    my $lxc = sub { my ($verb, @more) = @_; return sub { ["lxc-$verb", '-P', "$top/lxc", '-n', $_[0], $verb =~ /start/ ? ('-f', "$top/lxc/bench/config") : (), @more] } };
    # All use the same root, which it would give to one at a time.
    $ENV{SYSTEMD_NSPAWN_LOCK} = 0;
    my @nspawn = ('systemd-nspawn', '--quiet', '--register=no', '--keep-unit', '-D', "$top/root", '--bind-ro=/usr',
        '--private-network', '--private-users=' . peer_id() . ':' . ID_RANGE);
    my @pod = ('podman', '--root', "$top/podman", '--runroot', "$top/run/podman", '--tmpdir', "$top/run/libpod");
    my @podman = ("--cgroup-parent=/$cgroup-podman", '--network=none', '--uidmap=0:' . peer_id() . ':' . ID_RANGE, '-v', '/usr:/usr:ro', '--rootfs', "$top/root");
    return (
        ['bubblewrap', 'bwrap', { once => sub { [@bwrap, '/bin/true'] }, stays => sub { [@bwrap, '/bin/sleep', 'infinity'] } }],
        ['runc', 'runc', oci('runc')],
        ['crun', 'crun', oci('crun')],
        ['LXC', 'lxc-start', {
            once => $lxc->('start', '-F', '--', '/bin/true'), up => $lxc->('start', '-d', '--', '/bin/sleep', 'infinity'),
            exec => $lxc->('attach', '--', '/bin/true'), down => $lxc->('stop', '-k') }],
        ['systemd-nspawn', 'systemd-nspawn', {
            once => sub { [@nspawn, '-M', $_[0], '/bin/true'] }, stays => sub { [@nspawn, '-M', $_[0], '/bin/sleep', 'infinity'] } }],
        ['podman', 'podman', {
            once => sub { [@pod, 'run', '--rm', @podman, '/bin/true'] },
            up => sub { [@pod, 'run', '-d', '--name', $_[0], @podman, '/bin/sleep', 'infinity'] },
            exec => sub { [@pod, 'exec', $_[0], '/bin/true'] }, down => sub { [@pod, 'rm', '-f', '-t', '0', $_[0]] } }],
    );
}

# Of the jails whose outermost process stays as long as they do, that process.
my %staying;

sub begin_stay {
    my ($commands, $name) = @_;
    return $staying{$name} = spawn('/dev/null', @{$commands->{stays}->($name)});
}

# Milliseconds until a jail's program runs; undef when it does not come up.
sub come_up {
    my ($commands, $name) = @_;
    return timed(@{$commands->{up}->($name)}) if $commands->{up};
    my $before = now();
    my ($pid, $ended) = begin_stay($commands, $name);
    wait_until("$name up", sub { payload_below($pid) || ($ended = waitpid($pid, POSIX::WNOHANG()) == $pid) }, GLANCE_S);
    return $ended ? undef : (now() - $before) * 1000;
}

# Milliseconds until it is down again.
sub go_down {
    my ($commands, $name) = @_;
    return timed(@{$commands->{down}->($name)}) if $commands->{down};
    return end_all($name);
}

# Milliseconds until all run, as many coming up at a time as there are cores.
sub stay_all {
    my ($commands, @names) = @_;
    my ($before, %coming) = now();
    while (@names || %coming) {
        while (@names && keys %coming < cores()) { my $name = shift @names; $coming{$name} = begin_stay($commands, $name) }
        delete @coming{grep { payload_below($coming{$_}) } keys %coming};
        sleep_s(GLANCE_S);
        now() < $before + WAIT_S or die "benches/peers: @{[keys %coming]}: not up in ${\WAIT_S} s\n";
    }
    return (now() - $before) * 1000;
}

# Milliseconds until the outermost processes of all have ended, by the end of what they run.
sub end_all {
    my (@names) = @_;
    my $before = now();
    my @pids = delete @staying{@names};
    kill 'KILL', map { payload_below($_) // $_ } @pids;
    waitpid $_, 0 for @pids;
    return (now() - $before) * 1000;
}

sub found {
    my @found = ['stockade', $stockade, {
        once => sub { [stockade(qw(run host -- /bin/true))] },
        up => sub { [stockade('start', $_[0])] }, exec => sub { [stockade('exec', $_[0], '--', '/bin/true')] },
        down => sub { [stockade('stop', $_[0])] } }];
    for my $peer (peers()) {
        my ($name, $program, $commands) = @$peer;
        if (!grep { -x "$_/$program" } split /:/, $ENV{PATH}) { note("$name: not on this host"); next }
        if (!defined timed(@{$commands->{once}->(named("probe"))})) {
            note("$name: found, but does not run here: " . (read_file("$top/stderr") =~ /(.*)/)[0]);
            next;
        }
        push @found, $peer;
    }
    return @found;
}

1;
