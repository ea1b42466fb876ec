# A web server in fifty lines of the Perl that every Debian has: one page, read anew at each
# request, with the count of visits asked of the other jail.
use strict;
use warnings;
use IO::Socket::INET;

my $PAGE = '/srv/index.html';
my $SECONDS_MAX = 5;
my $HEADER_LINES_MAX = 100;

sub page {
    open(my $file, '<', $PAGE) or return "no page: $!\n";
    local $/;
    return <$file>;
}

# Down or slow, the other jail costs the page its count and nothing else.
sub visits {
    my $counter = IO::Socket::INET->new(PeerAddr => $ENV{COUNTER}, Timeout => 2) or return 'unknown';
    my $count = <$counter> // return 'unknown';
    chomp $count;
    return $count;
}

sub answer {
    my ($client) = @_;
    my $request = <$client> // return;
    for (1 .. $HEADER_LINES_MAX) {
        my $line = <$client> // last;
        last if $line =~ /^\r?\n$/;
    }
    print "$request";
    return print $client "HTTP/1.0 404 Not Found\r\n\r\nno such page\n" if $request !~ m{^GET / };
    my ($page, $visits) = (page(), visits());
    $page =~ s/\@VISITS\@/$visits/;
    print $client "HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n$page";
}

$| = 1;
$SIG{PIPE} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalPort => 80, Listen => 16, ReuseAddr => 1) or die "listen: $!\n";
print "listening on port 80\n";
while (1) {
    my $client = $server->accept or next;
    # One visitor who says nothing must not keep all others waiting for ever.
    eval { local $SIG{ALRM} = sub { die }; alarm $SECONDS_MAX; answer($client); };
    alarm 0;
    close $client;
}
