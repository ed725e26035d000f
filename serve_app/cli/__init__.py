"""The `raglane` command line. Client commands speak HTTP only; nothing here imports Ray before it has to."""
