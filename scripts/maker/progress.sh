#!/bin/sh
# progress.sh: how far a build is. `plan FILE` reads what `make --dry-run` would do and lists the
# compilations in FILE; `begin FILE TEXT` says one with its number and the time still to come; `end
# FILE TEXT` notes that it is done.
#
# What a file costs is guessed in processor seconds: the kernels from measurements, the others by
# their size. The first guess of the time is that of the machine it was measured on; each
# compilation that ends corrects it. Lines of FILE are appended whole, so that compilations which
# run beside each other may share it:
#
#   plan   COUNT COST PROCESSORS SECOND       begin COST SECOND       end COST SECOND
set -e
task=$1 file=$2 text=$3

cost() { # TEXT: thousandths of a second
  case $1 in
    "c++ "*) set -- "${1#c++ }" 60 ;;
    *) set -- "${1#cc }" 18 ;;
  esac
  case $1 in
    */kernels_*) echo 6000 ;;
    *) echo $((150 + $(wc -c <"$1") * $2 / 1024)) ;;
  esac
}

case $task in
  plan)
    count=0 total=0
    # shellcheck disable=SC2013
    sed -n 's/.*progress.sh begin [^ ]* "\(.*\)"$/\1/p; s/^echo "\(c[c+]* .*\)"$/\1/p' >"$file.list"
    while read -r line; do
      count=$((count + 1)) total=$((total + $(cost "$line")))
    done <"$file.list"
    rm -f "$file.list"
    echo "plan $count $total $(nproc 2>/dev/null || echo 1) $(date +%s)" >"$file" ;;
  begin)
    echo "begin $(cost "$text") $(date +%s)" >>"$file"
    awk -v text="$text" '
      $1 == "plan" { count = $2; total = $3; processors = $4; start = $5 }
      $1 == "begin" { begun++; now = $3 }
      $1 == "end" { done += $2 }
      END {
        elapsed = now - start
        rate = done >= 3000 && elapsed >= 2 ? done / elapsed : 1000 * processors    # cost a second
        left = (total - done) / rate
        when = left < 100 ? sprintf("%d s", left + 0.5) : sprintf("%d min", left / 60 + 0.5)
        printf "%3d of %d, about %s to come  %s\n", begun, count, when, text
      }' "$file" ;;
  end) echo "end $(cost "$text") $(date +%s)" >>"$file" ;;
esac
