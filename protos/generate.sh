#!/bin/sh
# Writes the committed stubs from the .proto files:  protos/generate.sh PYTHON [TARGET]
# PYTHON needs grpcio-tools at the oldest version we support (extra `dev`); TARGET defaults to service.
set -eu
cd "$(dirname "$0")/.."
target=${2:-service}
messages="attnserve/v1/attention.proto attnserve/inference/model_config.proto attnserve/inference/grpc_service.proto"
"$1" -m grpc_tools.protoc -I protos --python_out="$target" --pyi_out="$target" $messages
# A stub for our client; the server goes by its own table of methods.
"$1" -m grpc_tools.protoc -I protos --grpc_python_out="$target" attnserve/v1/attention.proto
