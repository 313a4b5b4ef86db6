#!/usr/bin/env bash
# The three domain vectors with default settings, each swept on its test split.
#   benchmarks/domains.sh OUT
# Writes OUT/DOMAIN-sweep/sweep.{json,png,svg}; 4 to 5 minutes a domain on 2 cores with bfloat16
# instructions, about 20 on 2 AVX2 cores.
# Killed and started again with the same OUT, it goes on where it was.
set -euo pipefail
out=$1
for d in medical financial legal; do
    [ -e "$out/$d-aligned" ] ||
        alignvec align embedded --data builtin --domain "$d" -o "$out/$d-aligned"
    [ -e "$out/$d-av" ] || alignvec extract embedded "$out/$d-aligned" -o "$out/$d-av"
    alignvec eval embedded --data builtin --domain "$d" --vector "$d=$out/$d-av" \
        --sweep "$d=-3:3:0.6" -o "$out/$d-sweep"
done
