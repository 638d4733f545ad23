# Sourced by scripts/vm-test: start one QEMU machine of the image and bring its exit code back.
# shellcheck shell=bash

# Some /dev/kvm make machines but cannot run a kernel that was not built for them. One that can
# gets as far as the panic for want of a root.
kvm_works() {
    local answer
    answer=$cache/kvm.$(uname -r)
    [ -r /dev/kvm ] && [ -w /dev/kvm ] || return 1
    if [ ! -e "$answer" ]; then
        local console
        console=$(mktemp)
        # In a shell of its own, which keeps bash's word about an abort to itself.
        (timeout 15 qemu-system-x86_64 -accel kvm -cpu host -m 256 -nodefaults -display none \
            -no-reboot -serial "file:$console" -kernel "$image/vmlinuz" \
            -append 'console=ttyS0 panic=-1' </dev/null; true) >/dev/null 2>&1
        if grep -q 'Kernel panic' "$console"; then echo yes; else echo no; fi >"$answer"
        rm -f "$console"
    fi
    [ "$(cat "$answer")" = yes ]
}

# hierarchy -> what systemd 252 mounts
cgroup_arguments() {
    case $1 in
        v2) echo systemd.unified_cgroup_hierarchy=1 ;;
        v1) echo systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1 ;;
        hybrid) echo systemd.unified_cgroup_hierarchy=0 ;;
    esac
}

# input_disk DIRECTORY: the checkout, the command and its environment as a file system
input_disk() {
    local at=$1
    chmod -R go-w "$at/in"
    truncate -s "$(($(du -sm "$at/in" | cut -f1) * 5 / 4 + 16))M" "$at/in.ext4"
    mke2fs -q -F -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -L VM_TEST_IN -d "$at/in" \
        "$at/in.ext4"
    truncate -s 1G "$at/out.ext4"
    mke2fs -q -F -t ext4 -m 0 -E root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1 \
        -L VM_TEST_OUT "$at/out.ext4"
    qemu-img create -q -f qcow2 -b "$(readlink -f "$image/disk")" -F raw "$at/root.qcow2"
}

# boot DIRECTORY NETDEV: run the machine whose disks are there; its output goes to stdout
boot() {
    local at=$1 netdev=$2 qemu
    local append="console=ttyS0 root=/dev/nvme0n1 rw mitigations=off nokaslr panic=-1 quiet"
    append+=" net.ifnames=0 systemd.show_status=0 systemd.unit=vm-test.target"
    append+=" $(cgroup_arguments "$hierarchy")"
    if [ "$accel" = kvm ]; then
        qemu=(-accel kvm -cpu host)
    else
        # -cpu max is slower. The rest is what x86-64-v2 wheels need.
        qemu=(-accel tcg,thread=multi,tb-size=256 -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16)
    fi
    qemu+=(
        -machine q35,usb=off,vmport=off,graphics=off -smp "$cpus" -m "$memory_mb"
        -nodefaults -no-user-config -display none
        -kernel "$image/vmlinuz" -append "$append"
        -device virtio-serial-pci
        -chardev "file,id=status,path=$at/status"
        -device virtserialport,chardev=output,name=output
        -device virtserialport,chardev=status,name=status
        -device virtio-rng-pci
        -device nvme,id=nvme,serial=vm-test
        -drive "if=none,id=d1,file=$at/root.qcow2,format=qcow2,cache=unsafe,discard=unmap"
        -device nvme-ns,bus=nvme,drive=d1,nsid=1
        -drive "if=none,id=d2,file=$at/in.ext4,format=raw,readonly=on"
        -device nvme-ns,bus=nvme,drive=d2,nsid=2
        -drive "if=none,id=d3,file=$at/out.ext4,format=raw,cache=unsafe"
        -device nvme-ns,bus=nvme,drive=d3,nsid=3
    )
    $reboot || qemu+=(-no-reboot)
    if [ -n "$netdev" ]; then
        qemu+=(-netdev "$netdev,id=net0"
            -device "virtio-net-pci,netdev=net0,mac=52:54:00:77:00:${at##*-},romfile=")
    fi
    if $shell; then
        qemu+=(-serial mon:stdio -chardev null,id=output)
        qemu-system-x86_64 "${qemu[@]}"
        return
    fi
    qemu+=(-serial "file:$at/console" -chardev stdio,id=output,signal=off)
    # At the end of its input the chardev would drop the machine's output: here is none.
    mkfifo "$at/stdin"
    exec timeout --foreground "$timeout_s" qemu-system-x86_64 "${qemu[@]}" \
        <>"$at/stdin" 2>"$at/qemu.err"
}

# outcome DIRECTORY QEMU-STATUS -> the command's exit code, 124 (too long) or 125 (lost)
outcome() {
    local at=$1 code
    code=$(tr -dc 0-9 <"$at/status" 2>/dev/null || true)
    if [ -n "$code" ]; then
        echo "$code"
        return
    fi
    if [ "$2" = 124 ]; then
        say "not done within $timeout_s s; the end of its console:"
        code=124
    else
        say "the machine ended without an exit code: $(cat "$at/qemu.err"); end of its console:"
        code=125
    fi
    tail -n 40 "$at/console" >&2
    echo "$code"
}
