#!/bin/sh
# Keeps the agent of a sample in a Docker container (20.10 or newer) of its own, with the sample's workspace:
#
#     IMAGE=python:3.12 codex-pool batch tasks -o out/x --workspace-hook "$PWD/examples/batch/docker-hook.sh"
#
# The image has what the tasks need; codex is mounted into it. CODEX_BIN is the binary, if python3 does not know it.
# The container is the sandbox: samples say "sandbox": "danger-full-access". What it writes belongs to you.
set -eu

case $CODEX_POOL_HOOK in
start)
    codex=${CODEX_BIN:-$(python3 -c 'import codex_cli_bin; print(codex_cli_bin.bundled_codex_path())')}
    docker rm -f "$CODEX_POOL_NAME" >&2
    docker run -d --init --name "$CODEX_POOL_NAME" --user "$(id -u):$(id -g)" -e HOME=/tmp \
        -v "$CODEX_POOL_WORKSPACE:/mnt/workspace" -v "$codex:/usr/local/bin/codex:ro" \
        -p 127.0.0.1::7000 --entrypoint /usr/local/bin/codex "${IMAGE:-debian:stable}" \
        exec-server --listen ws://0.0.0.0:7000 >&2
    # Docker takes connections before there is anybody to answer; the exec-server says when it listens.
    tries=0
    until docker logs "$CODEX_POOL_NAME" 2>&1 | grep -q '^ws://'; do
        tries=$((tries + 1))
        if [ "$tries" -ge 100 ]; then
            docker logs "$CODEX_POOL_NAME" >&2
            docker rm -f "$CODEX_POOL_NAME" >/dev/null
            exit 1
        fi
        sleep 0.1
    done
    address=$(docker port "$CODEX_POOL_NAME" 7000)
    echo "{\"exec_server\": \"ws://$address\", \"cwd\": \"/mnt/workspace\"}"
    ;;
stop)
    docker rm -f "$CODEX_POOL_NAME" >&2
    ;;
esac
