#!/bin/busybox sh
# shellcheck shell=sh
# The init of the lab's initramfs, which also has busybox and the root disk's modules. An initramfs with udev
# takes an emulated host ten seconds or more; this one takes less than one.
#
# With `lab.trial` on the kernel's command line it checks that the accelerator can run a guest, reports the
# result on the console and powers off. Otherwise it mounts the root disk, seeds a host that has no
# identity yet from the seed disk, and starts systemd. Under User Mode Linux it also makes network cards and
# /proc/cpuinfo look as they do elsewhere, and installs the kernel's modules.

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
export PATH=/bin
/bin/busybox --install -s /bin

die() {
    echo "lab: $*" >/dev/console
    poweroff -f
}

# label ARCHIVE: set the SELinux labels of the files unpacked from it; unlabelled files are inaccessible.
label() {
    contexts=/etc/selinux/default/contexts/files/file_contexts
    [ -s "/root$contexts" ] || return 0
    tar -t -f "$1" | sed 's,^,/,' | chroot /root /usr/sbin/setfiles -F -f - "$contexts" ||
        die "can't label the files from $1"
}

if grep -qw lab.trial /proc/cmdline; then
    # Do some real work: a broken accelerator may start a guest and fail later, at some instruction.
    i=0
    while [ "$i" -lt 20 ]; do
        sha256sum /bin/busybox >/sum || die "trial failed"
        i=$((i + 1))
    done
    [ -s /sum ] || die "trial failed"
    echo "lab: trial passed" >/dev/console
    poweroff -f
fi

disk=/dev/vda seed=/dev/vdb
if grep -q 'User Mode Linux' /proc/cpuinfo; then
    disk=/dev/ubda seed=/dev/ubdb
    for card in 0 1; do
        ip link set "vec$card" name "eth$card" || die "the network card vec$card is missing"
    done
    # kubelet reads the CPU's clock speed here and exits without it. The tmpfs is detached at once; the bind
    # mount over /proc/cpuinfo stays and moves to the root disk with /proc.
    mkdir /mhz
    mount -t tmpfs -o size=64k,mode=755 tmpfs /mhz
    sed '/^model name/a cpu MHz\t\t: 1000.000' /proc/cpuinfo >/mhz/cpuinfo
    mount -o bind /mhz/cpuinfo /proc/cpuinfo || die "can't mount over /proc/cpuinfo"
    umount -l /mhz
else
    while read -r module; do
        insmod "/modules/$module" || die "can't load the module $module"
    done </modules/order
fi

# The driver has usually found its disks by now; the limit is for a missing disk.
i=0
until [ -b "${disk}1" ]; do
    i=$((i + 1))
    [ "$i" -le 100 ] || die "no root disk ${disk}1"
    usleep 100000
done
mount -t ext4 -o rw,noatime "${disk}1" /root || die "can't mount the root disk"

# The image has the modules of Debian's kernel. Another kernel brings its own in the initramfs.
complete=/root/usr/lib/modules/$(uname -r)/.complete
if [ -s /modules.tar ] && [ ! -e "$complete" ]; then
    tar -x -f /modules.tar -C /root || die "can't unpack the kernel's modules"
    label /modules.tar
    sync
    : >"$complete"
fi

if [ ! -s /root/etc/machine-id ]; then
    tar -x -f "$seed" -C /root || die "can't read the seed disk"
    label "$seed"
    # Last, because it marks the seed as complete: an interrupted boot starts over.
    mv /root/etc/machine-id.seed /root/etc/machine-id || die "the seed has no machine ID"
    sync
fi

umount /sys
mount -o move /proc /root/proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
