#!/bin/sh
# install.sh ENVIRONMENT WHAT...: what `pip install --quiet WHAT...` does in that environment, by uv, which unpacks torch's
# gigabytes on all cores. By pip itself where there is no uv for this machine, where pip is set up to look
# elsewhere than in PyPI alone, of which uv knows nothing, and where uv fails.
bin=$1/bin
shift
export UV_CONSTRAINT="$PIP_CONSTRAINT" UV_BUILD_CONSTRAINT="$PIP_CONSTRAINT"
export UV_SYSTEM_CERTS=true  # pip reads them too
elsewhere='[.](index-url|extra-index-url|find-links|no-index)='
if ! "$bin/pip" config list | grep -Eq "$elsewhere" && "$bin/pip" install --quiet --only-binary :all: uv; then
  "$bin/uv" pip install --quiet --python "$bin/python" "$@" && exit
fi
exec "$bin/pip" install --quiet "$@"
