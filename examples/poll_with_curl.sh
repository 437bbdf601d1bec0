#!/bin/sh
# Submit latents, poll until the job has ended, fetch the picture: nothing but curl.
#
#   examples/poll_with_curl.sh FILE PICTURE
#
# Needs a running service (`make up`); DARKROOM_URL and DARKROOM_API_KEY where they differ.
set -eu

file=${1:-demo/latents/cat.safetensors}
picture=${2:-picture.png}
url=${DARKROOM_URL:-http://127.0.0.1:8000}
key=${DARKROOM_API_KEY:-none}

# A field of the job's document that is a plain string.
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }

call() { curl --fail-with-body --silent --show-error --user "anyone:$key" "$@"; }

# The key makes a repetition of this request find the same job.
id=$(call "$url/v1/jobs?vae=demo" --header "Idempotency-Key: $$-$(date +%s)" \
    --header 'Content-Type: application/x-safetensors' --data-binary "@$file" | field id)
echo "job $id"

# Each call waits up to 30 s on the service's side, so that few are needed.
while :; do
    status=$(call "$url/v1/jobs/$id?wait=30" | field status)
    case $status in
        succeeded) break ;;
        queued | running) ;;
        *) echo "the job is $status" >&2 && exit 1 ;;
    esac
done

call --location "$url/v1/jobs/$id/result" --output "$picture"
echo "$picture"
