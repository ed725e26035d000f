"""A kit that runs on one GPU without network: the engines alone, and the whole lane against its generator alone."""
