#!/bin/sh
# install.sh PREFIX WHEELS [EXTRA]: a role's file tree, of the wheel in WHEELS and the versions in constraints.txt, with the
# list of what is in it beside it. tests/deploy/test_containers.py runs the same without a container engine.
set -eu
prefix=$1 wheel=$(echo "$2"/sealface-*.whl) extra=${3:-}
python3 -m venv "$prefix"
pip() { "$prefix/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --no-cache-dir --constraint constraints.txt "$wheel${extra:+[$extra]}"
if [ "$extra" = faces ]; then # DeepFace's own requirements are 2.6 GB of TensorFlow
    pip install --quiet --no-cache-dir --no-deps deepface==0.0.103
    DEEPFACE_HOME="$prefix/share" "$prefix/bin/python" -m sealface.recognition.weights
fi
pip uninstall --quiet --yes setuptools pip # nothing is installed later
"$prefix/bin/python" deploy/containers/sbom.py > "$prefix/sbom.cdx.json"
