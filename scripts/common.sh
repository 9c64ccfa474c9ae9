# Shared by the scripts of this folder, which source it. Leaves the shell in the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
[[ $VENV = /* ]] || VENV=$PWD/$VENV

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints a Python that is new enough and can make environments.
find_python() {
  local candidate found=""
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      found=$candidate
      break
    fi
  done
  [ -n "$found" ] || fail "Python 3.10 or newer is needed and ${PYTHON:-python3} is not one: install it, or name one with PYTHON=/path/to/python3"
  "$found" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
    fail "$found cannot make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv)"
  echo "$found"
}

# The same limits stand in csrc/cmake/compiler.cmake, for those who call pip themselves.
require_compiler() {
  local need="a C++20 compiler is needed (g++ 11 or clang++ 14, or newer)" cxx=${CXX:-}
  local advice="install one (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name one with CXX=/path/to/g++"
  [ -n "$cxx" ] || cxx=$(command -v c++ || command -v g++ || command -v clang++) || fail "$need and none is on PATH: $advice"
  command -v "${cxx%% *}" >/dev/null || fail "$need and CXX=$cxx cannot be run: $advice"
  # shellcheck disable=SC2086 # CXX may hold arguments
  $cxx -std=c++20 -x c++ -fsyntax-only - >/dev/null 2>&1 <<'CODE' || fail "$need and $cxx is not one: $advice"
#include <bit>
#include <span>
#if __cplusplus < 202002L || (defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 11)
#error too old
#endif
CODE
}

make_venv() {
  [ -x "$VENV/bin/pip" ] && return # made last, so an interrupted try is made again
  local python
  python=$(find_python)
  echo "Making $VENV with $("$python" --version)" >&2
  "$python" -m venv "$VENV"
}

# What was compiled before, here or in another clone, comes out of ccache where that is installed.
use_ccache() {
  [ -z "${CMAKE_CXX_COMPILER_LAUNCHER:-}" ] && command -v ccache >/dev/null || return 0
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=${CCACHE_BASEDIR:-/}
}

pip_install() {
  "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@" </dev/null
}

# install_requirements GROUP...: "core" or names of extras in pyproject.toml; nothing of our own is built.
install_requirements() {
  local stamp=$VENV/.ernie-accel-requirements-$1 want
  make_venv
  want=$(cksum <pyproject.toml)
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  echo "Installing what '$1' needs" >&2
  "$VENV/bin/python" scripts/requirements.py "$1" >"$VENV/requirements-$1.txt"
  pip_install -r "$VENV/requirements-$1.txt"
  echo "$want" >"$stamp"
}

# Changes whenever the library must be built again; Python files are used where they lie.
build_fingerprint() {
  { pwd && "$VENV/bin/python" --version && find pyproject.toml CMakeLists.txt csrc -type f ! -name 'test*' ! -name 'bench*' |
    LC_ALL=C sort | xargs cksum; } | cksum
}

install_library() {
  local stamp=$VENV/.ernie-accel-build want
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(build_fingerprint)" ]; then return; fi
  find_python >/dev/null
  require_compiler
  use_ccache
  make_venv
  echo "Building and installing ernie_accel; this takes a few minutes, once" >&2
  want=$(build_fingerprint)
  pip_install --editable .
  echo "$want" >"$stamp"
}

# build_kernels FOLDER [CMake options] [-- targets]: the C++ tests and micro-benchmarks, or some, apart from the library.
build_kernels() {
  local folder=$1 options=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  [ $# -eq 0 ] || shift
  require_compiler
  use_ccache
  export PATH="$VENV/bin:$PATH"
  command -v cmake >/dev/null || pip_install cmake
  echo "Building the C++ tests in $folder" >&2
  cmake -S . -B "$folder" -DERNIE_ACCEL_TESTS=ON -DPython_EXECUTABLE="$VENV/bin/python" ${options[@]+"${options[@]}"} >/dev/null
  cmake --build "$folder" --parallel "$(getconf _NPROCESSORS_ONLN)" --target "${@:-all}" >/dev/null
}
