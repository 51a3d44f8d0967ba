#!/bin/sh
# Boots the Debian tree TREE under its own systemd, in namespaces of its own: what is written goes
# to memory, the machine's settings and control groups stay as they are. In the mount, process,
# network and control-group namespaces that the caller made; GROUPS are the folders of the control
# groups that it is in, relative to /sys/fs/cgroup, "." for the only one.
#
#   boot.sh FOLDER TREE GROUP...
set -e

folder=$1 tree=$2
shift 2
root=$folder/root

mount --make-rprivate /
mount -t tmpfs -o mode=755 layer "$folder/layer"
mkdir "$folder/layer/upper" "$folder/layer/work"
mount -t overlay \
	-o "lowerdir=$tree,upperdir=$folder/layer/upper,workdir=$folder/layer/work" root "$root"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sys "$root/sys"
case $* in
	"") ;;
	*" .")
		mount --bind "/sys/fs/cgroup/${1%% *}" "$root/sys/fs/cgroup"
		;;
	*)
		mount -t tmpfs -o mode=755 groups "$root/sys/fs/cgroup"
		for pair in "$@"; do
			mkdir "$root/sys/fs/cgroup/${pair#* }"
			mount --bind "/sys/fs/cgroup/${pair%% *}" "$root/sys/fs/cgroup/${pair#* }"
		done
		;;
esac
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
	: >"$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs tmp "$root/tmp"
# Not the first boot of this tree, which would enable what nobody has chosen.
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"

# Not chroot: who is in one may make no namespace of users, and a unit's PrivateUsers= is one. The
# old root lies upon the new one for a moment.
cd "$root"
pivot_root . .
umount -l .
# As a container's systemd expects it: credentials are mounted by a child of it.
mount --make-rshared /
exec env -i container=sysflow-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=multi-user.target --log-target=console
