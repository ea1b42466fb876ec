# What is printed: figures as they come, and one table of them all.
use strict;
use warnings;
use POSIX ();

my (%table, @columns, @rows, @notes);
sub columns { @columns = @_ }
sub note { push @notes, $_[0]; print STDERR "$_[0]\n" }

# One figure of one side; the table shows it, and its ratio to stockade's.
sub figure {
    my ($row, $column, $value) = @_;
    push @rows, $row unless $table{$row};
    $table{$row}{$column} = $value;
    printf STDERR "%s: %s: %s\n", $row, $column, defined $value ? sprintf('%.2f', $value) : '-';
}

sub measured { my ($row, $column) = @_; return $table{$row} && $table{$row}{$column} }

sub cell {
    my ($row, $column) = @_;
    my ($value, $own) = @{$table{$row}}{$column, 'stockade'};
    return '–' unless defined $value;
    return sprintf '%.3g', $value if $column eq 'stockade' || !$own;
    return sprintf '%.3g (× %.2f)', $value, $value / $own;
}

sub print_tables {
    my ($kernel, $machine) = (POSIX::uname())[2, 4];
    printf "\n%s, %d cores, Linux %s %s; in parentheses the ratio to stockade of the same run.\n\n",
        POSIX::strftime('%Y-%m-%d', gmtime), cores(), $kernel, $machine;
    my %beside = map { $_ => 1 } map { keys %{$table{$_}} } @rows;
    my @shown = grep { $beside{$_} } @columns;
    print '| | ', join(' | ', @shown), " |\n|---|", '---|' x @shown, "\n";
    for my $row (@rows) { print "| $row | ", join(' | ', map { cell($row, $_) } @shown), " |\n" }
    print "\n", map { "- $_\n" } @notes;
}

1;
