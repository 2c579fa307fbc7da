#!/bin/sh
# native.sh PROGRAM SECONDS SEED: spec/fuzz/native.c over the kinds of files that C code reads, so
# many seconds in all. A find's file goes to spec/fixtures/finds. Exits 1 if there are any.
program=$1 seconds=$2 seed=$3
set -- json tokenizer cache template
each=$((seconds / $#))
[ "$each" -ge 1 ] || each=1
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
finds=0 all=0
for kind in "$@"; do
  base=$(case $kind in json) echo config ;; tokenizer) echo added ;; cache) echo adakv ;; *) echo chatml ;; esac)
  mkdir "$work/$kind"
  ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 PYRAMID_FUZZ_KIND=$kind PYRAMID_FUZZ_CORPUS="$work/$kind" \
    "$program" "$work/$kind" -max_total_time="$each" -seed="${seed:-1}" -rss_limit_mb=3000 -timeout=30 -max_len=100000 \
    -artifact_prefix="$work/found-$kind-" -print_final_stats=1 >"$work/log" 2>&1
  status=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")
  covered=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$work/log" | tail -n 1)
  echo "libFuzzer, $kind: ${runs:-0} runs, ${covered:-0} branches"
  all=$((all + ${runs:-0}))
  if [ "$status" != 0 ]; then
    finds=$((finds + 1))
    grep -a 'FIND\|ERROR:\|SUMMARY\|runtime error' "$work/log" | head -n 5
    [ -n "${runs:-}" ] || tail -n 5 "$work/log"
    for file in "$work/found-$kind-"*; do
      [ -f "$file" ] || continue
      suffix=$(case $kind in json | tokenizer) echo json ;; cache) echo bin ;; *) echo jinja ;; esac)
      kept=spec/fixtures/finds/$kind.$base.$(cksum <"$file" | cut -d ' ' -f 1).$suffix
      mkdir -p spec/fixtures/finds && cp "$file" "$kept" && echo "  kept: $kept"
    done
  fi
done
echo "libFuzzer: $all runs, $finds finds"
[ "$finds" = 0 ]
