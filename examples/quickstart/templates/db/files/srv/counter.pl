# Counts connections: each is told its number. The count is kept in a file.
use strict;
use warnings;
use IO::Socket::INET;

my $FILE = '/var/lib/counter/count';

sub load {
    open(my $file, '<', $FILE) or return 0;
    my ($count) = (<$file> // '') =~ /^(\d+)$/;
    return $count // 0;
}

# Written beside it and renamed: a kill in between loses nothing.
sub save {
    my ($count) = @_;
    open(my $file, '>', "$FILE.new") or die "open $FILE.new: $!\n";
    print $file "$count\n";
    close $file or die "write $FILE.new: $!\n";
    rename "$FILE.new", $FILE or die "rename $FILE.new: $!\n";
}

$| = 1;
$SIG{PIPE} = 'IGNORE';
my $port = shift // die "usage: counter.pl PORT\n";
my $server = IO::Socket::INET->new(LocalPort => $port, Listen => 16, ReuseAddr => 1) or die "listen: $!\n";
my $count = load();
print "counting from $count on port $port\n";
while (1) {
    my $client = $server->accept or next;
    save(++$count);
    print $client "$count\n";
    close $client;
}
