#!/bin/busybox sh
# shellcheck shell=sh
# The lab's whole initramfs: busybox, the modules of the root disk, and this. An initramfs
# with udev takes an emulated host ten seconds and more; this one takes less than one.
#
# With `lab.trial` on the kernel's command line it proves that the accelerator runs a
# guest, says so on the console and switches the machine off. Otherwise it mounts the root
# disk, gives a host that has no identity yet the one on the seed disk, and starts systemd.
# Under User Mode Linux it also gives disks' partitions, network cards and /proc/cpuinfo the look that they
# have elsewhere, and brings the kernel's modules.

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
export PATH=/bin
/bin/busybox --install -s /bin

die() {
    echo "lab: $*" >/dev/console
    poweroff -f
}

# label ARCHIVE: label what was unpacked from it. Without a label, SELinux would keep everybody from it.
label() {
    contexts=/etc/selinux/default/contexts/files/file_contexts
    [ -s "/root$contexts" ] || return 0
    tar -t -f "$1" | sed 's,^,/,' | chroot /root /usr/sbin/setfiles -F -f - "$contexts" ||
        die "what $1 has brought can't be labelled"
}

if grep -qw lab.trial /proc/cmdline; then
    # Some real work first: an accelerator may start a guest and then fail on an instruction.
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
    # kubelet looks for the clock's speed here and ends without it. The file's own file system goes at once;
    # the mount over /proc/cpuinfo stays, and /proc is handed over with it.
    mkdir /mhz
    mount -t tmpfs -o size=64k,mode=755 tmpfs /mhz
    sed '/^model name/a cpu MHz\t\t: 1000.000' /proc/cpuinfo >/mhz/cpuinfo
    mount -o bind /mhz/cpuinfo /proc/cpuinfo || die "/proc/cpuinfo can't be covered"
    umount -l /mhz
else
    while read -r module; do
        insmod "/modules/$module" || die "module $module can't be loaded"
    done </modules/order
fi

# The driver finds its disks while it is loaded; the bound is for a disk that isn't there.
i=0
until [ -b "${disk}1" ]; do
    i=$((i + 1))
    [ "$i" -le 100 ] || die "no root disk ${disk}1"
    usleep 100000
done
mount -t ext4 -o rw,noatime "${disk}1" /root || die "the root disk can't be mounted"

# The image has Debian's kernel. The modules of another one come with it, and under its version's name.
complete=/root/usr/lib/modules/$(uname -r)/.complete
if [ -s /modules.tar ] && [ ! -e "$complete" ]; then
    tar -x -f /modules.tar -C /root || die "the kernel's modules can't be unpacked"
    label /modules.tar
    sync
    : >"$complete"
fi

if [ ! -s /root/etc/machine-id ]; then
    tar -x -f "$seed" -C /root || die "the seed disk can't be read"
    label "$seed"
    # Last, since it marks the seed as complete: a boot that is cut short begins it again.
    mv /root/etc/machine-id.seed /root/etc/machine-id || die "the seed holds no machine id"
    sync
fi

umount /sys
mount -o move /proc /root/proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
