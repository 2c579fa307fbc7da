#!/bin/sh
# prove.sh OUT PHASE…: what is to be shown on a machine with a GPU, in calls of less than ten
# minutes, half an hour in all. Run it at the top of the source tree or of a bundle (`make bundle`).
# Each phase writes OUT/PHASE* and says in OUT/phases.txt how it ended.
#
#   smoke         every dtype of cache rows with f32 and bf16: a prompt and steps beside the
#                 processor's; then a short one under compute-sanitizer, where that is. If it fails,
#                 no other phase of the call is run: what would be the use
#   test          every spec with the device as default, several files at once; its ceilings
#   sanitize      compute-sanitizer (memcheck, racecheck) over the specs of single operations and of
#                 small models
#   soak          10,000 steps of one sequence under a policy that drops rows all the time, memory
#                 and rows watched
#   bench-7b      random LLaMA 2 7B; bench-13b: 13B; bench-8b: Llama 3 8B: prefill, decode, batches
#                 of 32, the largest batch, beside transformers where PYTHON has it
#   bench-quick   the same cases, small, with a model of 0.8 million weights
#   all           smoke test sanitize soak bench-7b bench-13b bench-8b, one after the other, in 28
#                 minutes
#
# Seconds that a phase has: smoke 180, test 360, sanitize 210, soak 90, bench-7b 240, bench-13b 390,
# bench-8b 210; LIMIT sets another number for each of the call.
# PYRAMID_DEVICE (default cuda), PYRAMID_BUILD (default build), PYTHON (default python3), JOBS (spec
# files at once; default: half of the processors, 8 at most), LIMIT, MODEL_FOLDER (default
# OUT/models: 30 GB are needed for a while).
set -u
[ $# -ge 2 ] || { sed -n '2,24s/^# \{0,1\}//p' "$0" >&2; exit 1; }
out=$1
shift
build=${PYRAMID_BUILD:-build}
python=${PYTHON:-python3}
half=$(($(nproc 2>/dev/null || echo 2) / 2))
jobs=${JOBS:-$((half < 1 ? 1 : half > 8 ? 8 : half))}
PYRAMID_DEVICE=${PYRAMID_DEVICE:-cuda}
export PYRAMID_DEVICE PYRAMID_BUILD="$build"
pyramid=$build/pyramid
mkdir -p "$out" || exit 1
models=${MODEL_FOLDER:-$out/models}

# cuBLAS may have come with PyTorch alone, in a folder that no loader looks into.
blas=$("$python" -c 'import glob, site
for root in site.getsitepackages():
    for path in sorted(glob.glob(root + "/nvidia/*/lib/libcublas.so.13")): print(path.rsplit("/", 1)[0])' 2>/dev/null | head -n 1)
LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${blas:+$blas:}/usr/local/cuda/lib64
export LD_LIBRARY_PATH

# within SECONDS command…: at most so long, and never beyond the phase's end.
within() {
  some=$1
  shift
  left=$((ends - $(date +%s)))
  [ "$left" -gt 5 ] || { echo "no time left for: $*" >&2; return 124; }
  [ "$some" -lt "$left" ] || some=$left
  timeout -k 5 "$some" "$@"
}

limit_of() {
  case $1 in
    smoke) echo 180 ;;
    test) echo 360 ;;
    sanitize | bench-8b) echo 210 ;;
    soak) echo 90 ;;
    bench-13b) echo 390 ;;
    *) echo 240 ;;
  esac
}

sanitizer() { command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null; }

run_smoke() {
  within "$limit" "$pyramid" kernels/proofs/smoke.lua --json="$out/smoke.json" || return 1
  tool=$(sanitizer) || { echo "compute-sanitizer is not found: nothing was run under it"; return 0; }
  within "$limit" "$tool" --tool memcheck --error-exitcode 9 "$pyramid" kernels/proofs/smoke.lua --quick
}

run_test() { within "$limit" "$pyramid" spec/device.lua --out="$out" --jobs="$jobs" --limit=$((limit - 60)); }

