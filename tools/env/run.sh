#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Boots a stock Debian kernel as a guest of `lodge`, or of VMM=qemu, in a host VM and shows its console; succeeds only if the guest
# did its work in user space and ended by intent.   VENDOR= and MODULE= as vm.sh has them; GUEST_ARGS= further ones for the VMM.
. "$(dirname "$0")/lib.sh"

vendor=${VENDOR:-amd} module=${MODULE:-ours} vmm=${VMM:-lodge}
case $vmm in
lodge)
    parts="programs guest"
    run="lodge run --kernel /guest/vmlinuz --initrd /guest/initrd --memory 256M \
        --cmdline 'console=ttyS0 reboot=k panic=-1 quiet cryptomgr.notests' ${GUEST_ARGS:-}"
    ;;
qemu) parts="guest qemu" run="qemu-guest plain ${GUEST_ARGS:-}" ;;
*) die "VMM is lodge or qemu, not '$vmm'" ;;
esac
log=$LODGE_LOG/run-$vendor.$$.log
# Only the newest console is kept, but each run looks at its own.
trap 'mv -f "$log" "$LODGE_LOG/run-$vendor.log" 2>/dev/null || true' EXIT
began=$(date +%s)
say "a host VM ($vendor) boots, loads the KVM module ($module), and runs a guest of $vmm"
status=0
"$(dirname "$0")/vm.sh" --vendor "$vendor" --module "$module" --parts "$parts" --log "$log" "
    echo \"host: \$(uname -srm), \$(sed -n 's/^model name.*: //p;T;q' /proc/cpuinfo); \$(head -n1 /proc/modules)\"
    $run
    status=\$?
    echo \"host: $vmm ended with status \$status\"
    exit \$status" || status=$?
if [ "$status" = 0 ] && ! grep -q '^LODGE-GUEST: ok' "$log"; then
    say "the guest ended without having done its work"
    status=97
fi
if [ "$status" = 0 ]; then say "the guest ran and ended well, after $(($(date +%s) - began)) s"; else
    say "failed with status $status after $(($(date +%s) - began)) s; the console is in $LODGE_LOG/run-$vendor.log"
fi
exit "$status"
