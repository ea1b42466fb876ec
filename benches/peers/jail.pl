# What is measured of one jail, and of ten.
use strict;
use warnings;
use POSIX ();

use constant {
    QUIET_S => 0.2,           # before each start that is measured alone
    BURST => 10,              # starts in a row, of which the first is not counted
};

our ($count, $top);

# Whole process of /bin/true in a new jail, as the sides take turns.
sub start_to_end {
    my (@sides) = @_;
    my (%alone, %row);
    for my $round (1 .. $count) {
        for my $side (@sides) {
            sleep_s(QUIET_S);
            push @{$alone{$side->[0]}}, timed(@{$side->[2]{once}->(named("alone$round"))}) // next;
        }
    }
    for my $burst (1 .. POSIX::ceil($count / BURST)) {
        for my $side (@sides) {
            my @took = map { timed(@{$side->[2]{once}->(named("burst$burst-$_"))}) // () } 1 .. BURST;
            push @{$row{$side->[0]}}, @took[1 .. $#took];
        }
    }
    figure('one `/bin/true`, after 0.2 s of quiet, ms', $_->[0], median(@{$alone{$_->[0]}})) for @sides;
    figure('one `/bin/true`, back to back, ms', $_->[0], median(@{$row{$_->[0]}})) for @sides;
}

# Start and stop of a jail that stays, and a command in it.
sub long_lived {
    my (@sides) = @_;
    define(named("bench"), idle('enabled = true') =~ s/^(.*)enabled = true$/enabled = true\n$1/sr);
    run_ok(stockade('apply'));
    run_ok(stockade("stop", named("bench")));
    my (%up, %exec);
    for my $round (1 .. $count) {
        for my $side (@sides) {
            my ($name, $commands) = @$side[0, 2];
            my $up = come_up($commands, named("bench")) // (failed($name, 'start a jail that stays'), next);
            push @{$exec{$name}}, timed(@{$commands->{exec}->(named("bench"))}) // () if $commands->{exec};
            push @{$up{$name}}, $up + (go_down($commands, named("bench")) // (failed($name, 'stop it'), next));
        }
    }
    figure('start and stop of a jail that stays, ms', $_->[0], median(@{$up{$_->[0]}})) for @sides;
    figure('`exec` of `/bin/true`, ms', $_->[0], median(@{$exec{$_->[0]}})) for grep { $_->[2]{exec} } @sides;
    forget_all();
}

# Said once of each side; the others go on.
my %failed;
sub failed {
    my ($name, $what) = @_;
    note("$name: $what: status $?: " . (read_file("$top/stderr") =~ /(.*)/)[0]) unless $failed{"$name $what"}++;
}

# Proportional size in KiB of processes that are not there for the payload.
sub beside_payload {
    my (%before) = map { $_ => 1 } @_;
    my $sum = 0;
    for my $pid (grep { !$before{$_} } processes()) {
        next if is_payload($pid);
        $sum += $1 if read_file("/proc/$pid/smaps_rollup") =~ /^Pss:\s+(\d+)/m;
    }
    return $sum;
}

# Memory outside the payload of an idle jail, alone and as one of ten, whose programs share their text.
sub memory {
    my (@sides) = @_;
    for my $side (@sides) {
        figure('memory beside the payload, alone, PSS in KiB', $side->[0], idle_ones($side, 1));
        figure('memory beside the payload, one of ten, PSS in KiB', $side->[0], idle_ones($side, 10));
    }
}

sub idle_ones {
    my ($side, $many) = @_;
    my ($name, $commands) = @$side[0, 2];
    my @before = processes();
    my @names = map { named("idle$_") } 1 .. $many;
    if ($name eq 'stockade') {
        define($_, idle('')) for @names;
        run_ok(stockade('apply'));
    } else {
        come_up($commands, $_) // failed($name, "start $many") for @names;
    }
    sleep_s(1);
    my $each = beside_payload(@before) / $many;
    if ($name eq 'stockade') { forget_all() }
    else { go_down($commands, $_) // failed($name, "stop $many") for @names }
    return $each;
}

1;
