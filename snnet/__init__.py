"""Person re-identification learned from images without labels. See ``python -m snnet.train --help``."""
