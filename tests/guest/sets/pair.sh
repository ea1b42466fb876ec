# hosts: 2
# Two guests on one cable: the ground for tests between hosts.
peer=$((3 - HOST))
# udev may still be at it.
modprobe virtio_net
check "the cable is there" within 60 ip link set eth0 up
ip address add "192.0.2.$HOST/24" dev eth0
mkdir -p /tmp/www
echo "host $HOST" > /tmp/www/name
busybox httpd -p 8080 -h /tmp/www
name() { curl -fsS --max-time 5 "http://192.0.2.$peer:8080/name"; }
check "the other one answers" within 120 name
check_same "by its name" "host $peer" "$(name)"
# The other one may not have asked yet.
sleep 20
