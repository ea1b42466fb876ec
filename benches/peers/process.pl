# Time, files, and processes that are run and waited for.
use strict;
use warnings;
use Errno;
use POSIX ();

use constant {
    WAIT_S => 60,             # for anything to come up or to end
    POLL_S => 0.002,
    GLANCE_S => 0.0002,       # between looks at something that is measured
};

our $top;
# By program: the mount namespace it is to run in, where that is not the bench's own.
our %within;

# perl-base has no Time::HiRes.
sub now {
    my $number = { x86_64 => 228, aarch64 => 113 }->{(POSIX::uname())[4]} // die "clock_gettime: unknown machine\n";
    my $time = "\0" x 16;
    syscall($number, 1, $time) == 0 or die "clock_gettime: $!\n";
    my ($seconds, $nanoseconds) = unpack 'q q', $time;
    return $seconds + $nanoseconds / 1e9;
}

sub sleep_s { select undef, undef, undef, $_[0] }

sub spawn {
    my ($out, @command) = @_;
    my $pid = fork // die "fork: $!\n";
    return $pid if $pid;
    enter_mounts($within{$command[0]}) if $within{$command[0]};
    open STDIN, '<', '/dev/null';
    open STDOUT, '>', $out;
    open STDERR, '>', "$top/stderr";
    exec { $command[0] } @command or POSIX::_exit(127);
}

sub enter_mounts {
    my $number = { x86_64 => 308, aarch64 => 268 }->{(POSIX::uname())[4]} // die "setns: unknown machine\n";
    open my $namespace, '<', $_[0] or die "$_[0]: $!\n";
    my $CLONE_NEWNS = 0x20000;
    syscall($number, fileno $namespace, $CLONE_NEWNS) == 0 or die "setns: $!\n";
}

# Milliseconds that a command takes, from fork to wait; undef when it fails.
sub timed {
    my $before = now();
    waitpid spawn('/dev/null', @_), 0;
    my $took = (now() - $before) * 1000;
    return $? == 0 ? $took : undef;
}

sub run_ok {
    my $took = timed(@_) // die "benches/peers: @_: status $?: " . read_file("$top/stderr") . "\n";
    return $took;
}

sub output_of {
    waitpid spawn("$top/stdout", @_), 0;
    $? == 0 or die "benches/peers: @_: status $?: " . read_file("$top/stderr") . "\n";
    return read_file("$top/stdout");
}

# Runs commands on all cores; milliseconds for all of them.
sub at_once {
    my (@commands) = @_;
    my $before = now();
    my $running = 0;
    for my $command (@commands) {
        if ($running == cores()) { wait; $running-- }
        spawn('/dev/null', @$command);
        $running++;
    }
    wait while $running--;
    return (now() - $before) * 1000;
}

sub wait_until {
    my ($what, $true, $pause) = @_;
    my $end = now() + WAIT_S;
    until ($true->()) { now() < $end or die "benches/peers: $what: not in ${\WAIT_S} s\n"; sleep_s($pause // POLL_S) }
}

sub processes { return grep { /^\d+$/ } map { s{^/proc/}{}r } glob '/proc/[0-9]*' }

# The jails' payload is a sleep in all of these.
sub is_payload { return read_file("/proc/$_[0]/cmdline") =~ m{^(/bin/)?sleep\0} }

# The payload among the descendants of a process, which may have threads.
sub payload_below {
    my @children = split ' ', join ' ', map { read_file($_) } glob "/proc/$_[0]/task/*/children";
    for my $child (@children) {
        my $found = is_payload($child) ? $child : payload_below($child);
        return $found if $found;
    }
    return undef;
}

sub cores { my $cores = () = read_file('/proc/cpuinfo') =~ /^processor\s/mg; return $cores || 1 }
sub median { my @sorted = sort { $a <=> $b } @_; return $sorted[$#sorted / 2] }

sub read_file {
    open my $file, '<', $_[0] or return '';
    local $/;
    return scalar(<$file>) // '';
}

sub write_file {
    my ($path, $text) = @_;
    # By rename, as editors do.
    open my $file, '>', "$path.new" or die "$path: $!\n";
    print $file $text;
    close $file or die "$path: $!\n";
    rename "$path.new", $path or die "$path: $!\n";
}

1;
