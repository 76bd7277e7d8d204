"""From official archives to a checked copy: download, unpack, look at every image, write. What `idml-zoo data` does."""
