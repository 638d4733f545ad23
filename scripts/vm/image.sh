# Sourced by scripts/vm-test: a Debian disk image with systemd and this project's environment, made
# from Debian's packages, without loop mounts, boot loader or initramfs.
# shellcheck shell=bash

suite=${NATIVERT_VM_SUITE:-bookworm}
# NVMe and ext4 are built into the cloud kernel, so that it finds its root without an initramfs.
kernel=linux-image-cloud-amd64
# What makes a machine of it; what the project needs, vagrant/provision.sh installs.
packages=(
    apt systemd systemd-sysv libpam-systemd udev dbus kmod util-linux procps psmisc
    iproute2 iputils-ping e2fsprogs ca-certificates strace criu
)
# Slow or pointless in a machine that lives for one run.
masked=(
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
    e2scrub_reap.service systemd-pstore.service getty.target getty@tty1.service
    serial-getty@ttyS0.service systemd-binfmt.service systemd-firstboot.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-hwdb-update.service
    systemd-journal-flush.service systemd-networkd.service systemd-networkd.socket
    systemd-networkd-wait-online.service systemd-network-generator.service modprobe@drm.service
    nftables.service redis-server.service nginx.service
)

# What goes into the image decides its name: the settings of the tools in pyproject.toml do not.
image_key() {
    {
        echo "$suite $kernel ${packages[*]} ${masked[*]}"
        cat scripts/vm/image.sh scripts/vm/make-image scripts/vm/guest/vm-test.* vagrant/provision.sh scripts/setup \
            scripts/requirements*.txt
        sed '/^\[tool\./,$d' pyproject.toml
    } | sha256sum | cut -c1-16
}

# Make "$image" if it is not there: disk, vmlinuz and, at the end, the file "ready".
make_image() {
    if [ -e "$image/ready" ]; then
        touch "$image/ready"
        return
    fi
    [ "$(id -u)" = 0 ] || die "making the image needs root"
    mkdir -p "$cache"
    exec 8>"$cache/lock"
    flock 8
    if [ ! -e "$image/ready" ]; then
        local started=$SECONDS
        say "making the image (Debian $suite, once for each set of packages): $image"
        rm -rf "$image"
        mkdir -p "$image/root"
        # A mount namespace, so that nothing stays mounted whatever happens; a PID namespace, so
        # that no daemon started by a package stays either.
        image=$image suite=$suite kernel=$kernel packages=${packages[*]} masked=${masked[*]} \
            unshare --mount --pid --fork --kill-child scripts/vm/make-image >"$image/log" 2>&1 8>&- || {
            tail -n 40 "$image/log" >&2
            die "the image could not be made; $image/log has it all"
        }
        touch "$image/ready"
        say "made in $((SECONDS - started)) s: $(du -h "$image/disk" | cut -f1)"
        # Others that no run has used for a week.
        find "$cache" -mindepth 2 -maxdepth 2 -name ready -mtime +7 -printf '%h\0' |
            xargs -0 -r rm -rf
    fi
    exec 8>&-
}
