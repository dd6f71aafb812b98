#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Makes the option ROM of selftests/firmware/disable.S.   usage: rom.sh MSR VALUE OUTPUT      (a file in the cache)
. "$(dirname "$0")/lib.sh"

rom=$(path_in_root "$3")
in_root sh -ec 'as --32 --defsym "MSR=$1" --defsym "VALUE=$2" -o "$3.o" /lodge/selftests/firmware/disable.S
    objcopy -O binary -j .text "$3.o" "$3"
    rm "$3.o"' sh "$1" "$2" "$rom"
# The firmware runs it only if its bytes add up to 0.
sum=$(od -An -v -tu1 "$3" | tr -s ' ' '\n' | awk '{ sum += $1 } END { print (256 - sum % 256) % 256 }')
# shellcheck disable=SC2059 # the format is the byte
printf "\\$(printf '%03o' "$sum")" >>"$3"
[ "$(wc -c <"$3")" = 512 ] || die "$3 is not 512 bytes long"
