# What every guest does first: brings the machine up. Its first program reads this.
mkdir -p /proc /sys /dev /tmp /run /var /etc
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
echo 1 > /proc/sys/kernel/printk

say() {
	echo "@$*"
}

# Files line by line, each with a key.
say_file() {
	while read -r line; do say "$1 $line"; done < "$2"
}

. /etc/guest.conf
date -u -s "$NOW" > /dev/null
while read -r module; do insmod "/lib/modules/$module"; done < /lib/modules/order
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
[ -z "$JIT" ] || echo "$JIT" > /proc/sys/net/core/bpf_jit_enable
say "kernel $(uname -r) $(uname -m), jit $(cat /proc/sys/net/core/bpf_jit_enable)"

