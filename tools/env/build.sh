#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Everything that a VM run needs, from an empty cache: the root, the kernel, the module, the programs.
. "$(dirname "$0")/lib.sh"
env=$(dirname "$0")

need_root
"$env/root.sh"
need_kernel ""
if [ "${MODULE:-ours}" = ours ]; then KVER='' KDIR='' "$env/module.sh"; fi
KVER='' KDIR='' M=$LODGE_SRC/selftests/foreign "$env/module.sh"
"$env/programs.sh"
