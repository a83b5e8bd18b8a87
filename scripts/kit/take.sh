#!/usr/bin/env bash
# Run this on the GPU machine: `bash take.sh`. It takes this portion of the kit to $PAINN_KIT, ~/painn-kit unless it is
# set, and installs the wheels that are complete there. Portions may come in any order, and this may be run again.
# $PYTHON is the Python that has torch, python3 unless it is set. No network is used, and nothing outside $PAINN_KIT changes.
set -euo pipefail
shopt -s nullglob
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

fail() {
  echo "error: $*" >&2
  exit 1
}

digest() {
  sha256sum <"$1" | cut -d ' ' -f 1
}

# Every file is checked before anything is taken.
[ -f "$here/SHA256SUMS" ] || fail "$here has no SHA256SUMS. Copy this portion again."
while read -r sum name; do
  [ -f "$here/$name" ] || fail "$here/$name is missing. Copy this portion again."
  [ "$(digest "$here/$name")" = "$sum" ] || fail "$here/$name is damaged: its SHA-256 differs. Copy this portion again."
done <"$here/SHA256SUMS"

# WHEELS lists all of the kit: the Python on its first line, then SHA-256, number of pieces and name of each wheel.
read -r _ version <"$here/WHEELS"
"$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" ||
  fail "$python is not Python $version, which this kit is for. Set PYTHON to the Python $version that has torch."
mkdir -p "${PAINN_KIT:-$HOME/painn-kit}"
kit=$(cd "${PAINN_KIT:-$HOME/painn-kit}" && pwd)

# A wheel's pieces lie in a folder of its SHA-256, so that kits never mix. Files get their names once they are whole.
ready=()
while read -r sum pieces name; do
  store=$kit/wheels/$sum
  if [ ! -f "$store/$name" ]; then
    for piece in "$here/$name" "$here/$name".[0-9][0-9][0-9]; do
      [ -f "$piece" ] || continue
      mkdir -p "$store"
      cp "$piece" "$store/copying"
      mv "$store/copying" "$store/piece.$(basename "$piece")"
    done
    arrived=("$store"/piece.*)
    if [ "${#arrived[@]}" != "$pieces" ]; then
      [ "${#arrived[@]}" = 0 ] || echo "$name: ${#arrived[@]} of $pieces pieces are here"
      continue
    fi
    cat "${arrived[@]}" >"$store/joining"
    if [ "$(digest "$store/joining")" != "$sum" ]; then
      rm -rf "$store"
      fail "$name is damaged in $kit. Copy its portions again, and run take.sh of each."
    fi
    mv "$store/joining" "$store/$name"
    rm "${arrived[@]}"
  fi
  ready+=("$store/$name")
done < <(tail -n +2 "$here/WHEELS")

# All wheels are installed at once: two of them may share a folder, which pip would replace.
if [ "${#ready[@]}" -gt 0 ]; then
  wanted=$(printf '%s\n' "$python" "${ready[@]}")
  if [ ! -d "$kit/site" ] || [ "$(cat "$kit/installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$kit/site.new"
    PIP_CONFIG_FILE=/dev/null "$python" -m pip --isolated --disable-pip-version-check --quiet install --no-index \
      --no-deps --no-compile --no-cache-dir --target "$kit/site.new" "${ready[@]}" || fail "pip could not install."
    rm -rf "$kit/site" "$kit/installed"
    mv "$kit/site.new" "$kit/site"
    printf '%s\n' "$wanted" >"$kit/installed"
  fi
fi

# CUDA's libraries lie where pip puts them, and only torch looks there.
libraries=$("$python" -c '
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
roots = [pathlib.Path(root) for root in spec.submodule_search_locations] if spec else []
print(":".join(str(path) for root in roots for path in sorted(root.glob("*/lib"))))')
search="export LD_LIBRARY_PATH=$(printf %q "$libraries")\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
cat >"$kit/env.sh" <<END
# Source this file: painn-deploy and its engines are importable afterwards.
export PAINN_KIT=$(printf %q "$kit")
export PAINN_DEPLOY_CACHE=\$PAINN_KIT/cache
export PYTHONPATH=\$PAINN_KIT/site\${PYTHONPATH:+:\$PYTHONPATH}
export PATH=\$PAINN_KIT/site/bin:\$PATH
${libraries:+$search}
# Kernels are read when they are first called: those that were taken out are never missed.
export CUDA_MODULE_LOADING=\${CUDA_MODULE_LOADING:-LAZY}
END
echo "${#ready[@]} of $(tail -n +2 "$here/WHEELS" | wc -l) wheels are installed. Next: . $(printf %q "$kit/env.sh")"
