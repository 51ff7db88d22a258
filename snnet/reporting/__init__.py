"""Parts of the run report, which ``snnet.report`` puts together."""
