# The crate's own tests that need root, on this kernel with cgroup v2 and systemd.
export STOCKADE_TEST_MUST_RUN=1 RUST_BACKTRACE=1
# A disk as a host has one: a tmpfs takes other extended attributes, and is no lower layer of old.
mkfs.ext4 -q /dev/vdc
mount /dev/vdc /tmp
for area in limits network security sys root source; do
    # One thread: the tests of one area share the machine's cgroups and links.
    if ./tests "$area::" --test-threads 2 > "results/$area.txt" 2>&1; then
        echo "ok   $area: $(sed -n 's/^test result: ok\. \([0-9]* passed\).*/\1/p' "results/$area.txt")"
    else
        echo "FAIL $area:"
        grep -E '^(test .*FAILED|.*panicked at|test result)' "results/$area.txt" | head -20
        failed=1
    fi
done
