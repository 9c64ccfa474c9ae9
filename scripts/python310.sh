# Python 3.10, sourced by scripts/test: FastDeploy 1.x ends with it, and every adapter is to work on it.

# Prints a Python 3.10 that really starts: a shim of pyenv may say "command not found".
find_python310() {
  local version
  for version in "" $(pyenv versions --bare 2>/dev/null | grep '^3\.10\.'); do
    PYENV_VERSION=$version python3.10 -c 'import sys, venv, ensurepip; print(sys.executable)' 2>/dev/null && return
  done
  return 1
}

# make_python310 PYTHON FOLDER PACKAGES...: an environment with the library as it lies here and what its tests need.
# Without the extension module: adapters need none, and it would have to be compiled once more.
make_python310() {
  local python=$1 folder=$2 want
  shift 2
  want="$(cksum <pyproject.toml) $PWD $*"
  [ "$(cat "$folder/.ernie-accel-requirements" 2>/dev/null)" = "$want" ] && return
  echo "Making $folder" >&2
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --quiet --disable-pip-version-check pytest hypothesis onnx "$@" \
    --editable . --config-settings=wheel.cmake=false --config-settings=wheel.py-api=py3 </dev/null || return 1
  echo "$want" >"$folder/.ernie-accel-requirements"
}

# Makes the environments; tests find FastDeploy through the variable.
install_python310() {
  local python
  if ! python=$(find_python310); then
    echo "No Python 3.10 starts here: tests of FastDeploy 1.x and of the adapters on Python 3.10 are left out" >&2
  elif ! make_python310 "$python" .venv-py310 fastdeploy-python==1.0.7 'numpy<2' onnxruntime; then
    echo "FastDeploy 1.0.7 cannot be installed here: its tests, and those on Python 3.10, are left out" >&2
  else
    export ERNIE_ACCEL_FASTDEPLOY_PYTHON=$PWD/.venv-py310/bin/python
  fi
}

# The adapters as hosts on Python 3.10; there FastDeploy 1.x needs no other interpreter.
test_python310() {
  [ -n "${ERNIE_ACCEL_FASTDEPLOY_PYTHON:-}" ] || return 0
  echo "Testing the adapters on $(.venv-py310/bin/python -V)" >&2
  ERNIE_ACCEL_FASTDEPLOY_PYTHON='' .venv-py310/bin/python -m pytest --quiet --ignore-glob="*native*" \
    tests/unit/backends/fastdeploy tests/unit/backends/test_tasks.py tests/backends/test_conformance.py \
    -k "not test_backend or fastdeploy-ort and (logits or fork) or onnxruntime-logits" </dev/null
}
