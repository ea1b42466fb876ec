# What a jail costs what runs in it.
use strict;
use warnings;
use POSIX ();
use Socket;

our $top;

# Of its own processor time (clock 2), which other load on the machine does not change, or, where
# it waits for others, of the clock on the wall (1).
my $clock = 'sub now { my $t = "\0" x 16; syscall(' . ((POSIX::uname())[4] eq 'aarch64' ? 113 : 228)
    . ', $_[0] // 2, $t); my ($s, $n) = unpack "q q", $t; $s + $n / 1e9 } ';
my $getpid = (POSIX::uname())[4] eq 'aarch64' ? 172 : 39;

# Each prints its rate; more is better.
my @loads = (
    ['CPU', 'my $b = now(); my $x = 1; $x = $x * 3 % 1000003 for 1 .. 5e6; print 1 / (now() - $b)'],
    ['system calls', "my \$b = now(); syscall($getpid) for 1 .. 2e6; print 1 / (now() - \$b)"],
    ['processes', 'my $b = now(1); for (1 .. 300) { my $p = fork // die; exec "/bin/true" unless $p; waitpid $p, 0 } print 1 / (now(1) - $b)'],
    ['files made and removed', 'my $b = now(); for (1 .. 2e4) { open my $f, ">", "bench$_" or die; print $f "x"; close $f; unlink "bench$_" } print 1 / (now() - $b)'],
    ['file writes', 'my $d = "x" x 65536; my $b = now(); open my $f, ">", "bench" or die; syswrite $f, $d for 1 .. 4096; close $f; print 1 / (now() - $b); unlink "bench"'],
    ['file reads', 'my $d = "x" x 65536; open my $f, ">", "bench" or die; syswrite $f, $d for 1 .. 4096; close $f; my $b = now(); for (1 .. 4) { open $f, "<", "bench"; 1 while sysread $f, $d, 65536 } print 1 / (now() - $b); unlink "bench"'],
);

my $server = $clock . <<'END';
use Socket; socket my $l, AF_INET, SOCK_STREAM, 0 or die; setsockopt $l, SOL_SOCKET, SO_REUSEADDR, 1;
bind $l, sockaddr_in(4242, INADDR_ANY) or die; listen $l, 8;
while (accept my $c, $l) { setsockopt $c, 6, 1, 1; sysread $c, my $k, 1; my $d;
if ($k eq "p") { while (sysread $c, $d, 1) { syswrite $c, $d } } else { 1 while sysread $c, $d, 262144; syswrite $c, "." } }
END

sub connected {
    my ($address, $kind) = @_;
    socket my $socket, AF_INET, SOCK_STREAM, 0 or die "socket: $!\n";
    wait_until("connect to $address", sub { connect $socket, sockaddr_in(4242, inet_aton($address)) });
    setsockopt $socket, 6, 1, 1;
    syswrite $socket, $kind;
    return $socket;
}

# Bytes a second to the server, as 512 MiB take it.
sub throughput {
    my $socket = connected($_[0], 't');
    my ($data, $before) = ('x' x 262_144, now());
    syswrite $socket, $data for 1 .. 2048;
    shutdown $socket, 1;
    sysread $socket, my $end, 1;
    return 1 / (now() - $before);
}

# Round trips a second of one byte.
sub round_trips {
    my $socket = connected($_[0], 'p');
    my $before = now();
    for (1 .. 10_000) { syswrite $socket, 'x'; sysread $socket, my $back, 1 }
    return 1 / (now() - $before);
}

# Rates in the jail over those of the bare host, by turns.
sub payload {
    my $turns = 5;
    define('load', idle("[network]\nmode = \"vnet\"\naddress = [\"10.77.0.10/16\"]\n"));
    run_ok(stockade('apply'));
    mkdir "$top/state/bench";
    for my $load (@loads) {
        my ($what, $program) = @$load;
        my @ratios = map {
            my $bare = output_of($^X, '-e', "chdir '$top/state/bench' or die; $clock$program");
            output_of(stockade('exec', 'load', '--', '/usr/bin/perl', '-e', "chdir '/var/tmp' or chdir '/' or die; $clock$program")) / $bare
        } 1 .. $turns;
        figure("$what: rate in the jail over the bare host's", 'stockade', median(@ratios));
    }
    my @servers = (spawn('/dev/null', $^X, '-e', $server),
        spawn('/dev/null', stockade('exec', 'load', '--', '/usr/bin/perl', '-e', $server)));
    for my $test (['throughput', \&throughput], ['round trips', \&round_trips]) {
        my ($what, $measure) = @$test;
        my @ratios = map { my $bare = $measure->('127.0.0.1'); $measure->('10.77.0.10') / $bare } 1 .. $turns;
        figure("TCP $what: over vnet against the host's loopback", 'stockade', median(@ratios));
    }
    kill 'TERM', @servers;
    waitpid $_, 0 for @servers;
    forget_all();
}

1;
