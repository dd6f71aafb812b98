#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Shows where the instructions of one exit go: all that the host executes from one time round the guest's loop to the next, in the order
# of execution and summed up by function; what is not in the modules is called `kernel`, as Debian has no list of the kernel's symbols.
#    usage: exit.sh ours|intree [EXIT [NAME]]     EXIT: a part of a name in `selftests bench`
# AT=0x800f NTH=41 looks at 'fault: 4 KiB page': the guest's loop begins there, and arrives twice for each fault.
# Both lists are left in $LODGE_CACHE/log/NAME.{trace,sum}; NAME is exit-MODULE if none is given.
. "$(dirname "$0")/../env/lib.sh"

module=${1:-ours} exit=${2:-exit: CPUID} name=${3:-exit-${1:-ours}}
need_root
dir=$LODGE_CACHE/run/$name
mkdir -p "$dir"
in_root gcc -O2 -Wall -shared -fPIC -o "$(path_in_root "$dir")/trace.so" /lodge/tools/profile/trace.c
# The head of the loop comes after `mov r8d, imm32` at 0x8000. The second round is still cold.
"$LODGE_SRC/tools/env/vm.sh" --module "$module" --icount --smp 1 --parts programs --append nokaslr --timeout 600 \
    --plugin "$(path_in_root "$dir")/trace.so,at=${AT:-0x8006},nth=${NTH:-40},out=$(path_in_root "$dir")/addresses" --log "$LODGE_LOG/$name.vm" \
    "selftests bench '$exit'; grep '\[kvm' /proc/kallsyms" >"$dir/console"
grep -aE '^[0-9a-f]{16} [a-zA-Z] ' "$dir/console" | tr -d '\r' | tr '\t' ' ' | in_root c++filt -s rust >"$dir/symbols"
in_root python3 /lodge/tools/profile/symbolize.py "$(path_in_root "$dir")"/{symbols,addresses} >"$LODGE_LOG/$name.trace"
sed -E 's/\+[0-9]+$//' "$LODGE_LOG/$name.trace" | sort | uniq -c | sort -rn >"$LODGE_LOG/$name.sum"
echo "$(wc -l <"$LODGE_LOG/$name.trace") instructions:"
cat "$LODGE_LOG/$name.sum"