# A tool that is missing or finds something fails the phase; what it found is in its log.
run_sanitize() {
  tool=$(sanitizer) || { echo "compute-sanitizer is not found: it is part of the CUDA toolkit" >&2; return 1; }
  failed=0
  for check in memcheck racecheck; do
    for spec in $CHECKED; do
      log=$out/sanitize-$check-$(basename "$spec").txt
      within 60 "$tool" --tool "$check" --target-processes all --error-exitcode 9 "$pyramid" spec/run.lua \
        "spec/${spec}_spec.lua" >"$log" 2>&1
      status=$?
      echo "$check $spec: exit status $status, $(grep -a 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" | tail -1)"
      [ $status = 0 ] || failed=1
    done
  done
  return $failed
}
CHECKED=${CHECKED:-"ops/rows ops/scores ops/pick ops/linear ops/attention ops/signals ops/tokens core/runtime core/profile"}

run_soak() { within "$limit" "$pyramid" kernels/proofs/soak.lua --steps="${STEPS:-10000}" --json="$out/soak.json"; }

# bench NAME SECONDS options…
bench() {
  name=$1 some=$2
  shift 2
  within "$some" "$pyramid" bench --precision bf16 --folder "$models" --json "$out/$name.json" --markdown "$out/$name.md" "$@"
}

peer_of() { "$python" -c 'import torch, transformers' 2>/dev/null && echo "--peer transformers --python $python"; }

# The policies of the paper's table; the preset is the published one of a model of that size. Of the
# phase's time, three tenths are for single sequences, four for batches, and what is left for the
# largest batch.
bench_model() {
  shape=$1 preset=$2 memory=$3 failed=0
  set -- --weights bf16 --shape "$shape" --policy full --policy "pyramidinfer preset=$preset" \
    --policy "pyramidinfer preset=$preset mode=paper" --policy "pyramidinfer preset=45" --policy h2o
  peer=$(peer_of) || echo "no transformers here: no peer" >&2
  # shellcheck disable=SC2086
  bench "bench-$shape-single" $((limit * 3 / 10)) "$@" $peer --prefill 4096 --depth 512 --steps 64 --batch none --repeat 3 || failed=1
  # shellcheck disable=SC2086
  bench "bench-$shape-batch" $((limit * 4 / 10)) "$@" $peer --prefill none --depth none --batch 32 --lengths 512+256 --repeat 2 --patience 60 \
    || failed=1
  bench "bench-$shape-largest" "$limit" "$@" --prefill none --depth none --batch 8 --lengths 512+256 --repeat 1 --memory "$memory" \
    --tries 4 || failed=1
  rm -rf "$models"
  return $failed
}

run_bench_quick() {
  # shellcheck disable=SC2046
  bench bench-quick "$limit" --quick --shape tiny --weights bf16 --policy full --policy "pyramidinfer preset=45" \
    --policy h2o --prefill 8 --depth 1 --steps 1 --batch 2 --lengths 4+2 --memory "64 MiB" --tries 1 --repeat 1 --patience 1 \
    $(peer_of)
}

phase() {
  began=$(date +%s)
  limit=${LIMIT:-$(limit_of "$1")}
  ends=$((began + limit))
  case $1 in
    smoke) run_smoke ;;
    test) run_test ;;
    sanitize) run_sanitize ;;
    soak) run_soak ;;
    bench-7b) bench_model 7b 7b "40 GiB" ;;
    bench-13b) bench_model 13b 13b "72 GiB" ;;
    bench-8b) bench_model 8b 7b "40 GiB" ;;
    bench-quick) run_bench_quick ;;
    *) echo "no phase '$1'" >&2; false ;;
  esac >"$out/$1.txt" 2>&1
  status=$?
  tail -n 40 "$out/$1.txt"
  echo "$1: exit status $status after $(($(date +%s) - began)) s" | tee -a "$out/phases.txt"
  return $status
}

[ "$1" = all ] && set -- smoke test sanitize soak bench-7b bench-13b bench-8b
worst=0
for name in "$@"; do
  phase "$name" && continue
  worst=1
  [ "$name" = smoke ] || continue
  echo "the smoke phase failed: nothing else is run" | tee -a "$out/phases.txt"
  break
done
exit $worst
