# What is measured of a hundred jails, and of a thousand.
use strict;
use warnings;

our ($top, $cgroup, $jails);

sub address { my ($number) = @_; return sprintf '10.77.%d.%d/16', 1 + $number / 250, $number % 250 + 2 }

sub define_many {
    my ($many) = @_;
    define(sprintf('many%04d', $_), idle(sprintf "[network]\nmode = \"vnet\"\naddress = [\"%s\"]\n[limits]\nprocesses = 100\n", address($_))) for 1 .. $many;
    return map { sprintf 'many%04d', $_ } 1 .. $many;
}

# Takes away every definition, jail and file.
sub forget_all {
    my @names = map { m{([^/]+)\.toml$} } glob "$top/etc/jails.d/*.toml";
    unlink glob "$top/etc/jails.d/*.toml";
    return @names ? run_ok(stockade('destroy', '--yes', @names)) : 0;
}

# A hundred at once. Stockade's have a network of their own, the peers' have none.
sub hundred {
    my (@sides) = @_;
    my $many = 100;
    define_many($many);
    figure("$many at once, start, ms each", 'stockade', run_ok(stockade('apply')) / $many);
    figure("$many at once, destroy, ms each", 'stockade', forget_all() / $many);
    for my $side (grep { $_->[0] ne 'stockade' } @sides) {
        my ($name, $commands) = @$side[0, 2];
        my @names = map { named("many$_") } 1 .. $many;
        my ($up, $down) = $commands->{up}
            ? (sub { at_once(map { $commands->{up}->($_) } @_) }, sub { at_once(map { $commands->{down}->($_) } @_) })
            : (sub { stay_all($commands, @_) }, \&end_all);
        figure("$many at once, start, ms each", $name, $up->(@names) / $many);
        figure("$many at once, destroy, ms each", $name, $down->(@names) / $many);
    }
}

# What stockade alone does: a plan, an edit and a daemon over very many.
sub thousand {
    my @names = define_many($jails);
    figure("$jails at once, start, ms each", 'stockade', run_ok(stockade('apply')) / $jails);
    figure("disk that one of $jails on one template takes, KiB", 'stockade', disk_kib("$top/state/jails") / $jails);
    figure("`plan` with nothing to do over $jails, ms", 'stockade', median(map { run_ok(stockade('plan')) } 1 .. 9));
    figure("`ls` of $jails, ms", 'stockade', median(map { run_ok(stockade('ls')) } 1 .. 9));
    my $daemon = spawn('/dev/null', stockade('daemon'));
    sleep_s(3);
    edits($names[$jails / 2]);
    my ($resident) = read_file("/proc/$daemon/status") =~ /^VmRSS:\s+(\d+)/m or die "benches/peers: the daemon has ended\n";
    figure("daemon over $jails, RSS in MiB", 'stockade', $resident / 1024);
    kill 'TERM', $daemon;
    waitpid $daemon, 0;
    figure("$jails at once, destroy, ms each", 'stockade', forget_all() / $jails);
    for my $what ('start', 'destroy') {
        my ($few, $very_many) = map { measured("$_ at once, $what, ms each", 'stockade') } 100, $jails;
        figure("$what of one of $jails over that of one of 100", 'stockade', $very_many / $few) if $few;
    }
}

sub disk_kib {
    my ($directory) = @_;
    my ($kib) = `du -sk '$directory'` =~ /^(\d+)/ or die "benches/peers: du: $?\n";
    return $kib;
}

# From the rename of the edited definition to the value in the cgroup.
sub edits {
    my ($name) = @_;
    my ($file) = grep { -e } map { "$_/pids.max" } glob "/sys/fs/cgroup/{,*/}$cgroup/$name" or die "benches/peers: no pids.max of $name\n";
    my $text = read_file("$top/etc/jails.d/$name.toml");
    my @took;
    for my $limit (101 .. 109) {
        $text =~ s/^processes = \d+/processes = $limit/m;
        my $before = now();
        define($name, $text);
        wait_until('the edited limit', sub { read_file($file) == $limit });
        push @took, (now() - $before) * 1000;
        sleep_s(1);
    }
    figure("edit of a limit to its effect, $jails jails, ms", 'stockade', median(@took));
}

1;
