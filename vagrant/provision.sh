#!/usr/bin/env bash
# Make a Debian machine ready for the tests, by the project's own set-up script and nothing else.
# With v1 or v2 as argument, also set which cgroup hierarchy it boots with; that takes a reboot,
# which the Vagrantfile asks for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup --dev --apps

case ${1:-} in
    "") exit 0 ;;
    v2) arguments="systemd.unified_cgroup_hierarchy=1" ;;
    v1) arguments="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1" ;;
    *) echo "usage: provision.sh [v1|v2]" >&2; exit 2 ;;
esac
# Read by Debian's grub-mkconfig after /etc/default/grub.
mkdir -p /etc/default/grub.d
printf 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX %s"\n' "$arguments" >/etc/default/grub.d/nativert.cfg
update-grub
