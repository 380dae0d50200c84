# Makes /opt/attnserve in a build stage of the Dockerfile: install.sh IMAGE
set -eu
python3 -m venv --without-pip /opt/attnserve
install="/build/bin/pip --python /opt/attnserve/bin/python install --quiet --no-deps --no-compile"
$install --require-hashes -r "deploy/requirements/$1.txt"
$install /wheel/attnserve-*.whl
/build/bin/cyclonedx-py environment --output-reproducible --of JSON -o /opt/attnserve/sbom.cdx.json /opt/attnserve/bin/python
# Checked bytecode would be compiled anew where a file's time is not what it was; here the root file system is read-only.
/opt/attnserve/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/attnserve/lib
